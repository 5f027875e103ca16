"""A small class-conditional decoder: the cheapest generator that can be trained on a CPU.

A code z and a class y give a style w, from which convolutions make an image, doubling it from an eighth of its sides:

    w = leaky(W [z / rms(z), one-hot(y)] + b),   h_0 = A w,   h_l = conv(double(leaky(h_{l-1}))),   x = conv(leaky(h_3))
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax import eager, ranges
from metadd_jax.ranges import Whole
from metadd_jax.zoo import initialise, layers

_DOUBLINGS = 3
_SLOPE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """The decoder's shape. It is hashable: a program may be compiled for it.

    Attributes:
      image_shape: (H, W, C) of the images.
      num_classes: K.
      z_dim: numbers of a code z.
      w_dim: numbers of a style w.
      width: channels at full resolution; four times as many at the start.
    """

    image_shape: tuple[int, int, int] = dataclasses.field(kw_only=False)
    num_classes: int = dataclasses.field(kw_only=False)
    z_dim: Annotated[int, Whole(1)] = 64
    w_dim: Annotated[int, Whole(1)] = 64
    width: Annotated[int, Whole(1)] = 32

    def __post_init__(self) -> None:
        ranges.check(self)

    @property
    def name(self) -> str:
        """What it is called in names of sets and folders."""
        return f"decoder{self.width}"

    def init(self, key: jax.Array) -> Any:
        """Draws the weights: {"mapping": ..., "synthesis": ...}."""
        return _draw(key, settings=self)

    def styles(self, weights: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
        """Makes styles [B, w_dim] of codes [B, z_dim], whose length says nothing, and labels [B]."""
        made: Any = self._mapping.apply({"params": weights["mapping"]}, z, labels)  # Flax: or a pair
        return made

    def synthesise(self, weights: Any, w: jax.Array) -> jax.Array:
        """Makes images [B, H, W, C] in the set's value space of styles [B, w_dim]."""
        made: Any = self._synthesis.apply({"params": weights["synthesis"]}, w)  # Flax: or a pair
        return made

    def generate(self, weights: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
        """Makes images [B, H, W, C] in the set's value space of codes [B, z_dim] and labels [B]."""
        return self.synthesise(weights, self.styles(weights, z, labels))

    @property
    def _mapping(self) -> _Mapping:
        return _Mapping(self.num_classes, self.w_dim)

    @property
    def _synthesis(self) -> _Synthesis:
        return _Synthesis(self.image_shape, self.width)


# Compiled, so that the images that Flax makes on the way, and nobody reads, are left out.
@eager.one_program(static_argnames=("settings",))
def _draw(key: jax.Array, *, settings: Decoder) -> Any:
    z, w, label = jnp.zeros((1, settings.z_dim)), jnp.zeros((1, settings.w_dim)), jnp.zeros(1, jnp.int32)
    # The layers say how they are drawn, and all are drawn from one stream (``initialise``).
    boxes = {"mapping": settings._mapping.init(key, z, label), "synthesis": settings._synthesis.init(key, w)}
    return initialise.draw(key, {part: box["params"] for part, box in boxes.items()})


class _Mapping(nn.Module):
    num_classes: int
    w_dim: int

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array) -> jax.Array:
        z = z * jax.lax.rsqrt(jnp.mean(z**2, axis=1, keepdims=True) + 1e-8)
        seen = jnp.concatenate([z, jax.nn.one_hot(labels, self.num_classes)], axis=1)
        return nn.leaky_relu(layers.linear(seen, self.w_dim, kernel_init=_scaled(seen), name="affine"), _SLOPE)


class _Synthesis(nn.Module):
    image_shape: tuple[int, int, int]
    width: int

    @nn.compact
    def __call__(self, w: jax.Array) -> jax.Array:
        sizes, channels = _sizes(self.image_shape), self.image_shape[2]
        widths = [4 * self.width, 2 * self.width, self.width, self.width]
        h = layers.linear(w, math.prod(sizes[0]) * widths[0], kernel_init=_scaled(w), name="start")
        h = h.reshape(-1, *sizes[0], widths[0])
        for level in range(1, _DOUBLINGS + 1):
            # Repeated and then convolved: a transposed convolution leaves a chequered pattern.
            h = nn.leaky_relu(h, _SLOPE).repeat(2, axis=1).repeat(2, axis=2)[:, : sizes[level][0], : sizes[level][1]]
            h = layers.Conv(widths[level], 3, padding=1, kernel_init=_scaled(h, 9), name=f"conv{level}")(h)
        h = nn.leaky_relu(h, _SLOPE)
        return layers.Conv(channels, 3, padding=1, kernel_init=_scaled(h, 9), name="image")(h)


def _sizes(image_shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(H, W) before the first doubling and after each."""
    height, width, _ = image_shape
    return [(math.ceil(height / 2**level), math.ceil(width / 2**level)) for level in range(_DOUBLINGS, -1, -1)]


def _scaled(x: jax.Array, places: int = 1) -> initialise.Initialiser:
    """Keeps the size of activations through a leaky ReLU, so that an untrained decoder's images have contrast."""
    return initialise.normal(math.sqrt(2 / (1 + _SLOPE**2) / (places * x.shape[-1])))
