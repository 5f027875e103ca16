"""The zoo's transformers as PyTorch modules, see ``torch_networks.py``. Images are [B, C, H, W], tokens [B, T, D]."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torch_layers import Network


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


class Swin(Network):
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
        self.finish(classes, shape)

    def _add(self, name: str, step: nn.Module) -> None:
        setattr(self, name, step)
        self.steps.append(name)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_norm(self.patches(x).permute(0, 2, 3, 1))
        for name in self.steps:
            x = getattr(self, name)(x)
        return self.norm(x).mean((1, 2))


class ViT(Network):
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
        self.finish(classes, shape)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in range(1, self.depth + 1):
            x = getattr(self, f"block{block}")(x)
        return self.norm(x)[:, 0]
