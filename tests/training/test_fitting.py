"""Training against softmax regression written out in NumPy, and counting against NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import data, training, zoo
from metadd_jax.training import batches, recipes

K, PIXELS = 3, 4
START = {
    "w": np.random.default_rng(0).normal(size=(PIXELS, K)).astype(np.float32),
    "b": np.array([0.3, -0.2, 0.1], np.float32),
}
RNG = np.random.default_rng(1)
IMAGES = RNG.normal(size=(5, 2, 2, 1)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])


@dataclasses.dataclass(frozen=True)
class Linear:
    """Softmax regression that always starts from the same weights."""

    has_batch_stats = False

    def init(self, key):
        return {"params": jax.tree.map(jnp.asarray, START)}

    def apply_train(self, variables, images, weights=None):
        params = variables["params"]
        return images.reshape(len(images), -1) @ params["w"] + params["b"], {}, {}


def by_hand(batches, recipe, labels=LABELS, rates=None, restart=None):
    """SGD over lists of image positions, step by step in float64."""
    params = {name: value.astype(np.float64) for name, value in START.items()}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    targets = np.eye(K)[labels] if np.ndim(labels) == 1 else np.asarray(labels)
    for step, batch in enumerate(batches):
        if step == restart:
            velocity = {name: np.zeros_like(value) for name, value in params.items()}
        x = IMAGES[batch].reshape(len(batch), -1).astype(np.float64)
        z = np.exp(x @ params["w"] + params["b"])
        error = (z / z.sum(1, keepdims=True) - targets[batch]) / len(batch)
        slopes = {"w": x.T @ error, "b": error.sum(0)}
        rate = recipe.learning_rate if rates is None else rates[step]
        for name, value in params.items():
            velocity[name] = recipe.momentum * velocity[name] + slopes[name] + recipe.weight_decay * value
        params = {name: value - rate * velocity[name] for name, value in params.items()}
    return params


def trained(recipe, labels=LABELS, seed=0):
    key = jax.random.key(seed)
    return training.fit(key, Linear(), IMAGES, labels, recipe, shared_key=key)["params"]


def close(params, expected, tolerance=1e-5):
    return all(np.allclose(params[name], expected[name], rtol=tolerance, atol=tolerance) for name in expected)


@pytest.mark.parametrize("published", [1, 3, 4])
def test_the_dc_protocol_on_one_batch(published):
    """E + 1 steps; the rate falls and the momentum restarts after step E // 2 + 1, counted from 0."""
    recipe = dataclasses.replace(recipes.dc_evaluation(published, learning_rate=0.5), weight_decay=0.02)
    drop = published // 2 + 2
    rates = [0.5 if step < drop else 0.05 for step in range(published + 1)]
    every = [np.arange(5)] * (published + 1)
    params = trained(recipe)
    assert close(params, by_hand(every, recipe, rates=rates, restart=drop))
    if drop <= published:
        # Each half of the rule matters: without it the outcome is another.
        assert not close(params, by_hand(every, recipe, rates=rates), 1e-4)
        assert not close(params, by_hand(every, recipe, restart=drop), 1e-4)


