"""Swin transformers (Liu et al. 2021, arXiv 2103.14030), as torchvision builds them.

At ImageNet geometry the names swin_t, swin_s and swin_b mean torchvision's networks, weight for weight: patches of 4
pixels, windows of 7x7 tokens. For small images patches and windows are smaller: ``default_patch`` and 4x4 tokens.
Stochastic depth, which the published training uses, and dropout (off there) are left out.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from metadd_jax.zoo import layers, transformer

_EPSILON = 1e-5  # of layer norm, as in torchvision; ViT has 1e-6
_MLP_RATIO = 4
_MASKED = -100.0  # added to the score of a pair that must not meet: exp(-100) is 0 beside any other


def default_patch(side: int) -> int:
    """Returns the patch side for images of ``side`` pixels: 1 below 64, 2 below 128, else the published 4.

    Three mergings halve the grid, so the last one has side / (8 patch) tokens, rounded up: 4x4 at 28, 32, 64 and
    128 pixels, 7x7 at 224.
    """
    return 1 if side < 64 else 2 if side < 128 else 4


class Block(nn.Module):
    """x + attention within windows (norm(x)), then x + mlp(norm(x)).

    The grid is padded at the bottom and right to whole windows, with zeros after the norm. The padding takes part in
    the attention, as in torchvision. A shifted block moves the windows by half their side, on each axis that has more
    than one window.

    Attributes:
      heads: attention heads.
      window: window side w in tokens.
      shifted: whether the windows are shifted.
    """

    heads: int
    window: int
    shifted: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``x`` [B, h, w, C] to [B, h, w, C]."""
        sides, window = x.shape[1:3], self.window
        padded = [-(-side // window) * window for side in sides]
        # A shift of the only window would mix tokens that the mask then keeps apart again.
        shifts = [window // 2 if self.shifted and side > window else 0 for side in padded]
        table = self.param("position_bias", transformer.normal, ((2 * window - 1) ** 2, self.heads))
        bias = table[position_index(window)].transpose(2, 0, 1)  # [heads, w w, w w]
        # The paper's batched form: roll, so that all windows have one size, and mask the neighbours that this makes.
        if any(shifts):
            bias = bias + shift_mask(padded, shifts, window)[:, None]
        y = transformer.norm(x, _EPSILON, "norm1")
        y = jnp.pad(y, ((0, 0), (0, padded[0] - sides[0]), (0, padded[1] - sides[1]), (0, 0)))
        y = _windows(jnp.roll(y, [-shift for shift in shifts], (1, 2)), window)
        y, _ = transformer.self_attention(y, self.heads, bias=bias)
        y = jnp.roll(_grid(y, padded, window), shifts, (1, 2))[:, : sides[0], : sides[1]]
        x = x + y
        return x + transformer.mlp(transformer.norm(x, _EPSILON, "norm2"), _MLP_RATIO * x.shape[-1])


class Merging(nn.Module):
    """Halves the grid and doubles the channels: 2x2 neighbours concatenated, norm, Linear without bias.

    An odd grid is padded with a row or column of zeros at the bottom or right.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``x`` [B, h, w, C] to [B, ceil(h / 2), ceil(w / 2), 2 C]."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        # Down before across: the order of the published weights.
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1)
        x = transformer.norm(x, _EPSILON, "norm")
        return transformer.dense(x, x.shape[-1] // 2, "reduction", use_bias=False)


class Swin(nn.Module):
    """Patch embedding and norm, stages of blocks with merging between them, norm, mean over tokens, Linear.

    The map is the token grid of the deepest stage that is fine enough (``layers.least_map_side``). At ImageNet
    geometry that is the last one, after the norm; the head behind it is linear, so Grad-CAM there is CAM / (h w).

    Attributes:
      num_classes: K.
      width: channels of the first stage; each merging doubles them.
      depths: blocks of each stage, joined by "-", at least two stages. Text, so that a command line can say it.
      heads: attention heads of the first stage, a divisor of ``width``; each merging doubles them.
      patch: patch side in pixels, or None for ``default_patch``. Pixels that fill no patch are dropped.
      window: window side in tokens; 4 tiles the grids 32, 16, 8, 4 of small images, the published one is 7.

    Raises:
      SizeError: if ``depths`` has another form, or the heads do not divide the width.
    """

    num_classes: int
    width: int = 96
    depths: str = "2-2-6-2"
    heads: int = 3
    patch: int | None = None
    window: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        del train
        depths = self._stages()
        patch, least = self.patch or default_patch(max(x.shape[1:3])), layers.least_map_side(x)
        # PyTorch's default initialisation here: with weights of 0.02 the bias would drown small patches.
        x = layers.Conv(self.width, patch, stride=patch, name="patches")(x)
        x = transformer.norm(x, _EPSILON, "patch_norm")
        last = len(depths) - 1
        sizes = [(-(-x.shape[1] // 2**stage), -(-x.shape[2] // 2**stage)) for stage in range(last + 1)]
        map_stage = layers.map_stage(sizes, least)
        for stage, blocks in enumerate(depths):
            if stage > 0:
                x = Merging(name=f"merging{stage}")(x)
            for index in range(blocks):
                heads, name = self.heads << stage, f"stage{stage + 1}_block{index + 1}"
                x = Block(heads, self.window, shifted=index % 2 == 1, name=name)(x)
            if stage == last:
                x = transformer.norm(x, _EPSILON, "norm")
            # Behind the final norm, so that the head behind the last map is linear. ``perturb`` adds zeros, whose
            # gradient is d logits / d map.
            if stage == map_stage:
                x = maps = self.perturb("map", x)
        x = layers.global_average(x)
        return transformer.dense(x, self.num_classes, "head"), {"embedding": x, "map": maps}

    def _stages(self) -> list[int]:
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)+", self.depths):
            raise layers.SizeError(f"depths {self.depths!r}; give the blocks of two stages or more, such as 2-2-6-2")
        if self.width % self.heads:
            raise layers.SizeError(f"width {self.width} is no multiple of {self.heads} heads; set width or heads")
        return [int(blocks) for blocks in self.depths.split("-")]


def position_index(window: int) -> np.ndarray:
    """Returns the row of the bias table for each pair of tokens of a window.

    Row (dy + w - 1)(2 w - 1) + (dx + w - 1) for the offset (dy, dx) from the second token to the first: the order of
    the published weights.

    Args:
      window: window side w in tokens.

    Returns:
      [w w, w w] int.
    """
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), axis=-1).reshape(-1, 2)
    offsets = places[:, None] - places[None, :] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def shift_mask(padded: list[int], shifts: list[int], window: int) -> np.ndarray:
    """Masks pairs of tokens that share a window only because the shifted grid wraps around.

    Args:
      padded: height and width of the grid in tokens, multiples of ``window``.
      shifts: how many tokens the grid was rolled up and left.
      window: window side w in tokens.

    Returns:
      [number of windows, w w, w w] float32: 0 within one region, -100 between two.
    """
    # On each axis the last ``shift`` tokens came around from the other end.
    wrapped = [np.arange(side) >= side - shift for side, shift in zip(padded, shifts, strict=True)]
    region = 2 * wrapped[0][:, None] + wrapped[1][None, :]
    region = np.asarray(_windows(region[None, :, :, None], window))[0, :, :, 0]
    return np.where(region[:, :, None] == region[:, None, :], 0.0, _MASKED).astype(np.float32)


def _windows(x: Any, window: int) -> Any:
    """[B, h, w, C] -> [B, number of windows, window window, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, window * window, channels)


def _grid(x: jax.Array, sides: list[int], window: int) -> jax.Array:
    """The inverse of ``_windows``: back to [B, *sides, C]."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, sides[0] // window, sides[1] // window, window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, *sides, channels)
