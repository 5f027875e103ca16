"""The low-pass filters of an alias-free generator, and the filtered nonlinearity that they stand around.

A pointwise nonlinearity makes frequencies that a grid cannot hold. Karras et al. ("Alias-Free Generative Adversarial
Networks", NeurIPS 2021) apply it on a finer grid, between a filter that goes up and one that goes down again. Zero
insertion, padding, filter and decimation of one axis are together one banded matrix, made once of NumPy's numbers. As
a product it needs more arithmetic than tap by tap, and yet is faster: see ``filtered_leaky_relu``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

TAPS = 6  # of a filter, times the factor by which it changes the rate
_CLAMP = 256.0


def kaiser_low_pass(taps: int, cutoff: float, width: float, rate: float) -> np.ndarray:
    """Designs a windowed-sinc low-pass filter that sums to 1: [taps] float64, symmetric.

    With a transition of ``width`` the window's length fixes its attenuation A = 2.285 (taps - 1) pi width / (rate / 2)
    + 7.95 in decibels, and that Kaiser's beta.

    Args:
      taps: how many; 1 is no filter.
      cutoff: where it halves the amplitude, in cycles a picture.
      width: from pass band to stop band, twice the half-width of a layer.
      rate: samples a picture.
    """
    nyquist = rate / 2
    attenuation = 2.285 * (taps - 1) * np.pi * width / nyquist + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    places = np.arange(taps) - (taps - 1) / 2
    window = np.sinc(cutoff / nyquist * places) * np.kaiser(taps, beta)
    return window / window.sum()


def up_matrix(taps: np.ndarray, *, size: int, factor: int, low: int, high: int) -> np.ndarray:
    """Zero insertion, padding and filter of one axis: [size factor + low + high - taps + 1, size] float32.

    Args:
      taps: [T], the filter; its gain becomes ``factor``, since of so many samples all but one are zeros.
      size: samples before.
      factor: by how much the rate grows.
      low: samples added before, after the zeros; negative ones are cut off.
      high: the same behind.
    """
    rows, columns = np.arange(size * factor + low + high - len(taps) + 1)[:, None], np.arange(size)[None]
    # Output m reads the padded samples m ... m + T - 1; a convolution, so the last tap comes first.
    tap = len(taps) - 1 - (factor * columns + low - rows)
    return np.where((tap >= 0) & (tap < len(taps)), factor * taps[np.clip(tap, 0, len(taps) - 1)], 0).astype(np.float32)


def down_matrix(taps: np.ndarray, *, size: int, factor: int) -> np.ndarray:
    """Filter and every ``factor``-th sample, from the first on: [size, (size - 1) factor + taps] float32.

    Args:
      taps: [T], the filter.
      size: samples behind.
      factor: by how much the rate falls.
    """
    rows, columns = np.arange(size)[:, None], np.arange((size - 1) * factor + len(taps))[None]
    tap = len(taps) - 1 - (columns - factor * rows)
    return np.where((tap >= 0) & (tap < len(taps)), taps[np.clip(tap, 0, len(taps) - 1)], 0).astype(np.float32)


def filtered_leaky_relu(
    x: jax.Array, up: np.ndarray, down: np.ndarray, *, slope: float = 0.2, gain: float = 2**0.5
) -> jax.Array:
    """Goes up on both axes, applies leaky ReLU times ``gain``, clamped to +-256, and goes down: [B, h, w, C].

    Args:
      x: [B, H, W, C], with its bias.
      up: [m, H] of ``up_matrix``, for rows and columns of square maps alike.
      down: [h, m] of ``down_matrix``.
      slope: of the negative side.
      gain: sqrt(2) keeps the scale of what passes.
    """
    x = _both_axes(x, up)
    x = gain * jnp.where(x >= 0, x, slope * x)
    return _both_axes(jnp.clip(x, -_CLAMP, _CLAMP), down)


def _both_axes(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """matrix x matrix^T of each channel."""
    return jnp.einsum("vw,buwc->buvc", matrix, jnp.einsum("uh,bhwc->buwc", matrix, x))
