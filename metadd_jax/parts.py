"""Means over images that pass part by part, the gradient of each part taken as it passes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Function = Callable[[jax.Array, Any, jax.Array, Any], tuple[jax.Array, Any]]


def shares(count: int, most: int) -> tuple[int, int]:
    """How many parts of at most ``most`` items hold ``count`` of them, and the items of each part, all alike."""
    parts = -(-count // most)
    return parts, -(-count // parts)


def deal(items: jax.Array, parts: int) -> jax.Array:
    """[parts * share, ...] -> [parts, share, ...].

    Neighbours go to different parts, so that devices that hold neighbours all have work in every part.
    """
    return items.reshape(-1, parts, *items.shape[1:]).swapaxes(0, 1)


def means(function: Function, images: jax.Array, items: Any, shared: Any, *, size: int) -> tuple[jax.Array, Any]:
    """R sums over images [B, ...] with weight 1 / B each; their gradient goes to the images alone.

    Only one part's activations are kept at a time, and nothing is computed twice: R derivatives are taken where the
    forward pass of the part ends.

    Args:
      function: ``(images [b, ...], items [b, ...], weights [b], shared) -> (sums [R], facts)``; what an image adds
        is its weight times what it gives alone, so images of weight 0 may fill up the last part. Facts are arrays
        [N, b, ...], constants.
      images: [B, ...] float.
      items: pytree of arrays [B, ...] that go with the images.
      shared: pytree of arrays that all parts see.
      size: largest part.

    Returns:
      The sums [R] and the facts [N, B, ...].
    """
    count = len(images)
    parts, share = shares(count, size)
    if parts == 1:
        return function(images, items, jnp.full(count, 1.0 / count), shared)

    def divide(leaf: jax.Array) -> jax.Array:
        return deal(jnp.concatenate([leaf, leaf[: parts * share - count]]), parts)

    def join(leaf: jax.Array) -> jax.Array:  # from [parts, N, share, ...]
        return jnp.moveaxis(leaf, 0, 2).reshape(leaf.shape[1], share * parts, *leaf.shape[3:])[:, :count]

    def each(one: Callable, images: jax.Array, items: Any, shared: Any) -> Any:
        weights = deal(jnp.where(jnp.arange(parts * share) < count, 1.0 / count, 0.0), parts)
        divided = jax.tree.map(divide, (images, items))
        return jax.lax.map(lambda part: one(*part[0], part[1], shared), (divided, weights))

    def with_gradients(images: jax.Array, *rest: Any) -> tuple[jax.Array, Any, jax.Array]:
        sums, pull, facts = jax.vjp(lambda images: function(images, *rest), images, has_aux=True)
        return sums, facts, jax.lax.map(lambda row: pull(row)[0], jnp.eye(len(sums)))

    @jax.custom_vjp
    def total(*arguments: Any) -> tuple[jax.Array, Any]:
        sums, facts = each(function, *arguments)
        return sums.sum(axis=0), jax.tree.map(join, facts)

    def forward(*arguments: Any) -> tuple[tuple[jax.Array, Any], jax.Array]:
        sums, facts, gradients = each(with_gradients, *arguments)
        return (sums.sum(axis=0), jax.tree.map(join, facts)), join(gradients)

    def backward(gradients: jax.Array, slopes: tuple[jax.Array, Any]) -> tuple[jax.Array, None, None]:
        return jnp.tensordot(slopes[0], gradients, axes=1), None, None

    total.defvjp(forward, backward)
    return total(images, items, shared)
