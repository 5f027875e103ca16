"""Resized crops and mixing of images, as SRe2L and its successors use them: draw the parameters, then apply a pure op.

Images are [B, H, W, C] float. Every op takes its parameters explicitly, as arrays of shape [P]: P = 1 for one
transform of the whole batch, P = B for one per image. Ops are linear in the images, so gradients are exact.

Sources: crops as torchvision's ``RandomResizedCrop``; MixUp, Zhang et al., arXiv 1710.09412; CutMix, Yun et al., arXiv
1905.04899, both with one draw per batch, as in SRe2L. Flips and shifts are in ``augment``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# torchvision's defaults, which the published programs keep.
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of an image, in pixels.

    Attributes:
      top: [P] int32, first row.
      left: [P] int32, first column.
      height: [P] int32, number of rows.
      width: [P] int32, number of columns.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def draw_resized_crop(
    key: jax.Array,
    count: int,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Box:
    """Draws boxes as torchvision's ``RandomResizedCrop`` does.

    The area is uniform in ``scale`` of the image's, the aspect (width / height) log-uniform in ``ratio``. The first of
    up to 10 draws that fits into the image is taken; if none does, the largest central box with an aspect in that
    range. With ``scale`` (1, 1) that is all of a square image.

    Args:
      key: typed PRNG key.
      count: number of boxes P.
      size: (H, W) of the image in pixels.
      scale: lowest and highest share of the area, above 0 and at most 1.
      ratio: lowest and highest aspect, above 0.

    Returns:
      ``Box`` of [P] arrays.
    """
    height, width = size
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    shape = (count, _ATTEMPTS)  # all attempts at once: a loop until one fits has no fixed length under jit
    area = height * width * jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
    aspect = jnp.exp(jax.random.uniform(ratio_key, shape, minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    rows = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first, found = fits.argmax(axis=1)[:, None], fits.any(axis=1)
    largest = round(min(height, width / ratio[0])), round(min(width, height * ratio[1]))
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
    """Crops ``box`` and resizes it to the size of the images, bilinear.

    Output row i reads input row top + (i + .5) height / H - .5, clipped to the box (``align_corners=False``). A box
    is never larger than the image, so anti-aliasing would change nothing.

    Args:
      images: [B, H, W, C].
      box: [P], P = 1 or B.

    Returns:
      [B, H, W, C].
    """
    chex.assert_rank([images, box.top], [4, 1])
    _, height, width, _ = images.shape
    rows, columns = _spread(height, box.top, box.height), _spread(width, box.left, box.width)
    rows, columns, p = (rows[0], columns[0], "") if len(rows) == 1 else (rows, columns, "b")
    # Matrix products, because the gradient of a gather is a scatter, which is slow. In full precision on a GPU or TPU
    # too: TF32 or bfloat16 would round the pixels.
    high = jax.lax.Precision.HIGHEST
    images = jnp.einsum(f"{p}yh,bhwc->bywc", rows, images, precision=high)
    return jnp.einsum(f"{p}xw,bywc->byxc", columns, images, precision=high)


def shuffle_patches(key: jax.Array, images: jax.Array, count: int) -> jax.Array:
    """Cuts each image into ``count`` x ``count`` patches and permutes its columns of patches, and its rows.

    One draw of both for each image. Where ``count`` does not divide a side the last patches are larger, as in RDED.

    Args:
      key: typed PRNG key.
      images: [B, H, W, C].
      count: patches along a side, from 1 to the side.

    Returns:
      [B, H, W, C].
    """
    if count == 1:
        return images

    def order(key: jax.Array, side: int) -> jax.Array:  # [B, side]: which line stands where
        rank = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, len(images)))
        part = jnp.minimum(jnp.arange(side) // (side // count), count - 1)
        return jnp.argsort(rank[:, part], axis=1, stable=True)  # lines of one patch keep their order

    column_key, row_key = jax.random.split(key)
    _, height, width, _ = images.shape
    images = jnp.take_along_axis(images, order(column_key, width)[:, None, :, None], axis=2)
    return jnp.take_along_axis(images, order(row_key, height)[:, :, None, None], axis=1)


def resized_crop_to(image: jax.Array, box: Box, size: tuple[int, int]) -> jax.Array:
    """Crops boxes out of one image and resizes them, bilinear and antialiased, as torchvision does (``antialias``).

    Where an output is smaller than its box the hat function is as much wider; its weights are those of pixels inside
    the box alone, and 1 in all.

    Args:
      image: [H, W, C].
      box: [P].
      size: (h, w) of the outputs in pixels.

    Returns:
      [P, h, w, C].
    """
    chex.assert_rank([image, box.top], [3, 1])

    def weights(side: int, out: int, start: jax.Array, length: jax.Array) -> jax.Array:  # [P, out, side]
        step = length[:, None] / out
        places = start[:, None] + (jnp.arange(out) + 0.5) * step - 0.5
        pixels = jnp.arange(side)
        hat = 1.0 - jnp.abs(places[:, :, None] - pixels) / jnp.maximum(step, 1.0)[:, :, None]
        inside = (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
        hat = jnp.maximum(0.0, hat) * inside[:, None, :]
        return hat / hat.sum(axis=-1, keepdims=True)

    height, width, _ = image.shape
    rows, columns = weights(height, size[0], box.top, box.height), weights(width, size[1], box.left, box.width)
    high = jax.lax.Precision.HIGHEST  # as in ``resized_crop``
    images = jnp.einsum("pyh,hwc->pywc", rows, image, precision=high)
    return jnp.einsum("pxw,pywc->pyxc", columns, images, precision=high)


class Mix(NamedTuple):
    """How a batch is mixed with itself.

    Attributes:
      partner: [B] int32, a permutation: image i is mixed with image ``partner[i]``.
      share: [H, W] float32, the share of the image's own pixel in [0, 1]; the partner has the rest.
    """

    partner: jax.Array
    share: jax.Array


def partners(key: jax.Array, count: int, *, weights: jax.Array | None = None) -> jax.Array:
    """Draws a random permutation of a batch, in which padding is no image's partner.

    Args:
      key: typed PRNG key.
      count: batch size B.
      weights: [B], 0 for padding: images with a weight above 0 are permuted among themselves. None: all count.

    Returns:
      [B] int32.
    """
    order = jax.random.permutation(key, count)
    if weights is None:
        return order

    def first(indices: jax.Array) -> jax.Array:
        """Moves those of a weight above 0 to the front, in their order."""
        return indices[jnp.argsort(weights[indices] <= 0, stable=True)]

    # The k-th image that counts gets the k-th of the permutation that counts.
    return first(order)[jnp.argsort(first(jnp.arange(count)))]


def draw_mixup(
    key: jax.Array, count: int, size: tuple[int, int], alpha: float, *, weights: jax.Array | None = None
) -> Mix:
    """Draws MixUp: one share ~ Beta(alpha, alpha) for the whole batch and all pixels.

    Args:
      key: typed PRNG key.
      count: batch size B.
      size: (H, W) in pixels.
      alpha: parameter of the Beta distribution, above 0.
      weights: [B], 0 for padding, see ``partners``.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha)
    return Mix(partners(order_key, count, weights=weights), jnp.full(size, share))


