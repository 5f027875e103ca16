"""GoogLeNet (Szegedy et al. 2015) with batch norm: for small images, and torchvision's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax.zoo import initialise, layers, norms

# Stage -> block -> channels at width 64: 1x1 branch; 1x1 and 3x3; 1x1 and 3x3; 1x1 behind the max pool.
_INCEPTIONS = {
    "3": {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    "4": {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    "5": {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}
# Stage -> window of the max pool of stride 2 before it.
_POOLS = {"4": 3, "5": 2}
# The block whose end gives the map of small images: each later one looks further (and pools) on the same grid, and on
# planted objects the map loses the place from block to block (docs/cams.md).
_SMALL_MAP_BLOCK = "4a"
_IMAGENET_EPSILON = 1e-3  # of batch norm, in torchvision's network
# Mean and deviation of each channel of ImageNet, and those that the published weights were trained with.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PUBLISHED_MEAN, _PUBLISHED_DEVIATION = 0.5, 0.5


class ConvNorm(nn.Module):
    """Convolution without bias, padded to keep the size, then norm and ReLU.

    Attributes:
      features: channels of the result.
      kernel: side of the window.
      norm: one of ``norms.NORMS``.
      imagenet: torchvision's epsilon and initialisation.
      stride: step of the window.
    """

    features: int
    kernel: int
    norm: str
    imagenet: bool
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        init = initialise.normal(0.01) if self.imagenet else None
        x = layers.bare_conv(x, self.features, self.kernel, stride=self.stride, init=init, name="conv")
        epsilon = _IMAGENET_EPSILON if self.imagenet else norms.EPSILON
        return nn.relu(norms.norm(x, self.norm, train=train, epsilon=epsilon, name="norm"))


class Inception(nn.Module):
    """Four branches side by side, their channels concatenated.

    The third branch is 3x3 where the paper has 5x5: so it is in torchvision's network, whose published weights fit no
    other.

    Attributes:
      channels: of the six convolutions, in the order of ``_INCEPTIONS``.
      norm: one of ``norms.NORMS``.
      imagenet: as in ``ConvNorm``.
    """

    channels: tuple[int, ...]
    norm: str
    imagenet: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv(x: jax.Array, index: int, kernel: int, name: str) -> jax.Array:
            return ConvNorm(self.channels[index], kernel, self.norm, self.imagenet, name=name)(x, train=train)

        # In this order, because the published weights of the next block read the channels so.
        branches = [
            conv(x, 0, 1, "branch1"),
            conv(conv(x, 1, 1, "branch2_reduce"), 2, 3, "branch2"),
            conv(conv(x, 3, 1, "branch3_reduce"), 4, 3, "branch3"),
            conv(layers.window_pool(x, 3, 1, padding=1), 5, 1, "branch4"),
        ]
        return jnp.concatenate(branches, axis=-1)


class GoogLeNet(nn.Module):
    """Stem, nine inception blocks in three stages with a max pool between, average over space, Linear.

    Small images: the stem is one 3x3 convolution to 192 channels, without pooling, so that the first inception
    block has the full resolution; the pools between the stages are torchvision's.

    ``imagenet`` (torchvision's ``googlenet``, norm "batch" with eps 1e-3): 7x7 stride-2 stem, pool, 1x1 and
    3x3 convolution, pool; every pool rounds the size up. The two auxiliary heads and the dropout before the
    Linear layer (p = .2) are left out: neither plays a part in evaluation. Weights are drawn with deviation .01.

    Attributes:
      num_classes: K.
      imagenet: see above.
      transform_input: images standardised by ImageNet's mean and deviation are brought to mean .5 and
        deviation .5 first; torchvision's published weights need it.
      width: channels of the 7x7 stem (a third of the small stem's); everything else scales with it.
      norm: one of ``norms.NORMS``.
    """

    num_classes: int
    imagenet: bool = False
    transform_input: bool = False
    width: int = 64
    norm: str = "instance"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        if self.transform_input:  # first, so that users standardise by ImageNet's constants for every network alike
            x = _published_space(x)
        x = self._stem(x, train)
        map_block = self._last_fine_block(x) if self.imagenet else _SMALL_MAP_BLOCK
        for stage, blocks in _INCEPTIONS.items():
            if stage in _POOLS:
                x = layers.window_pool(x, _POOLS[stage], 2, ceil=True)
            for block, channels in blocks.items():
                scaled = tuple(layers.scaled(count, self.width, 64) for count in channels)
                x = Inception(scaled, self.norm, self.imagenet, name=f"inception{stage}{block}")(x, train=train)
                # ``perturb`` adds zeros: their gradient is d logits / d map.
                if stage + block == map_block:
                    x = maps = self.perturb("map", x)
        x = layers.global_average(x)
        kernel_init = initialise.normal(0.01) if self.imagenet else None
        logits = layers.linear(x, self.num_classes, kernel_init=kernel_init, name="head")
        return logits, {"embedding": x, "map": maps}

    def _last_fine_block(self, x: jax.Array) -> str:
        """The last block of the deepest stage whose map is at least 4x4, for ``x`` as the stem leaves it."""
        height, width = x.shape[1:3]
        sizes = [(height, width)]
        for kernel in _POOLS.values():
            height, width = (layers.pooled_side(side, kernel, 2, ceil=True) for side in (height, width))
            sizes.append((height, width))
        stage, blocks = list(_INCEPTIONS.items())[layers.map_stage(sizes, layers.MIN_MAP_SIDE)]
        return stage + list(blocks)[-1]

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(x: jax.Array, features: int, kernel: int, name: str, stride: int = 1) -> jax.Array:
            return ConvNorm(features, kernel, self.norm, self.imagenet, stride, name=name)(x, train=train)

        if not self.imagenet:
            return conv(x, 3 * self.width, 3, "stem1")
        x = layers.window_pool(conv(x, self.width, 7, "stem1", stride=2), 3, 2, ceil=True)
        x = conv(conv(x, self.width, 1, "stem2"), 3 * self.width, 3, "stem3")
        return layers.window_pool(x, 3, 2, ceil=True)


def _published_space(x: jax.Array) -> jax.Array:
    """Images standardised by ImageNet's constants -> by mean .5 and deviation .5, as the published weights want."""
    if x.shape[-1] != 3:
        raise layers.SizeError(f"transform_input needs 3 channels, not {x.shape[-1]}; leave it out")
    shift = (jnp.asarray(_MEAN) - _PUBLISHED_MEAN) / _PUBLISHED_DEVIATION
    return x * (jnp.asarray(_DEVIATION) / _PUBLISHED_DEVIATION) + shift
