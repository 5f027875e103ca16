"""The agreement of trained networks on where the evidence in a set lies: the meta ratio as a number.

The raw meta ratio can be gamed: two networks with maps that are high everywhere agree. And MetaDD optimises it on its
auxiliaries. The figure that counts is the chance-corrected ratio on networks that were *not* auxiliaries.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax.numpy as jnp
import numpy as np

from metadd_jax import features, split
from metadd_jax.structs import Array, Auxiliary, SyntheticSet


def map_stack(
    auxiliaries: Sequence[Auxiliary],
    images: Array,
    labels: Array,
    *,
    config: features.CamConfig | None = None,
    batch_size: int = 500,
) -> np.ndarray:
    """Computes the class activation maps of a whole set under trained networks, in batches of images.

    Args:
      auxiliaries: M frozen networks with a spatial map.
      images: [N, H, W, C] float32 in the set's value space.
      labels: [N] int, the class whose map is computed.
      config: how maps are computed; take that of the run whose loss the maps should explain.
      batch_size: images per batch; fewer need less memory.

    Returns:
      [M, N, H, W] float32 in [0, 1], on the host.
    """
    chex.assert_rank([images, labels], [4, 1])

    # One program for all sets of one size under the same networks: a run measures a set a row and seed.
    def maps(part: slice) -> np.ndarray:
        shown, own = jnp.asarray(images[part], jnp.float32), jnp.asarray(labels[part], jnp.int32)
        return np.asarray(features.stack_maps(tuple(auxiliaries), shown, own, config=config))

    starts = range(0, images.shape[0], batch_size)
    return np.concatenate([maps(slice(start, start + batch_size)) for start in starts], axis=1)


def agreement(
    synthetic: SyntheticSet,
    auxiliaries: Sequence[Auxiliary],
    *,
    threshold: float = 0.5,
    area: float | None = None,
    config: features.CamConfig | None = None,
) -> dict[str, float | list[float]]:
    """Applies ``split.measure`` to a set under trained networks.

    Args:
      synthetic: the set.
      auxiliaries: at least two frozen networks with a spatial map.
      threshold: a pixel is high where the map reaches this (0..1).
      area: compare at equal high areas: in each map this share of the pixels is high, (0, 1], the highest ones,
        whatever ``threshold``. Sets whose maps differ in size of their high area can only be compared so. ``entropy``
        and ``dead_share`` are then those of the chosen pixels. None: by ``threshold``.
      config: how maps are computed; sets can only be compared under the same.

    Returns:
      The numbers of ``split.measure``, as plain floats and lists.

    Raises:
      ValueError: for fewer than two networks, since one alone agrees with nobody, or an ``area`` outside (0, 1].
    """
    if len(auxiliaries) < 2:
        raise ValueError(f"agreement needs at least 2 networks with activation maps, got {len(auxiliaries)}")
    stack = jnp.asarray(map_stack(auxiliaries, synthetic.images, synthetic.labels, config=config))
    if area is not None:  # ones and zeros, which every threshold splits alike
        stack = split.at_matched_area(stack, area)
    facts = split.measure(stack, threshold=threshold)
    return {name: np.asarray(value).tolist() for name, value in facts.items()}
