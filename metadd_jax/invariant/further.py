"""Auxiliaries that are trained further on the synthetic set as it grows, in place of frozen ones.

Ours. Before each update of the set every auxiliary takes one step of plain gradient descent on the set as it stands,

    theta_m <- theta_m - eta grad_theta 1/B sum_i CE(f_m(x_i), y_i),

from its weights trained on real images on. What it then asks of the set is what a network that has learned from the set
does not know yet. Batch norm keeps the statistics of the real images. Nothing holds a network to the real images: with
a large eta it forgets them, and its cross-entropy on the set is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metadd_jax import parts
from metadd_jax.invariant.loss import part_size, shared_view
from metadd_jax.invariant.settings import InvariantConfig
from metadd_jax.invariant.terms import Term, cross_entropy
from metadd_jax.structs import Auxiliary

_STALE = ("real", "real_maps")


def own_params(auxiliaries: Sequence[Auxiliary]) -> tuple[Any, ...]:
    """Copies the parameters of each network, to be trained: trees of arrays, without batch statistics."""
    # Copies: a run gives a state's memory away at every chunk, and the frozen networks stay.
    return tuple(jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), one.variables["params"]) for one in auxiliaries)


def with_params(auxiliaries: Sequence[Auxiliary], params: Sequence[Any]) -> tuple[Auxiliary, ...]:
    """Puts the ``params`` of each network (as from ``own_params``) in the place of its own."""
    pairs = zip(auxiliaries, params, strict=True)
    return tuple(dataclasses.replace(one, variables={**one.variables, "params": own}) for one, own in pairs)


def train_further(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    params: Sequence[Any],
    *,
    config: InvariantConfig,
) -> tuple[Any, ...]:
    """Takes the step of the module's formula with every network: the new ``params``.

    Args:
      key: draws the shared view and the random subset.
      images: [N, H, W, C] in the set's value space.
      labels: [N] int.
      auxiliaries: M networks, for all but their parameters.
      params: M trees of parameters.
      config: ``further_lr``, eta; ``views``, ``subset`` and ``micro_batch`` count as in the loss.

    Raises:
      ValueError: for a subset larger than the set.
    """

    def summed(images: jax.Array, labels: jax.Array, shares: jax.Array, params: Any, networks: Any) -> tuple:
        logits = []
        for one, own in zip(networks, params, strict=True):
            seen = images if one.preprocess is None else one.preprocess(images)
            logits.append(one.net.apply({**one.variables, "params": own}, seen)[0])
        # The sum over networks: each has parameters of its own, so each has its own gradient.
        return (cross_entropy(jnp.stack(logits), labels).sum(axis=0) @ shares)[None], ()

    images, labels = shared_view(key, jax.lax.stop_gradient(images), labels, config)
    size = part_size(images, config, {})

    def loss(params: Any) -> jax.Array:
        return parts.means(summed, images, labels, params, tuple(auxiliaries), size=size)[0][0]

    slopes = jax.grad(loss)(tuple(params))
    return jax.tree.map(lambda p, g: p - config.further_lr * g, tuple(params), slopes)


def drift(auxiliaries: Sequence[Auxiliary], params: Sequence[Any]) -> jax.Array:
    """How far the networks went: |theta_m - theta_m at the start| / |theta_m at the start|, mean over m, []."""
    starts = [one.variables["params"] for one in auxiliaries]
    ways = [jax.tree.map(jnp.subtract, own, start) for own, start in zip(params, starts, strict=True)]
    norm = optax.tree.norm
    return jnp.stack([norm(way) / norm(start) for way, start in zip(ways, starts, strict=True)]).mean()


def check_further(config: InvariantConfig, terms: Mapping[str, Term]) -> None:
    """Refuses terms that compare moving networks with what they made of the real images before they moved.

    Args:
      config: its ``further_lr`` counts.
      terms: those in use, by name.

    Raises:
      ValueError: naming the first.
    """
    stale = [name for name, term in terms.items() if set(term.needs or ()) & set(_STALE)]
    if config.further_lr and stale:
        raise ValueError(
            f"further_lr={config.further_lr} trains the auxiliaries on, and L_{stale[0]} compares with what they made "
            "of real images before; leave one of the two out"
        )
