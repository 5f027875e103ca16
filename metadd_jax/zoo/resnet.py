"""ResNet (He et al. 2016): for small images (section 4.2, with the channels of 4.1), and torchvision's."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import initialise, layers, norms


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: 1x1 convolution and norm where the shape changes, else identity.

    "Shortcut option B" of He et al. 2016, section 4.1, in which the projection is learned.

    Attributes:
      features: channels of the result.
      halve: whether the block halves the map.
      average_pooling: halve by a stride-1 convolution and a 2x2 average pool, not by a stride of 2.
      norm: one of ``norms.NORMS``.
      kernel_init: of the convolutions, or None for PyTorch's default.
    """

    features: int
    halve: bool
    average_pooling: bool
    norm: str
    kernel_init: initialise.Initialiser | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x
        init = self.kernel_init
        # An average reaches every pixel; a stride of 2 skips three of four places of the 1x1 shortcut.
        stride = 2 if self.halve and not self.average_pooling else 1
        pooling = "avg" if self.halve and self.average_pooling else "none"
        x = layers.bare_conv(x, self.features, 3, stride=stride, init=init, name="conv1")
        x = nn.relu(norms.norm(x, self.norm, train=train, name="norm1"))
        x = layers.pool(x, pooling)  # behind the ReLU on this path, before the norm on the shortcut: DC's program
        x = layers.bare_conv(x, self.features, 3, init=init, name="conv2")
        x = norms.norm(x, self.norm, train=train, name="norm2")
        if self.halve or shortcut.shape[-1] != self.features:
            shortcut = layers.bare_conv(shortcut, self.features, 1, stride=stride, init=init, name="shortcut_conv")
            shortcut = layers.pool(shortcut, pooling)
            shortcut = norms.norm(shortcut, self.norm, train=train, name="shortcut_norm")
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution (the last four times as wide) and a shortcut, as in ``BasicBlock``.

    The 3x3 convolution has the stride, as in torchvision's networks (He et al.: the first 1x1).

    Attributes:
      features: channels of the first two convolutions.
      halve: whether the block halves the map.
      norm: one of ``norms.NORMS``.
      kernel_init: of the convolutions, or None for PyTorch's default.
    """

    features: int
    halve: bool
    norm: str
    kernel_init: initialise.Initialiser | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x
        init = self.kernel_init
        stride = 2 if self.halve else 1
        wide = 4 * self.features
        x = layers.bare_conv(x, self.features, 1, init=init, name="conv1")
        x = nn.relu(norms.norm(x, self.norm, train=train, name="norm1"))
        x = layers.bare_conv(x, self.features, 3, stride=stride, init=init, name="conv2")
        x = nn.relu(norms.norm(x, self.norm, train=train, name="norm2"))
        x = layers.bare_conv(x, wide, 1, init=init, name="conv3")
        x = norms.norm(x, self.norm, train=train, name="norm3")
        if self.halve or shortcut.shape[-1] != wide:
            shortcut = layers.bare_conv(shortcut, wide, 1, stride=stride, init=init, name="shortcut_conv")
            shortcut = norms.norm(shortcut, self.norm, train=train, name="shortcut_norm")
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """Stem, four stages of blocks, average over space, Linear.

    Small images: 3x3 stride-1 stem without max pool (ResNet18: 11,173,962 parameters on CIFAR-10, as in DC's program).
    With ``average_pooling`` (the ``_ap`` networks, basic blocks only) the maps are halved by average pooling and the
    head is one Linear on all pixels of the last map, without a final pooling.

    ``imagenet`` (torchvision's ``resnet*``, norm "batch"): 7x7 stride-2 stem and 3x3 stride-2 max pool;
    convolutions drawn by fan-out.

    Attributes:
      num_classes: K.
      stage_sizes: blocks of each stage; every stage but the first halves the map and doubles the channels.
      bottleneck: blocks are ``Bottleneck``, else ``BasicBlock``.
      average_pooling: see above.
      imagenet: see above.
      width: channels of the stem and of the first stage (of its narrow convolutions).
      norm: one of ``norms.NORMS``.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    bottleneck: bool = False
    average_pooling: bool = False
    imagenet: bool = False
    width: int = 64
    norm: str = "instance"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        map_stage = layers.map_stage(self._sizes(x), layers.least_map_side(x))
        # As torchvision draws it, or PyTorch's default, which the DC family keeps.
        init = initialise.fan_out_normal() if self.imagenet else None
        kernel, stride = (7, 2) if self.imagenet else (3, 1)
        x = layers.bare_conv(x, self.width, kernel, stride=stride, init=init, name="stem_conv")
        x = nn.relu(norms.norm(x, self.norm, train=train, name="stem_norm"))
        if self.imagenet:
            x = layers.window_pool(x, 3, 2, padding=1)
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                features, halve = self.width << stage, stage > 0 and index == 0
                name = f"stage{stage + 1}_block{index + 1}"  # ``torchvision_names`` reads these names
                block: nn.Module
                if self.bottleneck:
                    block = Bottleneck(features, halve, self.norm, init, name=name)
                else:
                    block = BasicBlock(features, halve, self.average_pooling, self.norm, init, name=name)
                x = block(x, train=train)
            # The map is the end of a stage, behind the last ReLU: the head sees no less. ``perturb`` adds zeros, whose
            # gradient is d logits / d map. Behind the last stage the head is average and Linear, so Grad-CAM is
            # CAM / (h w).
            if stage == map_stage:
                x = maps = self.perturb("map", x)
        x = layers.flatten(x) if self.average_pooling else layers.global_average(x)
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}

    def _sizes(self, x: jax.Array) -> list[tuple[int, int]]:
        """(height, width) of each stage's map: a stride-2 convolution (or padded pool) rounds up, a pool down."""
        steps = range(len(self.stage_sizes))
        if self.average_pooling:
            return layers.halvings(x, steps[-1])
        first = 2 if self.imagenet else 0
        return [(-(-x.shape[1] // 2**power), -(-x.shape[2] // 2**power)) for power in (step + first for step in steps)]
