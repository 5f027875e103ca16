"""Layers that the transformers of the zoo share: Linear, layer norm, self-attention and the MLP of a block.

T tokens of width D; any leading axes. The functions create parameters, so they are called inside a compact module.
"""

from __future__ import annotations

import jax
from flax import linen as nn

from metadd_jax.zoo import initialise

# Truncated at two deviations; weights, class token, positions and position biases alike. Linear's bias starts at 0.
normal = initialise.truncated_normal(0.02)


def dense(x: jax.Array, features: int, name: str, *, use_bias: bool = True) -> jax.Array:
    """Applies a Linear layer, [..., D] -> [..., features]; weights normal, bias 0.

    Args:
      x: [..., D].
      features: size of the result.
      name: of the submodule.
      use_bias: whether there is a bias.
    """
    # As a matrix of tokens: with more axes XLA on a CPU takes twice as long for the weights' gradient.
    rows = nn.Dense(features, use_bias=use_bias, kernel_init=normal, name=name)(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], features)


def norm(x: jax.Array, epsilon: float, name: str) -> jax.Array:
    """Applies layer norm over the last axis of ``x``.

    Args:
      x: [..., D].
      epsilon: added to the variance; torchvision's ViT and Swin differ in it.
      name: of the submodule.
    """
    # Two passes: the one-pass variance loses digits where the mean is large.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)(x)


def self_attention(x: jax.Array, heads: int, *, bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Applies multi-head self-attention: params ``qkv`` and ``projection``.

    Args:
      x: [..., T, D], D a multiple of ``heads``.
      heads: number of heads.
      bias: added to the scores before the softmax; broadcasts to [..., heads, T, T].

    Returns:
      [..., T, D] and the attention [..., heads, T, T], rows summing to 1.
    """
    tokens, width = x.shape[-2:]
    qkv = dense(x, 3 * width, "qkv").reshape(*x.shape[:-1], 3, heads, width // heads)
    query, key, value = (qkv[..., index, :, :].swapaxes(-3, -2) for index in range(3))  # [..., heads, T, D / heads]
    scores = query @ key.swapaxes(-2, -1) * query.shape[-1] ** -0.5
    attention = nn.softmax(scores if bias is None else scores + bias)
    mixed = (attention @ value).swapaxes(-3, -2).reshape(*x.shape[:-2], tokens, width)
    return dense(mixed, width, "projection"), attention


def mlp(x: jax.Array, hidden: int) -> jax.Array:
    """Applies Linear to ``hidden`` features, exact GELU and Linear to ``x`` [..., D]: params ``mlp1`` and ``mlp2``."""
    # Exact, as PyTorch's default; Flax's default is the tanh approximation.
    return dense(nn.gelu(dense(x, hidden, "mlp1"), approximate=False), x.shape[-1], "mlp2")
