"""The zoo's networks for small images as PyTorch modules, for ``torch_reference.py``; neither JAX nor tyro is imported.

Layers bear the names of their parameters in the zoo, so that weights can be carried over and both sides compared
(tests/experiments/test_torch_reference.py). Images are [B, C, H, W]; weights start as PyTorch starts them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_SWINS = {"swin_t": {}, "swin_s": {"depths": "2-2-18-2"}, "swin_b": {"width": 128, "depths": "2-2-18-2", "heads": 4}}
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


def create(spec: str, classes: int, shape: tuple[int, int, int]) -> nn.Module | None:
    """A network by the zoo's text, such as "convnet:width=4,depth=1"; None where there is no PyTorch form of it.

    Args:
      shape: (H, W, C) of the images.
    """
    name, _, rest = spec.partition(":")
    options = dict(item.split("=") for item in rest.split(",") if item)
    options = {option: int(value) if value.isdecimal() else value for option, value in options.items()}
    name, batch, _ = name.partition("_bn")
    if batch:
        options["norm"] = "batch"
    number = "".join(filter(str.isdecimal, name))
    if name.startswith("vgg") and number:
        return VGG(classes, shape, stages=_VGG[int(number)], **options)
    if name == f"resnet{number}":
        return ResNet(classes, shape, stages=_RESNETS[int(number)], bottleneck=int(number) >= 50, **options)
    if name in _SWINS:
        return Swin(classes, shape, **{**_SWINS[name], **options})
    known = {"mlp": MLP, "lenet": LeNet, "convnet": ConvNet, "alexnet": AlexNet, "googlenet": GoogLeNet, "vit": ViT}
    return known[name](classes, shape, **options) if name in known else None


def _norm(kind: str, channels: int) -> nn.Module:
    """Instance norm as the field has it: group norm with a group for each channel."""
    kinds = {"instance": lambda: nn.GroupNorm(channels, channels), "batch": lambda: nn.BatchNorm2d(channels)}
    return kinds.get(kind, nn.Identity)()


def _scaled(channels: int, width: int, full: int) -> int:
    return max(1, channels * width // full)


class _Network(nn.Module):
    """``embed`` gives what the last layer, ``head``, sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))

    def _finish(self, classes: int, shape: tuple[int, int, int]) -> None:
        """Makes the head, for as many numbers as ``embed`` gives."""
        height, width, channels = shape
        was_training = self.training
        with torch.no_grad():
            size = self.eval().embed(torch.zeros(1, channels, height, width)).shape[1]
        self.train(was_training)
        self.head = nn.Linear(size, classes)


class MLP(_Network):
    """Two hidden layers."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 128) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(shape[0] * shape[1] * shape[2], width), nn.Linear(width, width)
        self._finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class LeNet(_Network):
    """Two convolutions, two hidden layers."""

    def __init__(self, classes: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        grey = tuple(shape) == (28, 28, 1)
        self.conv1, self.conv2 = nn.Conv2d(shape[2], 6, 5, padding=2 if grey else 0), nn.Conv2d(6, 16, 5)
        rows, columns = (((side + (4 if grey else 0) - 4) // 2 - 4) // 2 for side in shape[:2])
        self.fc1, self.fc2 = nn.Linear(16 * rows * columns, 120), nn.Linear(120, 84)
        self._finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class ConvNet(_Network):
    """Blocks of convolution, norm, ReLU and average pooling."""

    def __init__(
        self, classes: int, shape: tuple[int, int, int], width: int = 128, depth: int = 0, norm: str = "instance"
    ) -> None:
        super().__init__()
        channels, first = shape[2], 3 if tuple(shape) == (28, 28, 1) else 1
        self.depth = depth or 3 + sum(max(shape[:2]) > limit for limit in (32, 64, 128))
        for block in range(1, self.depth + 1):
            setattr(self, f"conv{block}", nn.Conv2d(channels, width, 3, padding=first if block == 1 else 1))
            setattr(self, f"norm{block}", _norm(norm, width))
            channels = width
        self._finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        for block in range(1, self.depth + 1):
            x = getattr(self, f"norm{block}")(getattr(self, f"conv{block}")(x))
            x = F.avg_pool2d(F.relu(x), 2)
        return x.flatten(1)


class AlexNet(_Network):
    """Five convolutions, the first, second and last with a max pool."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 128, norm: str = "none") -> None:
        super().__init__()
        channels = shape[2]
        for index, (full, kernel) in enumerate(((128, 5), (192, 5), (256, 3), (192, 3), (192, 3)), start=1):
            padding = 4 if index == 1 and tuple(shape) == (28, 28, 1) else kernel // 2
            features = _scaled(full, width, 128)
            setattr(self, f"conv{index}", nn.Conv2d(channels, features, kernel, padding=padding))
            setattr(self, f"norm{index}", _norm(norm, features))
            channels = features
        self._finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(1, 6):
            x = F.relu(getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x)))
            x = F.max_pool2d(x, 2) if index in (1, 2, 5) else x
        return x.flatten(1)


