"""Latents that reproduce given images: Adam on the mean squared error, told as it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import parallel

_PIECES = 20
Latents = TypeVar("Latents")


def fit(
    maker: Any,
    latents: Latents,
    frozen: Any,
    images: jax.Array,
    *,
    lr: float,
    steps: int,
    on_fit: Callable[[int, int], None] | None,
) -> Latents:
    """Fits latents to images, each item to its own image.

    Args:
      maker: hashable, with ``decode(latents, frozen) -> images``; compiled once for all seeds and methods of a job.
      latents: a pytree of arrays [N, ...], item i of each making image i alone.
      frozen: what ``decode`` takes besides.
      images: [N, H, W, C].
      lr: Adam's learning rate.
      steps: updates; 0 leaves the latents as they are.
      on_fit: called as (updates done, updates in all) about 20 times, or None.
    """
    state, done = optax.adam(lr).init(latents), 0
    # In pieces, so that the host can tell how far it is; where a job asks for shapes alone they are traced alike.
    for piece in np.diff(np.linspace(0, steps, min(_PIECES, steps) + 1).round().astype(np.int32)):
        latents, state = _adam(latents, state, frozen, images, piece, maker=maker, lr=lr)
        done += int(piece)
        if on_fit is not None and not isinstance(jax.tree.leaves(latents)[0], jax.core.Tracer):
            jax.block_until_ready(latents)
            on_fit(done, steps)
    return latents


def _adam_steps(
    latents: Any, state: Any, frozen: Any, images: jax.Array, count: jax.Array, *, maker: Any, lr: float
) -> tuple[Any, Any]:
    def error(latents: Any) -> jax.Array:
        # Summed over the items, not averaged: no item's gradient depends on how many others there are.
        return jnp.mean((maker.decode(latents, frozen) - images) ** 2, axis=(1, 2, 3)).sum()

    def step(_: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        latents, state = carry
        updates, state = optax.adam(lr).update(jax.grad(error)(latents), state, latents)
        return jax.tree.map(jnp.add, latents, updates), state

    return jax.lax.fori_loop(0, count, step, (latents, state))


_adam = parallel.jit(_adam_steps, static_argnames=("maker", "lr"))
