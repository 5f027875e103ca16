"""Many ConvNets as one program: each switch is the zoo's own ConvNet, in value and gradient, at its own scale."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import zoo
from metadd_jax.zoo.switched import SWITCHES

SHAPE = (8, 8, 3)
WIDTHS, DEPTHS = (4, 8), (1, 2)
NETS = zoo.variants(3, SHAPE, width=WIDTHS, depth=DEPTHS)
WORDS = (("relu", "sigmoid", "leaky", "swish"), ("layer", "instance", "group", "batch"), ("max", "avg"), WIDTHS, DEPTHS)
EVERY = list(itertools.product(*WORDS))
# Each word beside each of another switch now and then: 8 of 128; all of them under ``-m slow``.
FEW = [
    ("relu", "layer", "max", 4, 1), ("sigmoid", "layer", "avg", 4, 2), ("leaky", "instance", "avg", 4, 1),
    ("swish", "instance", "max", 8, 2), ("sigmoid", "group", "max", 8, 1), ("relu", "group", "avg", 4, 2),
    ("swish", "batch", "avg", 4, 1), ("leaky", "batch", "max", 4, 2),
]  # fmt: skip
WEIGHTS = jnp.array([1.0, 1, 1, 1, 0])  # the last image fills up a batch


def of(words):
    """The network that has these words among its own, and the places of the words there."""
    net = NETS[words[1] == "batch"]
    own = (net.module.activations, net.module.norms, net.module.poolings, net.module.widths, net.module.depths)
    return net, dict(zip(SWITCHES, (w.index(word) for w, word in zip(own, words, strict=True)), strict=True))


def value_and_gradients(net, variables, images):
    def value(params, images):
        logits, out, _ = net.apply_train({**variables, "params": params}, images, WEIGHTS)
        embedding = jnp.sum((WEIGHTS @ out["embedding"]) ** 2)  # what DM sees; logits are what DC sees
        return jnp.sum(jnp.sin(3 * logits) * WEIGHTS[:, None]) + embedding

    return jax.value_and_grad(value, argnums=(0, 1))(variables["params"], images)


@pytest.fixture(scope="module")
def programs():
    return {
        net: jax.jit(lambda variables, images, net=net: value_and_gradients(net, variables, images)) for net in NETS
    }


def drawn(words, seed=0):
    net, places = of(words)
    return net, net.set(zoo.Architecture.init(net, jax.random.key(seed)), places)


@pytest.mark.parametrize("words", [*FEW, *(pytest.param(w, marks=pytest.mark.slow) for w in EVERY if w not in FEW)])
def test_a_setting_of_the_switches_is_the_zoos_convnet(words, programs):
    net, variables = drawn(words)
    alone, own = net.alone(variables)
    options = ("activation", "norm", "pooling", "width", "depth")
    assert alone == zoo.create("convnet", 3, SHAPE, **dict(zip(options, words, strict=True)))
    images = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    value, (to_params, to_images) = programs[net](variables, images)
    wanted, (own_params, own_images) = jax.jit(lambda v, x: value_and_gradients(alone, v, x))(own, images)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    np.testing.assert_allclose(to_images, own_images, atol=2e-5 * float(jnp.abs(own_images).max()))
    _, small = net.alone({**variables, "params": to_params})
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(own_params))
    assert jax.tree.structure(small["params"]) == jax.tree.structure(own_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest), small["params"], own_params)
    # What the narrower, shallower network has not has no gradient.
    kept, every = (sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree)) for tree in (small["params"], to_params))
    assert every == pytest.approx(kept, rel=1e-5)


def test_hundreds_of_convnets_are_one_program(programs):
    assert [net.count for net in NETS] == [96, 32]
    net, images = NETS[0], jnp.ones((5, *SHAPE))
    init = jax.jit(net.init)
    drawn = [init(jax.random.key(seed)) for seed in range(60)]
    labels = {net.alone(variables)[0].label for variables in drawn}
    assert len(labels) > 30  # 60 draws of 96: 45 on average
    values = [float(programs[net](variables, images)[0]) for variables in drawn]
    assert len(set(values)) == 60 and programs[net]._cache_size() == init._cache_size() == 1


def test_batch_norms_running_statistics_are_those_of_the_convnet():
    net, variables = drawn(("relu", "batch", "avg", 4, 2))
    alone, own = net.alone(variables)
    images = 3 + jax.random.normal(jax.random.key(1), (5, *SHAPE))
    moved = {**variables, "batch_stats": jax.jit(net.apply_train)(variables, images, WEIGHTS)[2]}
    wanted = {**own, "batch_stats": jax.jit(alone.apply_train)(own, images, WEIGHTS)[2]}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), net.alone(moved)[1], wanted)
    seen = jax.jit(net.apply)(moved, images)[0], jax.jit(alone.apply)(wanted, images)[0]
    np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "depth"), [(4, 1), (8, 1), (4, 2)])
def test_weights_are_drawn_by_the_fan_in_of_the_drawn_network(width, depth):
    net, places = of(("relu", "layer", "avg", width, depth))
    draw = jax.jit(jax.vmap(lambda key: net.set(zoo.Architecture.init(net, key), places)))
    many = draw(jax.random.split(jax.random.key(0), 40))
    every = [net.alone(jax.tree.map(lambda leaf, i=i: leaf[i], many))[1]["params"] for i in range(40)]
    side = 8 >> depth
    bounds = {"conv1": 9 * 3, "conv2": 9 * width, "head": side * side * width}
    for name in every[0]:
        if name in bounds:
            largest = max(float(jnp.abs(leaf).max()) for own in every for leaf in own[name].values())
            assert 0.95 < largest * np.sqrt(bounds[name]) <= 1 + 1e-6, name


def test_all_of_them_are_drawn_alike():
    net = zoo.variants(3, SHAPE, width=WIDTHS, depth=DEPTHS, activation=("relu", "swish"), norm=("instance",))[0]
    switches = jax.jit(jax.vmap(lambda key: net.init(key)["switches"]))(jax.random.split(jax.random.key(0), 800))
    codes = sum(np.asarray(switches[name], int) << place for place, name in enumerate(SWITCHES) if name != "norm")
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    assert net.count == len(counts) == 16 and np.abs(counts - 50).max() < 4 * np.sqrt(50)


def test_a_larger_grey_map_and_the_head_of_every_depth():
    net = zoo.variants(2, (28, 28, 1), width=(4,), depth=(1, 3), norm=("layer",), activation=("relu",))[0]
    images = jax.random.normal(jax.random.key(1), (2, 28, 28, 1))
    for depth, side in ((0, 16), (1, 4)):
        variables = net.set(jax.jit(net.init)(jax.random.key(0)), dict.fromkeys(SWITCHES, 0) | {"depth": depth})
        alone, own = net.alone(variables)
        assert own["params"]["head"]["kernel"].shape == (side * side * 4, 2)
    seen, wanted = jax.jit(net.apply)(variables, images)[0], jax.jit(alone.apply)(own, images)[0]
    np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=1e-6)


def test_they_know_their_own():
    assert NETS[0].covers(zoo.create("convnet", 3, SHAPE, width=4, depth=2, norm="layer", activation="swish"))
    for other in ("convnet:width=4,depth=2,norm=batch", "convnet:width=6,depth=2", "convnet:width=4", "mlp"):
        assert not NETS[0].covers(zoo.parse(other, 3, SHAPE))


def test_what_no_convnet_has_is_refused():
    for options, text in (
        ({"activation": ("relu", "gelu")}, "activation=gelu; choose one of"),
        ({"norm": ()}, "convnets: norm=; give each word once"),
        ({"pooling": ("avg", "avg")}, r"convnets: pooling=avg\+avg; give each word once"),
        ({"width": (4, 6)}, "group norm needs channels in multiples of 4, not 6"),
        ({"width": (0,)}, "width=0; give a whole number of at least 1"),
        ({"depth": (1, 4)}, "convnet:width=4,depth=4 on 8x8x3 images: instance norm over one number each"),
    ):
        with pytest.raises(ValueError, match=text):
            zoo.variants(3, SHAPE, **{"width": (4,), "depth": (1,), **options})
