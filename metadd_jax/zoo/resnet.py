"""ResNet of basic blocks for small images (He et al. 2016, section 4.2, with the channels of section 4.1)."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import layers


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: 1x1 convolution and norm where the shape changes, else identity.

    Attributes:
      features: channels of the result.
      halve: whether the block halves the map.
      average_pooling: halve by a stride-1 convolution and a 2x2 average pool, not by a stride of 2.
      norm: one of ``layers.NORMS``.
    """

    features: int
    halve: bool
    average_pooling: bool
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x
        stride = 2 if self.halve and not self.average_pooling else 1
        pooling = "avg" if self.halve and self.average_pooling else "none"
        x = layers.Conv(self.features, 3, stride=stride, padding=1, use_bias=False, name="conv1")(x)
        x = nn.relu(layers.norm(x, self.norm, train=train, name="norm1"))
        x = layers.pool(x, pooling)
        x = layers.Conv(self.features, 3, padding=1, use_bias=False, name="conv2")(x)
        x = layers.norm(x, self.norm, train=train, name="norm2")
        if self.halve or shortcut.shape[-1] != self.features:
            shortcut = layers.Conv(self.features, 1, stride=stride, use_bias=False, name="shortcut_conv")(shortcut)
            shortcut = layers.pool(shortcut, pooling)
            shortcut = layers.norm(shortcut, self.norm, train=train, name="shortcut_norm")
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """3x3 stride-1 stem without max pool, four stages of basic blocks, average over space, Linear.

    With ``average_pooling`` (the ``_ap`` networks) the maps are halved by average pooling and the head is one
    Linear on all pixels of the last map, without a final pooling.

    Attributes:
      num_classes: K.
      stage_sizes: blocks of each stage; every stage but the first halves the map and doubles the channels.
      average_pooling: see above.
      width: channels of the stem and the first stage.
      norm: one of ``layers.NORMS``.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    average_pooling: bool
    width: int = 64
    norm: str = "instance"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        map_stage = layers.map_stage(self._sizes(x))
        x = layers.Conv(self.width, 3, padding=1, use_bias=False, name="stem_conv")(x)
        x = nn.relu(layers.norm(x, self.norm, train=train, name="stem_norm"))
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                x = BasicBlock(
                    self.width << stage,
                    halve=stage > 0 and index == 0,
                    average_pooling=self.average_pooling,
                    norm=self.norm,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x, train=train)
            if stage == map_stage:
                x = maps = self.perturb("map", x)
        x = layers.flatten(x) if self.average_pooling else layers.global_average(x)
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}

    def _sizes(self, x: jax.Array) -> list[tuple[int, int]]:
        """(height, width) of each stage's map: a stride-2 convolution rounds up, a pool down."""
        step = len(self.stage_sizes) - 1
        if self.average_pooling:
            return layers.halvings(x, step)
        return [(-(-x.shape[1] // 2**power), -(-x.shape[2] // 2**power)) for power in range(step + 1)]
