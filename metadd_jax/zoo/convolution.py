"""Two-dimensional convolution that stays fast on CPU, inside ``lax.scan`` and under ``vmap`` over kernels.

On GPU and TPU this is XLA's own convolution. On CPU that one is a trap: in a loop it runs 20 to 35 times
slower than outside (jax issue 12868), and ``vmap`` over kernels turns it into a grouped convolution, which
is slower still. There the convolution is written as patches and a matrix product instead.

Layouts: images [B, H, W, C], kernels [k, k, C, O] (HWIO), results [B, h, w, O].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def output_side(side: int, kernel: int, *, stride: int = 1, padding: int = 0) -> int:
    """Length of the result along one axis: floor((side + 2 padding - kernel) / stride) + 1."""
    return (side + 2 * padding - kernel) // stride + 1


def convolve(images: ArrayLike, kernel: ArrayLike, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Cross-correlates images with a square kernel, zeros around the border.

    The way to compute it is chosen once per call, from the default backend, while Python runs (or traces).

    Args:
      images: [B, H, W, C] float.
      kernel: [k, k, C, O] float.
      stride: step of the window in pixels, both axes.
      padding: zeros added on each of the four sides, in pixels.

    Returns:
      [B, h, w, O], h and w as ``output_side`` says.
    """
    if jax.default_backend() == "cpu":
        return matmul_convolve(images, kernel, stride=stride, padding=padding)
    return xla_convolve(images, kernel, stride=stride, padding=padding)


def xla_convolve(images: ArrayLike, kernel: ArrayLike, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """``convolve`` by XLA's convolution (cuDNN on GPU, the matrix unit on TPU)."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def matmul_convolve(images: ArrayLike, kernel: ArrayLike, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """``convolve`` by one product [B, h, w, k k C] x [k k C, O].

    The patches are k * k times as large as the images, so they are built anew in the backward pass
    (``jax.checkpoint``) rather than kept: the copy is cheap beside the product.
    """
    side, _, channels, features = kernel.shape
    weights = kernel.reshape(side * side * channels, features)
    if side == 1:
        return _pad(images, padding)[:, ::stride, ::stride] @ weights
    if side == stride and padding == 0:
        return _tiles(images, side) @ weights

    @jax.checkpoint
    def product(images: jax.Array, weights: jax.Array) -> jax.Array:
        return _patches(_pad(images, padding), side, stride) @ weights

    return product(images, weights)


def _pad(images: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _tiles(images: jax.Array, side: int) -> jax.Array:
    """Windows that do not overlap: [B, H, W, C] -> [B, H // side, W // side, side * side * C]."""
    batch, height, width, channels = images.shape
    rows, columns = height // side, width // side
    tiles = images[:, : rows * side, : columns * side].reshape(batch, rows, side, columns, side, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, side * side * channels)


def _patches(padded: jax.Array, side: int, stride: int) -> jax.Array:
    """Every window of an already padded image, flattened in the order of the kernel: [B, h, w, k k C]."""
    height = output_side(padded.shape[1], side, stride=stride)
    width = output_side(padded.shape[2], side, stride=stride)
    down, across = (height - 1) * stride + 1, (width - 1) * stride + 1
    # Stacked axis by axis and not concatenated at once: XLA fuses this form two to three times better.
    windows = [
        jnp.stack([padded[:, i : i + down : stride, j : j + across : stride] for j in range(side)], axis=-2)
        for i in range(side)
    ]
    return jnp.stack(windows, axis=-3).reshape(padded.shape[0], height, width, -1)
