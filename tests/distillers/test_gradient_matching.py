"""DC and DSA against NumPy in float64, with a two-layer network whose gradients are written out by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import augment, distillers, zoo
from metadd_jax.distillers.gradient_matching import loops

SHAPE, COUNTS, HIDDEN = (8, 8, 1), (20, 5, 9), 7
ALL_VIEWS = "color_crop_cutout_flip_scale_rotate"


@dataclasses.dataclass(frozen=True)
class Stub:
    """logits = tanh(x W1 + b1) W2 + b2."""

    has_batch_stats: bool = False
    name: str = "stub"
    num_classes: int = 3
    image_shape: tuple[int, int, int] = SHAPE

    def init(self, key):
        keys = jax.random.split(key, 4)
        shapes = {"w1": (64, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, 3), "b2": (3,)}
        draws = zip(keys, shapes.items(), strict=True)
        return {"params": {name: jax.random.normal(k, shape) / shape[0] ** 0.5 for k, (name, shape) in draws}}

    def apply(self, variables, images):
        p = variables["params"]
        return jnp.tanh(images.reshape(len(images), -1) @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], {}

    def apply_train(self, variables, images, weights=None):
        return *self.apply(variables, images), {}


def flat(images):
    return np.asarray(images, np.float64).reshape(*images.shape[:-3], -1)


def standardised(batch):
    pixels = np.asarray(batch["images"], np.float64) / 255
    return flat((pixels - np.asarray(batch["mean"], np.float64)) / np.asarray(batch["std"], np.float64))


def slopes(params, x, labels):
    """Gradient of the mean cross-entropy by hand."""
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    z = np.exp(hidden @ params["w2"] + params["b2"])
    error = (z / z.sum(1, keepdims=True) - np.eye(3)[labels]) / len(x)
    back = error @ params["w2"].T * (1 - hidden**2)
    return {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}


def row_distance(real, synthetic):
    total = 0.0
    for name in ("w1", "w2"):
        for a, b in zip(real[name].T, synthetic[name].T, strict=True):
            total += 1 - a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-6)
    return total


def squared_distance(real, synthetic):
    return sum(((real[name] - synthetic[name]) ** 2).sum() for name in real)


def expected_loss(params, images, batch, *, targets=None, distance=row_distance):
    """Sum over the classes of the distance; ``targets`` are gradients of the real side, if known."""
    targets = targets or real_side(params, batch)
    return sum(distance(targets[k], slopes(params, flat(images)[2 * k : 2 * k + 2], [k, k])) for k in range(3))


def real_side(params, batch):
    real, weights = standardised(batch), np.asarray(batch["weights"])
    present = [real[k][weights[k] > 0] for k in range(3)]
    return [slopes(params, x, [k] * len(x)) for k, x in enumerate(present)]


def make(factory=distillers.dc, net=None, **settings):
    return factory(net or Stub(), **{"ipc": 2, "batch_size": 8} | settings)


def draw(method, tiny, seed=1):
    return jax.jit(method.sample)(jax.random.key(seed), tiny.train, jnp.int32(0))


def value(method, images, aux, batch, seed=2):
    return jax.jit(method.loss)(jax.random.key(seed), {"images": jnp.asarray(images)}, aux, batch, ())[0]


def as_numpy(aux):
    return {name: np.asarray(leaf, np.float64) for name, leaf in aux["network"]["params"].items()}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(6, *SHAPE))


@pytest.fixture(scope="module")
def aux():
    return {"network": Stub().init(jax.random.key(5))}


HAND = {  # per tensor: two gradients
    "linear": ([[3, 1], [4, 0]], [[3, 0], [4, 2]]),  # outputs (3, 4) and (3, 4): 0; (1, 0) and (0, 2): 1
    "conv": ([[[[1], [1]]]], [[[[-1], [-1]]]]),  # one output channel, opposite: 2
    "layer_norm": ([[[1, 2]], [[0, 5]]], [[[1, 0]], [[1, 0]]]),  # (1, 0) and (1, 1): 1 - 1 / sqrt 2; with zero: 1
    "bias": ([7, 9], [-7, 9]),  # nothing
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ours", 0 + 1 + 2 + (1 - 0.5**0.5) + 1),
        ("mse", (1 + 4) + 8 + (1 + 4 + 25) + 14**2),
        ("cos", 1 - (25 - 2 + 1 - 49 + 81) / (26 + 2 + 30 + 130) ** 0.5 / (29 + 2 + 2 + 130) ** 0.5),
    ],
)
def test_distances_of_rows_made_by_hand(kind, expected):
    real, synthetic = ({name: jnp.array(pair[side], jnp.float32) for name, pair in HAND.items()} for side in (0, 1))
    assert float(distillers.gradient_distance(real, synthetic, kind=kind)) == pytest.approx(expected, abs=1e-5)


def test_convnet_d3_has_394_rows_each_between_0_and_2():
    shapes = jax.eval_shape(zoo.create("convnet", 10, (32, 32, 3)).init, jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    a, b = (jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes) for _ in "ab")
    distance = jax.jit(distillers.gradient_distance)
    assert float(distance(a, jax.tree.map(jnp.zeros_like, a))) == 394
    assert float(distance(a, jax.tree.map(jnp.negative, a))) == pytest.approx(2 * 394, rel=1e-5)
    assert float(distance(a, a)) == pytest.approx(0, abs=1e-3)
    assert 0 < float(distance(a, b)) < 2 * 394
    only_biases = {name: {key: x for key, x in layer.items() if x.ndim == 1} for name, layer in a.items()}
    assert float(distance(only_biases, jax.tree.map(jnp.negative, only_biases))) == 0


@pytest.mark.parametrize("kind", ["ours", "mse", "cos"])
def test_a_silent_unit_gives_a_finite_slope(kind):
    zeros, ones = {"w": jnp.zeros((3, 2))}, {"w": jnp.ones((3, 2))}
    slope = jax.grad(lambda x: distillers.gradient_distance(ones, x, kind=kind))(zeros)
    assert np.isfinite(slope["w"]).all()


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="'l2' must be one of ours, mse, cos, l1"):
        distillers.gradient_distance({}, {}, kind="l2")


def test_the_loops_are_the_published_ones_and_between_them_on_a_line():
    table = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: loops(ipc) for ipc in table} == table
    assert [loops(ipc) for ipc in (2, 5, 15, 25, 100)] == [(2, 6), (5, 23), (15, 38), (25, 23), (50, 10)]


@pytest.mark.parametrize(
    ("settings", "distance"),
    # The cosine sees no scale; the squared distance tells a mean over images from a sum.
    [
        ({"class_batch": 5}, row_distance),
        ({"distance": "mse"}, squared_distance),
        ({"distance": "mse", "micro_batch": 3}, squared_distance),
    ],
)
def test_the_loss_is_the_sum_over_classes(tiny, images, aux, settings, distance):
    method = make(**settings)
    batch = draw(method, tiny)
    assert batch["weights"].sum() == 8 + 5 + 8  # the smaller class counts the images that it has
    expected = expected_loss(as_numpy(aux), images, batch, distance=distance)
    assert float(value(method, images, aux, batch)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("class_batch", [1, 2])
def test_classes_of_unequal_ipc_have_the_gradients_of_their_own_images(tiny, images, aux, class_batch):
    counts = (1, 3, 2)
    method = make(ipc=counts, distance="mse", class_batch=class_batch)
    batch, params, own = draw(method, tiny), as_numpy(aux), np.split(flat(images), np.cumsum(counts)[:-1])
    expected = sum(
        squared_distance(real, slopes(params, own[k], [k] * counts[k]))
        for k, real in enumerate(real_side(params, batch))
    )
    assert float(value(method, images, aux, batch)) == pytest.approx(expected, rel=1e-4)
    assert loops(counts) == loops(2)  # their mean


def test_the_gradient_flows_through_the_synthetic_side_alone(tiny, images, aux):
    method = make()
    batch, params = draw(method, tiny), as_numpy(aux)
    with jax.enable_x64():
        precise = {"network": {"params": jax.tree.map(jnp.asarray, params)}}
        slope = np.asarray(jax.jit(jax.grad(lambda x: value(method, x, precise, batch)))(jnp.asarray(images)))
        moved = jax.grad(lambda mean: value(method, images, precise, {**batch, "mean": mean}))(batch["mean"])
    assert slope.dtype == np.float64
    direction, fixed = np.random.default_rng(2).normal(size=images.shape), real_side(params, batch)
    ahead, behind = (expected_loss(params, images + sign * 1e-5 * direction, batch, targets=fixed) for sign in (1, -1))
    assert (slope * direction).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)
    np.testing.assert_array_equal(moved, 0.0)  # shifts the real images only


@pytest.mark.parametrize("settings", [{}, {"class_batch": 5}, {"distance": "mse", "micro_batch": 3}])
def test_the_gradient_in_the_network_is_the_true_one(tiny, images, aux, settings):
    """Finite differences in NumPy along a random direction of all weights; the real side is a constant."""
    method = make(**settings)
    batch, params = draw(method, tiny), as_numpy(aux)
    distance, fixed = squared_distance if "distance" in settings else row_distance, real_side(params, batch)
    rng = np.random.default_rng(4)
    direction = {name: rng.normal(size=leaf.shape) for name, leaf in params.items()}

    def moved(step):
        there = {name: leaf + step * direction[name] for name, leaf in params.items()}
        return expected_loss(there, images, batch, targets=fixed, distance=distance)

    with jax.enable_x64():
        loss = lambda params: value(method, images, {"network": {"params": params}}, batch)  # noqa: E731
        slope = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert abs(expected) > 1e-2
    assert sum((np.asarray(slope[name]) * direction[name]).sum() for name in slope) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "outer", "inner"),
    [({"outer": 3, "inner": 1}, 3, 1), ({"outer": 1, "inner": 3}, 1, 3), ({}, *loops(2))],
)
def test_a_network_is_new_every_outer_steps_and_trains_inner_epochs_between(images, settings, outer, inner):
    method, labels = make(**settings), np.repeat(np.arange(3), 2)
    refresh = jax.jit(
        lambda key, aux, step: method.refresh(key, {"images": jnp.asarray(images, jnp.float32)}, aux, step, ())
    )
    aux = {"network": Stub().init(jax.random.key(99))}
    is_new = []
    for step in range(7):
        before, key = as_numpy(aux), jax.random.key(step)
        aux = refresh(key, aux, step)
        after = as_numpy(aux)
        fresh = {name: np.asarray(leaf) for name, leaf in Stub().init(key)["params"].items()}
        is_new.append(np.allclose(after["w1"], fresh["w1"], atol=1e-6))
        if not is_new[-1]:
            for _ in range(inner):
                slope = slopes(before, flat(images), labels)
                before = {name: before[name] - 0.01 * slope[name] for name in before}
            assert all(np.allclose(after[name], before[name], atol=1e-6) for name in after)
    assert is_new == [step % outer == 0 for step in range(7)]


def test_every_image_counts_once_in_an_epoch_of_256_and_the_rest():
    """Image i lights pixel i alone and the weights start at zero, so row i moves by its own slope / batch size."""

    @dataclasses.dataclass(frozen=True)
    class Linear(Stub):
        image_shape: tuple[int, int, int] = (20, 15, 1)

        def init(self, key):
            return {"params": {"w": jnp.zeros((300, 3))}}

        def apply_train(self, variables, images, weights=None):
            return images.reshape(len(images), -1) @ variables["params"]["w"], {}, {}

    method = make(net=Linear(), ipc=100, outer=2, inner=1)
    aux = {"network": Linear().init(None)}
    one_hot = {"images": jnp.eye(300).reshape(300, 20, 15, 1)}
    weights = np.asarray(method.refresh(jax.random.key(0), one_hot, aux, jnp.int32(1), ())["network"]["params"]["w"])
    slope = 1 / 3 - np.eye(3)[np.repeat(np.arange(3), 100)]
    sizes = -0.01 * slope / weights
    np.testing.assert_allclose(sizes, sizes[:, :1] * np.ones(3), rtol=1e-4)
    assert sorted(sizes[:, 0].round(2)) == [44.0] * 44 + [256.0] * 256


def test_both_sides_see_the_same_views(tiny, aux):
    method = make(distillers.dsa, ipc=5, batch_size=5, micro_batch=2, augmentation=ALL_VIEWS, distance="mse")
    batch = draw(method, tiny)
    same = standardised(batch).reshape(15, *SHAPE).astype(np.float32)
    loss = jax.jit(lambda x, seed: value(method, x, aux, batch, seed))
    values = np.array([(loss(same, seed), loss(same[::-1], seed)) for seed in range(12)])
    np.testing.assert_allclose(values[:, 0], 0, atol=1e-10)
    assert (values[:, 1] > 1e-3).all() and len(np.unique(values[:, 1].round(6))) > 6
    assert (
        len({float(value(make(), same[:6], aux, batch, seed)) for seed in range(3)}) == 1
    )  # DC shows them as they are


@pytest.mark.parametrize(("factory", "tokens"), [(distillers.dc, ()), (distillers.dsa, ("flip",))])
def test_views_are_shared_in_matching_and_individual_in_the_inner_training(
    tiny, images, aux, monkeypatch, factory, tokens
):
    calls = []

    def recorded(key, images, strategy, *, siamese=True, op_key=None):
        calls.append((siamese, strategy.tokens))
        return images

    monkeypatch.setattr(augment, "transform", recorded)
    settings = {} if factory is distillers.dc else {"augmentation": "flip"}
    method = make(factory, outer=2, inner=1, **settings)
    value(method, images, aux, draw(method, tiny))
    assert set(calls) == {(True, tokens)}
    calls.clear()
    method.refresh(jax.random.key(0), {"images": jnp.asarray(images)}, aux, jnp.int32(1), ())
    assert set(calls) == {(False, tokens)}


def matched_statistics(tiny, batch_norm):
    """The network before and after the loss, and the real images whose statistics it took."""
    net = zoo.parse("convnet_bn:width=4,depth=2", 3, SHAPE)
    method = make(net=net, batch_norm=batch_norm)
    synthetic, aux = method.init(jax.random.key(0), tiny)
    batch = draw(method, tiny)
    _, (new, _) = jax.jit(method.loss)(jax.random.key(2), synthetic, aux, batch, ())
    shown = standardised({**batch, "images": batch["statistics"]}).reshape(-1, *SHAPE).astype(np.float32)
    shown = shown[np.asarray(batch["statistics_weights"]).ravel() > 0]
    return net, aux["network"], new["network"], shown, batch


def first_layer_statistics(variables, shown):
    layer = variables["params"]["conv1"]
    pixels = np.pad(shown[..., 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(1, 2))
    out = np.einsum("bhwij,ijo->bhwo", windows, np.asarray(layer["kernel"])[:, :, 0]) + np.asarray(layer["bias"])
    return out.mean((0, 1, 2)), out.var((0, 1, 2))


@pytest.mark.parametrize(("batch_norm", "share"), [("published", 0.1), ("improved", 1.0)])
def test_running_statistics_move_by_a_tenth_as_published_or_all_the_way(tiny, batch_norm, share):
    net, old, new, shown, _ = matched_statistics(tiny, batch_norm)
    mean, variance = first_layer_statistics(old, shown)
    stats = new["batch_stats"]["norm1"]
    np.testing.assert_allclose(stats["mean"], share * mean, rtol=1e-3, atol=1e-5)  # they start at 0 and 1
    np.testing.assert_allclose(stats["var"], (1 - share) + share * variance, rtol=1e-3, atol=1e-5)
    assert all(map(np.array_equal, jax.tree.leaves(old["params"]), jax.tree.leaves(new["params"])))
    apart = np.abs(np.asarray(net.apply(new, shown)[0]) - np.asarray(net.apply_batch(new, shown)[0])).max()
    assert apart < 1e-5 if batch_norm == "improved" else apart > 1e-2


def test_the_statistics_are_of_16_images_of_each_class_or_all_of_a_smaller_one(tiny):
    *_, batch = matched_statistics(tiny, "improved")
    assert batch["statistics"].shape == (3, 16, *SHAPE)
    for label, count in enumerate(COUNTS):
        own = np.asarray(tiny.train.images)[np.asarray(tiny.train.labels) == label]
        drawn = np.asarray(batch["statistics"][label])[np.asarray(batch["statistics_weights"][label]) > 0]
        times = [(drawn == image).all(axis=(1, 2, 3)).sum() for image in own]
        assert sum(times) == min(16, count) and max(times) == 1


def test_dc_starts_from_noise_and_dsa_from_real_images(tiny, key):
    noise = np.asarray(make(ipc=100).init(key, tiny)[0]["images"])
    assert abs(noise.mean()) < 0.03 and noise.std() == pytest.approx(1, abs=0.03)
    real = make(distillers.dsa).init(key, tiny)[0]["images"]
    pixels = np.rint((np.asarray(real) * np.asarray(tiny.train.std) + np.asarray(tiny.train.mean)) * 255)
    assert all((np.asarray(tiny.train.images) == image).all(axis=(1, 2, 3)).any() for image in pixels)
    assert [make(factory).name for factory in (distillers.dc, distillers.dsa)] == ["dc", "dsa"]


BAD = [
    ({"ipc": 0}, "ipc=0"),
    ({"class_batch": 0}, "class_batch=0"),
    ({"init": "dream"}, "init='dream' must be one of random, noise, kmeans"),
    ({"outer": 0}, "outer=0 must be a whole number, at least 1"),
    ({"inner": 0}, "inner=0 must be"),
    ({"distance": "l2"}, "distance='l2' must be one of ours, mse, cos, l1"),
    ({"batch_norm": "none"}, "batch_norm='none' must be one of improved, published"),
]


@pytest.mark.parametrize(("factory", "bad"), list(itertools.product([distillers.dc, distillers.dsa], BAD)))
def test_bad_settings_are_refused(factory, bad):
    settings, message = bad
    with pytest.raises(ValueError, match=message):
        make(factory, **settings)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="unknown augmentation 'sparkle'"):
        make(distillers.dsa, augmentation="sparkle")
