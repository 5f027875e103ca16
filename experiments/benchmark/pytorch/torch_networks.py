"""The zoo's networks for small images as PyTorch modules, for ``torch_reference.py``; neither JAX nor tyro is imported.

Layers bear the names of their parameters in the zoo, so that weights can be carried over and both sides compared
(tests/experiments/test_torch_reference.py). Images are [B, C, H, W]; weights start as PyTorch starts them.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.nn import functional as F

from torch_layers import Network, UnknownNetworkError, norm_layer, scaled
from torch_transformers import Swin, ViT

_VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class MLP(Network):
    """Two hidden layers."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 128) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(shape[0] * shape[1] * shape[2], width), nn.Linear(width, width)
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class LeNet(Network):
    """Two convolutions, two hidden layers."""

    def __init__(self, classes: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        grey = tuple(shape) == (28, 28, 1)
        self.conv1, self.conv2 = nn.Conv2d(shape[2], 6, 5, padding=2 if grey else 0), nn.Conv2d(6, 16, 5)
        rows, columns = (((side + (4 if grey else 0) - 4) // 2 - 4) // 2 for side in shape[:2])
        self.fc1, self.fc2 = nn.Linear(16 * rows * columns, 120), nn.Linear(120, 84)
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class ConvNet(Network):
    """Blocks of convolution, norm, ReLU and average pooling."""

    def __init__(
        self, classes: int, shape: tuple[int, int, int], width: int = 128, depth: int = 0, norm: str = "instance"
    ) -> None:
        super().__init__()
        channels, first = shape[2], 3 if tuple(shape) == (28, 28, 1) else 1
        self.depth = depth or 3 + sum(max(shape[:2]) > limit for limit in (32, 64, 128))
        for block in range(1, self.depth + 1):
            setattr(self, f"conv{block}", nn.Conv2d(channels, width, 3, padding=first if block == 1 else 1))
            setattr(self, f"norm{block}", norm_layer(norm, width))
            channels = width
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        for block in range(1, self.depth + 1):
            x = getattr(self, f"norm{block}")(getattr(self, f"conv{block}")(x))
            x = F.avg_pool2d(F.relu(x), 2)
        return x.flatten(1)


class AlexNet(Network):
    """Five convolutions, the first, second and last with a max pool."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 128, norm: str = "none") -> None:
        super().__init__()
        channels = shape[2]
        for index, (full, kernel) in enumerate(((128, 5), (192, 5), (256, 3), (192, 3), (192, 3)), start=1):
            padding = 4 if index == 1 and tuple(shape) == (28, 28, 1) else kernel // 2
            features = scaled(full, width, 128)
            setattr(self, f"conv{index}", nn.Conv2d(channels, features, kernel, padding=padding))
            setattr(self, f"norm{index}", norm_layer(norm, features))
            channels = features
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(1, 6):
            x = F.relu(getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x)))
            x = F.max_pool2d(x, 2) if index in (1, 2, 5) else x
        return x.flatten(1)


class VGG(Network):
    """Stages of convolution, norm and ReLU with a max pool behind each; the mean over what is left."""

    def __init__(
        self, classes: int, shape: tuple[int, int, int], stages: tuple, width: int = 64, norm: str = "instance"
    ) -> None:
        super().__init__()
        channels, self.stages = shape[2], stages
        for stage, (count, full) in enumerate(zip(stages, (64, 128, 256, 512, 512), strict=True), start=1):
            features = scaled(full, width, 64)
            for index in range(1, count + 1):
                first = stage == index == 1 and tuple(shape) == (28, 28, 1)
                setattr(self, f"conv{stage}_{index}", nn.Conv2d(channels, features, 3, padding=3 if first else 1))
                setattr(self, f"norm{stage}_{index}", norm_layer(norm, features))
                channels = features
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        for stage, count in enumerate(self.stages, start=1):
            for index in range(1, count + 1):
                x = F.relu(getattr(self, f"norm{stage}_{index}")(getattr(self, f"conv{stage}_{index}")(x)))
            x = F.max_pool2d(x, 2)
        return x.mean((2, 3))


class _Residual(nn.Module):
    """The convolutions of a block, each with its norm, and the shortcut."""

    def __init__(self, channels: int, features: int, *, stride: int, bottleneck: bool, norm: str) -> None:
        super().__init__()
        last = 4 * features if bottleneck else features
        # Features, kernel and stride of each convolution.
        plan = (
            ((features, 1, 1), (features, 3, stride), (last, 1, 1))
            if bottleneck
            else (
                (features, 3, stride),
                (features, 3, 1),
            )
        )
        self.depth, into = len(plan), channels
        for index, (out, kernel, step) in enumerate(plan, start=1):
            setattr(self, f"conv{index}", nn.Conv2d(into, out, kernel, step, kernel // 2, bias=False))
            setattr(self, f"norm{index}", norm_layer(norm, out))
            into = out
        self.changes = stride > 1 or channels != last
        if self.changes:
            self.shortcut_conv = nn.Conv2d(channels, last, 1, stride, bias=False)
            self.shortcut_norm = norm_layer(norm, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut_norm(self.shortcut_conv(x)) if self.changes else x
        for index in range(1, self.depth + 1):
            x = getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x))
            x = F.relu(x if index < self.depth else x + shortcut)
        return x


class ResNet(Network):
    """A 3x3 stem, four stages of residual blocks, the mean over space."""

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        stages: tuple,
        bottleneck: bool,
        width: int = 64,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        self.stem_conv, self.stem_norm = nn.Conv2d(shape[2], width, 3, padding=1, bias=False), norm_layer(norm, width)
        channels, self.blocks = width, []
        for stage, count in enumerate(stages):
            for index in range(count):
                stride, features = 2 if stage and not index else 1, width << stage
                block = _Residual(channels, features, stride=stride, bottleneck=bottleneck, norm=norm)
                self.blocks.append(f"stage{stage + 1}_block{index + 1}")
                setattr(self, self.blocks[-1], block)
                channels = 4 * features if bottleneck else features
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem_conv(x)))
        for block in self.blocks:
            x = getattr(self, block)(x)
        return x.mean((2, 3))


class _ConvNorm(nn.Module):
    """Convolution without bias, norm, ReLU."""

    def __init__(self, channels: int, features: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, features, kernel, padding=kernel // 2, bias=False)
        self.norm = norm_layer(norm, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)))


class _Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, channels: int, plan: tuple[int, ...], norm: str) -> None:
        super().__init__()
        one, reduce2, two, reduce3, three, four = plan
        self.branch1 = _ConvNorm(channels, one, 1, norm)
        self.branch2_reduce, self.branch2 = _ConvNorm(channels, reduce2, 1, norm), _ConvNorm(reduce2, two, 3, norm)
        self.branch3_reduce, self.branch3 = _ConvNorm(channels, reduce3, 1, norm), _ConvNorm(reduce3, three, 3, norm)
        self.branch4 = _ConvNorm(channels, four, 1, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        second, third = self.branch2(self.branch2_reduce(x)), self.branch3(self.branch3_reduce(x))
        return torch.cat([self.branch1(x), second, third, self.branch4(F.max_pool2d(x, 3, 1, 1))], dim=1)


class GoogLeNet(Network):
    """A 3x3 stem and nine inception blocks with two max pools between."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 64, norm: str = "instance") -> None:
        super().__init__()
        self.stem1, channels = _ConvNorm(shape[2], 3 * width, 3, norm), 3 * width
        for name, counts in _INCEPTIONS.items():
            plan = tuple(scaled(count, width, 64) for count in counts)
            setattr(self, f"inception{name}", _Inception(channels, plan, norm))
            channels = plan[0] + plan[2] + plan[4] + plan[5]
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem1(x)
        for name in _INCEPTIONS:
            if name in ("4a", "5a"):
                x = F.max_pool2d(x, 3 if name == "4a" else 2, 2, ceil_mode=True)
            x = getattr(self, f"inception{name}")(x)
        return x.mean((2, 3))


_NETWORKS = {
    "mlp": (MLP, {}),
    "lenet": (LeNet, {}),
    "convnet": (ConvNet, {}),
    "alexnet": (AlexNet, {}),
    "googlenet": (GoogLeNet, {}),
    "vit": (ViT, {}),
    "swin_t": (Swin, {}),
    "swin_s": (Swin, {"depths": "2-2-18-2"}),
    "swin_b": (Swin, {"width": 128, "depths": "2-2-18-2", "heads": 4}),
    **{f"vgg{depth}": (VGG, {"stages": stages}) for depth, stages in _VGG.items()},
    **{f"resnet{depth}": (ResNet, {"stages": stages, "bottleneck": depth >= 50}) for depth, stages in _RESNETS.items()},
}


def create(spec: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A network by the zoo's text, such as "convnet:width=4,depth=1".

    Args:
      shape: (H, W, C) of the images.

    Raises:
      UnknownNetworkError: where there is no PyTorch form of it.
    """
    name, _, rest = spec.partition(":")
    options = dict(item.split("=") for item in rest.split(",") if item)
    options = {option: int(value) if value.isdecimal() else value for option, value in options.items()}
    if name.endswith("_bn"):
        name, options["norm"] = name.removesuffix("_bn"), "batch"
    network, fixed = _NETWORKS.get(name, (None, {}))
    if network is None or not set(options) <= set(inspect.signature(network).parameters):
        raise UnknownNetworkError(f"{spec} has no PyTorch form in {__name__}")
    return network(classes, shape, **{**fixed, **options})