class VGG(_Network):
    """Stages of convolution, norm and ReLU with a max pool behind each; the mean over what is left."""

    def __init__(
        self, classes: int, shape: tuple[int, int, int], stages: tuple, width: int = 64, norm: str = "instance"
    ) -> None:
        super().__init__()
        channels, self.stages = shape[2], stages
        for stage, (count, full) in enumerate(zip(stages, (64, 128, 256, 512, 512), strict=True), start=1):
            features = _scaled(full, width, 64)
            for index in range(1, count + 1):
                first = stage == index == 1 and tuple(shape) == (28, 28, 1)
                setattr(self, f"conv{stage}_{index}", nn.Conv2d(channels, features, 3, padding=3 if first else 1))
                setattr(self, f"norm{stage}_{index}", _norm(norm, features))
                channels = features
        self._finish(classes, shape)

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
            setattr(self, f"norm{index}", _norm(norm, out))
            into = out
        self.changes = stride > 1 or channels != last
        if self.changes:
            self.shortcut_conv = nn.Conv2d(channels, last, 1, stride, bias=False)
            self.shortcut_norm = _norm(norm, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut_norm(self.shortcut_conv(x)) if self.changes else x
        for index in range(1, self.depth + 1):
            x = getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x))
            x = F.relu(x if index < self.depth else x + shortcut)
        return x


class ResNet(_Network):
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
        self.stem_conv, self.stem_norm = nn.Conv2d(shape[2], width, 3, padding=1, bias=False), _norm(norm, width)
        channels, self.blocks = width, []
        for stage, count in enumerate(stages):
            for index in range(count):
                stride, features = 2 if stage and not index else 1, width << stage
                block = _Residual(channels, features, stride=stride, bottleneck=bottleneck, norm=norm)
                self.blocks.append(f"stage{stage + 1}_block{index + 1}")
                setattr(self, self.blocks[-1], block)
                channels = 4 * features if bottleneck else features
        self._finish(classes, shape)

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
        self.norm = _norm(norm, features)

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


