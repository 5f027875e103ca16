"""Layers that the networks of the zoo share, with PyTorch's conventions.

The published numbers of the field come from PyTorch programs, and its initialisation, paddings and poolings differ from
Flax's. Arrays are [B, H, W, C] float. Helpers that create parameters are called inside a compact module.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax.zoo import convolution, patches
from metadd_jax.zoo.initialise import Initialiser, fan_in_uniform

POOLINGS = ("avg", "max", "none")
ACTIVATIONS = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "leaky": nn.leaky_relu,  # slope .01
    "swish": nn.swish,
}
# A class activation map needs a few places: the last maps of VGG and AlexNet at 32x32 are 1x1 and 2x2 pixels.
MIN_MAP_SIDE = 4
IMAGENET_SIDE = 128  # pixels, the longer side: from here on names mean torchvision's networks


class SizeError(ValueError):
    """The images are too small (or of the wrong size) for the network."""


class Conv(nn.Module):
    """Convolution with a square kernel: params ``kernel`` [k, k, C, O] and, with ``use_bias``, ``bias`` [O].

    Not ``nn.Conv``, because PyTorch draws the bias by the fan-in of the kernel, and because ``convolution.convolve``
    is faster on a CPU.

    Attributes:
      features: channels O of the result.
      kernel: side k of the window in pixels.
      stride: step of the window in pixels.
      padding: zeros added on each side, in pixels.
      use_bias: whether there is a bias.
      kernel_init: initialiser of the kernel; None is PyTorch's default.
      bias_init: initialiser of the bias; None is PyTorch's default.

    Raises:
      SizeError: if the padded map is smaller than the kernel.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initialiser | None = None
    bias_init: Initialiser | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sides = [
            patches.output_side(side, self.kernel, stride=self.stride, padding=self.padding) for side in x.shape[1:3]
        ]
        if min(sides) < 1:  # else XLA would return an empty map, and the head would be trained on nothing
            size = f"{x.shape[1]}x{x.shape[2]}"
            raise SizeError(f"a {size} feature map is too small for kernel {self.kernel}; use larger images")
        fan_in = self.kernel * self.kernel * x.shape[-1]  # of the bias too, in PyTorch
        kernel_init = self.kernel_init or fan_in_uniform(fan_in)
        kernel = self.param("kernel", kernel_init, (self.kernel, self.kernel, x.shape[-1], self.features))
        x = convolution.convolve(x, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            x = x + self.param("bias", self.bias_init or fan_in_uniform(fan_in), (self.features,))
        return x


def bare_conv(
    x: jax.Array, features: int, kernel: int, *, stride: int = 1, init: Initialiser | None = None, name: str
) -> jax.Array:
    """Applies ``Conv`` without bias, padded to keep the size. The norm behind it has the bias.

    Args:
      x: [B, H, W, C].
      features: channels O of the result.
      kernel: side of the window in pixels, odd.
      stride: step of the window in pixels.
      init: initialiser of the kernel; None is PyTorch's default.
      name: of the submodule.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    conv = Conv(features, kernel, stride=stride, padding=kernel // 2, use_bias=False, kernel_init=init, name=name)
    return conv(x)


def linear(x: jax.Array, features: int, *, kernel_init: Initialiser | None = None, name: str) -> jax.Array:
    """Applies a fully connected layer, [..., D] -> [..., features].

    Args:
      x: [..., D].
      features: size of the result.
      kernel_init: initialiser of the kernel; None is PyTorch's default.
      name: of the submodule.
    """
    init = fan_in_uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=kernel_init or init, bias_init=init, name=name)(x)


def widen(x: jax.Array) -> jax.Array:
    """Converts ``x`` to float32 if it is narrower: sums over many values lose digits in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def pool(x: jax.Array, kind: str) -> jax.Array:
    """Halves the map by 2x2 windows of stride 2; an odd last row or column is dropped, as PyTorch does.

    Equal maxima share the gradient (PyTorch: the first gets all). After a ReLU the usual tie is between zeros, where
    the gradient is zero anyway.

    Args:
      x: [B, H, W, C].
      kind: one of ``POOLINGS``; "none" returns ``x``.

    Returns:
      [B, H // 2, W // 2, C].

    Raises:
      SizeError: if the map is less than 2 pixels high or wide.
      ValueError: for another kind.
    """
    if kind not in POOLINGS:
        raise ValueError(f"pooling {kind!r} must be one of {', '.join(POOLINGS)}")
    if kind == "none":
        return x
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    if min(rows, columns) < 1:
        raise SizeError(f"a {x.shape[1]}x{x.shape[2]} feature map cannot be halved; use larger images")
    if kind == "avg" and jax.default_backend() == "cpu":
        return _halve_on_cpu(x[:, : 2 * rows, : 2 * columns])
    # Four slices, not a reduction over windows: on CPU its gradient is several times faster.
    a, b, c, d = (x[:, i : 2 * rows : 2, j : 2 * columns : 2] for i in (0, 1) for j in (0, 1))
    return (a + b + c + d) / 4 if kind == "avg" else jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@jax.custom_vjp
def _halve_on_cpu(x: jax.Array) -> jax.Array:
    """Mean of each 2x2 window. XLA computes the norm before it once here, and four times for four slices."""
    # The gradient of ``reduce_window`` is slow on a CPU, so it is written out below.
    total = jax.lax.reduce_window(widen(x), 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return (total / 4).astype(x.dtype)


def _halve_backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = gradient.shape
    four = jnp.broadcast_to(gradient[:, :, None, :, None] / 4, (batch, rows, 2, columns, 2, channels))
    return (four.reshape(batch, 2 * rows, 2 * columns, channels),)


_halve_on_cpu.defvjp(lambda x: (_halve_on_cpu(x), None), _halve_backward)


def window_pool(x: jax.Array, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Takes the largest value of each window; places outside the map count as -inf, as in PyTorch.

    Equal maxima share the gradient, as in ``pool``.

    Args:
      x: [B, H, W, C].
      kernel: side of the window in pixels.
      stride: step of the window in pixels.
      padding: pixels added on each side.
      ceil: round the size of the result up and not down (PyTorch's ``ceil_mode``): a last window may hang over the
        edge, but must begin inside the map or its left padding.

    Returns:
      [B, h, w, C], h and w by ``pooled_side``.

    Raises:
      SizeError: if the padded map is smaller than the window.
    """
    for axis in (1, 2):  # the largest of a square is the largest of its rows' largest: 2 k slices, not k * k
        side = x.shape[axis]
        count = pooled_side(side, kernel, stride, padding=padding, ceil=ceil)
        if count < 1:
            raise SizeError(f"a {side} pixels wide feature map is too small to pool by {kernel}; use larger images")
        after = max(0, (count - 1) * stride + kernel - side - padding)
        edges = [(0, 0)] * x.ndim
        edges[axis] = (padding, after)
        # -inf and not 0: behind a norm without ReLU a window may hold negative values alone.
        padded = jnp.pad(x, edges, constant_values=-jnp.inf)
        span = (count - 1) * stride + 1
        slices = (jax.lax.slice_in_dim(padded, i, i + span, stride, axis) for i in range(kernel))
        x = functools.reduce(jnp.maximum, slices)
    return x


def pooled_side(side: int, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False) -> int:
    """Returns the length of the result of ``window_pool`` along one axis.

    Args:
      side: length of the map in pixels.
      kernel: as for ``window_pool``.
      stride: as for ``window_pool``.
      padding: as for ``window_pool``.
      ceil: as for ``window_pool``.
    """
    room = side + 2 * padding - kernel
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    # PyTorch drops a last window that would begin in the right padding; GoogLeNet's sizes depend on it.
    return count - 1 if (count - 1) * stride >= side + padding else count


def adaptive_average(x: jax.Array, side: int) -> jax.Array:
    """Averages a map down to a fixed size, as PyTorch's ``AdaptiveAvgPool2d``. Smaller maps are enlarged.

    Cell i of an axis is the mean of pixels floor(i h / side) to ceil((i + 1) h / side) - 1.

    Args:
      x: [B, h, w, C].
      side: height and width of the result in pixels.

    Returns:
      [B, side, side, C].
    """
    # Axis by axis: the mean over a rectangle is the mean of its rows' means.
    for axis in (1, 2):
        length = x.shape[axis]
        if length == side:
            continue
        bounds = [(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]
        cells = [jax.lax.slice_in_dim(x, low, high, axis=axis).mean(axis, keepdims=True) for low, high in bounds]
        x = jnp.concatenate(cells, axis)
    return x


def flatten(x: jax.Array) -> jax.Array:
    """Flattens ``x``, [B, h, w, C] -> [B, h w C]. PyTorch's order is C, h, w: imported weights must be transposed."""
    return x.reshape(x.shape[0], -1)


def global_average(x: jax.Array) -> jax.Array:
    """Averages ``x`` over all places, [B, h, w, C] -> [B, C]."""
    return x.mean((1, 2))


def map_stage(sizes: Sequence[tuple[int, int]], least: int) -> int:
    """Chooses the stage of a network that gives the class activation map: the deepest one that is fine enough.

    Args:
      sizes: (height, width) in pixels of the stages' maps, shallow to deep.
      least: how many pixels the map must have on its shorter side.

    Returns:
      Index into ``sizes``; 0 where the images are so small that no stage is that fine.
    """
    return max((stage for stage, size in enumerate(sizes) if min(size) >= least), default=0)


class MapSide(NamedTuple):
    """A wish for the fineness of a map.

    Attributes:
      side: least pixels of its shorter side.
      heard: what asked for it adds itself here; empty for a network whose map is always taken at one place.
    """

    side: int
    heard: list[str]


_WISH: contextvars.ContextVar[MapSide | None] = contextvars.ContextVar("map_side", default=None)


@contextlib.contextmanager
def map_of(side: int | None) -> Iterator[MapSide | None]:
    """Makes ``least_map_side`` give another number inside it; None leaves what it gives.

    Args:
      side: least pixels of the map's shorter side.
    """
    wish = None if side is None else MapSide(side, [])
    token = _WISH.set(wish)
    try:
        yield wish
    finally:
        _WISH.reset(token)


def least_map_side(images: jax.Array) -> int:
    """Returns how many pixels the map must have on its shorter side: 4, and below 128 pixels a quarter of the image.

    Each place of a deeper map has the whole small image in its receptive field. The planted-object test shows that
    such a map no longer tells where things are (docs/cams.md). ``map_of`` overrides it.

    Args:
      images: [B, H, W, C].
    """
    if wish := _WISH.get():
        wish.heard.append("map")
        return wish.side
    sides = images.shape[1:3]
    return MIN_MAP_SIDE if max(sides) >= IMAGENET_SIDE else max(MIN_MAP_SIDE, min(sides) // 4)


def halvings(x: jax.Array, times: int, *, grow: int = 0) -> list[tuple[int, int]]:
    """Lists (height, width) of ``x``, enlarged by ``grow`` pixels, after 0, 1, ..., ``times`` floor halvings."""
    height, width = x.shape[1] + grow, x.shape[2] + grow
    return [(height >> step, width >> step) for step in range(times + 1)]


def is_grey_28(x: jax.Array) -> bool:
    """Tells whether ``x`` is 28x28x1, which the DC family pads to 32x32 in the first convolution."""
    # DC's program pads grey images of every size; at 32x32 that would give maps of 36 pixels (docs/zoo.md).
    return x.shape[1:] == (28, 28, 1)


def scaled(channels: int, width: int, full_width: int) -> int:
    """Scales ``channels`` of a later layer to a first layer with ``width`` of ``full_width`` channels; at least 1."""
    return max(1, channels * width // full_width)
