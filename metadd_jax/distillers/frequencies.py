"""NCFM's characteristic functions, their distance, and the frequencies: Gaussian, or a network's that seeks the worst.

Wang et al., "Dataset Distillation with Neural Characteristic Function" (CVPR 2025): a network psi maps noise to
frequencies and is trained to *raise* the loss that the images lower. Three layers of a linear map, batch norm over the
frequencies and a leaky rectifier of slope .2, the last with tanh, so every entry of t is in (-1, 1).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

SAMPLERS = ("gaussian", "trained", "dead")
_LAYERS = 3
_FLOOR = 1e-12  # of the phase part; the root has an infinite slope at 0
_DEAD_ROWS = 4  # distinct frequencies of the published sampler; it repeats each 16 times, which changes no mean


def init(key: jax.Array, width: int) -> list[dict[str, jax.Array]]:
    """Draws psi's weights as PyTorch's layers start.

    Args:
      key: typed PRNG key.
      width: D, entries of a frequency and of every hidden layer.

    Returns:
      For each layer ``kernel`` [D, D], ``bias``, ``scale`` and ``offset`` [D], float32.
    """
    bound = width**-0.5
    layers = []
    for layer_key in jax.random.split(key, _LAYERS):
        kernel_key, bias_key = jax.random.split(layer_key)
        layers.append({
            "kernel": jax.random.uniform(kernel_key, (width, width), minval=-bound, maxval=bound),
            "bias": jax.random.uniform(bias_key, (width,), minval=-bound, maxval=bound),
            "scale": jnp.ones(width),
            "offset": jnp.zeros(width),
        })  # fmt: skip
    return layers


def psi(layers: list[dict[str, jax.Array]], noise: jax.Array) -> jax.Array:
    """Maps noise [T, D] to frequencies [T, D] in (-1, 1); batch norm is over the T rows (biased variance, eps 1e-5)."""
    x = noise
    for number, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"]
        x = (x - x.mean(axis=0)) / jnp.sqrt(x.var(axis=0) + 1e-5) * layer["scale"] + layer["offset"]
        x = jnp.tanh(x) if number == len(layers) - 1 else jnp.where(x > 0, x, 0.2 * x)
    return x


def draw(key: jax.Array, count: int, width: int, layers: Any, sampler: str) -> jax.Array:
    """Draws fresh frequencies t.

    Args:
      key: typed PRNG key.
      count: T.
      width: D.
      layers: psi's weights; not used by "gaussian".
      sampler: "gaussian" (t ~ N(0, I)), "trained" (psi of T rows of noise) or "dead" (psi of 4 rows).

    Returns:
      [T, D] float32; "dead" [4, D].
    """
    if sampler == "gaussian":
        return jax.random.normal(key, (count, width))
    return psi(layers, jax.random.normal(key, (count if sampler == "trained" else _DEAD_ROWS, width)))


def characteristic(f: jax.Array, t: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums weight times (cos t.f, sin t.f) over embeddings: [2, T].

    Args:
      f: [n, D] embeddings of norm 1.
      t: [T, D] frequencies.
      weights: [n]; 1 / n makes the mean, 0 leaves an embedding out.
    """
    angles = f @ t.T
    return jnp.stack([weights @ jnp.cos(angles), weights @ jnp.sin(angles)])


def distance(phi_r: jax.Array, phi_s: jax.Array, amplitude: float, phase: float) -> jax.Array:
    """mean_t sqrt(a amp + b pha), the loss of a class without its factor 300.

    Args:
      phi_r: [2, T] real and imaginary part of the real side.
      phi_s: [2, T] of the synthetic side.
      amplitude: a.
      phase: b.
    """
    # sqrt(x^2 + y^2) has no gradient at 0, where both sides may be; the tiny number moves no value.
    size_r, size_s = (jnp.sqrt((phi**2).sum(axis=0) + 1e-24) for phi in (phi_r, phi_s))
    amp = (size_r - size_s) ** 2
    # Below the floor it has no gradient: the published protection of the root.
    # |phi_r - phi_s|^2 less amp is the same number without the difference of numbers near 1, which float32 loses.
    pha = jnp.maximum(((phi_r - phi_s) ** 2).sum(axis=0) - amp, _FLOOR)
    return jnp.sqrt(amplitude * amp + phase * pha).mean()


def unit(embedding: jax.Array) -> jax.Array:
    """Divides embeddings [n, ...] by their norms, [n, D]: without it the angles t.f wrap around."""
    rows = embedding.reshape(len(embedding), -1)
    return rows / jnp.maximum(jnp.sqrt((rows**2).sum(axis=1, keepdims=True) + 1e-24), 1e-12)
