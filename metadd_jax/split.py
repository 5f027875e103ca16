"""The split of class activation maps into meta and heterogeneous features, and measures of agreement.

A stack of class activation maps is [M, B, H, W] in [0, 1]: M networks, B images. A pixel is high in a map
where its value reaches the threshold. **Meta** features are high in the maps of all networks. The
**heterogeneous** features of network m are high in its map, but not in all maps (MetaDD, arXiv 2410.05103, threshold
0.5). All functions can be traced. They are for measuring, not for a loss: a threshold has no gradient.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metadd_jax import eager, structs


def split_maps(stack: jax.Array, *, threshold: ArrayLike = 0.5) -> structs.Split:
    """Splits the high areas of the maps into meta and heterogeneous features.

    Args:
      stack: [M, B, H, W] maps in [0, 1].
      threshold: lowest value that counts as high.

    Returns:
      ``Split(meta [B, H, W] bool, heterogeneous [M, B, H, W] bool)``. The two are disjoint, and their union is the
      high area of each map. With one network, all of its high area is meta.

    Example:
      >>> import jax.numpy as jnp
      >>> maps = jnp.array([[[[0.9, 0.8, 0.1]]], [[[0.7, 0.2, 0.6]]]])  # two networks, one image of 1 x 3 pixels
      >>> meta, heterogeneous = split_maps(maps)
      >>> meta[0, 0].tolist()
      [True, False, False]
      >>> heterogeneous[:, 0, 0].tolist()
      [[False, True, False], [False, False, True]]
    """
    chex.assert_rank(stack, 4)
    high = stack >= threshold
    meta = high.all(axis=0)
    return structs.Split(meta, high & ~meta)


split = split_maps  # the name that the contract promises: ``metadd_jax.split.split``


@eager.one_program()
def measure(stack: jax.Array, *, threshold: ArrayLike = 0.5) -> dict[str, jax.Array]:
    """Measures how far the networks agree. All numbers are in [0, 1], except ``chance_corrected`` (at most 1).

    Args:
      stack: [M, B, H, W] maps in [0, 1].
      threshold: lowest value that counts as high.

    Returns:
      A dict, each value a mean over the images:
        meta_ratio: [] share of pixels that are meta features.
        heterogeneous_ratio: [M] share of pixels high in map m, but not in all maps.
        exclusive_ratio: [M] share of pixels high in map m alone (the narrower reading of "heterogeneous": the paper's
          readers differ, so both are reported).
        high_area: [M] share of pixels high in map m, a_m.
        chance_corrected: [] (meta - prod_m a_m) / (min_m a_m - prod_m a_m): 1 for nested high areas, about 0
          for independent ones, negative where networks avoid each other. The areas are those of each image.
          Numerator and denominator are averaged over the images *before* dividing, so that an image without
          information on agreement (a dead map, or all but one full: both terms are 0) has no weight. 0 if all
          images are such, hence always for M = 1.
        mean_iou: [] intersection over union of the high areas, mean over the pairs of networks; 0 where both
          are empty, so that dead maps do not count as agreement. 1 for M = 1.
        dead_share: [M] share of images whose map is nowhere high.
        entropy: [] entropy of a map read as a distribution over its pixels, relative to its largest value
          log(H W): 0 for a single pixel, 1 for a flat map; mean over the maps that are not all zero, 0 if
          there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> maps = jnp.array([[[[0.9, 0.8, 0.1]]], [[[0.7, 0.2, 0.6]]]])
      >>> found = measure(maps)
      >>> [round(float(found[name]), 3) for name in ("meta_ratio", "mean_iou")]
      [0.333, 0.333]
      >>> round(float(found["chance_corrected"]), 3)  # less than two independent maps of these areas would share
      -0.5
    """
    chex.assert_rank(stack, 4)
    high = stack >= threshold
    # The raw ratio alone can be gamed: independent maps of area .9 give .66 for four networks. So every ratio is
    # reported beside the areas and the share of dead maps.
    meta, heterogeneous = split_maps(stack, threshold=threshold)
    alone = high & (high.sum(axis=0) == 1)
    return {
        "meta_ratio": meta.mean(),
        "heterogeneous_ratio": heterogeneous.mean(axis=(1, 2, 3)),
        "exclusive_ratio": alone.mean(axis=(1, 2, 3)),
        "high_area": high.mean(axis=(1, 2, 3)),
        "chance_corrected": _chance_corrected(high, meta),
        "mean_iou": _mean_iou(high),
        "dead_share": (~high.any(axis=(2, 3))).mean(axis=1),  # exactly 0 where none is: 1 - mean is not
        "entropy": _entropy(stack),
    }


@eager.one_program(static_argnames=("area",))
def at_matched_area(stack: jax.Array, area: float) -> jax.Array:
    """Keeps the highest pixels of each map, equally many in every map, so that larger high areas do not help.

    Args:
      stack: [M, B, H, W] maps.
      area: share of the pixels to keep, in (0, 1]; rounded to whole pixels.

    Returns:
      [M, B, H, W] float32 of 0 and 1, each map with exactly ``round(area H W)`` ones: pass it to ``measure``.

    Raises:
      ValueError: if ``area`` is outside (0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> maps = jnp.array([[[[0.9, 0.8, 0.1]]], [[[0.3, 0.2, 0.1]]]])
      >>> at_matched_area(maps, 1 / 3)[:, 0, 0].tolist()
      [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    chex.assert_rank(stack, 4)
    if not 0.0 < area <= 1.0:
        raise ValueError(f"area is a share of the pixels in (0, 1], got {area}; use for example 0.25")
    flat = stack.reshape(*stack.shape[:2], -1)
    # Equal pixels (mostly the zeros of a ReLU) are ranked in a fixed random order, another one for each map: with one
    # order for all maps, dead maps would agree.
    order = jnp.lexsort((jax.random.uniform(jax.random.key(0), flat.shape), -flat), axis=-1)
    rank = jnp.argsort(order, axis=-1)  # the inverse permutation: 0 for the highest pixel
    kept = rank < round(area * flat.shape[-1])
    return kept.astype(jnp.float32).reshape(stack.shape)


def _chance_corrected(high: jax.Array, meta: jax.Array) -> jax.Array:
    areas = high.mean(axis=(2, 3))  # [M, B]
    chance = areas.prod(axis=0)  # expected meta ratio of independent maps
    gained = (meta.mean(axis=(1, 2)) - chance).mean()
    possible = (areas.min(axis=0) - chance).mean()
    # Rounding leaves up to 1e-7 where the exact value is 0; what is that small says nothing.
    return jnp.where(possible > 1e-6, gained / jnp.maximum(possible, 1e-6), 0.0)


def _mean_iou(high: jax.Array) -> jax.Array:
    first, second = jnp.triu_indices(high.shape[0], k=1)
    if len(first) == 0:
        return jnp.ones(())
    shared = (high[first] & high[second]).sum(axis=(2, 3))  # [pairs, B]
    # Counts, so 1 is the least union that is not empty, and an empty one gives 0 / 1.
    union = (high[first] | high[second]).sum(axis=(2, 3))
    return (shared / jnp.maximum(union, 1)).mean()


def _entropy(stack: jax.Array) -> jax.Array:
    total = stack.sum(axis=(2, 3))  # [M, B]
    alive = total > 0
    p = stack / jnp.where(alive, total, 1.0)[:, :, None, None]
    # ``entr`` is -p log p with 0 at p = 0.
    entropy = jax.scipy.special.entr(p).sum(axis=(2, 3)) / jnp.log(stack.shape[2] * stack.shape[3])
    return jnp.where(alive, entropy, 0.0).sum() / jnp.maximum(alive.sum(), 1)
