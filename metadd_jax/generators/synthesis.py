"""A StyleGAN3-type generator: a mapping network z -> w, and a synthesis network w -> image without aliasing.

Written from the formulas of Karras et al., "Alias-Free Generative Adversarial Networks" (NeurIPS 2021): Fourier
features go through layers of modulated convolutions and filtered leaky ReLUs (``filters``), whose cut-off frequency,
sampling rate and width follow one schedule. GLaD (Cazenavette et al., CVPR 2023) distils into the latents of such a
network; see ``glad``. No weights of other programs are read here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from metadd_jax import eager, ranges
from metadd_jax.generators import filters
from metadd_jax.ranges import Whole
from metadd_jax.zoo import convolution

_MARGIN = 10  # samples around the picture on each side, so that no layer sees a border
_FIRST_CUTOFF, _FIRST_STOPBAND, _LAST_STOPBAND = 2.0, 2**2.1, 2**0.3
_DECAY = 0.999  # of the running magnitudes
_OUTPUT = 0.25  # images come out about four times as large as wanted


class Level(NamedTuple):
    """Where one layer stands in the schedule.

    Attributes:
      cutoff: of its signal, in cycles a picture.
      half_width: of its filters' transition.
      rate: samples a picture.
      size: samples a side, with the margins.
      channels: C.
    """

    cutoff: float
    half_width: float
    rate: int
    size: int
    channels: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """The sizes of a generator; its networks are ``synthesis`` and ``mapping``.

    Published (StyleGAN3): 14 layers, base 32768, at most 512 channels, w of 512 numbers, 3x3 windows. The defaults are
    small, for pictures of 32 pixels on a CPU.

    Attributes:
      resolution: R, pixels a side, a power of two from 4 on.
      layers: N, without the last one, which makes colours; at least 3.
      channel_base: b: a layer of cut-off f has b / (2 f) channels, but
      channel_max: at most so many.
      w_dim: numbers of a style w.
      z_dim: numbers of z.
      mapping_layers: of the mapping network.
      channels: of the images.
      num_classes: classes that the mapping network is told, 0 for none.
    """

    resolution: Annotated[int, Whole(4)] = 32
    layers: Annotated[int, Whole(3)] = 6
    channel_base: Annotated[int, Whole(1)] = 1024
    channel_max: Annotated[int, Whole(1)] = 32
    w_dim: Annotated[int, Whole(1)] = 64
    z_dim: Annotated[int, Whole(1)] = 64
    mapping_layers: Annotated[int, Whole(1)] = 2
    channels: Annotated[int, Whole(1)] = 3
    num_classes: Annotated[int, Whole(0)] = 0

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution={self.resolution} must be a power of two: the layers double their rates")

    @property
    def num_ws(self) -> int:
        """How many styles an image has: of the input, the N layers and the colours."""
        return self.layers + 2

    @property
    def synthesis(self) -> Synthesis:
        """The network w -> image."""
        return Synthesis(self)

    @property
    def mapping(self) -> Mapping:
        """The network z -> w."""
        return Mapping(self)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draws the variables of both networks: {"synthesis": ..., "mapping": ...}.

        Args:
          key: typed PRNG key.
        """
        return _draw(key, settings=self)

    def schedule(self) -> list[Level]:
        """The N layers and the one that makes colours."""
        last = self.resolution / 2
        levels = []
        for i in range(self.layers + 1):
            e = min(i / (self.layers - 2), 1)  # the last two layers, and the colours, hold all that the picture can
            cutoff = _FIRST_CUTOFF * (last / _FIRST_CUTOFF) ** e
            stopband = _FIRST_STOPBAND * (last * _LAST_STOPBAND / _FIRST_STOPBAND) ** e
            rate = 2 ** math.ceil(math.log2(min(2 * stopband, self.resolution)))
            size = self.resolution if i >= self.layers - 1 else rate + 2 * _MARGIN
            channels = round(min(self.channel_base / 2 / cutoff, self.channel_max))
            half_width = max(stopband, rate / 2) - cutoff
            levels.append(
                Level(cutoff, half_width, rate, size, self.channels if i == self.layers else max(channels, 1))
            )
        return levels


