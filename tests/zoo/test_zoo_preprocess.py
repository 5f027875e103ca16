"""Preprocess against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import zoo

CIFAR = {"source_mean": (0.49, 0.48, 0.45), "source_std": (0.20, 0.199, 0.201)}
IMAGENET = {"target_mean": (0.485, 0.456, 0.406), "target_std": (0.229, 0.224, 0.225)}


def test_change_of_constants_equals_numpy():
    pixels = np.random.default_rng(0).uniform(size=(2, 4, 5, 3)).astype(np.float32)
    images = (pixels - np.array(CIFAR["source_mean"])) / np.array(CIFAR["source_std"])
    expected = (pixels - np.array(IMAGENET["target_mean"])) / np.array(IMAGENET["target_std"])
    result = zoo.Preprocess(**CIFAR, **IMAGENET)(jnp.float32(images))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_grey_becomes_rgb():
    pixels = np.random.default_rng(0).uniform(size=(2, 4, 4, 1))
    preprocess = zoo.Preprocess(source_mean=(0.13,), source_std=(0.31,), **IMAGENET, channels=3)
    result = preprocess(jnp.float32((pixels - 0.13) / 0.31))
    expected = (pixels.repeat(3, -1) - np.array(IMAGENET["target_mean"])) / np.array(IMAGENET["target_std"])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_doubling_the_size_is_bilinear_between_pixel_centres():
    images = np.array([0.0, 1.0, 4.0, 2.0]).reshape(1, 2, 2, 1)
    preprocess = zoo.Preprocess(
        source_mean=(0.0,), source_std=(1.0,), target_mean=(0.0,), target_std=(1.0,), size=(4, 4)
    )
    # Centres of the fine pixels lie at -1/4, 1/4, 3/4, 5/4 of the coarse grid; the ends are held.
    weights = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = weights @ images[0, :, :, 0] @ weights.T
    np.testing.assert_allclose(preprocess(jnp.float32(images))[0, :, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_gradient_is_the_ratio_of_the_deviations():
    preprocess = zoo.Preprocess(**CIFAR, **IMAGENET)
    gradient = jax.grad(lambda images: preprocess(images).sum())(jnp.zeros((1, 2, 2, 3)))
    ratio = np.array(CIFAR["source_std"]) / np.array(IMAGENET["target_std"])
    np.testing.assert_allclose(gradient, np.broadcast_to(ratio, (1, 2, 2, 3)), rtol=1e-5)


def test_equal_and_hashable():
    first, second = (zoo.Preprocess(**CIFAR, **IMAGENET, size=(8, 8)) for _ in range(2))
    assert first == second
    assert len({first, second}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_std": (1.0,)}, "one of each per channel"),
        ({"channels": 3}, "cannot repeat 3 channels"),
        ({"target_mean": (0.5,), "target_std": (0.5,)}, "network takes 1"),
        ({"source_std": (0.2, 0.0, 0.2)}, "numbers above 0"),
    ],
)
def test_bad_constants_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        zoo.Preprocess(**{**CIFAR, **IMAGENET, **changes})
