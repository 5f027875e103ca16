"""The filters of a generator: newer_methods.md 12.9, scipy's design, and the definition sample by sample."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from metadd_jax.generators import filters

RISE = filters.kaiser_low_pass(12, 2.0, 12.0, 32.0)
FALL = filters.kaiser_low_pass(12, 3.3636, 9.2728, 32.0)


@pytest.mark.parametrize(
    ("design", "first"),
    [
        ((12, 2, 12, 32), [0.000792, 0.010018, 0.038950, 0.092413, 0.156526, 0.201302]),
        ((12, 3.3636, 9.2728, 32), [-0.001135, 0.002152, 0.027178, 0.085900, 0.164215, 0.221690]),
        ((24, 16, 16, 128), [0.000634, 0.003368, 0.006129, 0.004175, -0.006445, -0.023065]),
    ],
)
def test_the_published_designs(design, first):
    taps = filters.kaiser_low_pass(*design)
    np.testing.assert_allclose(taps[:6], first, atol=1e-6)
    np.testing.assert_allclose(taps, taps[::-1], atol=1e-12)
    number, cutoff, width, rate = design
    np.testing.assert_allclose(taps, scipy.signal.firwin(number, cutoff, width=width, fs=rate), atol=1e-9)


def test_one_tap_is_no_filter():
    np.testing.assert_array_equal(filters.kaiser_low_pass(1, 16.0, 7.4, 32.0), [1.0])


@pytest.mark.parametrize("design", [(40, 3.0, 12.0, 32.0), (8, 3.0, 1.0, 64.0)])
def test_long_and_short_windows_are_scipys_too(design):
    """An attenuation above 50 decibels, and one below 21."""
    number, cutoff, width, rate = design
    own = scipy.signal.firwin(number, cutoff, width=width, fs=rate)
    np.testing.assert_allclose(filters.kaiser_low_pass(*design), own, atol=1e-9)


def matrices():
    up = filters.up_matrix(RISE, size=6, factor=2, low=9, high=8)
    return up, filters.down_matrix(FALL, size=4, factor=2)


def test_the_nonlinearity_by_its_published_example():
    x = np.zeros((1, 6, 6, 1), np.float32)
    x[0, 2, 3], x[0, 4, 1] = 1, -1
    made = np.asarray(filters.filtered_leaky_relu(jnp.asarray(x) + 0.1, *matrices()))[0, ..., 0]
    wanted = [
        [0.135867, 0.196744, 0.227422, 0.190205],
        [0.126749, 0.213066, 0.267683, 0.227422],
        [0.065378, 0.144934, 0.213066, 0.196744],
        [0.013281, 0.065378, 0.126749, 0.135867],
    ]
    np.testing.assert_allclose(made, wanted, atol=2e-6)
    np.testing.assert_allclose(made.sum(), 2.546555, atol=1e-5)


def test_a_constant_stays_one_away_from_the_borders():
    up, down = filters.up_matrix(RISE, size=40, factor=2, low=9, high=8), None
    down = filters.down_matrix(FALL, size=38, factor=2)
    made = filters.filtered_leaky_relu(jnp.full((1, 40, 40, 1), -2.0), up, down)[0, 10:-10, 10:-10, 0]
    np.testing.assert_allclose(made, -2 * 0.2 * np.sqrt(2), atol=1e-5)


@pytest.mark.parametrize(("up", "down", "low", "high", "size"), [(2, 2, 9, 8, 6), (4, 2, -6, -9, 14), (2, 1, 3, -2, 9)])
def test_the_matrices_are_the_definition_sample_by_sample(up, down, low, high, size):
    """Zeros in between, padding or a cut, a true convolution, every ``down``-th sample."""
    rng = np.random.default_rng(0)
    rise, fall, x = rng.normal(size=6 * up), rng.normal(size=6 * down), rng.normal(size=size)
    between = np.zeros(size * up)
    between[::up] = x
    padded = np.pad(between, (max(low, 0), max(high, 0)))
    padded = padded[max(-low, 0) : len(padded) - max(-high, 0)]
    risen = np.convolve(padded, up * rise, mode="valid")
    fallen = np.convolve(risen, fall, mode="valid")[::down]
    matrix = filters.up_matrix(rise, size=size, factor=up, low=low, high=high)
    np.testing.assert_allclose(matrix @ x, risen, atol=1e-5)
    np.testing.assert_allclose(filters.down_matrix(fall, size=len(fallen), factor=down) @ risen, fallen, atol=1e-4)


def test_values_are_clamped_on_the_fine_grid():
    one = np.eye(3, dtype=np.float32)
    x = jnp.asarray([[1e4, -1e4, 100.0]] * 3, jnp.float32)[None, ..., None]
    np.testing.assert_allclose(filters.filtered_leaky_relu(x, one, one)[0, 0, :, 0], [256, -256, 100 * 2**0.5])
