"""What the transformers of the zoo share: Linear, layer norm, self-attention and the MLP of a block.

T tokens of width D; any leading axes. The functions create parameters, so they are called inside a compact module.
"""

from __future__ import annotations

import jax
from flax import linen as nn

from metadd_jax.zoo import initialise

# Truncated at two deviations; weights, class token, positions and position biases alike. Linear's bias starts at 0.
normal = initialise.truncated_normal(0.02)


def dense(x: jax.Array, features: int, name: str, *, use_bias: bool = True) -> jax.Array:
    """Linear, [..., D] -> [..., features]; weights normal, bias 0."""
    # As a matrix of tokens: with more axes XLA on a CPU takes twice as long for the weights' gradient.
    rows = nn.Dense(features, use_bias=use_bias, kernel_init=normal, name=name)(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], features)


def norm(x: jax.Array, epsilon: float, name: str) -> jax.Array:
    """Layer norm over the last axis."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)(x)


def self_attention(x: jax.Array, heads: int, *, bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Multi-head attention of tokens to each other: params ``qkv`` and ``projection``.

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
    """Linear, exact GELU, Linear, [..., D] -> [..., D]: params ``mlp1`` and ``mlp2``."""
    return dense(nn.gelu(dense(x, hidden, "mlp1"), approximate=False), x.shape[-1], "mlp2")
