"""Which trainings an accelerator runs at once: by the size of the patches that their convolutions become."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from metadd_jax import zoo
from metadd_jax.training import together


@pytest.fixture(autouse=True)
def on_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("mlp", True), ("lenet", True), ("convnet:width=32", True), ("convnet", False), ("alexnet", False)],
)
def test_small_networks_train_at_once(spec, expected):
    """At batch 100 and 32x32x3. docs/gpu.md has their kernels and what they move."""
    assert together.at_once(zoo.parse(spec, 10, (32, 32, 3)), 100) == expected


def test_patches_are_those_of_the_formula():
    """ConvNet-D3 of width w: maps of 32, 16 and 8 pixels a side, 9 pixels of 3, w and w channels each."""
    net, batch = zoo.parse("convnet:width=5", 10, (32, 32, 3)), 7
    images = jnp.zeros((batch, 32, 32, 3))
    jaxpr = jax.make_jaxpr(net.apply)(net.init(jax.random.key(0)), images).jaxpr
    sides = ((32, 3), (16, 5), (8, 5))
    assert together._patch_bytes(jaxpr) == [4 * batch * side**2 * 9 * channels for side, channels in sides]


def test_smaller_batches_have_smaller_patches():
    net = zoo.parse("convnet", 10, (32, 32, 3))
    assert [together.at_once(net, batch) for batch in (10, 90, 100)] == [True, True, False]


def test_a_users_own_convolution_is_not_a_product():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Conv(2, (3, 3))(x)

    jaxpr = jax.make_jaxpr(lambda x: Own().init_with_output(jax.random.key(0), x)[0])(jnp.zeros((1, 4, 4, 1))).jaxpr
    assert together._patch_bytes(jaxpr) == [float("inf")]


def test_a_cpu_trains_each_on_a_core(monkeypatch):
    net = zoo.parse("mlp", 10, (8, 8, 1))
    assert together.at_once(net, 10)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert not together.at_once(net, 10)
