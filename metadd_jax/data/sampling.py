"""Draws real images: class batches on the device, initial images, and pools streamed from the host.

Everything but ``random_per_class`` (which checks class sizes) and ``stream_pool`` (which is host code) may be
traced by jit, vmap and scan. Keep the ``ImageArrays`` on the device (``data.to_device``) and pass them in as
an argument: NumPy arrays would be copied there at every call, or become constants of the compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metadd_jax import eager, keys
from metadd_jax.ranges import OneOf, Whole, require
from metadd_jax.structs import ImageArrays

SHORT_CLASS = ("error", "repeat", "fewer")


def standardise(images: ArrayLike, mean: ArrayLike | None, std: ArrayLike | None) -> jax.Array:
    """Brings pixels into the value space of the set: ``(images / 255 - mean) / std``.

    Args:
      images: [..., C] uint8 in [0, 255]; floats are in the set's value space already (a whitened set) and stay as
        they are.
      mean: [C], of pixels in [0, 1]; None where the images are floats.
      std: [C], of pixels in [0, 1], positive; None where the images are floats.

    Returns:
      [..., C] float32.

    Raises:
      ValueError: for integers without ``mean`` and ``std``.
    """
    # By the type, since whitened pixels have no range to tell them by.
    given = jnp.result_type(images)
    if jnp.issubdtype(given, jnp.floating):
        return jnp.asarray(images, jnp.float32)
    if mean is None or std is None:
        raise ValueError(
            f"images are {given} pixels but come without mean and std; bring them into the set's "
            "value space by data.standardise, or give both"
        )
    return (jnp.asarray(images, jnp.float32) / 255.0 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def class_indices(
    key: jax.Array, arrays: ImageArrays, class_index: ArrayLike, batch: int
) -> tuple[jax.Array, jax.Array]:
    """Draws distinct images of one class, as positions in ``arrays.images``.

    Every subset is equally likely, and so is every order. A class with fewer than ``batch`` images gives all of them,
    and padding behind. Several devices that call this with the same key may each gather a slice of the same draw.

    Args:
      key: typed PRNG key.
      arrays: the real images.
      class_index: [] integer in [0, K), may be traced.
      batch: how many to draw (static).

    Returns:
      indices: [batch] int32 in [0, N); at padded places the first image of the class.
      weights: [batch] float32, 1 for an image and 0 for padding.
    """
    return _class_indices(key, *_sizes(arrays), class_index, most=arrays.max_count, batch=batch)


def _sizes(arrays: ImageArrays) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(arrays.counts, jnp.int32), jnp.asarray(arrays.offsets, jnp.int32)


@eager.one_program(static_argnames=("most", "batch"))
def _class_indices(
    key: jax.Array, counts: jax.Array, offsets: jax.Array, class_index: ArrayLike, *, most: int, batch: int
) -> tuple[jax.Array, jax.Array]:
    count = counts[class_index]
    # Each image gets a random number and the smallest win. jax.random.choice without replacement would do the same, but
    # it needs the size of the class at compile time, which is one program a class.
    slots = jnp.arange(most)
    scores = jnp.where(slots < count, jax.random.uniform(key, slots.shape), jnp.inf)
    drawn = min(batch, most)
    _, picks = jax.lax.top_k(-scores, drawn)
    picks = jnp.pad(picks, (0, batch - drawn))
    valid = jnp.arange(batch) < count
    indices = offsets[class_index] + jnp.where(valid, picks, 0)
    return indices.astype(jnp.int32), valid.astype(jnp.float32)


def per_class(ipc: int | Sequence[int], num_classes: int) -> tuple[int, ...]:
    """Spells out the images of each class.

    Args:
      ipc: one number for all classes, or one a class in the order of the labels; each at least 1.
      num_classes: K.

    Returns:
      [K] numbers.

    Raises:
      ValueError: if a number is below 1, or there are not ``num_classes`` of them.
    """
    if isinstance(ipc, str) or not isinstance(ipc, Sequence | np.ndarray):
        require("ipc", ipc, Whole(1))
        return (int(ipc),) * num_classes
    if len(ipc) != num_classes:
        raise ValueError(f"ipc gives {len(ipc)} numbers for {num_classes} classes; give one number, or one a class")
    for label, count in enumerate(ipc):
        require(f"ipc of class {label}", count, Whole(1))
    return tuple(map(int, ipc))


def images_per_class(arrays: ImageArrays, ipc: int | Sequence[int], *, short_class: str = "error") -> tuple[int, ...]:
    """Tells how many images of each class the real data can give, by an explicit policy for classes with too few.

    Args:
      arrays: the real images.
      ipc: wanted images per class, see ``per_class``.
      short_class: what a class with fewer real images than that does: "error"; "repeat", it uses images again (say
        ``repeat=True`` where they are drawn); "fewer", it gives as many as it has.

    Returns:
      [K] numbers, for the ``ipc`` of methods and baselines.

    Raises:
      ValueError: for a number that ``per_class`` refuses; under "error" for a class that is too small.
    """
    require("short_class", short_class, OneOf(SHORT_CLASS))
    wanted = per_class(ipc, len(arrays.counts))
    if short_class == "repeat":
        return wanted
    if short_class == "error":
        _require_enough(wanted, arrays)
    return tuple(min(count, int(size)) for count, size in zip(wanted, np.asarray(arrays.counts), strict=True))


def _require_enough(wanted: Sequence[int], arrays: ImageArrays) -> None:
    sizes = np.asarray(arrays.counts)
    # The class that lacks most: with its number mended all others fit.
    worst = int(np.argmax(np.subtract(wanted, sizes)))
    if wanted[worst] > sizes[worst]:
        raise ValueError(
            f"ipc is {wanted[worst]}, but class {worst} has {sizes[worst]} images; lower ipc, or set short_class: "
            "repeat (its images again) or fewer (as many as it has)"
        )


def random_per_class(
    key: jax.Array, arrays: ImageArrays, ipc: int | Sequence[int], *, repeat: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Draws ``ipc`` distinct real images of every class: the start of DM and the random baseline.

    Not traceable: it reads the class sizes.

    Args:
      key: typed PRNG key.
      arrays: the real images.
      ipc: images per class, see ``per_class``.
      repeat: whether a class with fewer images gives them again, in the same order, as often as it takes.

    Returns:
      images: [N, H, W, C] float32, standardised, class-major; N is K * ipc, or the sum over the classes.
      labels: [N] int32.

    Raises:
      ValueError: if ``ipc`` is below 1 or, without ``repeat``, above the size of a class.
    """
    rows, labels = random_rows(key, arrays, ipc, repeat=repeat)
    return standardise(_take(arrays.images, rows), arrays.mean, arrays.std), jnp.asarray(labels, jnp.int32)


