"""A small vision transformer (Dosovitskiy et al. 2021) that also tells its attention and patch logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax.zoo import initialise, layers

# Truncated at two deviations; weights, class token and positions alike. Biases start at 0.
_normal = initialise.truncated_normal(0.02)


def default_patch(side: int) -> int:
    """Patch side in pixels: 4 up to 40 pixels, 8 up to 80, 16 above (so 28 to 128 pixels give 7x7 or 8x8)."""
    return 4 if side <= 40 else 8 if side <= 80 else 16


def _dense(x: jax.Array, features: int, name: str) -> jax.Array:
    return nn.Dense(features, kernel_init=_normal, name=name)(x)


def _norm(x: jax.Array, name: str) -> jax.Array:
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)(x)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); GELU (exact)."""

    heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T, D] -> [B, T, D] and the attention [B, heads, T, T], rows summing to 1."""
        batch, tokens, width = x.shape
        qkv = _dense(_norm(x, "norm1"), 3 * width, "qkv").reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = (qkv[:, :, index].swapaxes(1, 2) for index in range(3))  # [B, heads, T, D / heads]
        scores = query @ key.swapaxes(2, 3) * query.shape[-1] ** -0.5
        attention = nn.softmax(scores)
        mixed = (attention @ value).swapaxes(1, 2).reshape(batch, tokens, width)
        x = x + _dense(mixed, width, "projection")
        hidden = nn.gelu(_dense(_norm(x, "norm2"), self.mlp_width, "mlp1"), approximate=False)
        return x + _dense(hidden, width, "mlp2"), attention


class ViT(nn.Module):
    """Patch embedding, class token, learned positions, pre-norm blocks, norm, Linear on the class token.

    The map is the grid of patch tokens that enter the last block. ``patch_logits`` are the final norm and the
    head applied to the patch tokens at the end (WeakTr, arXiv 2304.01184, uses such maps); a head on the
    class token does not train them.

    Attributes:
      num_classes: K.
      width: token size D, a multiple of ``heads``.
      depth: number of blocks.
      heads: attention heads.
      patch: patch side in pixels, or None for ``default_patch``; divides both sides of the image.
      mlp_ratio: hidden width of the MLP as a multiple of ``width``.
    """

    num_classes: int
    width: int = 192
    depth: int = 6
    heads: int = 3
    patch: int | None = None
    mlp_ratio: float = 2.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        del train
        batch, height, width, _ = x.shape
        patch = self.patch or default_patch(max(height, width))
        self._check(height, width, patch)
        grid = (height // patch, width // patch)
        x = layers.Conv(self.width, patch, stride=patch, kernel_init=_normal, name="patches")(x)
        x = x.reshape(batch, -1, self.width)
        token = self.param("class_token", _normal, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)), x], axis=1)
        x = x + self.param("positions", _normal, (1, x.shape[1], self.width))
        attention = []
        for block in range(self.depth):
            if block == self.depth - 1:
                maps = self.perturb("map", x[:, 1:].reshape(batch, *grid, self.width))
                x = jnp.concatenate([x[:, :1], maps.reshape(batch, -1, self.width)], axis=1)
            mlp_width = round(self.width * self.mlp_ratio)
            x, weights = Block(self.heads, mlp_width, name=f"block{block + 1}")(x)
            attention.append(weights)
        x = _norm(x, "norm")
        logits = _dense(x, self.num_classes, "head")  # of every token; jit drops what nobody reads
        out = {
            "embedding": x[:, 0],
            "map": maps,
            "attention": jnp.stack(attention),
            "patch_logits": logits[:, 1:].reshape(batch, *grid, self.num_classes),
        }
        return logits[:, 0], out

    def _check(self, height: int, width: int, patch: int) -> None:
        if height % patch or width % patch:
            raise layers.SizeError(f"patches of {patch} pixels do not tile {height}x{width}; set patch to a divisor")
        if self.width % self.heads:
            raise layers.SizeError(f"width {self.width} is no multiple of {self.heads} heads; set width or heads")
