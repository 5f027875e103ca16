"""GSAM: a step towards weights around which the loss is flat, with which FTD's and DATM's experts are trained.

Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training" (ICLR 2022), adaptive as in ASAM (Kwon et
al., ICML 2021). With g the gradient of a batch at the weights p (products elementwise, norms over all weights),

    e  = rho |p|^2 g / || |p| g ||        the way uphill, in proportion to the size of each weight;
    g' = the gradient of the same batch at p + e;
    v  = g - (cos ||g||) g' / ||g'||      what of g is perpendicular to g', cos between g and g';
    the update goes along g' - alpha v.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import optax

_TINY = 1e-12  # so that weights without a gradient stay where they are


def perturbation(params: chex.ArrayTree, gradient: chex.ArrayTree, rho: float) -> chex.ArrayTree:
    """Computes e, the way to the place where the second gradient is taken.

    Args:
      params: the weights p.
      gradient: g at them.
      rho: length of the way, relative to the weights.
    """
    scaled = jax.tree.map(lambda p, g: jnp.abs(p) * g, params, gradient)
    length = rho / (optax.tree.norm(scaled) + _TINY)
    return jax.tree.map(lambda p, g: p**2 * g * length, params, gradient)


def direction(gradient: chex.ArrayTree, ahead: chex.ArrayTree, alpha: float) -> chex.ArrayTree:
    """Computes g' - alpha v, which an optimiser takes for the gradient.

    Args:
      gradient: g.
      ahead: g'.
      alpha: weight of v, which lowers the gap between the loss at p + e and at p.
    """
    product = optax.tree.vdot(gradient, ahead) / (optax.tree.norm(ahead) ** 2 + _TINY)  # cos ||g|| / ||g'||
    return jax.tree.map(lambda g, a: a - alpha * (g - product * a), gradient, ahead)
