"""What some terms want of a frozen network beside its view of the synthetic images; measured once, before a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import features, keys, parallel
from metadd_jax.data import sampling
from metadd_jax.invariant.terms import Term
from metadd_jax.structs import Auxiliary, Dataset, RealSide

_PART = 500  # real images that pass a network at once


def equip(auxiliaries: Sequence[Auxiliary], dataset: Dataset, terms: Iterable[Term]) -> list[Auxiliary]:
    """Adds to frozen networks what the terms ask for and they do not have: the real side, an untrained twin.

    Args:
      auxiliaries: M frozen networks.
      dataset: the real data; all training images pass each network once where a term needs "real".
      terms: those that will be used.

    Returns:
      The networks, in their order; as they are where no term asks for more.
    """
    asked = {need for term in terms for need in term.needs or ()}
    found = list(auxiliaries)
    if "real" in asked:
        found = [one if one.real else dataclasses.replace(one, real=real_side(one, dataset)) for one in found]
    if "untrained" in asked:
        found = [
            one if one.untrained else dataclasses.replace(one, untrained=untrained(one, dataset, number))
            for number, one in enumerate(found)
        ]
    return found


def untrained(auxiliary: Auxiliary, dataset: Dataset, seed: int) -> Auxiliary:
    """Makes the same network with random weights, the ranges of its maps measured as for any other.

    Args:
      auxiliary: the frozen network.
      dataset: the real data.
      seed: of the weights.
    """
    variables = parallel.jit(auxiliary.net.init)(keys.root(seed, "control"))
    return features.freeze(auxiliary.net, variables, dataset, preprocess=auxiliary.preprocess)


def real_side(auxiliary: Auxiliary, dataset: Dataset) -> RealSide:
    """Measures what a network makes of the training images, all of them.

    Args:
      auxiliary: the frozen network.
      dataset: the real data.

    Returns:
      See ``RealSide``, all float32; sums are taken in float64.
    """
    arrays, classes = dataset.train, dataset.num_classes

    def sums(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        h = features.observe(auxiliary, images, labels, maps=False).embedding
        own = jax.nn.one_hot(labels, classes)  # a label of -1, which fills up the last part, is no class
        squares = (h**2).sum(axis=-1)
        length = jnp.sqrt(squares)[:, None]
        return own.T @ h, own.T @ (h / jnp.maximum(length, 1e-12)), own.sum(axis=-1) @ squares

    part_of = parallel.jit(sums)
    size, labels = min(_PART, len(arrays.labels)), np.asarray(arrays.labels)
    total: list[np.ndarray] = [np.zeros(())] * 3
    for start in range(0, len(labels), size):
        rows = np.minimum(start + np.arange(size), len(labels) - 1)
        kept = np.where(start + np.arange(size) < len(labels), labels[rows], -1)
        # Rows are taken before anything goes to the device: the real images may be larger than it.
        images = sampling.standardise(arrays.images[rows], arrays.mean, arrays.std)
        total = [a + np.asarray(b, np.float64) for a, b in zip(total, part_of(images, kept), strict=True)]
    counts = np.bincount(labels, minlength=classes)
    each, directions, squares = total
    divisor = np.maximum(counts, 1)[:, None]
    centre = each.sum(axis=0) / counts.sum()
    spread = np.sqrt(max(float(squares) / counts.sum() - float(centre @ centre), 0.0))
    return RealSide(*(jnp.asarray(x, jnp.float32) for x in (counts, each / divisor, directions / divisor, spread)))


def stand_in(auxiliary: Auxiliary, terms: Iterable[Term]) -> Auxiliary:
    """Equips a network with numbers of no meaning, at once and traceably: for a plan.

    Args:
      auxiliary: the frozen network.
      terms: those that will be used.
    """
    asked = {need for term in terms for need in term.needs or ()}
    net = auxiliary.net
    if "real" in asked:
        means = jnp.ones((net.num_classes, net.embedding_size))
        auxiliary = dataclasses.replace(auxiliary, real=RealSide(jnp.ones(net.num_classes), means, means, jnp.ones(())))
    if "untrained" in asked:
        auxiliary = dataclasses.replace(auxiliary, untrained=dataclasses.replace(auxiliary, real=None))
    return auxiliary