class Synthesis(nn.Module):
    """w+ [B, N + 2, w_dim] -> images [B, R, R, C], about [-1, 1].

    Its two halves at any layer: ``apply(variables, w_plus, n, method="to_layer")`` gives f_n, and
    ``apply(variables, f, w_plus, n, method="from_layer")`` its images.
    The collections are "params", "buffers" (the frequencies and phases of the input, never trained) and "magnitudes"
    (running mean squares of what each layer reads, 1 at first; trained by ``train=True`` with this one mutable).
    """

    settings: Generator

    def setup(self) -> None:
        levels = self.settings.schedule()
        self.input = FourierInput(levels[0])
        pairs = list(zip([levels[0], *levels], levels, strict=False))  # before the first layer stands itself
        self.convolutions = [Layer(before, level) for before, level in pairs[:-1]]
        self.colours = ToColours(levels[-1].channels)

    def __call__(self, w_plus: jax.Array, train: bool = False) -> jax.Array:
        """Makes images.

        Args:
          w_plus: [B, N + 2, w_dim].
          train: whether the running magnitudes move.
        """
        return self.from_layer(self.to_layer(w_plus, 0, train), w_plus, 0, train)

    def to_layer(self, w_plus: jax.Array, n: int, train: bool = False) -> jax.Array:
        """The feature f_n [B, size, size, C] behind the input and the first ``n`` layers, 0 to N.

        Args:
          w_plus: [B, N + 2, w_dim], of which rows 0 to n are read.
          n: layers.
          train: whether the running magnitudes move.
        """
        x = self.input(w_plus[:, 0])
        for number, layer in enumerate(self.convolutions[:n], start=1):
            x = layer(x, w_plus[:, number], train)
        return x

    def from_layer(self, x: jax.Array, w_plus: jax.Array, n: int, train: bool = False) -> jax.Array:
        """The images [B, R, R, C] of features f_n.

        Args:
          x: f_n, as from ``to_layer``.
          w_plus: [B, N + 2, w_dim], of which rows n + 1 to N + 1 are read.
          n: layers that are behind ``x``.
          train: whether the running magnitudes move.
        """
        for number, layer in enumerate(self.convolutions[n:], start=n + 1):
            x = layer(x, w_plus[:, number], train)
        return _OUTPUT * self.colours(x, w_plus[:, -1], train)


class FourierInput(nn.Module):
    """C waves of random frequency, turned and moved by the style, and mixed: w [B, w_dim] -> [B, size, size, C]."""

    level: Level

    @nn.compact
    def __call__(self, w: jax.Array) -> jax.Array:
        level, channels = self.level, self.level.channels
        frequencies = self.variable("buffers", "frequencies", self._draw, "frequencies").value  # [C, 2]
        phases = self.variable("buffers", "phases", self._draw, "phases").value  # [C], in cycles
        # Without weights at first: every style leaves the waves where they are.
        t = affine(w, 4, kernel_init=nn.initializers.zeros, bias=(1.0, 0.0, 0.0, 0.0))
        t = t / jnp.linalg.norm(t[:, :2], axis=1, keepdims=True)
        cos, sin, right, down = t.T
        # M = R S: a turn by (cos, sin) after a shift by (-right, -down).
        turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])  # [2, 2, B]
        shift = jnp.einsum("ijb,jb->bi", turn, jnp.stack([-right, -down]))
        phases = phases + shift @ frequencies.T  # [B, C]
        frequencies = jnp.einsum("ci,ijb->bcj", frequencies, turn)
        # What is turned or scaled beyond what the rate can hold fades out.
        over = (jnp.linalg.norm(frequencies, axis=2) - level.cutoff) / (level.rate / 2 - level.cutoff)
        amplitude = jnp.clip(1 - over, 0, 1)
        grid = ((2 * np.arange(level.size) + 1) / level.size - 1) * level.size / (2 * level.rate)
        across = frequencies[:, :, 0, None] * grid  # [B, C, size], x along columns
        along = frequencies[:, :, 1, None] * grid + phases[:, :, None]  # y along rows
        waves = jnp.sin(2 * np.pi * (across[:, :, None, :] + along[:, :, :, None])) * amplitude[:, :, None, None]
        weight = self.param("weight", nn.initializers.normal(1.0), (channels, channels))  # [out, in]
        return jnp.einsum("bcyx,oc->byxo", waves, weight / math.sqrt(channels))

    def _draw(self, what: str) -> jax.Array:
        key = jax.random.fold_in(self.make_rng("params"), what == "phases")
        if what == "phases":
            return jax.random.uniform(key, (self.level.channels,), minval=-0.5, maxval=0.5)
        v = jax.random.normal(key, (self.level.channels, 2))
        radius = jnp.linalg.norm(v, axis=1, keepdims=True)
        # Nearly uniform in the disc of the band's width, and a few beyond.
        return v / (radius * jnp.exp(radius**2) ** 0.25) * self.level.cutoff


