"""What some terms want of a frozen network beside its view of the synthetic images; measured once, before a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import features, keys, parallel, zoo
from metadd_jax.data import sampling
from metadd_jax.invariant.terms import Term
from metadd_jax.structs import Auxiliary, Dataset, RealSide

_PART = 500  # real images that pass a network at once


def map_way(net: zoo.Architecture, cam: features.CamConfig) -> str:
    """Names all that decides a network's map but the image: its kind, and what becomes of low values.

    Args:
      net: the network.
      cam: how maps are made.

    Raises:
      ValueError: if the network has no spatial map.
    """
    kind = features.map_kind(net, cam)
    if cam.low_confidence == "none":
        return kind
    return f"{kind}, low confidence {cam.low_confidence}" + f" to {cam.threshold:g}" * (cam.threshold != 0.5)


def equip(
    auxiliaries: Sequence[Auxiliary],
    dataset: Dataset,
    terms: Iterable[Term],
    *,
    cam: features.CamConfig | None = None,
) -> list[Auxiliary]:
    """Adds to frozen networks what the terms ask for and they do not have: the real side, an untrained twin, real maps.

    Args:
      auxiliaries: M frozen networks.
      dataset: the real data; all training images pass each network once where a term needs "real", and once for
        "real_maps".
      terms: those that will be used.
      cam: how the maps of real images are made, the ``cam`` of the loss; None for the defaults.

    Returns:
      The networks, in their order; as they are where no term asks for more.

    Raises:
      ValueError: if a term needs "real_maps" of a network without a spatial map.
    """
    asked = {need for term in terms for need in term.needs or ()}
    cam, found = cam or features.CamConfig(), list(auxiliaries)
    if "real" in asked:
        found = [one if one.real else dataclasses.replace(one, real=real_side(one, dataset)) for one in found]
    if "untrained" in asked:
        found = [
            one if one.untrained else dataclasses.replace(one, untrained=untrained(one, dataset, number))
            for number, one in enumerate(found)
        ]
    if "real_maps" in asked:
        found = [
            one
            if map_way(one.net, cam) in (one.real_maps or {})
            else _with_maps(one, cam, mean_maps(one, dataset, cam=cam))
            for one in found
        ]
    return found


def _with_maps(auxiliary: Auxiliary, cam: features.CamConfig, maps: jax.Array) -> Auxiliary:
    # Beside those that it has: variants of one run may make maps in other ways.
    return dataclasses.replace(auxiliary, real_maps={**(auxiliary.real_maps or {}), map_way(auxiliary.net, cam): maps})


def untrained(auxiliary: Auxiliary, dataset: Dataset, seed: int) -> Auxiliary:
    """Makes the same network with random weights, the ranges of its maps measured as for any other.

    Args:
      auxiliary: the frozen network.
      dataset: the real data.
      seed: of the weights.
    """
    variables = auxiliary.net.init(keys.root(seed, "control"))
    return features.freeze(auxiliary.net, variables, dataset, preprocess=auxiliary.preprocess)


def real_side(auxiliary: Auxiliary, dataset: Dataset) -> RealSide:
    """Measures what a network makes of the training images, all of them.

    Args:
      auxiliary: the frozen network.
      dataset: the real data.

    Returns:
      See ``RealSide``, all float32; sums are taken in float64.
    """
    classes = dataset.num_classes

    def sums(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        h = features.observe(auxiliary, images, labels, maps=False).embedding
        own = jax.nn.one_hot(labels, classes)  # a label of -1, which fills up the last part, is no class
        squares = (h**2).sum(axis=-1)
        length = jnp.sqrt(squares)[:, None]
        return own.T @ h, own.T @ (h / jnp.maximum(length, 1e-12)), own.sum(axis=-1) @ squares, own.T @ h**2

    counts, (each, directions, squares, each_squared) = _over_real(sums, dataset, 4)
    divisor = np.maximum(counts, 1)[:, None]
    centre = each.sum(axis=0) / counts.sum()
    spread = np.sqrt(max(float(squares) / counts.sum() - float(centre @ centre), 0.0))
    variances = np.maximum(each_squared / divisor - (each / divisor) ** 2, 0.0)
    measured = (counts, each / divisor, directions / divisor, spread, variances)
    return RealSide(*(jnp.asarray(x, jnp.float32) for x in measured))


def mean_maps(auxiliary: Auxiliary, dataset: Dataset, *, cam: features.CamConfig | None = None) -> jax.Array:
    """Averages the class activation maps of the training images, all of them, each at its own label.

    Args:
      auxiliary: the frozen network, with a spatial map.
      dataset: the real data.
      cam: how maps are made; None for the defaults.

    Returns:
      [K, H, W] float32 in [0, 1]; 0 for a class without images. Sums are taken in float64.

    Raises:
      ValueError: if the network has no spatial map.
    """
    classes = dataset.num_classes

    def sums(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        maps = features.observe(auxiliary, images, labels, config=cam).maps
        assert maps is not None  # asked for
        return (jnp.einsum("bk,bhw->khw", jax.nn.one_hot(labels, classes), maps),)

    counts, (total,) = _over_real(sums, dataset, 1)
    return jnp.asarray(total / np.maximum(counts, 1)[:, None, None], jnp.float32)


def _over_real(
    sums: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]], dataset: Dataset, number: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Adds up ``number`` sums over the training images in parts, in float64; the counts [K] of the classes first."""
    arrays, part_of = dataset.train, parallel.jit(sums)
    size, labels = min(_PART, len(arrays.labels)), np.asarray(arrays.labels)
    total: list[np.ndarray] = [np.zeros(())] * number
    for start in range(0, len(labels), size):
        rows = np.minimum(start + np.arange(size), len(labels) - 1)
        kept = np.where(start + np.arange(size) < len(labels), labels[rows], -1)
        # Rows are taken before anything goes to the device: the real images may be larger than it.
        images = sampling.standardise(arrays.images[rows], arrays.mean, arrays.std)
        total = [a + np.asarray(b, np.float64) for a, b in zip(total, part_of(images, kept), strict=True)]
    return np.bincount(labels, minlength=dataset.num_classes), total


_NOTHING: dict[str, Any] = {"real": None, "untrained": None, "real_maps": None}  # a twin is a network and no more


def stand_in(auxiliary: Auxiliary, terms: Iterable[Term], *, cam: features.CamConfig | None = None) -> Auxiliary:
    """Equips a network with numbers of no meaning, at once and traceably: for a plan.

    Args:
      auxiliary: the frozen network.
      terms: those that will be used.
      cam: how maps are made; None for the defaults.
    """
    asked = {need for term in terms for need in term.needs or ()}
    net = auxiliary.net
    if "real" in asked:
        means = jnp.ones((net.num_classes, net.embedding_size))
        auxiliary = dataclasses.replace(
            auxiliary, real=RealSide(jnp.ones(net.num_classes), means, means, jnp.ones(()), means)
        )
    if "untrained" in asked:
        auxiliary = dataclasses.replace(auxiliary, untrained=dataclasses.replace(auxiliary, **_NOTHING))
    if "real_maps" in asked:
        auxiliary = _with_maps(
            auxiliary, cam or features.CamConfig(), jnp.ones((net.num_classes, *net.image_shape[:2]))
        )
    return auxiliary
