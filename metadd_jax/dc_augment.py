"""DC's augmentation at evaluation, as in its released program: one op per image, in whole pixels and degrees.

Images are [B, H, W, C] float. Ops take their parameters explicitly, one per image, and the value that fills places
outside of an image. They are linear in the images, so gradients are exact. Filters and tables depend on the size alone.

Source: Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021) and its program, which scales
by PyTorch's nearest neighbours and rotates by SciPy's cubic splines. DSA's own ops are in ``augment``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

# Pixels, share of the side, degrees, standard deviation: the program's.
SHIFT, RATIO, DEGREES, NOISE = 4, 0.2, 45, 0.001


def augment_each(
    key: jax.Array, images: jax.Array, tokens: Sequence[str], *, weights: jax.Array | None = None
) -> jax.Array:
    """Applies one op of ``tokens`` to each image, drawn uniformly and for each image anew.

    ``crop``: a shift by -4 to 3 pixels each way, filled with the mean of the channel over the batch; ``scale``: to a
    whole height and width between 0.8 and 1.2 of the image's, filled with 0; ``rotate``: by -45 to 44 whole degrees,
    filled with the mean over the batch and all channels; ``noise``: plus 0.001 N(0, 1). Published: crop, scale, rotate
    for MNIST; crop, noise for ConvNet with batch norm; no augmentation for all else.

    Args:
      key: typed PRNG key.
      images: [B, H, W, C] float.
      tokens: names of ``TOKENS``, at least one.
      weights: [B], 0 for padding, which stays out of the means over the batch; None: all images count.

    Returns:
      [B, H, W, C], differentiable in ``images``.
    """
    chex.assert_rank(images, 4)
    op_key, *draw_keys = jax.random.split(key, 1 + len(tokens))
    mean = jnp.average(images.mean(axis=(1, 2)), axis=0, weights=weights)
    # All ops on all images, then a choice: the ops are cheap, and images of one batch cannot branch apart.
    seen = jnp.stack([TOKENS[token](own, images, mean) for token, own in zip(tokens, draw_keys, strict=True)])
    choice = jax.random.randint(op_key, images.shape[:1], 0, len(tokens))
    return seen[choice, jnp.arange(len(images))]


def shift(images: jax.Array, shift_y: jax.Array, shift_x: jax.Array, outside: jax.Array) -> jax.Array:
    """Shifts by whole pixels: output (y, x) reads input (y + shift_y, x + shift_x).

    Args:
      images: [B, H, W, C].
      shift_y: [B] integers, in pixels.
      shift_x: [B] integers, in pixels.
      outside: [C], the value of places outside of the image.

    Returns:
      [B, H, W, C].
    """
    rows, columns = (
        jnp.arange(side) + by[:, None] for side, by in zip(images.shape[1:3], (shift_y, shift_x), strict=True)
    )
    return _pick(images, rows, columns, outside)


def resize(images: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Scales to ``height`` x ``width`` pixels (PyTorch's nearest neighbour) in the middle of the old frame.

    A smaller image is padded with 0, a larger one is cut. Where the difference is odd, the published program rounds the
    position in its own way (see ``_top``).

    Args:
      images: [B, H, W, C].
      height: [B] integers from 1 to 2 H.
      width: [B] integers from 1 to 2 W.

    Returns:
      [B, H, W, C].
    """
    # The program pads all to a square canvas first, and cuts the frame out of it: two roundings.
    largest = jnp.maximum(jnp.maximum(height, width), max(images.shape[1:3]))
    rows, columns = (
        _nearest(side, size, _top(side, size, largest))
        for side, size in zip(images.shape[1:3], (height, width), strict=True)
    )
    return _pick(images, rows, columns, jnp.zeros(images.shape[3]))


def rotate(images: jax.Array, degrees: jax.Array, outside: jax.Array) -> jax.Array:
    """Rotates about the centre by cubic splines.

    ``scipy.ndimage.rotate`` (order 3) rotates into a frame that holds the whole picture. The program cuts the middle
    out, rounded to whole pixels, so the centre moves by half a pixel where the difference of the sides is odd.

    Args:
      images: [B, H, W, C].
      degrees: [B] integers from -45 to 45.
      outside: [], the value of places outside of the image.

    Returns:
      [B, H, W, C].
    """
    _, height, width, channels = images.shape
    tables = [jnp.asarray(table)[degrees + DEGREES, None, None] for table in _rotations(height, width)]
    cos, sin, y, x = tables[0], tables[1], tables[2] + jnp.arange(height)[:, None], tables[3] + jnp.arange(width)
    ys, xs = cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
    # Beyond the centres of the outermost pixels there is no image, as in SciPy's mode "constant".
    inside = (ys >= 0) & (ys <= height - 1) & (xs >= 0) & (xs <= width - 1)
    high = jax.lax.Precision.HIGHEST
    splines = jnp.einsum("yh,bhwc->bywc", _prefilter(height), images, precision=high)
    splines = jnp.einsum("xw,bywc->byxc", _prefilter(width), splines, precision=high)
    flat, total = splines.reshape(len(images), -1, channels), jnp.zeros(())
    for row, row_weight in _taps(ys, height):
        for column, column_weight in _taps(xs, width):
            index = (row * width + column).reshape(len(images), -1, 1)
            values = jnp.take_along_axis(flat, index, axis=1).reshape(images.shape)
            total += values * (row_weight * column_weight)[..., None]
    return jnp.where(inside[..., None], total, outside)