def draw_cutmix(
    key: jax.Array, count: int, size: tuple[int, int], alpha: float, *, weights: jax.Array | None = None
) -> Mix:
    """Draws CutMix: one box for the whole batch, about 1 - Beta(alpha, alpha) of the area, shows the partner.

    The centre is any pixel. The box reaches int(side * sqrt(1 - beta)) // 2 pixels to both sides of it, and is clipped
    at the border, so its area is often smaller.

    Args:
      key: typed PRNG key.
      count: batch size B.
      size: (H, W) in pixels.
      alpha: parameter of the Beta distribution, above 0.
      weights: [B], 0 for padding, see ``partners``.
    """
    share_key, order_key, *centre_keys = jax.random.split(key, 4)
    beta = jax.random.beta(share_key, alpha, alpha)
    row, column = (jax.random.randint(k, (), 0, side) for side, k in zip(size, centre_keys, strict=True))
    return Mix(partners(order_key, count, weights=weights), cut_box(size, beta, (row, column)))


def cut_box(size: tuple[int, int], beta: jax.Array, centre: tuple[ArrayLike, ArrayLike]) -> jax.Array:
    """Makes the share [H, W] of CutMix: 0 inside the box, which shows the partner, and 1 outside.

    Args:
      size: (H, W) in pixels.
      beta: [] share of the area that the image keeps, before the box is clipped at the border.
      centre: [] row and [] column of the box.
    """
    inside = []
    for side, place in zip(size, centre, strict=True):
        half = (jnp.sqrt(1 - beta) * side).astype(jnp.int32) // 2
        inside.append((jnp.arange(side) >= place - half) & (jnp.arange(side) < place + half))
    return 1.0 - (inside[0][:, None] & inside[1][None, :])


def mix(images: jax.Array, how: Mix) -> jax.Array:
    """Computes share * images + (1 - share) * partners.

    Args:
      images: [B, H, W, C].
      how: the drawn partners and shares.

    Returns:
      [B, H, W, C].
    """
    chex.assert_rank([images, how.partner, how.share], [4, 1, 2])
    share = how.share[:, :, None]
    return share * images + (1 - share) * images[how.partner]


def mix_labels(targets: jax.Array, how: Mix) -> jax.Array:
    """Mixes probabilities [B, K] in the shares of the pixels, counted after a box was clipped at the border.

    Cross-entropy is linear in its targets, so its value for the mixture is the mixture of both values, as published.
    """
    own = how.share.mean()
    return own * targets + (1 - own) * targets[how.partner]


def _spread(side: int, start: jax.Array, length: jax.Array) -> jax.Array:
    """[P, side, side] weights of input pixels (last) in the outputs when ``length`` pixels are spread over ``side``."""
    inner = (jnp.arange(side) + 0.5) * length[:, None] / side - 0.5
    # Clipped to the box and not to the image: torchvision crops first, so no pixel outside of the box bleeds in.
    places = start[:, None] + jnp.clip(inner, 0, length[:, None] - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(places[:, :, None] - jnp.arange(side)))
