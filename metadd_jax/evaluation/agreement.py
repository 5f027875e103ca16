"""How much several trained networks agree on where the evidence in a set lies: the meta ratio as a number.

The raw meta ratio can be gamed (two networks that look everywhere agree), and MetaDD optimises it on the networks it
sees; the figure that counts is the chance-corrected ratio on networks it has *not* seen (method notes, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from metadd_jax import features, parallel, split
from metadd_jax.structs import Auxiliary, SyntheticSet


def map_stack(
    images: jax.Array, labels: jax.Array, auxiliaries: Sequence[Auxiliary], *, batch_size: int = 500
) -> np.ndarray:
    """Maps [M, N, H, W] of a whole set under M trained networks, made in batches of images."""
    observe = parallel.jit(features.stack_maps)
    batches = [
        np.asarray(observe(tuple(auxiliaries), images[start : start + batch_size], labels[start : start + batch_size]))
        for start in range(0, images.shape[0], batch_size)
    ]
    return np.concatenate(batches, axis=1)


def agreement(
    synthetic: SyntheticSet, auxiliaries: Sequence[Auxiliary], *, threshold: float = 0.5
) -> dict[str, float | list[float]]:
    """``split.measure`` of a set under trained networks, as plain numbers.

    Raises:
      ValueError: for fewer than two networks: one alone agrees with nobody.
    """
    if len(auxiliaries) < 2:
        raise ValueError(f"agreement needs at least 2 networks with activation maps, got {len(auxiliaries)}")
    facts = split.measure(map_stack(synthetic.images, synthetic.labels, auxiliaries), threshold=threshold)
    return {name: np.asarray(value).tolist() for name, value in facts.items()}
