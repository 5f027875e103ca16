"""Means over images that pass part by part, the gradient of each part taken as it passes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Function = Callable[[jax.Array, Any, jax.Array, Any, Any], tuple[jax.Array, Any]]


def shares(count: int, most: int) -> tuple[int, int]:
    """How many parts of at most ``most`` items hold ``count`` of them, and the items of each part, all alike."""
    parts = -(-count // most)
    return parts, -(-count // parts)


def deal(items: jax.Array, parts: int) -> jax.Array:
    """[parts * share, ...] -> [parts, share, ...].

    Neighbours go to different parts, so that devices that hold neighbours all have work in every part.
    """
    return items.reshape(-1, parts, *items.shape[1:]).swapaxes(0, 1)


def means(
    function: Function, images: jax.Array, items: Any, shared: Any, frozen: Any, *, size: int
) -> tuple[jax.Array, Any]:
    """R sums over images [B, ...] with weight 1 / B each, differentiable in the images and in ``shared``.

    Only one part's activations are kept at a time, and nothing is computed twice: R derivatives are taken where the
    forward pass of the part ends. Those of ``shared`` have R times its size, so what is large belongs to ``frozen``.
    Gradients (of reverse mode, also of each other) are the same in one part and in several; everything but the images
    and ``shared`` is a constant in both.

    Args:
      function: ``(images [b, ...], items [b, ...], weights [b], shared, frozen) -> (sums [R], facts)``; what an image
        adds is its weight times what it gives alone, so images of weight 0 may fill up the last part. Facts are arrays
        [N, b, ...].
      images: [B, ...] float.
      items: pytree of arrays [B, ...] that go with the images; constants.
      shared: pytree of float arrays that all parts see.
      frozen: pytree of arrays that all parts see; constants.
      size: largest part.

    Returns:
      The sums [R] and the facts [N, B, ...], constants.
    """
    count = len(images)
    parts, share = shares(count, size)
    items, frozen = jax.lax.stop_gradient((items, frozen))
    if parts == 1:
        sums, facts = function(images, items, jnp.full(count, 1.0 / count), shared, frozen)
        return sums, jax.lax.stop_gradient(facts)

    def divide(leaf: jax.Array) -> jax.Array:
        return deal(jnp.concatenate([leaf, leaf[: parts * share - count]]), parts)

    def join(leaf: jax.Array) -> jax.Array:  # from [parts, N, share, ...]
        return jnp.moveaxis(leaf, 0, 2).reshape(leaf.shape[1], share * parts, *leaf.shape[3:])[:, :count]

    def each(one: Callable, images: jax.Array, items: Any, shared: Any, frozen: Any) -> Any:
        weights = deal(jnp.where(jnp.arange(parts * share) < count, 1.0 / count, 0.0), parts)
        divided = jax.tree.map(divide, (images, items))
        return jax.lax.map(lambda part: one(*part[0], part[1], shared, frozen), (divided, weights))

    def with_gradients(images: jax.Array, items: Any, weights: jax.Array, shared: Any, frozen: Any) -> tuple:
        def of(images: jax.Array, shared: Any) -> tuple[jax.Array, Any]:
            return function(images, items, weights, shared, frozen)

        sums, pull, facts = jax.vjp(of, images, shared, has_aux=True)
        return sums, facts, jax.lax.map(pull, jnp.eye(len(sums), dtype=sums.dtype))

    @jax.custom_vjp
    def total(*arguments: Any) -> tuple[jax.Array, Any]:
        sums, facts = each(function, *arguments)
        return sums.sum(axis=0), jax.tree.map(join, facts)

    def forward(*arguments: Any) -> tuple[tuple[jax.Array, Any], tuple[jax.Array, Any]]:
        sums, facts, (of_images, of_shared) = each(with_gradients, *arguments)
        gradients = join(of_images), jax.tree.map(lambda leaf: leaf.sum(axis=0), of_shared)
        return (sums.sum(axis=0), jax.tree.map(join, facts)), gradients

    def backward(gradients: tuple[jax.Array, Any], slopes: tuple[jax.Array, Any]) -> tuple:
        of_images, of_shared = jax.tree.map(lambda leaf: jnp.tensordot(slopes[0], leaf, axes=1), gradients)
        return of_images, None, of_shared, None

    total.defvjp(forward, backward)
    sums, facts = total(images, items, shared, frozen)
    return sums, jax.lax.stop_gradient(facts)
