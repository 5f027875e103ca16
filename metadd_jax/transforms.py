"""Resized crops and mixing of images: draw the parameters, then apply a pure op (the SRe2L line's views).

Images are [B, H, W, C] float. Every op takes its parameters explicitly, as arrays of shape [P]: P = 1 for one
transform of the whole batch, P = B for one an image. Ops are linear in the images, so gradients are exact.

Sources: crops as torchvision's ``RandomResizedCrop``; MixUp, Zhang et al., arXiv 1710.09412; CutMix, Yun et al., arXiv
1905.04899, both one draw a batch as SRe2L makes them. Flips and shifts are in ``augment``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class Box(NamedTuple):
    """Part of an image in pixels: each [P] int32."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def draw_resized_crop(key: jax.Array, count: int, size: tuple[int, int]) -> Box:
    """``count`` random boxes in an image of ``size`` (H, W).

    The area is U(0.08, 1) of the image's, the aspect (width / height) log-uniform in [3/4, 4/3]. Of up to 10 draws the
    first that fits the image counts; if none does, the largest central box with an aspect in that range.
    """
    height, width = size
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    shape = (count, _ATTEMPTS)
    area = height * width * jax.random.uniform(area_key, shape, minval=SCALE[0], maxval=SCALE[1])
    aspect = jnp.exp(jax.random.uniform(ratio_key, shape, minval=math.log(RATIO[0]), maxval=math.log(RATIO[1])))
    rows = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first, found = fits.argmax(axis=1)[:, None], fits.any(axis=1)
    largest = round(min(height, width / RATIO[0])), round(min(width, height * RATIO[1]))
    rows, columns = (
        jnp.where(found, jnp.take_along_axis(drawn, first, axis=1)[:, 0], fallback)
        for drawn, fallback in zip((rows, columns), largest, strict=True)
    )
    free_y, free_x = height - rows, width - columns
    u = jnp.where(found, jax.random.uniform(place_key, (2, count)), 0.5)
    # Whole places 0 ... free are equally likely; .5 gives the middle one.
    top, left = (u[0] * (free_y + 1)).astype(jnp.int32), (u[1] * (free_x + 1)).astype(jnp.int32)
    return Box(jnp.minimum(top, free_y), jnp.minimum(left, free_x), rows, columns)


def resized_crop(images: jax.Array, box: Box) -> jax.Array:
    """Enlarges ``box`` to the size of the images, bilinear.

    Output row i reads input row top + (i + .5) height / H - .5, held inside the box (``align_corners=False``). A box
    is never larger than the image, so no question of anti-aliasing arises.
    """
    _, height, width, _ = images.shape
    rows, columns = _spread(height, box.top, box.height), _spread(width, box.left, box.width)
    rows, columns, p = (rows[0], columns[0], "") if len(rows) == 1 else (rows, columns, "b")
    # Products, because the gradient of a gather is a scatter; in full precision on a GPU or TPU too.
    high = jax.lax.Precision.HIGHEST
    images = jnp.einsum(f"{p}yh,bhwc->bywc", rows, images, precision=high)
    return jnp.einsum(f"{p}xw,bywc->byxc", columns, images, precision=high)


class Mix(NamedTuple):
    """How a batch is mixed with itself.

    Attributes:
      partner: [B] int32, a permutation: image i is mixed with image ``partner[i]``.
      share: [H, W] float32, the share of the image's own pixel in [0, 1]; the partner has the rest.
    """

    partner: jax.Array
    share: jax.Array


def partners(key: jax.Array, count: int, *, weights: jax.Array | None = None) -> jax.Array:
    """A random permutation [count] of a batch; with ``weights`` [count] those above 0 are permuted among themselves."""
    order = jax.random.permutation(key, count)
    if weights is None:
        return order

    def first(indices: jax.Array) -> jax.Array:
        """Those of a weight above 0 come first, and keep their order."""
        return indices[jnp.argsort(weights[indices] <= 0, stable=True)]

    return first(order)[jnp.argsort(first(jnp.arange(count)))]


def draw_mixup(
    key: jax.Array, count: int, size: tuple[int, int], alpha: float, *, weights: jax.Array | None = None
) -> Mix:
    """One share ~ Beta(alpha, alpha) for the batch and all pixels; partners are drawn as ``partners`` does."""
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha)
    return Mix(partners(order_key, count, weights=weights), jnp.full(size, share))


def draw_cutmix(
    key: jax.Array, count: int, size: tuple[int, int], alpha: float, *, weights: jax.Array | None = None
) -> Mix:
    """One box for the batch, of about 1 - Beta(alpha, alpha) of the area, is the partner's.

    From its centre, any pixel, it reaches int(side * sqrt(1 - beta)) // 2 both ways; it is clipped at the border.
    Partners are drawn as ``partners`` does.
    """
    share_key, order_key, *centre_keys = jax.random.split(key, 4)
    cut = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    inside = []
    for side, centre_key in zip(size, centre_keys, strict=True):
        half = (cut * side).astype(jnp.int32) // 2
        centre = jax.random.randint(centre_key, (), 0, side)
        inside.append((jnp.arange(side) >= centre - half) & (jnp.arange(side) < centre + half))
    box = inside[0][:, None] & inside[1][None, :]
    return Mix(partners(order_key, count, weights=weights), 1.0 - box)


def mix(images: jax.Array, how: Mix) -> jax.Array:
    """share * images + (1 - share) * partners."""
    share = how.share[:, :, None]
    return share * images + (1 - share) * images[how.partner]


def _spread(side: int, start: jax.Array, length: jax.Array) -> jax.Array:
    """[P, side, side] weights of input pixels (last) in the outputs when ``length`` pixels are spread over ``side``."""
    inner = (jnp.arange(side) + 0.5) * length[:, None] / side - 0.5
    places = start[:, None] + jnp.clip(inner, 0, length[:, None] - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(places[:, :, None] - jnp.arange(side)))
