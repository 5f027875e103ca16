"""What every network of the zoo promises: shapes, maps, perturbations, variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import zoo
from metadd_jax.zoo import architecture


def small(name, image_shape, num_classes=5):
    """The network, narrow enough to run here."""
    options = {"lenet": {}, "vit": {"width": 12, "depth": 2}}.get(name, {"width": 4})
    return zoo.create(name, num_classes, image_shape, **options)


@pytest.mark.parametrize("image_shape", [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("name", zoo.names())
def test_shapes_of_logits_and_outputs(name, image_shape):
    net = zoo.create(name, 10, image_shape)
    variables, out = architecture.shapes(net)
    assert set(variables) == ({"params", "batch_stats"} if "_bn" in name else {"params"})
    assert out["embedding"].ndim == 2
    assert net.has_map == ("map" in out) == (name != "mlp")
    if net.has_map:
        assert out["map"].shape == (1, *net.map_shape)
        assert min(net.map_shape[:2]) >= 4


@pytest.mark.parametrize(
    ("name", "image_shape", "map_shape"),
    [
        ("convnet", (32, 32, 3), (8, 8, 128)),
        ("convnet", (28, 28, 3), (7, 7, 128)),
        ("convnet", (16, 16, 3), (4, 4, 128)),
        ("alexnet", (32, 32, 3), (8, 8, 192)),
        ("alexnet", (28, 28, 3), (7, 7, 192)),
        ("vgg11", (32, 32, 3), (8, 8, 256)),
        ("vgg11", (128, 128, 3), (4, 4, 512)),
        ("resnet18", (16, 16, 3), (4, 4, 256)),
        ("resnet18_ap", (28, 28, 1), (7, 7, 256)),
        ("lenet", (32, 32, 3), (10, 10, 16)),
        ("vit", (28, 28, 1), (7, 7, 192)),
        ("vit", (64, 64, 3), (8, 8, 192)),
        ("resnet50", (32, 32, 3), (8, 8, 1024)),
        ("googlenet", (32, 32, 3), (16, 16, 512)),
        ("googlenet", (28, 28, 1), (14, 14, 512)),
        # torchvision's
        ("alexnet", (224, 224, 3), (6, 6, 256)),  # after the last pooling
        ("alexnet", (128, 128, 3), (7, 7, 256)),  # 3x3 after it
        ("vgg19", (224, 224, 3), (7, 7, 512)),
        ("vgg11_bn", (128, 128, 3), (4, 4, 512)),
        ("resnet18", (128, 128, 3), (4, 4, 512)),
        ("resnet50", (224, 224, 3), (7, 7, 2048)),
        ("googlenet", (224, 224, 3), (7, 7, 1024)),  # 6x6 if the pools rounded down
    ],
)
def test_map_is_the_deepest_that_is_fine_enough(name, image_shape, map_shape):
    assert zoo.create(name, 10, image_shape).map_shape == map_shape


@pytest.mark.parametrize("name", ["mlp", "lenet", "alexnet_bn", "vgg11", "resnet18_bn_ap", "googlenet"])
def test_forward_pass_is_finite_and_per_image(name, key):
    net = small(name, (32, 32, 1))
    variables = jax.jit(net.init)(key)
    images = jax.random.normal(key, (2, 32, 32, 1))
    apply = jax.jit(net.apply)
    logits, out = apply(variables, images)
    assert logits.shape == (2, 5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, out)))
    assert np.std(logits, axis=0).max() > 0
    # In evaluation an image's result does not depend on the rest of the batch.
    swapped, _ = apply(variables, images[::-1])
    np.testing.assert_allclose(swapped[::-1], logits, rtol=1e-4, atol=1e-5)


def test_gradient_at_the_map_of_an_averaging_head_is_the_head_row(key):
    net = small("resnet18", (128, 128, 1))
    variables = jax.jit(net.init)(key)
    images = jax.random.normal(key, (2, 128, 128, 1))
    zeros = jnp.zeros((2, *net.map_shape))

    def logit(shift):
        return net.apply({**variables, "perturbations": {"map": shift}}, images)[0][:, 3].sum()

    gradient = jax.jit(jax.grad(logit))(zeros)
    row = np.asarray(variables["params"]["head"]["kernel"])[:, 3] / 16
    np.testing.assert_allclose(gradient, np.broadcast_to(row, zeros.shape), rtol=1e-5, atol=1e-7)


def test_shift_of_the_last_map_moves_the_logits_as_the_linear_head_says(key):
    net = zoo.create("convnet", 5, (8, 8, 1), width=4, depth=1)  # the head sees the map itself
    variables = jax.jit(net.init)(key)
    images = jax.random.normal(key, (2, 8, 8, 1))
    shift = jax.random.normal(jax.random.key(1), (2, *net.map_shape))
    apply = jax.jit(net.apply)
    logits, out = apply(variables, images)
    same, _ = apply({**variables, "perturbations": {"map": jnp.zeros_like(shift)}}, images)
    moved, moved_out = apply({**variables, "perturbations": {"map": shift}}, images)
    np.testing.assert_allclose(same, logits, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moved_out["map"], out["map"] + shift, rtol=1e-5, atol=1e-6)
    expected = logits + shift.reshape(2, -1) @ variables["params"]["head"]["kernel"]
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)


def test_vit_outputs(key):
    net = small("vit", (8, 8, 1))
    variables = jax.jit(net.init)(key)
    images = jax.random.normal(key, (2, 8, 8, 1))
    zeros = jnp.zeros((2, *net.map_shape))

    @jax.jit
    def run(variables):
        logits, out = net.apply(variables, images)
        gradient = jax.grad(
            lambda shift: net.apply({**variables, "perturbations": {"map": shift}}, images)[0][:, 0].sum()
        )(zeros)
        return logits, out, gradient

    logits, out, gradient = run(variables)
    assert out["attention"].shape == (2, 2, 3, 5, 5)  # blocks, images, heads, class token and 4 patches
    np.testing.assert_allclose(out["attention"].sum(-1), np.ones((2, 2, 3, 5)), rtol=1e-5)
    assert out["patch_logits"].shape == (2, 2, 2, 5)
    head = variables["params"]["head"]
    np.testing.assert_allclose(out["embedding"] @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient).max() > 0  # patch tokens reach the class token through the last attention


def test_vit_map_enters_the_last_block(key):
    """With one block the map is the embedded patches and their positions."""
    net = zoo.create("vit", 5, (8, 8, 1), width=12, depth=1)
    params = net.init(key)["params"]
    images = jax.random.normal(key, (2, 8, 8, 1))
    _, out = jax.jit(net.apply)({"params": params}, images)
    patches = np.asarray(images).reshape(2, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(2, 4, 16)
    expected = patches @ np.asarray(params["patches"]["kernel"]).reshape(16, 12) + params["patches"]["bias"]
    expected = expected + params["positions"][:, 1:]
    np.testing.assert_allclose(out["map"].reshape(2, 4, 12), expected, rtol=1e-4, atol=1e-6)