def test_an_optax_transformation_is_the_whole_step():
    """The same training as by words, built by optax: momentum 0.9 and a decay before it; then one with a key in it."""
    by_word = training.Recipe(epochs=4, batch_size=2, learning_rate=0.2, weight_decay=0.02)
    steps = 3 * by_word.epochs
    halved = optax.piecewise_constant_schedule(0.2, {steps // 2: 0.5})
    tx = optax.chain(optax.add_decayed_weights(0.02), optax.sgd(halved, momentum=0.9))
    every = [batch[weights > 0] for epoch in range(4) for batch, weights in zip(*order_of(epoch), strict=True)]
    own = training.Recipe(epochs=4, batch_size=2, optimiser=tx)
    rates = [0.2] * (steps // 2) + [0.1] * (steps - steps // 2)
    assert close(trained(own), by_hand(every, by_word, rates=rates))
    assert not close(trained(own), by_hand(every, by_word), 1e-3)
    noisy = training.Recipe(epochs=1, optimiser=optax.noisy_sgd(0.2, key=jax.random.key(0)))
    assert not close(trained(noisy), START, 1e-3)
    with pytest.raises(
        ValueError, match="learning_rate is given, and the recipe's optimiser is an optax transformation"
    ):
        training.fit(jax.random.key(0), Linear(), IMAGES, LABELS, own, shared_key=None, learning_rate=0.1)


def order_of(epoch, seed=0):
    return (np.asarray(part) for part in batches.epoch_order(jax.random.key(seed), epoch, len(IMAGES), 2))


def test_a_network_that_is_given_goes_on_from_where_it_is():
    recipe = recipes.Recipe(epochs=2, learning_rate=0.5, momentum=0.0)
    key = jax.random.key(0)
    once = training.fit(key, Linear(), IMAGES, LABELS, recipe, shared_key=key)
    twice = training.fit(key, Linear(), IMAGES, LABELS, recipe, shared_key=key, variables=once)["params"]
    assert close(twice, by_hand([np.arange(5)] * 4, recipe))


def test_the_last_batch_is_ragged_and_every_image_is_seen_once():
    """Whatever the order of 5 images in batches of 2, 2 and 1: some order gives exactly this result."""
    recipe = recipes.Recipe(epochs=1, batch_size=2, learning_rate=0.5, weight_decay=0.02)
    params = trained(recipe)
    orders = [[order[:2], order[2:4], order[4:]] for order in map(list, itertools.permutations(range(5)))]
    matches = [order for order in orders if close(params, by_hand(order, recipe))]
    assert len(matches) == 4  # two pairs, each in two orders


def test_each_epoch_has_an_order_of_its_own():
    recipe = recipes.Recipe(epochs=3, batch_size=4, learning_rate=0.5)
    steps = [[[i for i in range(5) if i != last], [last]] for last in range(5)]
    params = trained(recipe)
    found = [
        [pair[1][0] for pair in chosen]
        for chosen in itertools.product(steps, repeat=3)
        if close(params, by_hand(itertools.chain(*chosen), recipe))
    ]
    assert len(found) == 1
    assert len(set(found[0])) > 1
    assert not close(params, trained(recipe, seed=1))


def test_soft_labels():
    recipe = recipes.Recipe(epochs=4, batch_size=10, learning_rate=0.5)
    soft = RNG.dirichlet(np.ones(K), 5).astype(np.float32)
    assert close(trained(recipe, soft), by_hand([np.arange(5)] * 4, recipe, soft))
    assert close(trained(recipe, np.eye(K, dtype=np.float32)[LABELS]), trained(recipe))


@pytest.fixture(scope="module")
def pixels():
    images = np.random.default_rng(2).integers(0, 256, (21, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(21) % 3
    return data.from_arrays("tiny", images, labels, images[:13], labels[:13])


@pytest.fixture(scope="module")
def several(pixels):
    """(network, recipe, three fits under one vmap) with batch norm, augmentation and ragged uint8 batches."""
    net = zoo.parse("convnet_bn:width=4,depth=1", 3, (8, 8, 1))
    recipe = recipes.Recipe(epochs=2, batch_size=8, augmentation="flip_crop")
    arrays, shared = pixels.train, jax.random.key(9)

    def one(key, images, mean, std):
        return training.fit(key, net, images, arrays.labels, recipe, shared_key=shared, mean=mean, std=std)

    single = jax.jit(one)
    keys = jax.random.split(jax.random.key(4), 3)
    images = jnp.asarray(arrays.images)
    return (
        single,
        keys,
        jax.jit(jax.vmap(one, in_axes=(0, None, None, None)))(keys, images, arrays.mean, arrays.std),
    )


def test_many_fits_at_once_are_the_single_fits(several, pixels):
    single, keys, together = several
    for index in (0, 2):
        alone = single(keys[index], jnp.asarray(pixels.train.images), pixels.train.mean, pixels.train.std)
        for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(many[index], one, rtol=1e-3, atol=1e-5)
    assert not np.allclose(together["params"]["head"]["kernel"][0], together["params"]["head"]["kernel"][1])


RAGGED = recipes.Recipe(epochs=5, batch_size=8, learning_rate=0.05)
RAGGED_NET = zoo.parse("convnet_bn:width=4,depth=2", 3, (8, 8, 1))


@pytest.fixture(scope="module")
def ragged():
    """20 images in batches of 8, 8 and 4: images, labels, batches in turn, start, and what ``fit`` made of it."""
    rng, key = np.random.default_rng(3), jax.random.key(2)
    images, labels = rng.normal(1, 2, (20, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 20)
    start = jax.jit(RAGGED_NET.init)(key)
    fitted = jax.jit(lambda v: training.fit(key, RAGGED_NET, images, labels, RAGGED, shared_key=key, variables=v))(
        start
    )
    shown = []
    for epoch in range(5):
        indices, weights = batches.epoch_order(key, epoch, 20, 8)
        shown += [np.asarray(row)[np.asarray(present) > 0] for row, present in zip(indices, weights, strict=True)]
    assert [len(batch) for batch in shown] == [8, 8, 4] * 5
    return images, labels, shown, start, fitted


def test_a_ragged_batch_is_its_remainder_alone(ragged):
    """A loop over batches of the true sizes: batch norm must not see what fills up the last one."""
    images, labels, shown, start, fitted = ragged

    @jax.jit  # compiled for 8 and for 4 images
    def step(variables, velocity, x, y):
        def loss(params):
            logits, _, statistics = RAGGED_NET.apply_train({**variables, "params": params}, x)
            return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean(), statistics

        slopes, statistics = jax.grad(loss, has_aux=True)(variables["params"])
        params = variables["params"]
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, slopes, params)
        return {
            "params": jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity),
            "batch_stats": statistics,
        }, velocity

    variables, velocity = start, jax.tree.map(jnp.zeros_like, start["params"])
    for batch in shown:
        variables, velocity = step(variables, velocity, images[batch], labels[batch])
    moved = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (variables, start)), strict=True))
    off = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (variables, fitted)), strict=True))
    assert moved > 0.02 and off < 2e-5, (moved, off)


