"""Layers that the networks of the zoo share, with PyTorch's conventions, as the field's numbers need them.

Arrays are [B, H, W, C] float. Helpers that create parameters are called inside a compact module.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer

from metadd_jax.zoo import convolution
from metadd_jax.zoo.initialise import fan_in_uniform

POOLINGS = ("avg", "max", "none")
ACTIVATIONS = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "leaky": nn.leaky_relu,  # slope .01
    "swish": nn.swish,
}
MIN_MAP_SIDE = 4
IMAGENET_SIDE = 128  # pixels, the longer side: from here on names mean torchvision's networks


class SizeError(ValueError):
    """The images are too small (or of the wrong size) for the network."""


class Conv(nn.Module):
    """Convolution with a square kernel: params ``kernel`` [k, k, C, O] and, with ``use_bias``, ``bias`` [O].

    Own and not ``nn.Conv`` because the bias is drawn by the fan-in of the kernel, and because the way to
    compute it is ours (``convolution.convolve``). Initialised as PyTorch does unless ``kernel_init`` and
    ``bias_init`` say otherwise.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sides = [
            convolution.output_side(side, self.kernel, stride=self.stride, padding=self.padding)
            for side in x.shape[1:3]
        ]
        if min(sides) < 1:
            size = f"{x.shape[1]}x{x.shape[2]}"
            raise SizeError(f"a {size} feature map is too small for kernel {self.kernel}; use larger images")
        fan_in = self.kernel * self.kernel * x.shape[-1]
        kernel_init = self.kernel_init or fan_in_uniform(fan_in)
        kernel = self.param("kernel", kernel_init, (self.kernel, self.kernel, x.shape[-1], self.features))
        x = convolution.convolve(x, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            x = x + self.param("bias", self.bias_init or fan_in_uniform(fan_in), (self.features,))
        return x


def bare_conv(
    x: jax.Array, features: int, kernel: int, *, stride: int = 1, init: Initializer | None = None, name: str
) -> jax.Array:
    """``Conv`` without bias that keeps the size (but for the stride); the norm behind it has the bias."""
    settings = {"stride": stride, "padding": kernel // 2, "use_bias": False, "kernel_init": init}
    return Conv(features, kernel, **settings, name=name)(x)


def linear(x: jax.Array, features: int, *, kernel_init: Initializer | None = None, name: str) -> jax.Array:
    """Fully connected layer [..., D] -> [..., features], initialised as PyTorch does unless told otherwise."""
    init = fan_in_uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=kernel_init or init, bias_init=init, name=name)(x)


def widen(x: jax.Array) -> jax.Array:
    """``x`` in float32 if it is narrower: what sums over many values need."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def pool(x: jax.Array, kind: str) -> jax.Array:
    """Halves the map by 2x2 windows of stride 2; an odd last row or column is dropped, as PyTorch does.

    Of equal maxima each gets an equal share of the gradient (PyTorch: the first gets all); after a ReLU the
    usual tie is between zeros, through which nothing flows anyway.

    Args:
      x: [B, H, W, C].
      kind: one of ``POOLINGS``.

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
    total = jax.lax.reduce_window(widen(x), 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return (total / 4).astype(x.dtype)


def _halve_backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = gradient.shape
    four = jnp.broadcast_to(gradient[:, :, None, :, None] / 4, (batch, rows, 2, columns, 2, channels))
    return (four.reshape(batch, 2 * rows, 2 * columns, channels),)


_halve_on_cpu.defvjp(lambda x: (_halve_on_cpu(x), None), _halve_backward)


def window_pool(x: jax.Array, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Largest value of each kernel x kernel window; what lies outside the map counts as -inf, as in PyTorch.

    ``ceil`` rounds the result's size up and not down (PyTorch's ``ceil_mode``): a last window may hang over the
    edge, but must begin inside the map or its left padding. Equal maxima share the gradient, as in ``pool``.

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
        padded = jnp.pad(x, edges, constant_values=-jnp.inf)
        span = (count - 1) * stride + 1
        slices = (jax.lax.slice_in_dim(padded, i, i + span, stride, axis) for i in range(kernel))
        x = functools.reduce(jnp.maximum, slices)
    return x


def pooled_side(side: int, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False) -> int:
    """Length of the result of ``window_pool`` along one axis."""
    room = side + 2 * padding - kernel
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= side + padding else count


def adaptive_average(x: jax.Array, side: int) -> jax.Array:
    """[B, h, w, C] -> [B, side, side, C]: cell i of an axis is the mean of pixels floor(i h / side) to
    ceil((i + 1) h / side) - 1, as PyTorch's ``AdaptiveAvgPool2d``; smaller maps are thereby enlarged."""
    for axis in (1, 2):
        length = x.shape[axis]
        if length == side:
            continue
        bounds = [(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]
        cells = [jax.lax.slice_in_dim(x, low, high, axis=axis).mean(axis, keepdims=True) for low, high in bounds]
        x = jnp.concatenate(cells, axis)
    return x


def flatten(x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, h w C] (PyTorch flattens C, h, w: transpose when weights are carried over)."""
    return x.reshape(x.shape[0], -1)


def global_average(x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, C]."""
    return x.mean((1, 2))


def map_stage(sizes: Sequence[tuple[int, int]], least: int) -> int:
    """Which of a network's stages gives the class activation map: the deepest one that is fine enough.

    Args:
      sizes: (height, width) of the stages' maps, shallow to deep.
      least: how many pixels the map must have on its shorter side.

    Returns:
      Index into ``sizes``; 0 where the images are so small that no stage is that fine.
    """
    return max((stage for stage, size in enumerate(sizes) if min(size) >= least), default=0)


def least_map_side(images: jax.Array) -> int:
    """How fine the map must be: 4 pixels, and below 128 pixels a quarter of the image.

    Every place of a deeper map sees the whole of a small image, and the planted-object test finds that it no longer
    tells where things are (docs/cams.md).
    """
    sides = images.shape[1:3]
    return MIN_MAP_SIDE if max(sides) >= IMAGENET_SIDE else max(MIN_MAP_SIDE, min(sides) // 4)


def halvings(x: jax.Array, times: int, *, grow: int = 0) -> list[tuple[int, int]]:
    """(height, width) of ``x`` grown by ``grow`` pixels, after 0, 1, ..., ``times`` floor halvings."""
    height, width = x.shape[1] + grow, x.shape[2] + grow
    return [(height >> step, width >> step) for step in range(times + 1)]


def is_grey_28(x: jax.Array) -> bool:
    """Whether the images are 28x28x1, which the DC family pads in the first convolution to reach 32x32."""
    return x.shape[1:] == (28, 28, 1)


def scaled(channels: int, width: int, full_width: int) -> int:
    """Channels of a later layer when the first has ``width`` of ``full_width`` channels; at least 1."""
    return max(1, channels * width // full_width)
