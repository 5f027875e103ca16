"""The statistics of what enters batch norm, recovered from what leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metadd_jax import zoo

SPECS = {
    "convnet_bn:width=4,depth=2": ["norm1", "norm2"],
    "alexnet_bn": ["norm1", "norm2", "norm3", "norm4", "norm5"],
    "vgg11_bn:width=4": None,
    "resnet18_bn:width=4": None,
    "googlenet:norm=batch,width=8": None,
}


def with_own_statistics(net):
    """Random weights, and in every batch norm other constants, so that none can be taken for another."""
    variables = net.init(jax.random.key(0))
    count = iter(range(1000))

    def other(leaf):
        return next(count) / 5000 + jnp.linspace(0.01, 0.02, leaf.size, dtype=leaf.dtype)

    return {**variables, "batch_stats": jax.tree.map(other, variables["batch_stats"])}


@pytest.mark.parametrize("spec", SPECS)
def test_statistics_are_those_of_the_input_in_the_order_of_the_layers(spec):
    side = 32 if spec.startswith("vgg") else 16
    net = zoo.parse(spec, 3, (side, side, 3))
    variables = jax.jit(lambda: with_own_statistics(net))()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(5, side, side, 3)), jnp.float32)
    order = []

    def is_norm(module, method):
        if isinstance(module, nn.BatchNorm) and method == "__call__":
            order.append(module.path)
            return True
        return False

    def both(variables, images):
        plain = net.module.apply(variables, images, train=False, capture_intermediates=is_norm, mutable="intermediates")
        return plain, zoo.batch_norm_inputs(net, variables, images)

    ((logits, _), captured), (own_logits, found) = jax.jit(both)(variables, images)
    np.testing.assert_allclose(own_logits, logits, rtol=1e-5, atol=1e-6)
    assert len(found) == len(order) == len(jax.tree.leaves(variables["batch_stats"])) // 2
    assert SPECS[spec] is None or [path[-1] for path in order] == SPECS[spec]
    for path, layer in zip(order, found, strict=True):
        output, params, stats = captured["intermediates"], variables["params"], variables["batch_stats"]
        for name in path:
            output, params, stats = output[name], params[name], stats[name]
        np.testing.assert_array_equal(layer.running_mean, stats["mean"])
        np.testing.assert_array_equal(layer.running_variance, stats["var"])
        # Undo the layer: what it was given.
        scale = np.sqrt(np.float64(stats["var"]) + 1e-5) / np.float64(params["scale"])
        given = (np.float64(output["__call__"][0]) - np.float64(params["bias"])) * scale + np.float64(stats["mean"])
        size = np.abs(given).max() + np.abs(stats["mean"]).max()  # which cancel in float32
        np.testing.assert_allclose(layer.mean, given.mean((0, 1, 2)), atol=1e-5 * size)
        np.testing.assert_allclose(layer.variance, given.var((0, 1, 2)), atol=1e-5 * size**2)


def test_the_first_layer_sees_the_first_convolution(key):
    """By hand: the biased variance of a convolution's result, with the statistics of a network in evaluation."""
    net = zoo.parse("convnet_bn:width=1,depth=1", 3, (4, 4, 1))
    variables = net.init(key)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 3.0  # the convolution is 3 x + 1
    variables["params"]["conv1"] = {"kernel": jnp.asarray(kernel), "bias": jnp.ones(1)}
    images = jnp.arange(32.0).reshape(2, 4, 4, 1)
    _, (layer,) = zoo.batch_norm_inputs(net, variables, images)
    np.testing.assert_allclose(layer.mean, [3 * 15.5 + 1], rtol=1e-6)
    np.testing.assert_allclose(layer.variance, [9 * (32**2 - 1) / 12], rtol=1e-6)
    assert (float(layer.running_mean[0]), float(layer.running_variance[0])) == (0.0, 1.0)


def test_it_can_be_compiled_differentiated_batched_and_looped(key):
    net = zoo.parse("convnet_bn:width=2,depth=1", 3, (8, 8, 1))
    variables = net.init(key)
    images = jax.random.normal(key, (3, 4, 8, 8, 1))

    def loss(x):
        return zoo.batch_norm_inputs(net, variables, x)[1][0].variance.sum()

    slopes = [jax.grad(loss)(x) for x in images]
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(images), slopes, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda x: jax.lax.map(jax.grad(loss), x))(images), slopes, rtol=1e-4, atol=1e-6)
    assert np.abs(slopes[0]).max() > 0


def test_a_network_without_batch_norm_has_none(key):
    net = zoo.parse("convnet:width=2,depth=1", 3, (8, 8, 1))
    logits, found = zoo.batch_norm_inputs(net, net.init(key), jnp.ones((2, 8, 8, 1)))
    assert logits.shape == (2, 3) and found == []
