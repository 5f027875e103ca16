"""What the networks of ``torch_networks.py`` share."""

from __future__ import annotations

import torch
from torch import nn


class UnknownNetworkError(ValueError):
    """A network of the zoo that the PyTorch program does not have."""


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Instance norm as the field has it: group norm with a group for each channel.

    Raises:
      UnknownNetworkError: for another kind than "instance", "batch" and "none".
    """
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    if kind not in ("batch", "none"):
        raise UnknownNetworkError(f"there is no {kind} norm here")
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def scaled(channels: int, width: int, full: int) -> int:
    """Channels of a layer when the first has ``width`` of ``full``; at least 1."""
    return max(1, channels * width // full)


class Network(nn.Module):
    """``embed`` gives what the last layer, ``head``, sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))

    def finish(self, classes: int, shape: tuple[int, int, int]) -> None:
        """Makes the head, for as many numbers as ``embed`` gives."""
        height, width, channels = shape
        was_training = self.training
        with torch.no_grad():
            size = self.eval().embed(torch.zeros(2, channels, height, width)).shape[1]
        self.train(was_training)
        self.head = nn.Linear(size, classes)
