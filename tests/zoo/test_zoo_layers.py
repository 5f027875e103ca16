"""Initialisation and pooling against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import zoo
from metadd_jax.zoo import layers


def test_pytorch_initialisation_bounds(key):
    params = jax.jit(zoo.create("convnet", 10, (32, 32, 3)).init)(key)["params"]
    # 1 / sqrt(27), 1 / sqrt(1152), 1 / sqrt(2048): weights and biases alike
    for name, bound in (("conv1", 0.19245), ("conv2", 0.029463), ("head", 0.022097)):
        kernel, bias = np.asarray(params[name]["kernel"]), np.asarray(params[name]["bias"])
        assert np.abs(kernel).max() <= bound * 1.0001
        assert np.abs(kernel).max() > 0.99 * bound
        assert 0.5 * bound < np.abs(bias).max() <= bound * 1.0001
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)  # uniform
        assert abs(kernel.mean()) < 0.1 * bound
    np.testing.assert_array_equal(params["norm1"]["scale"], np.ones(128))
    np.testing.assert_array_equal(params["norm1"]["bias"], np.zeros(128))


def test_vit_initialisation(key):
    params = jax.jit(zoo.create("vit", 10, (8, 8, 1), width=48, depth=1, patch=2).init)(key)["params"]
    assert np.std(params["block1"]["qkv"]["kernel"]) == pytest.approx(0.02, rel=0.15)
    assert np.abs(params["block1"]["qkv"]["kernel"]).max() < 0.05
    np.testing.assert_array_equal(params["head"]["bias"], np.zeros(10))
    assert params["positions"].shape == (1, 17, 48)


def test_torchvision_initialisations(key):
    params = jax.jit(zoo.create("vgg11_bn", 10, (128, 128, 3), width=16).init)(key)["params"]
    kernel = np.asarray(params["conv4_1"]["kernel"])  # [3, 3, 64, 128]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()  # not truncated
    assert np.std(params["fc2"]["kernel"]) == pytest.approx(0.01, rel=0.02)
    assert not np.any(params["conv1_1"]["bias"]) and not np.any(params["fc1"]["bias"])
    params = jax.jit(zoo.create("resnet50", 10, (128, 128, 3), width=16).init)(key)["params"]
    shortcut = np.asarray(params["stage4_block1"]["shortcut_conv"]["kernel"])  # [1, 1, 256, 512]
    assert shortcut.std() == pytest.approx(np.sqrt(2 / 512), rel=0.02)
    assert np.abs(params["head"]["kernel"]).max() <= 512**-0.5  # PyTorch's default
    params = jax.jit(zoo.create("googlenet", 10, (128, 128, 3), width=16).init)(key)["params"]
    assert np.std(params["inception5b"]["branch2"]["conv"]["kernel"]) == pytest.approx(0.01, rel=0.02)
    assert np.std(params["head"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    assert np.any(params["head"]["bias"])
    params = jax.jit(zoo.create("alexnet", 10, (128, 128, 3), width=8).init)(key)["params"]
    assert np.abs(params["conv2"]["kernel"]).max() == pytest.approx((25 * 8) ** -0.5, rel=0.01)


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7)])
def test_pool_equals_numpy(kind, height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    reduce = {"avg": np.mean, "max": np.max}[kind]
    expected = np.stack(
        [
            np.stack(
                [reduce(x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(1, 2)) for j in range(width // 2)],
                1,
            )
            for i in range(height // 2)
        ],
        1,
    )
    np.testing.assert_allclose(layers.pool(jnp.asarray(x), kind), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil", "sides"),
    [
        (3, 2, 0, False, (3, 3)),
        (3, 2, 1, False, (4, 4)),
        (3, 2, 0, True, (3, 4)),  # the last window of 8 hangs over the edge
        (3, 1, 1, True, (7, 8)),
        (2, 2, 0, True, (4, 4)),
        (2, 2, 1, True, (4, 5)),  # a window that began in the right padding of 7 is dropped
    ],
)
def test_window_pool_equals_a_loop_with_minus_infinity_outside(kernel, stride, padding, ceil, sides):
    x = np.random.default_rng(0).normal(-5, 1, size=(2, 7, 8, 3)).astype(np.float32)  # all negative: 0 would win
    padded = np.pad(x, ((0, 0), (padding, padding + kernel), (padding, padding + kernel), (0, 0)), constant_values=-9e9)
    expected = np.stack(
        [
            np.stack(
                [padded[:, i : i + kernel, j : j + kernel].max((1, 2)) for j in range(0, sides[1] * stride, stride)],
                1,
            )
            for i in range(0, sides[0] * stride, stride)
        ],
        1,
    )
    pool = jax.jit(lambda x: layers.window_pool(x, kernel, stride, padding=padding, ceil=ceil))
    np.testing.assert_array_equal(pool(x), expected)
    gradient = jax.jit(jax.grad(lambda x: pool(x).sum()))(x)
    # Every window hands its 1 to one pixel.
    assert float(gradient.sum()) == expected.size
    assert set(np.unique(gradient)) <= set(range(10))


@pytest.mark.parametrize(("length", "side"), [(3, 6), (7, 6), (4, 7), (6, 6), (13, 6), (5, 1)])
def test_adaptive_average_equals_a_loop(length, side):
    x = np.random.default_rng(0).normal(size=(2, length, length + 1, 3)).astype(np.float32)

    def cell(index, length):
        return slice(index * length // side, int(np.ceil((index + 1) * length / side)))

    result = jax.jit(lambda x: layers.adaptive_average(x, side))(x)
    for i in range(side):
        for j in range(side):
            expected = x[:, cell(i, length), cell(j, length + 1)].mean((1, 2))
            np.testing.assert_allclose(result[:, i, j], expected, rtol=1e-5, atol=1e-6)


def test_average_pool_gives_each_pixel_a_quarter_of_the_gradient_and_a_dropped_one_none():
    x, weights = jnp.arange(35.0).reshape(1, 5, 7, 1), jnp.arange(1.0, 7.0).reshape(1, 2, 3, 1)

    def total(x):
        return (layers.pool(x, "avg") ** 2 * weights).sum()

    pooled = np.asarray(x)[0, :4, :6, 0].reshape(2, 2, 3, 2).mean(axis=(1, 3))
    expected = np.zeros((5, 7))
    expected[:4, :6] = np.kron(2 * pooled * np.asarray(weights)[0, :, :, 0], np.full((2, 2), 0.25))
    np.testing.assert_allclose(jax.grad(total)(x)[0, :, :, 0], expected, rtol=1e-6)
    curvature = jax.grad(lambda x: (jax.grad(total)(x) ** 2).sum() / 2)(x)  # H g of a quadratic form
    doubled = np.zeros((5, 7))
    doubled[:4, :6] = np.kron(pooled * np.asarray(weights)[0, :, :, 0] ** 2, np.full((2, 2), 0.25))
    np.testing.assert_allclose(curvature[0, :, :, 0], doubled, rtol=1e-6)


def test_max_pool_sends_the_gradient_to_the_largest():
    x = jnp.array([[1.0, 3.0], [2.0, 0.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: layers.pool(x, "max").sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


@pytest.mark.parametrize(
    ("sizes", "stage"),
    [
        ([(32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], 3),
        ([(28, 28), (14, 14), (7, 7), (3, 3)], 2),
        ([(16, 4), (8, 2)], 0),
        ([(2, 2), (1, 1)], 0),
    ],
)
def test_map_stage_is_the_deepest_of_at_least_four(sizes, stage):
    assert layers.map_stage(sizes, 4) == stage


def test_activations_in_closed_form():
    x = np.array([-2.0, 0.0, 3.0])
    sigmoid = 1 / (1 + np.exp(-x))
    expected = {
        "relu": np.maximum(x, 0),
        "sigmoid": sigmoid,
        "leaky": np.where(x > 0, x, 0.01 * x),
        "swish": x * sigmoid,
    }
    assert set(expected) == set(layers.ACTIVATIONS)
    for name, values in expected.items():
        np.testing.assert_allclose(layers.ACTIVATIONS[name](x), values, rtol=1e-6)