def _pick(images: jax.Array, rows: jax.Array, columns: jax.Array, outside: jax.Array) -> jax.Array:
    """Pixels at ``rows`` [B, H] and ``columns`` [B, W]; ``outside`` [C] where there is no such pixel."""
    height, width = images.shape[1:3]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    picked = jnp.take_along_axis(images, jnp.clip(rows, 0, height - 1)[:, :, None, None], axis=1)
    picked = jnp.take_along_axis(picked, jnp.clip(columns, 0, width - 1)[:, None, :, None], axis=2)
    return jnp.where(inside[..., None], picked, outside)


def _top(side: int, size: jax.Array, largest: jax.Array) -> jax.Array:
    """Where ``size`` pixels begin in a frame of ``side``: both stand in the middle of ``largest``, rounded down."""
    return (largest - size) // 2 - (largest - side) // 2


def _nearest(side: int, size: jax.Array, top: jax.Array) -> jax.Array:
    """[B, side]: which of ``side`` pixels stands where when they are spread over ``size`` from ``top`` on; -1: none."""
    sizes, places = np.arange(1, 2 * side + 1)[:, None], np.arange(2 * side)
    # In float32, as PyTorch rounds: a whole quotient may come out just below.
    source = np.floor(places.astype(np.float32) * (np.float32(side) / sizes.astype(np.float32))).astype(np.int32)
    source = np.where(sizes == 2 * side, places // 2, source)  # PyTorch has a path of its own for a factor of 2
    source = np.where(places < sizes, np.minimum(source, side - 1), -1)
    place = jnp.arange(side) - top[:, None]
    found = jnp.asarray(source)[size[:, None] - 1, jnp.clip(place, 0, 2 * side - 1)]
    return jnp.where((place >= 0) & (place < size[:, None]), found, -1)


def _rotations(height: int, width: int) -> list[np.ndarray]:
    """[91] each, for -45 to 45 degrees: cosine, sine, and where row 0 and column 0 lie from the centre."""
    # Tables, computed in double precision as SciPy does, because the sides of the frame are rounded.
    rows = []
    for degrees in range(-DEGREES, DEGREES + 1):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        starts = []
        for side, whole in ((height, height * cos + width * abs(sin)), (width, width * cos + height * abs(sin))):
            frame = int(whole + 0.5)  # the side of the frame that holds all of the picture
            starts.append(int((frame - side) / 2) - (frame - 1) / 2)
        rows.append((cos, sin, *starts))
    return [np.asarray(column, np.float32) for column in zip(*rows, strict=True)]


def _prefilter(side: int) -> jax.Array:
    """[side, side]: from pixels to the coefficients of the cubic spline through them, mirrored at the outer pixels.

    The spline at a pixel is (left + 4 own + right) / 6; this is the inverse of that.
    """
    spline = np.eye(side) * 4 + np.eye(side, k=1) + np.eye(side, k=-1)
    spline[0, 1] = spline[-1, -2] = 2
    return jnp.asarray(np.linalg.inv(spline / 6), jnp.float32)


def _taps(places: jax.Array, side: int) -> list[tuple[jax.Array, jax.Array]]:
    """The four coefficients of the spline at ``places``, as (index, weight) of the shape of ``places``."""
    left = jnp.floor(places)
    t = places - left
    weights = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    taps = []
    for offset, weight in zip(range(-1, 3), weights, strict=True):
        index = jnp.abs(left.astype(jnp.int32) + offset)  # mirrored at pixel 0, and below at the last one
        taps.append((jnp.clip(jnp.minimum(index, 2 * (side - 1) - index), 0, side - 1), weight / 6))
    return taps


def _random_crop(key: jax.Array, images: jax.Array, mean: jax.Array) -> jax.Array:
    # -4 to 3, and -45 to 44 degrees below: the program's draws leave the upper end out.
    shift_y, shift_x = jax.random.randint(key, (2, len(images)), -SHIFT, SHIFT)
    return shift(images, shift_y, shift_x, mean)


def _random_scale(key: jax.Array, images: jax.Array, mean: jax.Array) -> jax.Array:
    del mean
    factors = jax.random.uniform(key, (2, len(images)), minval=1 - RATIO, maxval=1 + RATIO)
    height, width = (factors * jnp.array(images.shape[1:3])[:, None]).astype(jnp.int32)
    return resize(images, height, width)


def _random_rotation(key: jax.Array, images: jax.Array, mean: jax.Array) -> jax.Array:
    return rotate(images, jax.random.randint(key, (len(images),), -DEGREES, DEGREES), mean.mean())


def _random_noise(key: jax.Array, images: jax.Array, mean: jax.Array) -> jax.Array:
    del mean
    return images + NOISE * jax.random.normal(key, images.shape)


# Each is ``(key, images, mean over the batch [C]) -> images``, so that one call can apply any of them.
TOKENS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "crop": _random_crop,
    "scale": _random_scale,
    "rotate": _random_rotation,
    "noise": _random_noise,
}
