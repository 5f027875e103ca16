"""Norms and distances: how far two gradients of one network are from each other (Zhao et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

DISTANCES = ("ours", "mse", "cos", "l1")
# As published, added to the product of the norms: a dead unit counts 1 and not NaN.
_TINY = 1e-6


def gradient_distance(real: Any, synthetic: Any, *, kind: str = "ours") -> jax.Array:
    """How far two gradients of the same network are from each other.

    Args:
      real: gradient with respect to ``params``, a pytree.
      synthetic: another of the same structure.
      kind: "ours" (the DC paper's): 1 - cosine of each output unit's weights, summed over units and tensors. A unit
        is an index of the last axis: an output channel of a convolution [k, k, C, O], an output of a Linear layer
        [D, O], a channel of a layer norm [H, W, C]. Tensors of one axis (biases, scales) contribute nothing.
        "mse": squared distance of the two as flat vectors; "cos": 1 - cosine of them; "l1": the sum of absolute
        differences (IDC); all three with biases and scales.

    Returns:
      [] at least 0; "ours" at most twice the number of units, "cos" at most 2. A cosine with a zero vector is 0.

    Raises:
      ValueError: if ``kind`` is unknown.
    """
    if kind not in DISTANCES:
        raise ValueError(f"distance {kind!r} must be one of {', '.join(DISTANCES)}")
    pairs = list(zip(jax.tree.leaves(real), jax.tree.leaves(synthetic), strict=True))
    if kind == "ours":
        # Flax keeps output units last (HWIO, [in, out]), PyTorch first; a unit's weights may come in any order.
        units = [tuple(x.reshape(-1, x.shape[-1]) for x in pair) for pair in pairs if pair[0].ndim > 1]
        return sum((_one_minus_cosine(a, b).sum() for a, b in units), start=jnp.zeros(()))
    # One vector of the whole network, biases included: the published alternatives leave nothing out.
    a, b = (jnp.concatenate([x.ravel() for x in side]) for side in zip(*pairs, strict=True))
    if kind == "l1":
        return jnp.sum(jnp.abs(a - b))
    return jnp.sum((a - b) ** 2) if kind == "mse" else _one_minus_cosine(a, b)


def _one_minus_cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Down the first axis."""
    return 1 - (a * b).sum(axis=0) / (norm(a, axis=0) * norm(b, axis=0) + _TINY)


def norm(x: jax.Array, *, axis: int | None = None) -> jax.Array:
    """Computes the Euclidean norm; its gradient at 0 is 0, where the root's own is infinite.

    Args:
      x: an array of any shape.
      axis: along which; None for all elements.
    """
    # Both branches of a where are differentiated, so the inner one keeps the root away from 0.
    squares = (x * x).sum(axis=axis)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
