"""Windows of images as the rows of a matrix, so that a convolution is a product of matrices.

Arrays are images [B, H, W, C]; a window of k pixels a side is a row [k k C], in the order of a kernel [k, k, C, O].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def output_side(side: int, kernel: int, *, stride: int = 1, padding: int = 0) -> int:
    """Returns the length of the result along one axis: floor((side + 2 padding - kernel) / stride) + 1.

    Example:
      >>> output_side(32, 5), output_side(32, 3, stride=2, padding=1)
      (28, 16)
    """
    return (side + 2 * padding - kernel) // stride + 1


def width(side: int, stride: int, together: int) -> int:
    """Returns the columns (n - 1) stride + k that so many (n) neighbouring windows of k columns see together."""
    return (together - 1) * stride + side


def pad(images: jax.Array, padding: int) -> jax.Array:
    """Adds so many zeros on each of the four sides of images [B, H, W, C]."""
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def apart(images: jax.Array, side: int) -> jax.Array:
    """Returns the windows that lie side by side: [B, H, W, C] -> [B, H // side, W // side, side * side * C]."""
    batch, height, length, channels = images.shape
    rows, columns = height // side, length // side
    tiles = images[:, : rows * side, : columns * side].reshape(batch, rows, side, columns, side, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, side * side * channels)


def windows(padded: jax.Array, side: int, *, stride: int, together: int = 1) -> jax.Array:
    """Returns the windows of already padded images, [B, H, W, C] -> [B, h, ceil(w / n), k S C].

    Args:
      padded: [B, H, W, C].
      side: of a window, k.
      stride: step of the window in pixels, both axes.
      together: how many neighbouring windows of a row make one, n; it is S = ``width`` columns wide. Zeros stand where
        the last ones reach over the border.
    """
    height, across = (output_side(n, side, stride=stride) for n in padded.shape[1:3])
    groups, columns, step = -(-across // together), width(side, stride, together), together * stride
    down, right = (height - 1) * stride + 1, (groups - 1) * step + 1
    padded = jnp.pad(padded, ((0, 0), (0, 0), (0, max(0, right - 1 + columns - padded.shape[2])), (0, 0)))
    # Stacked axis by axis and not concatenated at once: XLA fuses this form two to three times better.
    rows = [
        jnp.stack([padded[:, i : i + down : stride, j : j + right : step] for j in range(columns)], axis=-2)
        for i in range(side)
    ]
    return jnp.stack(rows, axis=-3).reshape(padded.shape[0], height, groups, -1)


def times(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiplies [..., D] by [D, O], as matrices: with more axes XLA transposes the cotangent for ``weights``."""
    wide = jnp.promote_types(x.dtype, jnp.float32)  # what a CPU's matrix unit makes of bfloat16, and what sums need
    product = jnp.matmul(x.reshape(-1, x.shape[-1]), weights, preferred_element_type=wide).astype(x.dtype)
    return product.reshape(*x.shape[:-1], weights.shape[1])
