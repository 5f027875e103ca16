"""Images that only fill up a batch: batch norm gives the others what it gives them alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metadd_jax import zoo
from metadd_jax.zoo import norms

SPECS = ["convnet_bn:width=4,depth=2", "convnet:width=4,depth=1"]


def padded(images, rows, paint):
    """``images`` with ``rows`` more of one colour, and the weights of all."""
    filling = jnp.full((rows, *images.shape[1:]), paint)
    return jnp.concatenate([images, filling]), jnp.concatenate([jnp.ones(len(images)), jnp.zeros(rows)])


@pytest.mark.parametrize("spec", SPECS)
def test_the_filling_changes_nothing_whatever_it_shows(spec):
    net = zoo.parse(spec, 3, (8, 8, 1))
    variables = jax.jit(net.init)(jax.random.key(0))
    images = 1 + jax.random.normal(jax.random.key(1), (5, 8, 8, 1))

    def value(params, images, weights):
        logits, _, statistics = net.apply_train({**variables, "params": params}, images, weights)
        own = (logits[:5] ** 2).sum()
        return own, (logits[:5], statistics)

    of = jax.jit(jax.value_and_grad(value, has_aux=True))
    alone = of(variables["params"], images, None)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(alone[1]))
    for paint in (0.0, 50.0):
        filled = of(variables["params"], *padded(images, 3, paint))
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(filled), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * largest)


def test_weights_say_who_counts_and_not_how_much():
    net = zoo.parse("convnet_bn:width=4,depth=1", 3, (8, 8, 1))
    variables = net.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    alike, unlike = (net.apply_batch(variables, images, jnp.asarray(w))[0] for w in ([1.0] * 4, [0.3, 1.0, 2.0, 7.0]))
    np.testing.assert_array_equal(alike, unlike)
    np.testing.assert_allclose(alike, net.apply_batch(variables, images)[0], rtol=1e-5, atol=1e-6)


def test_many_networks_at_once_each_with_its_own_filling():
    net = zoo.parse("convnet_bn:width=4,depth=1", 3, (8, 8, 1))
    variables = net.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    weights = jnp.array([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    together = jax.vmap(lambda w: net.apply_train(variables, images, w)[2]["norm1"]["mean"])(weights)
    for row, count in zip(together, (3, 1), strict=True):
        alone = net.apply_train(variables, images[:count])[2]["norm1"]["mean"]
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-6)


def test_a_norm_that_hides_the_images_is_refused():
    class Rows(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False, name="norm")(x.reshape(-1, x.shape[-1]))

    images = jnp.ones((4, 2, 2, 3))
    module, message = Rows(), r"batch norm norm sees \(16, 3\) and cannot tell .* of 4 images"
    variables = module.init(jax.random.key(0), images)
    with norms.counting(jnp.ones(4)), pytest.raises(ValueError, match=message):
        module.apply(variables, images, mutable=["batch_stats"])
