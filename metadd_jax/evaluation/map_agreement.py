"""How much several trained networks agree on where the evidence in a set lies: the meta ratio as a number.

The raw meta ratio can be gamed (two networks that look everywhere agree), and MetaDD optimises it on the networks it
sees; the figure that counts is the chance-corrected ratio on networks it has *not* seen (method notes, section 2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from metadd_jax import features, parallel, split
from metadd_jax.structs import Auxiliary, SyntheticSet


def map_stack(
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    *,
    config: features.CamConfig | None = None,
    batch_size: int = 500,
) -> np.ndarray:
    """Maps [M, N, H, W] of a whole set under M trained networks, made in batches of images.

    ``config`` says how maps are made; give that of the run whose loss the maps shall explain.
    """
    observe = parallel.jit(functools.partial(features.stack_maps, config=config))
    batches = [
        np.asarray(observe(tuple(auxiliaries), images[start : start + batch_size], labels[start : start + batch_size]))
        for start in range(0, images.shape[0], batch_size)
    ]
    return np.concatenate(batches, axis=1)


def agreement(
    synthetic: SyntheticSet,
    auxiliaries: Sequence[Auxiliary],
    *,
    threshold: float = 0.5,
    config: features.CamConfig | None = None,
) -> dict[str, float | list[float]]:
    """``split.measure`` of a set under trained networks, as plain numbers.

    Args:
      synthetic: the set.
      auxiliaries: at least two frozen networks with a spatial map.
      threshold: a place counts as seen where the map reaches this (0..1).
      config: how maps are made; sets can only be compared under one and the same.

    Raises:
      ValueError: for fewer than two networks: one alone agrees with nobody.
    """
    if len(auxiliaries) < 2:
        raise ValueError(f"agreement needs at least 2 networks with activation maps, got {len(auxiliaries)}")
    stack = map_stack(synthetic.images, synthetic.labels, auxiliaries, config=config)
    facts = split.measure(stack, threshold=threshold)
    return {name: np.asarray(value).tolist() for name, value in facts.items()}