def random_rows(
    key: jax.Array, arrays: ImageArrays, ipc: int | Sequence[int], *, repeat: bool = False
) -> tuple[jax.Array, np.ndarray]:
    """Draws as ``random_per_class`` does, without reading an image: for images that stay on the host.

    Args:
      key: typed PRNG key.
      arrays: the real images, of which only the class sizes are read.
      ipc: images per class, see ``per_class``.
      repeat: whether a class with fewer images gives them again.

    Returns:
      rows: [N] int32, positions in ``arrays.images``, class-major.
      labels: [N] int32, their classes.

    Raises:
      ValueError: as ``random_per_class``.
    """
    sizes = np.asarray(arrays.counts)
    wanted = per_class(ipc, len(sizes))
    if not repeat:
        _require_enough(wanted, arrays)
    batch, labels = max(wanted), np.arange(len(sizes), dtype=np.int32)
    # As many of each class as the largest needs, so that one program draws them all; what is too much is cut off.
    places = [label * batch + np.arange(count) % size for label, count, size in zip(labels, wanted, sizes, strict=True)]
    rows = _random_rows(key, *_sizes(arrays), np.concatenate(places), most=arrays.max_count, batch=batch)
    return rows, np.repeat(labels, wanted)


@eager.one_program(static_argnames=("most", "batch"))
def _random_rows(
    key: jax.Array, counts: jax.Array, offsets: jax.Array, places: np.ndarray, *, most: int, batch: int
) -> jax.Array:
    def draw(key: jax.Array, label: jax.Array) -> jax.Array:
        return _class_indices(key, counts, offsets, label, most=most, batch=batch)[0]

    rows = jax.vmap(draw)(jax.random.split(key, len(counts)), jnp.arange(len(counts)))
    return rows.ravel()[places]


@eager.one_program()
def _take(images: ArrayLike, rows: jax.Array) -> jax.Array:
    return jnp.asarray(images)[rows]


def stream_pool(arrays: ImageArrays, seed: int, chunk: int, per_class: int) -> ImageArrays:
    """Draws a class-balanced pool on the host, for a set that does not fit on the device.

    Between chunks of steps the caller puts the next pool on the device in place of the last one. Shapes and
    static fields are the same for every chunk, so nothing is compiled again.

    Args:
      arrays: all real images, NumPy (may be memory-mapped).
      seed: seed of the run, not negative.
      chunk: number of the chunk, not negative; with the seed it fixes the pool.
      per_class: images a class, drawn without replacement; a smaller class comes whole.

    Returns:
      The pool: NumPy ``ImageArrays`` with the constants of ``arrays``.

    Raises:
      ValueError: if ``per_class`` is below 1.
    """
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; stream at least 1 image a class")
    generator = keys.generator("stream", seed, chunk)
    counts = np.minimum(arrays.counts, per_class).astype(np.int32)
    # Sorted within a class: the draws from a pool are random anyway, and a disk reads forwards.
    picks = np.concatenate(
        [
            offset + np.sort(generator.choice(size, count, replace=False))
            for offset, size, count in zip(arrays.offsets, arrays.counts, counts, strict=True)
        ]
    )
    return dataclasses.replace(
        arrays,
        images=np.asarray(arrays.images[picks]),
        labels=np.asarray(arrays.labels[picks]),
        offsets=(np.cumsum(counts) - counts).astype(np.int32),
        counts=counts,
        max_count=int(counts.max()),
    )
