"""Differentiable Siamese augmentation in PyTorch, for ``torch_reference.py``: Zhao and Bilen, arXiv 2102.08259.

``draw`` chooses one op and its parameters and returns the op; Siamese batches share one draw. Images are [B, C, H, W].
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch.nn import functional as F

View = Callable[[torch.Tensor], torch.Tensor]


def draw(words: str, count: int, device: str) -> View:
    """One op of ``words`` (tokens joined by "_", or "none") with ``count`` parameters: 1, or one an image."""
    if words in ("", "none"):
        return lambda images: images
    return _OPS[random.choice(words.split("_"))](count, device)


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def _color(count: int, device: str) -> View:
    offset, factor, contrast = (_column(values) for values in torch.rand(3, count, device=device))

    def apply(x: torch.Tensor) -> torch.Tensor:
        x = x + (offset - 0.5)
        grey = x.mean(dim=1, keepdim=True)
        x = (x - grey) * (2 * factor) + grey
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return (x - mean) * (contrast + 0.5) + mean

    return apply


def _flip(count: int, device: str) -> View:
    flipped = _column(torch.rand(count, device=device) < 0.5)
    return lambda x: torch.where(flipped, x.flip(3), x)


def _crop(count: int, device: str) -> View:
    shares = torch.rand(2, count, device=device)

    def apply(x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        most = [int(side / 8 + 0.5) for side in (height, width)]
        # Where the window begins in the padded image.
        tops, lefts = ((share * (2 * m + 1)).long() for share, m in zip(shares, most, strict=True))
        padded = F.pad(x, (most[1], most[1], most[0], most[0]))
        if count == 1:
            return padded[:, :, tops[0] : tops[0] + height, lefts[0] : lefts[0] + width]
        rows = (tops[:, None] + torch.arange(height, device=x.device))[:, :, None]
        columns = (lefts[:, None] + torch.arange(width, device=x.device))[:, None, :]
        each = torch.arange(batch, device=x.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[each, rows, columns].permute(0, 3, 1, 2)

    return apply


def _cutout(count: int, device: str) -> View:
    shares = torch.rand(2, count, device=device)

    def inside(side: int, share: torch.Tensor) -> torch.Tensor:
        box = int(side / 2 + 0.5)
        centre = (share * (side + (box % 2 == 0))).long()
        offset = torch.arange(side, device=device) - (centre[:, None] - box // 2)
        return (offset >= 0) & (offset < box)

    def apply(x: torch.Tensor) -> torch.Tensor:
        rows, columns = (inside(side, share) for side, share in zip(x.shape[2:], shares, strict=True))
        return x * ~(rows[:, None, :, None] & columns[:, None, None, :])

    return apply


def _affine(matrices: torch.Tensor) -> View:
    """Bilinear samples of the images behind [count, 2, 3] maps from output to input coordinates, zero outside."""

    def apply(x: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(matrices.expand(len(x), -1, -1), list(x.shape), align_corners=True)
        return F.grid_sample(x, grid, align_corners=True)

    return apply


def _scale(count: int, device: str) -> View:
    ratio, matrices = 1.2, torch.zeros(count, 2, 3, device=device)
    for axis in (0, 1):
        matrices[:, axis, axis] = torch.rand(count, device=device) * (ratio - 1 / ratio) + 1 / ratio
    return _affine(matrices)


def _rotate(count: int, device: str) -> View:
    angles = (torch.rand(count, device=device) - 0.5) * 2 * math.radians(15)
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    return _affine(torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(count, 2, 3))


_OPS = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