def test_a_ragged_batch_is_torchs(ragged):
    torch = pytest.importorskip("torch")
    images, labels, shown, start, fitted = ragged
    layers = [torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
    layers += [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
    net = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(16, 3))
    names = {0: "conv1", 1: "norm1", 4: "conv2", 5: "norm2", 9: "head"}

    def as_torch(name, value):
        """Kernels HWIO to OIHW; the head's rows run over (h, w, c) here and over (c, h, w) there."""
        value = np.asarray(value)
        if name == "head" and value.ndim == 2:
            return value.reshape(2, 2, 4, 3).transpose(3, 2, 0, 1).reshape(3, 16)
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value

    def pairs(params):
        for place, name in names.items():
            for own, their in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
                if own in params[name]:
                    yield getattr(net[place], their), as_torch(name, params[name][own])

    with torch.no_grad():
        for tensor, value in pairs(start["params"]):
            tensor.copy_(torch.tensor(np.ascontiguousarray(value)))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for batch in shown:
        optimiser.zero_grad()
        answer = net(torch.tensor(images[batch].transpose(0, 3, 1, 2)))
        torch.nn.functional.cross_entropy(answer, torch.tensor(labels[batch])).backward()
        optimiser.step()
    for tensor, value in pairs(fitted["params"]):
        np.testing.assert_allclose(value, tensor.detach().numpy(), rtol=1e-3, atol=2e-5)
    for place, name in ((1, "norm1"), (5, "norm2")):  # the variance there is the unbiased one
        np.testing.assert_allclose(fitted["batch_stats"][name]["mean"], net[place].running_mean, rtol=1e-3, atol=1e-5)


def test_batch_statistics_are_learned_too(several):
    _, _, together = several
    means = jax.tree.leaves(together["batch_stats"])
    assert means and all(np.isfinite(leaf).all() for leaf in means)
    assert any(np.abs(leaf).max() > 1e-3 and np.abs(leaf - 1).max() > 1e-3 for leaf in means)


def test_pixels_train_like_the_standardised_floats(several, pixels):
    single, keys, _ = several
    arrays = pixels.train
    floats = ((arrays.images.astype(np.float64) / 255 - arrays.mean) / arrays.std).astype(np.float32)
    of_pixels = single(keys[0], jnp.asarray(arrays.images), arrays.mean, arrays.std)
    of_floats = single(keys[0], jnp.asarray(floats), arrays.mean, arrays.std)
    for one, other in zip(jax.tree.leaves(of_pixels), jax.tree.leaves(of_floats), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_size", [4, 13, 250])
def test_counting_the_correct_ones(pixels, batch_size):
    """13 images in batches that do not divide them: none is counted twice."""
    net = zoo.parse("mlp:width=16", 3, (8, 8, 1))
    variables = net.init(jax.random.key(1))
    arrays = pixels.test
    x = (np.asarray(arrays.images, np.float32) / 255 - arrays.mean) / arrays.std
    logits = np.asarray(net.apply(variables, jnp.asarray(x, jnp.float32))[0])
    expected = (logits.argmax(1) == arrays.labels).sum()
    right, total = training.count_correct(net, variables, arrays, batch_size=batch_size)
    assert (float(right), float(total)) == (expected, 13)
    assert 0 < expected < 13
