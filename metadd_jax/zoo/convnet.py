"""ConvNet: the network that the DC family distils with (Gidaris and Komodakis 2018; Zhao et al. 2021)."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import layers, norms


def default_depth(side: int) -> int:
    """Returns the field's number of blocks for images of ``side`` pixels: 3 to 32, 4 to 64, 5 to 128, else 6.

    So the last map is 4x4 at 32, 64, 128 and 256 pixels.
    """
    return 3 + sum(side > limit for limit in (32, 64, 128))


class ConvNet(nn.Module):
    """``depth`` blocks of [3x3 convolution, norm, activation, 2x2 pooling], then one Linear on all pixels.

    The first convolution has padding 3 for 28x28x1 images (the map becomes 32x32), else 1. 320,010 parameters on
    CIFAR-10, 317,706 on MNIST, as in DC's program; its embedding, which DM matches, has 2,048 numbers on both.

    Attributes:
      num_classes: K.
      width: channels of every block.
      depth: number of blocks, or None for the field's choice by resolution (``default_depth``).
      norm: one of ``norms.NORMS``.
      activation: one of ``layers.ACTIVATIONS``.
      pooling: one of ``layers.POOLINGS``.
    """

    num_classes: int
    width: int = 128
    depth: int | None = None
    norm: str = "instance"
    activation: str = "relu"
    pooling: str = "avg"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        depth = self.depth or default_depth(max(x.shape[1:3]))
        first_padding = 3 if layers.is_grey_28(x) else 1
        # Stage i is block i + 1 before its pooling; stage ``depth`` is what the head sees. Before its pooling a stage
        # is twice as fine, which is what a class activation map needs.
        sizes = layers.halvings(x, depth, grow=2 * first_padding - 2)
        stage = depth if self.pooling == "none" else layers.map_stage(sizes, layers.least_map_side(x))
        for block in range(depth):
            padding = first_padding if block == 0 else 1
            x = layers.Conv(self.width, 3, padding=padding, name=f"conv{block + 1}")(x)
            x = norms.norm(x, self.norm, train=train, name=f"norm{block + 1}")
            x = layers.ACTIVATIONS[self.activation](x)
            # ``perturb`` adds zeros: their gradient is d logits / d map.
            if block == stage:
                x = maps = self.perturb("map", x)
            x = layers.pool(x, self.pooling)
        if stage == depth:
            x = maps = self.perturb("map", x)
        x = layers.flatten(x)
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}
