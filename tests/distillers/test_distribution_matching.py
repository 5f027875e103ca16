"""DM against NumPy in float64, with networks whose embedding is known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from metadd_jax import distillers, zoo

SHAPE, COUNTS = (8, 8, 1), (20, 5, 9)
MATRIX = np.random.default_rng(3).normal(size=(64, 7)) / 8


@dataclasses.dataclass(frozen=True)
class Stub:
    """A network that embeds by tanh(x W) (or by "batch norm": x W less its batch mean, squared)."""

    has_batch_stats: bool = False
    name: str = "stub"
    num_classes: int = 3
    image_shape: tuple[int, int, int] = SHAPE

    def init(self, key):
        return {"params": jnp.asarray(MATRIX)}

    def apply_batch(self, variables, images, weights=None):
        z = images.reshape(len(images), -1) @ variables["params"]
        mean = z.mean(axis=0) if weights is None else weights @ z / weights.sum()
        return None, {"embedding": (z - mean) ** 2 if self.has_batch_stats else jnp.tanh(z)}


def flat(images):
    return np.asarray(images, np.float64).reshape(*images.shape[:-3], -1)


def standardised(batch):
    pixels = np.asarray(batch["images"], np.float64) / 255
    return flat((pixels - np.asarray(batch["mean"], np.float64)) / np.asarray(batch["std"], np.float64))


def make(net=None, **settings):
    return distillers.dm(net or Stub(), **{"ipc": 2, "batch_size": 8, "augmentation": "none"} | settings)


def draw(method, tiny, seed=1):
    return jax.jit(method.sample)(jax.random.key(seed), tiny.train, jnp.int32(0))


def value(method, images, batch, seed=2):
    return jax.jit(method.loss)(jax.random.key(seed), {"images": jnp.asarray(images)}, (), batch, ())[0]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(6, *SHAPE))


def expected_loss(images, batch):
    """Sum over classes and features of the squared difference of the mean embeddings."""
    real, weights = standardised(batch), np.asarray(batch["weights"])
    total = 0.0
    for label in range(3):
        present = real[label][weights[label] > 0]
        difference = np.tanh(present @ MATRIX).mean(0) - np.tanh(flat(images)[2 * label : 2 * label + 2] @ MATRIX).mean(
            0
        )
        total += (difference**2).sum()
    return total


def test_a_batch_holds_distinct_images_of_each_class(tiny):
    batch = draw(make(), tiny)
    assert batch["images"].dtype == jnp.uint8 and batch["images"].shape == (3, 8, *SHAPE)
    np.testing.assert_array_equal(batch["weights"].sum(axis=1), [min(8, count) for count in COUNTS])
    for label in range(3):
        drawn = np.asarray(batch["images"][label])[np.asarray(batch["weights"][label]) > 0]
        own = np.asarray(tiny.train.images)[np.asarray(tiny.train.labels) == label]
        assert len(np.unique(drawn, axis=0)) == len(drawn)
        assert all((own == image).all(axis=(1, 2, 3)).any() for image in drawn)


@pytest.mark.parametrize("sizes", [{}, {"class_batch": 2}, {"class_batch": 5, "micro_batch": 3}, {"micro_batch": 4}])
def test_the_loss_is_the_sum_over_classes_and_features(tiny, images, sizes):
    method = make(**sizes)
    batch = draw(method, tiny)
    assert float(value(method, images, batch)) == pytest.approx(expected_loss(images, batch), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"class_batch": 2, "micro_batch": 3}, {"net": Stub(has_batch_stats=True)}])
def test_classes_of_unequal_ipc_have_the_means_of_their_own_images(tiny, images, settings):
    counts, batch_norm = (1, 3, 2), "net" in settings
    method = make(**settings, ipc=counts)
    batch = draw(method, tiny)
    present = np.asarray(batch["weights"]).ravel() > 0

    def means(x, labels):
        z = x @ MATRIX
        z = (z - z.mean(0)) ** 2 if batch_norm else np.tanh(z)
        return np.stack([z[labels == label].mean(0) for label in range(3)])

    real = means(standardised(batch).reshape(-1, 64)[present], np.repeat(np.arange(3), 8)[present])
    expected = ((real - means(flat(images), np.repeat(np.arange(3), counts))) ** 2).sum()
    loss, slope = jax.jit(jax.value_and_grad(lambda x: value(method, x, batch)))(jnp.asarray(images, jnp.float32))
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert (np.abs(slope).max(axis=(1, 2, 3)) > 0).all()


def test_the_gradient_flows_through_the_synthetic_side_alone(tiny, images):
    method = make()
    batch = draw(method, tiny)
    with jax.enable_x64():
        slope = np.asarray(jax.jit(jax.grad(lambda x: value(method, x, batch)))(jnp.asarray(images)), np.float64)
        moved = jax.grad(lambda mean: value(method, images, {**batch, "mean": mean}))(batch["mean"])
    assert slope.dtype == np.float64
    direction = np.random.default_rng(2).normal(size=images.shape)
    ahead, behind = (expected_loss(images + sign * 1e-5 * direction, batch) for sign in (1, -1))
    assert (slope * direction).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)
    np.testing.assert_array_equal(moved, 0.0)  # shifts the real images only


@pytest.mark.parametrize("settings", [{}, {"class_batch": 5}, {"micro_batch": 3}])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_gradient_in_the_network_is_the_true_one(tiny, images, batch_norm, settings):
    """Finite differences in NumPy along a random direction of the weights; the real side is a constant."""
    batch = draw(make(batch_size=5), tiny)

    def embed(x, matrix):
        z = x.reshape(-1, 64) @ matrix
        z = (z - z.mean(0)) ** 2 if batch_norm else np.tanh(z)
        return z.reshape(3, -1, 7).mean(1)

    def loss(matrix):
        class Given(Stub):
            def init(self, key):
                return {"params": matrix}

        return value(make(Given(batch_norm), batch_size=5, **settings), images, batch)

    fixed, direction = embed(standardised(batch), MATRIX), np.random.default_rng(4).normal(size=MATRIX.shape)
    ahead, behind = (((fixed - embed(flat(images), MATRIX + h * direction)) ** 2).sum() for h in (1e-5, -1e-5))
    with jax.enable_x64():
        slope = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(MATRIX)))
    assert (slope * direction).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("batch_size", [5, 8])
def test_batch_norm_sees_all_classes_in_one_pass_and_no_padding(tiny, images, batch_size):
    method = make(Stub(has_batch_stats=True), batch_size=batch_size)
    batch = draw(method, tiny)
    present = np.asarray(batch["weights"]).ravel() > 0
    assert present.sum() == {5: 15, 8: 8 + 5 + 8}[batch_size]

    def embed(x, labels):
        z = x.reshape(-1, 64) @ MATRIX
        embedded = (z - z.mean(0)) ** 2
        return np.stack([embedded[labels == label].mean(0) for label in range(3)])

    real = embed(standardised(batch).reshape(-1, 64)[present], np.repeat(np.arange(3), batch_size)[present])
    expected = ((real - embed(flat(images), np.repeat(np.arange(3), 2))) ** 2).sum()
    assert float(value(method, images, batch)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_both_sides_see_the_same_views(tiny, batch_norm):
    method = make(
        Stub(batch_norm), ipc=5, batch_size=5, micro_batch=2, augmentation="color_crop_cutout_flip_scale_rotate"
    )
    batch = draw(method, tiny)
    same = standardised(batch).reshape(15, *SHAPE).astype(np.float32)
    loss = jax.jit(lambda x, seed: method.loss(jax.random.key(seed), {"images": x}, (), batch, ())[0])
    values = np.array([(loss(same, seed), loss(same[::-1], seed)) for seed in range(12)])
    np.testing.assert_allclose(values[:, 0], 0, atol=1e-8)
    assert (values[:, 1] > 1e-2).all() and len(np.unique(values[:, 1].round(6))) > 6


def test_every_step_draws_a_fresh_network(tiny):
    """All images in every batch, no augmentation, a still set: only the network can change the loss."""

    def losses(net):
        method, tx = make(net, batch_size=20), optax.sgd(0.0)
        update = jax.jit(distillers.make_update(method, tx))
        state = distillers.init_state(jax.random.key(0), method, tx, tiny)
        values = []
        for _ in range(3):
            state, metrics = update(state, tiny.train, ())
            values.append(float(metrics["loss"]))
        return values

    steady = losses(Stub())
    np.testing.assert_allclose(steady, steady[0], rtol=1e-5)
    random = losses(zoo.parse("mlp:width=8", 3, SHAPE))
    assert min(abs(a - b) for a, b in [random[:2], random[1:], random[::2]]) > 1e-3 * max(random)


def test_the_start_is_distinct_real_images_or_noise(tiny, key):
    real = np.asarray(make().init(key, tiny)[0]["images"])
    pixels = np.rint((real * np.asarray(tiny.train.std) + np.asarray(tiny.train.mean)) * 255)
    for position, label in enumerate([0, 0, 1, 1, 2, 2]):
        own = np.asarray(tiny.train.images)[np.asarray(tiny.train.labels) == label]
        assert (own == pixels[position]).all(axis=(1, 2, 3)).any()
    noise = np.asarray(make(init="noise", ipc=100).init(key, tiny)[0]["images"])
    assert noise.shape == (300, *SHAPE)
    assert abs(noise.mean()) < 0.03 and noise.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ipc": 0}, "ipc=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"class_batch": 0}, "class_batch=0"),
        ({"micro_batch": 0}, "micro_batch=0 must be a whole number, at least 1"),
        ({"init": "dream"}, "init='dream' must be one of random, noise, kmeans"),
        ({"augmentation": "sparkle"}, "unknown augmentation 'sparkle'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_data_that_cannot_serve_are_refused(tiny, key):
    with pytest.raises(ValueError, match="ipc is 6, but class 1 has 5 images; lower ipc, or set short_class"):
        make(ipc=6).init(key, tiny)
    with pytest.raises(ValueError, match=r"stub takes \(8, 8, 3\) images of 3 classes.*create the network"):
        make(Stub(image_shape=(8, 8, 3))).init(key, tiny)


@pytest.mark.parametrize("axes", [("data",), ("data", "model")])
def test_a_step_runs_inside_a_users_own_mesh(tiny, axes):
    """Whole on each of its devices, it gives the images that it gives without a mesh."""
    method, tx = make(), optax.sgd(0.1)
    state = distillers.init_state(jax.random.key(0), method, tx, tiny)
    step = jax.jit(distillers.make_update(method, tx))
    alone, _ = step(state, tiny.train, method.frozen)
    mesh = jax.make_mesh((2,) * len(axes), axes, axis_types=(AxisType.Auto,) * len(axes))
    with jax.set_mesh(mesh):
        arguments = jax.device_put((state, tiny.train, method.frozen), NamedSharding(mesh, PartitionSpec()))
        inside, _ = step(*arguments)
    assert len(inside.synthetic["images"].sharding.device_set) == mesh.size
    np.testing.assert_allclose(inside.synthetic["images"], alone.synthetic["images"], rtol=1e-6, atol=1e-7)
