"""VGG with a norm after each convolution and one Linear layer, for small images (DC's ``VGG11``)."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import layers

# Channels at width 64, one tuple a stage; a max pool ends each stage.
VGG11_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Stages of 3x3 convolutions, norm and ReLU; max pool after each; average over space; Linear.

    At 32x32 (and 28x28x1, which the first convolution pads to 32x32) the last map is 1x1 and the average is
    the identity, as in the field's network; larger images keep the same head.

    Attributes:
      num_classes: K.
      stages: channels of each convolution at width 64, one tuple a stage.
      width: channels of the first convolution; the later ones scale with it.
      norm: one of ``layers.NORMS``.
    """

    num_classes: int
    stages: tuple[tuple[int, ...], ...]
    width: int = 64
    norm: str = "instance"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        first_padding = 3 if layers.is_grey_28(x) else 1
        # Stage i is taken before its pooling; the last one is what the head averages.
        map_stage = layers.map_stage(layers.halvings(x, len(self.stages), grow=2 * first_padding - 2))
        for stage, widths in enumerate(self.stages):
            for index, channels in enumerate(widths):
                padding = first_padding if stage == index == 0 else 1
                name = f"{stage + 1}_{index + 1}"
                features = layers.scaled(channels, self.width, 64)
                x = layers.Conv(features, 3, padding=padding, name=f"conv{name}")(x)
                x = nn.relu(layers.norm(x, self.norm, train=train, name=f"norm{name}"))
            if stage == map_stage:
                x = maps = self.perturb("map", x)
            x = layers.pool(x, "max")
        if map_stage == len(self.stages):
            x = maps = self.perturb("map", x)
        x = layers.global_average(x)
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}
