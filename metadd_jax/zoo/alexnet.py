"""The small AlexNet of the DC family."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import layers

# Channels at width 128, kernel, whether a max pool follows.
_CONVOLUTIONS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))


class AlexNet(nn.Module):
    """Five convolutions (128, 192, 256, 192, 192 channels at the default width), three max pools, one Linear.

    The first convolution has padding 4 for 28x28x1 images (the map becomes 32x32), the others keep the size.

    Attributes:
      num_classes: K.
      width: channels of the first convolution; the later ones scale with it.
      norm: one of ``layers.NORMS``, between convolution and ReLU; "none" is the field's AlexNet.
    """

    num_classes: int
    width: int = 128
    norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        first_padding = 4 if layers.is_grey_28(x) else 2
        # Stages: the three maps that are pooled, before it, and what the head sees.
        stage = layers.map_stage(layers.halvings(x, 3, grow=2 * first_padding - 4))
        pools = 0
        for index, (channels, kernel, pooled) in enumerate(_CONVOLUTIONS):
            padding = first_padding if index == 0 else kernel // 2
            features = layers.scaled(channels, self.width, 128)
            x = layers.Conv(features, kernel, padding=padding, name=f"conv{index + 1}")(x)
            x = nn.relu(layers.norm(x, self.norm, train=train, name=f"norm{index + 1}"))
            if pooled:
                if pools == stage:
                    x = maps = self.perturb("map", x)
                x = layers.pool(x, "max")
                pools += 1
        if pools == stage:
            x = maps = self.perturb("map", x)
        x = layers.flatten(x)
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}
