"""GSAM by the published numbers, and one step of a training by the formulas written out in NumPy."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import training, zoo
from metadd_jax.training import sharpness


def test_the_numbers_of_one_perturbation_and_one_direction():
    """newer_methods.md 12.2."""
    e = sharpness.perturbation({"a": jnp.array([1.0]), "b": jnp.array([-2.0])}, {"a": 0.3, "b": 0.4}, 0.01)
    np.testing.assert_allclose([e["a"][0], e["b"][0]], [0.003511, 0.018727], atol=1e-6)
    made = sharpness.direction({"a": 3.0, "b": 4.0}, {"a": 4.0, "b": 3.0}, 0.3)
    np.testing.assert_allclose([made["a"], made["b"]], [4.252, 2.664], rtol=1e-5)
    plain = sharpness.direction({"a": 3.0, "b": 4.0}, {"a": 4.0, "b": 3.0}, 0.0)
    assert (float(plain["a"]), float(plain["b"])) == (4.0, 3.0)


def test_weights_without_a_gradient_stay_where_they_are():
    nothing = sharpness.perturbation({"a": jnp.ones(2)}, {"a": jnp.zeros(2)}, 0.01)
    np.testing.assert_array_equal(nothing["a"], 0.0)
    np.testing.assert_array_equal(sharpness.direction({"a": jnp.zeros(2)}, nothing, 0.3)["a"], 0.0)


def test_a_step_of_a_training_is_numpys():
    """The gradients are JAX's, at both places; what is made of them is computed here in float64."""
    net = zoo.parse("mlp:width=4", 3, (4, 4, 1))
    rng = np.random.default_rng(0)
    images, labels = jnp.asarray(rng.normal(size=(6, 4, 4, 1)), jnp.float32), jnp.arange(6) % 3
    recipe = training.expert_training(1, augmentation="none", rho=0.05, rho_alpha=0.3)
    recipe = dataclasses.replace(recipe, learning_rate=0.5)
    variables = net.init(jax.random.key(1))
    fitted = training.fit(
        jax.random.key(0), net, images, labels, recipe, shared_key=jax.random.key(0), variables=variables
    )

    @jax.jit
    def mean_loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply({"params": params}, images)[0], labels).mean()

    p, tree = jax.flatten_util.ravel_pytree(variables["params"])
    g = np.asarray(jax.flatten_util.ravel_pytree(jax.grad(mean_loss)(variables["params"]))[0], np.float64)
    e = 0.05 * np.asarray(p, np.float64) ** 2 * g / np.linalg.norm(np.abs(p) * g)
    ahead = np.asarray(jax.flatten_util.ravel_pytree(jax.grad(mean_loss)(tree(p + e.astype(np.float32))))[0])
    cosine = g @ ahead / np.linalg.norm(g) / np.linalg.norm(ahead)
    v = g - cosine * np.linalg.norm(g) * ahead / np.linalg.norm(ahead)
    expected = np.asarray(p) - 0.5 * (ahead - 0.3 * v)
    found = np.asarray(jax.flatten_util.ravel_pytree(fitted["params"])[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(found - (np.asarray(p) - 0.5 * g)).max() > 1e-4  # plain SGD ends elsewhere


@pytest.mark.parametrize("name", ["rho", "rho_alpha"])
def test_numbers_below_0_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1 must be"):
        training.expert_training(1, augmentation="none", **{name: -1})
