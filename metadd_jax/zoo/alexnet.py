"""AlexNet: the small one of the DC family, and torchvision's (Krizhevsky 2014, arXiv 1404.5997)."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import layers, norms

# Channels at width 128, kernel, whether a max pool follows.
_CONVOLUTIONS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
# Channels at width 64, kernel, stride, padding, whether a 3x3 max pool of stride 2 follows.
_IMAGENET_CONVOLUTIONS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
IMAGENET_GRID = 6  # side of the map that the first Linear layer of torchvision's network sees


class AlexNet(nn.Module):
    """Five convolutions (128, 192, 256, 192, 192 channels at the default width), three max pools, one Linear.

    The first convolution has padding 4 for 28x28x1 images (the map becomes 32x32), the others keep the size. 1,872,202
    parameters on CIFAR-10, as in DC's program.

    Attributes:
      num_classes: K.
      width: channels of the first convolution; the later ones scale with it.
      norm: one of ``norms.NORMS``, between convolution and ReLU; "none" is the field's AlexNet.
    """

    num_classes: int
    width: int = 128
    norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        first_padding = 4 if layers.is_grey_28(x) else 2
        # Stages: the three maps that are pooled, taken before pooling (twice as fine), and what the head sees.
        stage = layers.map_stage(layers.halvings(x, 3, grow=2 * first_padding - 4), layers.least_map_side(x))
        pools = 0
        for index, (channels, kernel, pooled) in enumerate(_CONVOLUTIONS):
            padding = first_padding if index == 0 else kernel // 2
            features = layers.scaled(channels, self.width, 128)
            x = layers.Conv(features, kernel, padding=padding, name=f"conv{index + 1}")(x)
            x = nn.relu(norms.norm(x, self.norm, train=train, name=f"norm{index + 1}"))
            if pooled:
                # ``perturb`` adds zeros: their gradient is d logits / d map.
                if pools == stage:
                    x = maps = self.perturb("map", x)
                x = layers.pool(x, "max")
                pools += 1
        if pools == stage:
            x = maps = self.perturb("map", x)
        x = layers.flatten(x)
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}


class ImageNetAlexNet(nn.Module):
    """torchvision's ``alexnet``: five convolutions, three max pools, average to 6x6, Linear 4096, 4096, head.

    No norm. Its two dropouts (p = .5, before the first and the second Linear layer) are left out: a frozen network is
    evaluated, where dropout does nothing. Initialised by PyTorch's defaults, as in torchvision.

    Attributes:
      num_classes: K.
      width: channels of the first convolution; everything else scales with it.
    """

    num_classes: int
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        del train
        # Stages: the three maps that are pooled, taken before pooling, and the last one after it.
        stage, pools = layers.map_stage(self._sizes(x), layers.least_map_side(x)), 0
        for index, (channels, kernel, stride, padding, pooled) in enumerate(_IMAGENET_CONVOLUTIONS):
            features = layers.scaled(channels, self.width, 64)
            x = layers.Conv(features, kernel, stride=stride, padding=padding, name=f"conv{index + 1}")(x)
            x = nn.relu(x)
            if pooled:
                if pools == stage:
                    x = maps = self.perturb("map", x)
                x = layers.window_pool(x, 3, 2)
                pools += 1
        if pools == stage:
            x = maps = self.perturb("map", x)
        x = layers.flatten(layers.adaptive_average(x, IMAGENET_GRID))
        hidden = layers.scaled(4096, self.width, 64)
        x = nn.relu(layers.linear(x, hidden, name="fc1"))
        x = nn.relu(layers.linear(x, hidden, name="fc2"))
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}

    def _sizes(self, x: jax.Array) -> list[tuple[int, int]]:
        """(height, width) of the stages: the first convolution's stride is 4, each pool halves."""
        # Known before the layers run, because the map must be perturbed where it passes by.
        height, width = ((side + 4 - 11) // 4 + 1 for side in x.shape[1:3])
        sizes = [(height, width)]
        for _ in range(3):
            height, width = (layers.pooled_side(side, 3, 2) for side in (height, width))
            sizes.append((height, width))
        return sizes
