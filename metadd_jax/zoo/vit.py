"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) that also return attention and patch logits.

``vit`` is the small one of this library; vit_ti_16, vit_s_16 and vit_b_16 have the published sizes. At ImageNet
geometry their patches are of 16 pixels and vit_b_16 is torchvision's, weight for weight; for small images they follow
``default_patch``. Dropout, which the published training uses, is left out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax.zoo import layers, transformer

_EPSILON = 1e-6  # of layer norm, in the paper's and torchvision's networks; Swin has 1e-5


def default_patch(side: int) -> int:
    """Returns the patch side for images of ``side`` pixels: 4 up to 40, 8 up to 80, else 16.

    So images of 28, 32, 64 and 128 pixels have 7x7 or 8x8 patches, which is also how fine their maps are.
    """
    return 4 if side <= 40 else 8 if side <= 80 else 16


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); GELU (exact).

    Attributes:
      heads: attention heads.
      mlp_width: hidden features of the MLP.
    """

    heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps ``x`` [B, T, D] to [B, T, D] and the attention [B, heads, T, T], rows summing to 1."""
        mixed, attention = transformer.self_attention(transformer.norm(x, _EPSILON, "norm1"), self.heads)
        x = x + mixed
        return x + transformer.mlp(transformer.norm(x, _EPSILON, "norm2"), self.mlp_width), attention


class ViT(nn.Module):
    """Patch embedding, class token, learned positions, pre-norm blocks, norm, Linear on the class token.

    The map is the grid of patch tokens that enter the last block. ``patch_logits`` are the final norm and the
    head applied to the patch tokens at the end (WeakTr, arXiv 2304.01184, uses such maps). They are untrained: the
    loss is on the class token alone.

    Attributes:
      num_classes: K.
      width: token size D, a multiple of ``heads``.
      depth: number of blocks.
      heads: attention heads.
      patch: patch side in pixels, or None for ``default_patch``; divides both sides of the image.
      mlp_ratio: hidden width of the MLP as a multiple of ``width``.

    Raises:
      SizeError: if the patches do not tile the image, or the heads do not divide the width.
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
        # A patch embedding is a convolution whose windows do not overlap; on a CPU it runs as one matrix product.
        x = layers.Conv(self.width, patch, stride=patch, kernel_init=transformer.normal, name="patches")(x)
        x = x.reshape(batch, -1, self.width)
        token = self.param("class_token", transformer.normal, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)), x], axis=1)
        x = x + self.param("positions", transformer.normal, (1, x.shape[1], self.width))
        attention = []
        for block in range(self.depth):
            # Before the last block: behind it no gradient of the class token reaches the patch tokens.
            if block == self.depth - 1:
                maps = self.perturb("map", x[:, 1:].reshape(batch, *grid, self.width))
                x = jnp.concatenate([x[:, :1], maps.reshape(batch, -1, self.width)], axis=1)
            mlp_width = round(self.width * self.mlp_ratio)
            x, weights = Block(self.heads, mlp_width, name=f"block{block + 1}")(x)
            attention.append(weights)
        x = transformer.norm(x, _EPSILON, "norm")
        logits = transformer.dense(x, self.num_classes, "head")  # of every token; jit drops what nobody reads
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