class GoogLeNet(_Network):
    """A 3x3 stem and nine inception blocks with two max pools between."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 64, norm: str = "instance") -> None:
        super().__init__()
        self.stem1, channels = _ConvNorm(shape[2], 3 * width, 3, norm), 3 * width
        for name, counts in _INCEPTIONS.items():
            plan = tuple(_scaled(count, width, 64) for count in counts)
            setattr(self, f"inception{name}", _Inception(channels, plan, norm))
            channels = plan[0] + plan[2] + plan[4] + plan[5]
        self._finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem1(x)
        for name in _INCEPTIONS:
            if name in ("4a", "5a"):
                x = F.max_pool2d(x, 3 if name == "4a" else 2, 2, ceil_mode=True)
            x = getattr(self, f"inception{name}")(x)
        return x.mean((2, 3))


class _Block(nn.Module):
    """Attention, then an MLP, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp1, self.mlp2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))

    def attend(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """[..., T, D] -> [..., T, D]; ``bias`` is added to the scores [..., heads, T, T]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim((-3, -2), (0, -3))
        return self.projection(F.scaled_dot_product_attention(query, key, value, bias).transpose(-3, -2).flatten(-2))


class _WindowBlock(_Block):
    """A block on a grid [B, h, w, D] whose attention stays within windows, of a grid that may be shifted."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__(width, heads, 4 * width, 1e-5)
        self.window, self.shifted = window, shifted
        self.position_bias = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offsets = places[:, None] - places[None] + window - 1
        self.register_buffer("index", offsets[..., 0] * (2 * window - 1) + offsets[..., 1], persistent=False)

    def attend(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        height, width = x.shape[1:3]
        rows, columns = (-(-side // self.window) * self.window for side in (height, width))
        shifts = [self.window // 2 if self.shifted and side > self.window else 0 for side in (rows, columns)]
        x = F.pad(x, (0, 0, 0, columns - width, 0, rows - height)).roll([-shift for shift in shifts], (1, 2))
        bias = self.position_bias[self.index].permute(2, 0, 1)
        if any(shifts):
            # What came around the edge must not see its new neighbours.
            around = [torch.arange(n, device=x.device) >= n - s for n, s in zip((rows, columns), shifts, strict=True)]
            region = self._windows((2 * around[0][:, None] + around[1])[None, :, :, None])[0, ..., 0]
            bias = bias - 100.0 * (region[:, None, :, None] != region[:, None, None, :])
        x = super().attend(self._windows(x), bias)
        x = x.unflatten(1, (rows // self.window, -1)).unflatten(3, (self.window, -1)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2).roll(shifts, (1, 2))[:, :height, :width]

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        """[B, h, w, D] -> [B, windows, tokens of a window, D]."""
        x = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)


class _Merging(nn.Module):
    """Four neighbours of a grid become one with twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)))


class Swin(_Network):
    """Patches, stages of window blocks with merging between, norm, the mean over tokens."""

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        width: int = 96,
        depths: str = "2-2-6-2",
        heads: int = 3,
        window: int = 4,
    ) -> None:
        super().__init__()
        side = max(shape[:2])
        patch, self.steps = 1 if side < 64 else 2 if side < 128 else 4, []
        self.patches, self.patch_norm = nn.Conv2d(shape[2], width, patch, patch), nn.LayerNorm(width)
        for stage, count in enumerate(map(int, depths.split("-"))):
            if stage:
                self._add(f"merging{stage}", _Merging(width << stage - 1))
            for index in range(count):
                block = _WindowBlock(width << stage, heads << stage, window, shifted=index % 2 == 1)
                self._add(f"stage{stage + 1}_block{index + 1}", block)
            last = width << stage
        self.norm = nn.LayerNorm(last)
        self._finish(classes, shape)

    def _add(self, name: str, step: nn.Module) -> None:
        setattr(self, name, step)
        self.steps.append(name)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_norm(self.patches(x).permute(0, 2, 3, 1))
        for name in self.steps:
            x = getattr(self, name)(x)
        return self.norm(x).mean((1, 2))


class ViT(_Network):
    """Patches, a class token, positions, blocks; the head sees the class token."""

    def __init__(
        self, classes: int, shape: tuple[int, int, int], width: int = 192, depth: int = 6, heads: int = 3
    ) -> None:
        super().__init__()
        side = max(shape[:2])
        patch, self.depth = 4 if side <= 40 else 8 if side <= 80 else 16, depth
        self.patches = nn.Conv2d(shape[2], width, patch, patch)
        tokens = (shape[0] // patch) * (shape[1] // patch) + 1
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        for block in range(1, depth + 1):
            setattr(self, f"block{block}", _Block(width, heads, 2 * width, 1e-6))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in range(1, self.depth + 1):
            x = getattr(self, f"block{block}")(x)
        return self.norm(x)[:, 0]
