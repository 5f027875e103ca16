"""Norms against NumPy, and instance norm's own gradients against differentiation of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax.zoo import norms


def _expected_norm(x, kind, scale, bias):
    x = np.asarray(x, np.float64)
    if kind == "group":
        grouped = x.reshape(*x.shape[:3], 4, -1)
        axes = (1, 2, 4)
    else:
        grouped, axes = x, {"instance": (1, 2), "layer": (1, 2, 3)}[kind]
    mean = grouped.mean(axes, keepdims=True)
    variance = grouped.var(axes, keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("kind", ["instance", "group", "layer"])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_norms_equal_numpy(kind, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    generator = np.random.default_rng(0)
    x = generator.normal(2, 3, size=(2, 5, 4, 8)).astype(np.float32)
    shape = (5, 4, 8) if kind == "layer" else (8,)
    scale, bias = generator.normal(size=(2, *shape)).astype(np.float32)
    result = norms.FeatureNorm(kind).apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(result, _expected_norm(x, kind, scale, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_normalise_survives_a_large_mean(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    # Values that float32 holds exactly: the one-pass variance would be pure rounding noise here.
    offsets = np.random.default_rng(0).integers(-8, 9, size=(2, 8, 8, 3))
    x = (4096 + offsets).astype(np.float32)
    result = norms.normalise(jnp.asarray(x), (1, 2))[0]
    np.testing.assert_allclose(result, _expected_norm(offsets, "instance", 1, 0), atol=1e-3)


def test_one_pass_survives_an_outlier_in_front(monkeypatch):
    """What is worst for it: all others are as far from the first as they can be, sqrt(n) deviations."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    x[:, 0, 0] = 10_000
    (_, mean, rate), wide = norms.normalise(jnp.asarray(x), (1, 2)), x.astype(np.float64)
    deviation = wide.std((1, 2), keepdims=True)
    assert np.abs(mean - wide.mean((1, 2), keepdims=True)).max() < 1e-5 * deviation.min()
    np.testing.assert_allclose(rate, 1 / np.sqrt(deviation**2 + 1e-5), rtol=3e-4)
    x[:] = 12_345.678  # no deviation at all
    np.testing.assert_array_equal(norms.normalise(jnp.asarray(x), (1, 2))[0], np.zeros_like(x))


FEW = norms.instance_norm_in_few_kernels


@pytest.fixture(params=[norms.instance_norm, FEW])
def ours(request, monkeypatch):
    """Each where it is used: ``instance_norm_in_few_kernels`` away from CPUs."""
    if request.param is FEW:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return request.param


def _plain(x, scale, bias):
    centred = x - x.mean((1, 2), keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean((1, 2), keepdims=True) + 1e-5) * scale + bias


def _arguments(key, dtype=jnp.float32):
    shapes = ((3, 5, 4, 6), (6,), (6,), (3, 5, 4, 6))
    draws = [jax.random.normal(k, shape, dtype) for k, shape in zip(jax.random.split(key, 4), shapes, strict=True)]
    return draws[:3], draws[3]


def test_instance_norms_gradients_are_those_of_the_formula(key, ours):
    arguments, cotangent = _arguments(key)
    ours, theirs = (jax.jit(lambda *a, f=f: jax.vjp(f, *a)[1](cotangent))(*arguments) for f in (ours, _plain))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_instance_norms_gradients_are_finite_differences(ours):
    modes = ["rev", "fwd"] if ours is FEW else ["rev"]
    with jax.enable_x64(True):
        arguments, cotangent = _arguments(jax.random.key(1), jnp.float64)
        jax.test_util.check_grads(jax.jit(lambda *a: (ours(*a) * cotangent).sum()), arguments, order=2, modes=modes)


def test_the_gradient_of_instance_norms_gradient_is_that_of_the_formula(key, ours):
    arguments, cotangent = _arguments(key)

    def through(function):
        def size(arguments, cotangent):
            return sum(jnp.sin(g).sum() for g in jax.vjp(function, *arguments)[1](cotangent))

        return jax.jit(jax.vmap(jax.grad(size, argnums=(0, 1)), in_axes=(0, None)))(
            jax.tree.map(lambda a: jnp.stack([a, 2 * a + 1]), arguments), cotangent
        )

    ours, theirs = through(ours), through(_plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_narrow_images_have_narrow_gradients(key, ours):
    (x, scale, bias), cotangent = _arguments(key)
    narrow = [a.astype(jnp.bfloat16) for a in (x, scale, bias)]
    result, pull = jax.vjp(ours, *narrow)
    gradients = pull(cotangent.astype(jnp.bfloat16))
    assert {a.dtype for a in (result, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    expected = jax.vjp(_plain, x, scale, bias)[1](cotangent)
    for a, b in zip(gradients, expected, strict=True):
        assert np.abs(a.astype(jnp.float32) - b).max() < 0.03 * np.abs(b).max()
