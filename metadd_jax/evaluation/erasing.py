"""The erasing experiment: what a network learns from images of which an area is gone.

If meta features are what every architecture learns from, then erasing them must cost more than erasing as much
elsewhere, and erasing what another network alone looks at must cost little. MetaDD's paper (arXiv 2410.05103) erases
original images for a ViT; here any set, real or distilled, and any network. Sizes differ from area to area, so each has
a control of its own: the very same mask, moved around the torus to a random place.

Shapes: M networks, N images [H, W, C], maps [M, N, H, W] in [0, 1].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import keys, ranges, split
from metadd_jax.structs import Array, SyntheticSet

AREAS = ("meta", "own", "others")
MOVED = "random as "  # before the name of an area: as much elsewhere
KINDS = ("nothing", *(kind for area in AREAS for kind in (area, MOVED + area)))
"""What is erased: nothing, an area, or as much elsewhere."""


def areas(stack: Array, network: int, *, threshold: float = 0.5) -> dict[str, jax.Array]:
    """Splits each image into what is meta, a network's own, and others': three areas that do not overlap.

    Args:
      stack: [M, N, H, W] maps of M networks, at least two.
      network: index m of the network that will learn.
      threshold: lowest value that counts as high, 0 to 1.

    Returns:
      Boolean masks [N, H, W]: "meta", high in the maps of all networks; "own", high in map m and not in all; "others",
      high in another map and not in map m.

    Raises:
      ValueError: for fewer than two networks, or an index outside of them.
    """
    chex.assert_rank(stack, 4)
    if len(stack) < 2:
        raise ValueError(f"meta features are those of several networks, and there is {len(stack)}; give at least 2")
    ranges.require("network", network, ranges.Whole(0, len(stack) - 1))
    parts = split.split_maps(jnp.asarray(stack), threshold=threshold)
    own = parts.heterogeneous[network]
    # What another sees and m sees too is m's own: it would be erased twice.
    others = parts.heterogeneous.any(axis=0) & ~own
    return {"meta": parts.meta, "own": own, "others": others}


def moved(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Moves the mask of each image around the torus by a random shift: its area and shape, at another place.

    Args:
      key: typed PRNG key.
      mask: [N, H, W] bool.

    Returns:
      [N, H, W] bool; each image as many pixels as before. A shift may be of none.
    """
    chex.assert_rank(mask, 3)
    count, *size = mask.shape
    shifts = jax.random.randint(key, (count, 2), 0, jnp.array(size))
    return jax.vmap(lambda one, shift: jnp.roll(one, shift, axis=(0, 1)))(mask, shifts)


def erase(images: Array, mask: Array) -> jax.Array:
    """Sets the pixels of a mask to 0, which is the data's mean colour in the value space of a set.

    Args:
      images: [N, H, W, C] float in the set's value space.
      mask: [N, H, W] bool.
    """
    chex.assert_equal(images.shape[:3], mask.shape)
    return jnp.where(jnp.asarray(mask)[..., None], 0.0, jnp.asarray(images))


def erased(
    key: jax.Array, synthetic: SyntheticSet, stack: Array, network: int, *, threshold: float = 0.5
) -> tuple[dict[str, SyntheticSet], dict[str, float]]:
    """Makes a set of each kind for a network: whole, without each area, without as much elsewhere.

    Args:
      key: typed PRNG key of the random places.
      synthetic: N images with their labels.
      stack: [M, N, H, W] maps of M networks over these images, at their labels.
      network: index of the network that will learn.
      threshold: lowest value that counts as high, 0 to 1.

    Returns:
      By ``KINDS`` the sets, labels as they are; and by ``AREAS`` the share of all pixels that is gone.
    """
    parts = areas(stack, network, threshold=threshold)
    keys_of = dict(zip(AREAS, jax.random.split(keys.named(key, "control"), len(AREAS)), strict=True))
    masks: dict[str, Any] = {"nothing": jnp.zeros_like(parts["meta"])}
    for area, mask in parts.items():
        masks |= {area: mask, MOVED + area: moved(keys_of[area], mask)}
    sets = {
        kind: dataclasses.replace(synthetic, images=np.asarray(erase(synthetic.images, masks[kind]))) for kind in KINDS
    }
    return sets, {area: float(parts[area].mean()) for area in AREAS}
