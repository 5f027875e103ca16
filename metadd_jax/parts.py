"""The engine for sums over images, classes or groups that pass part by part, so that one part fills the memory.

    sums = sum_i function(item_i, shared)

``total`` is for a few sums, such as losses: where the forward pass of a part ends, its gradient is taken, so the
activations of one part are kept, nothing is computed twice, and what stays is as large as the arguments. ``means``
(images) and ``sum_each`` (classes, groups) are ``total`` with its weights and its vmap put in. ``add_up`` is for sums
as large as a network, which are not differentiated as they pass.

One rule of gradients, whatever the number of parts, of items at once and of devices:

- ``items`` and ``shared`` have their true gradients. A derivative that nobody asks for costs nothing, so networks that
  are not trained may stand in ``shared``; that of ``shared`` is kept for each part.
- Facts are constants. What else shall be one passes a ``stop_gradient``, and what a function closes over must be one.
- Forward mode (jvp) gives the true derivative too, from the same gradients: it takes a backward pass for each sum.
- Derivatives of derivatives are true, in any order, but plain: they keep the activations of all parts. Under an
  ``axis_name`` there are first derivatives only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal

_CPU_PART = 32


def total(
    function: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
    items: Any,
    shared: Any,
    *,
    size: int,
    weight: float = 1.0,
    axis_name: str | None = None,
) -> tuple[jax.Array, Any]:
    """Adds up ``function`` over parts of the items; see the module for its gradients.

    Args:
      function: ``(items [b, ...], weights [b], shared) -> (sums [R], facts)``; what an item adds is its weight times
        what it gives alone, since items of weight 0 fill up the last part. Facts are arrays [F, b, ...].
      items: pytree of arrays [n, ...].
      shared: pytree of arrays that all parts see.
      size: most items of a part.
      weight: that of each item; 1 / n for means.
      axis_name: under pmap, the axis of the devices that share the items. Each comes out with the whole sums, facts
        and gradients.

    Returns:
      The sums [R] and the facts [F, n, ...].
    """
    count = len(jax.tree.leaves(items)[0])
    own = count if axis_name is None else -(-count // jax.lax.axis_size(axis_name))
    parts, share = shares(own, size)

    if parts == 1 and axis_name is None:
        sums, facts = function(items, jnp.full(count, weight), shared)
        return sums, jax.lax.stop_gradient(facts)

    def divide(leaf: jax.Array) -> jax.Array:
        return _deal(jnp.concatenate([leaf, leaf[: parts * share - own]]), parts)

    def join(leaf: jax.Array) -> jax.Array:  # [parts, F, share, ...] -> [F, n, ...]
        leaf = jnp.moveaxis(leaf, 0, 2).reshape(leaf.shape[1], share * parts, *leaf.shape[3:])[:, :own]
        return leaf if axis_name is None else jax.lax.all_gather(leaf, axis_name, axis=1, tiled=True)[:, :count]

    def add(leaf: jax.Array) -> jax.Array:
        leaf = leaf.sum(axis=0)
        return leaf if axis_name is None else jax.lax.psum(leaf, axis_name)

    def each(one: Callable, items: Any, shared: Any) -> Any:
        present = jnp.full(own, weight)
        if axis_name is not None:
            places = jax.lax.axis_index(axis_name) * own + jnp.arange(own)
            present = jnp.where(places < count, present, 0)
            items = jax.tree.map(lambda leaf: leaf[jnp.minimum(places, count - 1)], items)
        weights = _deal(jnp.pad(present, (0, parts * share - own)), parts)
        return jax.lax.map(lambda part: one(*part, shared), (jax.tree.map(divide, items), weights))

    @jax.custom_jvp
    def run(items: Any, shared: Any) -> tuple[jax.Array, Any]:
        sums, facts = each(function, items, shared)
        return add(sums), jax.tree.map(join, facts)

    def with_slope(arguments: tuple[Any, Any], directions: tuple[Any, Any]) -> tuple:
        # Symbolic zeros tell in which leaves a derivative is asked for.
        leaves, along = jax.tree.leaves(arguments), jax.tree.leaves(directions)
        asked = [place for place in range(len(leaves)) if type(along[place]) is not SymbolicZero]

        sums, facts, gradients = each(_with_gradients(function, asked), *arguments)
        sums, facts = add(sums), jax.tree.map(join, facts)
        slope = jnp.zeros_like(sums)
        for place, gradient in zip(asked, gradients, strict=True):
            whole = join(gradient) if place < len(jax.tree.leaves(arguments[0])) else add(gradient)  # [R, ...]
            product = whole * along[place].astype(slope.dtype)  # images may be narrower than the sums
            slope += product.sum(axis=range(1, whole.ndim)).astype(slope.dtype)
        return (sums, facts), (slope, jax.tree.map(lambda x: zero_from_primal(x, symbolic_zeros=True), facts))

    run.defjvp(with_slope, symbolic_zeros=True)
    return run(items, shared)


def _with_gradients(function: Callable, asked: list[int]) -> Callable[[Any, jax.Array, Any], tuple]:
    """``function`` of a part, with the gradient of each of its sums in the ``asked`` leaves of (items, shared)."""

    def with_gradients(items: Any, weights: jax.Array, shared: Any) -> tuple:
        leaves, tree = jax.tree.flatten((items, shared))

        def of(chosen: list) -> tuple[jax.Array, Any]:
            for place, leaf in zip(asked, chosen, strict=True):
                leaves[place] = leaf
            items, shared = jax.tree.unflatten(tree, leaves)
            return function(items, weights, shared)

        sums, pull, facts = jax.vjp(of, [leaves[place] for place in asked], has_aux=True)
        if len(sums) == 1:  # a loop of one round is no loop
            return sums, facts, jax.tree.map(lambda leaf: leaf[None], pull(jnp.ones_like(sums))[0])
        return sums, facts, jax.lax.map(lambda row: pull(row)[0], jnp.eye(len(sums), dtype=sums.dtype))

    return with_gradients


def sum_each(function: Callable[[Any, Any], jax.Array], items: Any, shared: Any, *, at_once: int = 1) -> jax.Array:
    """Adds up the losses of items that are computed each alone, such as classes.

    Args:
      function: ``(item, shared) -> loss []``.
      items: pytree of arrays [n, ...].
      shared: pytree of arrays that all items see.
      at_once: see ``alone``; what n leaves over passes as a smaller part.

    Returns:
      The sum [].
    """

    def some(part: Any, weights: jax.Array, shared: Any) -> tuple[jax.Array, tuple]:
        losses = alone(lambda item: function(item, shared), part, at_once=at_once)
        return (losses * weights).sum(keepdims=True), ()

    count = len(jax.tree.leaves(items)[0])
    full = count - count % at_once
    sums = [
        total(some, jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], items), shared, size=at_once)[0]
        for first, last in ((0, full), (full, count))
        if first < last
    ]
    return functools.reduce(jnp.add, sums)[0]


def alone(function: Callable[[Any], Any], items: Any, *, at_once: int) -> Any:
    """``function`` of each item of arrays [b, ...], results stacked; ``at_once`` is the most that b is.

    One at a time (1) runs only the branch that was drawn, such as one op of an augmentation; under ``vmap`` (above 1)
    all of them run, and memory grows with the number.
    """
    if at_once > 1:
        return jax.vmap(function)(items)
    return jax.tree.map(lambda leaf: leaf[None], function(jax.tree.map(lambda leaf: leaf[0], items)))


def means(
    function: Callable[[jax.Array, Any, jax.Array, Any, Any], tuple[jax.Array, Any]],
    images: jax.Array,
    items: Any,
    shared: Any,
    frozen: Any,
    *,
    size: int,
) -> tuple[jax.Array, Any]:
    """R means over images [B, ...], differentiable in the images and in ``shared``.

    Args:
      function: ``(images [b, ...], items [b, ...], weights [b], shared, frozen) -> (sums [R], facts)``; what an image
        adds is its weight, 1 / B or 0, times what it gives alone. Facts are arrays [F, b, ...].
      images: [B, ...] float.
      items: pytree of arrays [B, ...] that go with the images; constants.
      shared: pytree of float arrays that all parts see.
      frozen: pytree of arrays that all parts see; constants.
      size: most images of a part.

    Returns:
      The means [R] and the facts [F, B, ...].
    """

    def some(part: tuple[jax.Array, Any], weights: jax.Array, everywhere: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        return function(*part, weights, *everywhere)

    items, frozen = jax.lax.stop_gradient((items, frozen))
    return total(some, (images, items), (shared, frozen), size=size, weight=1 / len(images))


def add_up(function: Callable[[Any], Any], items: Any, *, size: int | None = None) -> Any:
    """Adds up ``function`` over parts of the items: sums of any shape, differentiated plainly.

    Args:
      function: from a part of ``items`` to a pytree of sums over it, to which items of zeros add nothing.
      items: pytree of arrays [n, ...]; zeros fill up the last part.
      size: most items of a part; None takes all at once, on a CPU 32 (docs/costs.md: what then passes from layer to
        layer stays in its caches).
    """
    count = len(jax.tree.leaves(items)[0])
    parts, share = shares(count, size or (_CPU_PART if jax.default_backend() == "cpu" else count))
    if parts == 1:
        return function(items)

    def divide(leaf: jax.Array) -> jax.Array:
        return _deal(jnp.pad(leaf, ((0, parts * share - count), *[(0, 0)] * (leaf.ndim - 1))), parts)

    divided = jax.tree.map(divide, items)
    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], divided))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), start, divided)[0]


def map_parts(function: Callable[[Any], jax.Array], items: Any, *, size: int) -> jax.Array:
    """Computes ``function`` of parts of the items and joins what it gives, differentiated plainly: [n k, ...].

    Args:
      function: from a part of ``items`` [b, ...] to [b k, ...], k results of each item one after the other.
      items: pytree of arrays [n, ...]; the first ones fill up the last part.
      size: most items of a part.
    """
    count = len(jax.tree.leaves(items)[0])
    parts, share = shares(count, size)

    def divide(leaf: jax.Array) -> jax.Array:
        filled = jnp.concatenate([leaf, leaf[: parts * share - count]])
        return filled.reshape(parts, share, *leaf.shape[1:])

    found = jax.lax.map(function, jax.tree.map(divide, items))
    each = found.shape[1] // share
    return found.reshape(-1, *found.shape[2:])[: count * each]


def shares(count: int, most: int) -> tuple[int, int]:
    """How many parts of at most ``most`` items hold ``count`` of them, and the items of each part, all alike."""
    parts = -(-count // most)
    return parts, -(-count // parts)


def _deal(items: jax.Array, parts: int) -> jax.Array:
    """[parts * share, ...] -> [parts, share, ...].

    Neighbours go to different parts, so that devices that hold neighbours all have work in every part.
    """
    return items.reshape(-1, parts, *items.shape[1:]).swapaxes(0, 1)