class Layer(nn.Module):
    """A modulated 3x3 convolution, bias and filtered leaky ReLU, from the rate ``before`` to that of ``level``."""

    before: Level
    level: Level

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, train: bool) -> jax.Array:
        style = affine(w, x.shape[-1])
        weight = self.param("weight", nn.initializers.normal(1.0), (3, 3, x.shape[-1], self.level.channels))
        x = magnitude_gain(self, x, train) * x
        # Windows reach beyond the border, where there are zeros; the filters' padding cuts off what is too much.
        x = modulated_convolution(x, weight, style, padding=2)
        x = x + self.param("bias", nn.initializers.zeros, (self.level.channels,))
        return filters.filtered_leaky_relu(x, *self.matrices(x.shape[1]))

    def matrices(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The filters of an axis of ``size`` samples, up and down."""
        before, level = self.before, self.level
        between = 2 * max(before.rate, level.rate)
        up, down = between // before.rate, between // level.rate
        # The filter that goes up keeps what the layer before made, so it has that one's cut-off.
        rise = filters.kaiser_low_pass(filters.TAPS * up, before.cutoff, 2 * before.half_width, between)
        fall = filters.kaiser_low_pass(filters.TAPS * down, level.cutoff, 2 * level.half_width, between)
        total = (level.size - 1) * down + 1 - size * up + len(rise) + len(fall) - 2
        low = (total + up) // 2
        return (
            filters.up_matrix(rise, size=size, factor=up, low=low, high=total - low),
            filters.down_matrix(fall, size=level.size, factor=down),
        )


class ToColours(nn.Module):
    """A modulated 1x1 convolution to the channels of the image, without demodulation."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, train: bool) -> jax.Array:
        style = affine(w, x.shape[-1]) / math.sqrt(x.shape[-1])
        weight = self.param("weight", nn.initializers.normal(1.0), (1, 1, x.shape[-1], self.channels))
        x = magnitude_gain(self, x, train) * x
        x = modulated_convolution(x, weight, style, demodulate=False)
        return x + self.param("bias", nn.initializers.zeros, (self.channels,))


class Mapping(nn.Module):
    """z [B, z_dim], with ``num_classes`` also labels [B] -> w [B, w_dim]."""

    settings: Generator

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        x = _unit_scale(z)
        if self.settings.num_classes:
            # Of a class a row of its own; StyleGAN-XL has means of a network's embeddings, which need that network.
            classes = jax.nn.one_hot(labels, self.settings.num_classes)
            known = _leaky_relu(affine(classes, self.settings.z_dim, bias=0.0, name="embedding"))
            x = jnp.concatenate([x, _unit_scale(known)], axis=1)
        for number in range(self.settings.mapping_layers):
            # Its rate is a hundredth of that of other weights, which a larger draw and a smaller use amount to.
            x = _leaky_relu(affine(x, self.settings.w_dim, bias=0.0, multiplier=0.01, name=f"layer{number}"))
        return x


# Compiled, so that the images that Flax makes on the way, and nobody reads, are left out.
@eager.one_program(static_argnames=("settings",))
def _draw(key: jax.Array, *, settings: Generator) -> dict[str, Any]:
    synthesis_key, mapping_key = jax.random.split(key)
    w, z = jnp.zeros((1, settings.num_ws, settings.w_dim)), jnp.zeros((1, settings.z_dim))
    labels = jnp.zeros(1, jnp.int32) if settings.num_classes else None
    return {
        "synthesis": settings.synthesis.init(synthesis_key, w),
        "mapping": settings.mapping.init(mapping_key, z, labels),
    }


def modulated_convolution(
    x: jax.Array, weight: jax.Array, style: jax.Array, *, padding: int = 0, demodulate: bool = True
) -> jax.Array:
    """Convolves each image with a kernel of its own, W'_oi = W_oi s_i: [B, H, W, I] -> [B, h, w, O].

    Demodulated, each output channel's W' has norm 1, so that the scale of the signal stays. Scaling the input by s and
    the output by the norm is the same as a kernel for each image, and one convolution of the whole batch.

    Args:
      x: [B, H, W, I].
      weight: [k, k, I, O].
      style: [B, I], s.
      padding: zeros on every side, in samples.
      demodulate: whether W' is brought to norm 1.
    """
    gain: jax.Array | float = 1.0
    if demodulate:
        # Both cancel but for the epsilon; per image and not over the batch, so that images stay independent.
        weight = weight * jax.lax.rsqrt(jnp.mean(weight**2, axis=(0, 1, 2)))
        style = style * jax.lax.rsqrt(jnp.mean(style**2, axis=1, keepdims=True))
        norms = style**2 @ jnp.sum(weight**2, axis=(0, 1))  # [B, O]
        gain = jax.lax.rsqrt(norms + 1e-8)[:, None, None]
    return gain * convolution.convolve(x * style[:, None, None], weight, padding=padding)


def magnitude_gain(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    """1 / root mean square of what a layer reads, by the running mean in its collection "magnitudes".

    Args:
      module: the layer.
      x: what it reads.
      train: whether the mean moves first.
    """
    square = module.variable("magnitudes", "square", jnp.ones, ())
    if train and not module.is_initializing():
        square.value = _DECAY * square.value + (1 - _DECAY) * jax.lax.stop_gradient(jnp.mean(x**2))
    return jax.lax.rsqrt(square.value)


def affine(
    x: jax.Array,
    features: int,
    *,
    bias: float | tuple[float, ...] = 1.0,
    multiplier: float = 1.0,
    kernel_init: Any = None,
    name: str = "affine",
) -> jax.Array:
    """A fully connected layer [B, D] -> [B, features] of weights N(0, 1) that are used divided by sqrt(D).

    Args:
      x: [B, D].
      features: size of the result.
      bias: its first value, one or one a feature.
      multiplier: m: weights and bias are drawn 1 / m times as large and used m times, which makes their rate m^2.
      kernel_init: initialiser of the weights; None is N(0, 1 / m^2).
      name: of the submodule.
    """
    return _Affine(features, bias, multiplier, kernel_init or nn.initializers.normal(1 / multiplier), name=name)(x)


class _Affine(nn.Module):
    features: int
    bias: float | tuple[float, ...]
    multiplier: float
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        first = np.broadcast_to(np.asarray(self.bias, np.float32), self.features) / self.multiplier
        bias = self.param("bias", lambda key: jnp.asarray(first, jnp.float32))
        return x @ kernel * (self.multiplier / math.sqrt(x.shape[-1])) + bias * self.multiplier


def _leaky_relu(x: jax.Array) -> jax.Array:
    return math.sqrt(2) * jnp.where(x >= 0, x, 0.2 * x)


def _unit_scale(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=1, keepdims=True) + 1e-8)
