"""VGG (Simonyan and Zisserman 2015): the DC family's for small images, and torchvision's."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import initialise, layers, norms

_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
# By depth: channels at width 64, one tuple a stage; a max pool ends each stage.
STAGES = {
    depth: tuple((channels,) * count for channels, count in zip(_CHANNELS, counts, strict=True))
    for depth, counts in _CONVOLUTIONS.items()
}
IMAGENET_GRID = 7  # side of the map that the first Linear layer of torchvision's network sees


class VGG(nn.Module):
    """Stages of 3x3 convolutions, norm and ReLU, max pool after each; then the head of the geometry.

    Small images: average over space, Linear (DC's ``VGG11``, 9,231,114 parameters on CIFAR-10). At 32x32 (and 28x28x1,
    which the first convolution pads to 32x32) the last map is 1x1 and the average is the identity, as in the field's
    network. Larger images keep the same head.

    ``imagenet``: torchvision's ``vgg*`` (norm "none") and ``vgg*_bn`` ("batch"): average to 7x7, Linear 4096,
    4096, head. The two dropouts (p = .5, after the ReLUs of the head) are left out. Convolutions are drawn by
    fan-out, Linear layers with deviation .01, biases are 0, as in torchvision.

    Attributes:
      num_classes: K.
      stages: channels of each convolution at width 64, one tuple a stage.
      imagenet: see above.
      width: channels of the first convolution; everything else scales with it.
      norm: one of ``norms.NORMS``.
    """

    num_classes: int
    stages: tuple[tuple[int, ...], ...]
    imagenet: bool = False
    width: int = 64
    norm: str = "instance"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        first_padding = 3 if layers.is_grey_28(x) and not self.imagenet else 1
        # At ImageNet geometry as torchvision draws them, else by PyTorch's defaults (None).
        kernel_init = initialise.fan_out_normal() if self.imagenet else None
        bias_init = nn.initializers.zeros if self.imagenet else None
        # Stage i is taken before its pooling (twice as fine); the last one is what the head averages.
        sizes = layers.halvings(x, len(self.stages), grow=2 * first_padding - 2)
        map_stage = layers.map_stage(sizes, layers.least_map_side(x))
        for stage, widths in enumerate(self.stages):
            for index, channels in enumerate(widths):
                padding = first_padding if stage == index == 0 else 1
                name = f"{stage + 1}_{index + 1}"
                features = layers.scaled(channels, self.width, 64)
                conv = layers.Conv(
                    features, 3, padding=padding, kernel_init=kernel_init, bias_init=bias_init, name=f"conv{name}"
                )
                x = nn.relu(norms.norm(conv(x), self.norm, train=train, name=f"norm{name}"))
            # ``perturb`` adds zeros: their gradient is d logits / d map.
            if stage == map_stage:
                x = maps = self.perturb("map", x)
            x = layers.pool(x, "max")
        if map_stage == len(self.stages):
            x = maps = self.perturb("map", x)
        if not self.imagenet:
            x = layers.global_average(x)
            return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}
        x = layers.flatten(layers.adaptive_average(x, IMAGENET_GRID))
        hidden = layers.scaled(4096, self.width, 64)
        x = nn.relu(_dense(x, hidden, "fc1"))
        x = nn.relu(_dense(x, hidden, "fc2"))
        return _dense(x, self.num_classes, "head"), {"embedding": x, "map": maps}


def _dense(x: jax.Array, features: int, name: str) -> jax.Array:
    return nn.Dense(features, kernel_init=initialise.normal(0.01), name=name)(x)
