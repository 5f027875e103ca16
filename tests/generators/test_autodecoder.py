"""The auto-decoder: one step against NumPy, a linear generator against its closed form, the cache, the test images."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, generators
from metadd_jax.generators import autodecoder
from metadd_jax.generators.autodecoder import AutoDecoding, train_generator

SHAPE = (4, 4, 1)


class Linear(NamedTuple):
    """G(z, y) = z A + b_y: what it can explain at best is known in closed form."""

    size: int = 2
    name: str = "linear"

    @property
    def z_dim(self):
        return self.size

    def init(self, key):
        return {"a": 0.1 * jax.random.normal(key, (self.size, 16)), "b": jnp.zeros((2, 16))}

    def generate(self, weights, z, labels):
        return (z @ weights["a"] + weights["b"][labels]).reshape(-1, *SHAPE)


def dataset(seed=0, test_seed=1):
    """Two classes of 30 pictures that vary along two directions, and noise."""
    draw = np.random.default_rng(seed)
    basis, labels = draw.normal(size=(2, 16)), np.repeat([0, 1], 30)
    flat = 128 + 30 * draw.normal(size=(60, 2)) @ basis + 40 * labels[:, None] * draw.normal(size=16)
    images = np.clip(flat + 8 * draw.normal(size=flat.shape), 0, 255).astype(np.uint8).reshape(-1, *SHAPE)
    test = np.random.default_rng(test_seed).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    return data.from_arrays("toy", images, labels, test, np.array([0, 0, 1, 1]))


def standardised(dataset):
    train = dataset.train
    return np.asarray(data.sampling.standardise(np.asarray(train.images), train.mean, train.std), np.float64)


def test_a_linear_generator_explains_what_two_components_can():
    """Least squares over A, b and codes is the PCA within classes; it is reached to half a percent."""
    toy = dataset()
    x, labels = standardised(toy).reshape(60, 16), np.asarray(toy.train.labels)
    within = x - np.stack([x[labels == label].mean(axis=0) for label in (0, 1)])[labels]
    left = np.sort(np.linalg.eigvalsh(within.T @ within))[:-2].sum()
    best = 1 - left / ((x - x.mean(axis=0)) ** 2).sum()
    settings = AutoDecoding(images=None, epochs=60, batch_size=15, lr=0.03)
    told = []
    made = train_generator(Linear(), toy, settings, progress=lambda *words: told.append(words))
    assert best - 0.005 < made.explained <= best + 1e-5
    assert told[0] == ("generator linear", 60, 3600) and told[-1][1:] == (3600, 3600) and not made.cached
    shown = np.asarray(Linear().generate(made.weights, made.codes, labels[np.asarray(made.rows)])).reshape(60, 16)
    explained = 1 - ((shown - x[np.asarray(made.rows)]) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    np.testing.assert_allclose(made.explained, explained, atol=1e-5)


def test_the_codes_start_as_whitened_components_within_the_classes(key):
    toy = dataset()
    train = toy.train
    codes = autodecoder._principal(key, train.images, train.labels, train.mean, train.std, size=5)
    labels = np.asarray(train.labels)
    np.testing.assert_allclose(codes.T @ codes / 60, np.eye(5), atol=1e-4)
    np.testing.assert_allclose([codes[labels == label].mean(axis=0) for label in (0, 1)], 0, atol=1e-5)
    longer = autodecoder._principal(key, train.images, train.labels, train.mean, train.std, size=20)
    np.testing.assert_allclose(np.abs(longer[:, :5]), np.abs(codes), atol=1e-4)
    assert 0.8 < np.std(longer[:, 16:]) < 1.2  # 16 pixels have no more components: the rest is drawn


def test_one_step_is_adams_on_weights_and_on_the_codes_of_the_batch(key):
    """Adam's first step is lr times the sign of the derivative, here written out for the linear generator."""
    toy = dataset()
    settings = AutoDecoding(images=60, epochs=1, batch_size=10, lr=0.01, z_lr=0.1)
    weights = Linear().init(key)
    codes = jax.random.normal(key, (60, 2))
    state = autodecoder.optax.scale_by_adam().init(weights)
    carry = autodecoder._Carry(weights, state, codes, jnp.zeros_like(codes), jnp.zeros_like(codes))
    order, train = jnp.arange(60).reshape(6, 10)[::-1], toy.train
    arrays = (jnp.asarray(train.images), jnp.asarray(train.labels), train.mean, train.std)
    before = jax.tree.map(np.asarray, (weights, codes))
    after = autodecoder._steps(carry, arrays, order, jnp.int32(0), 0, 1, generator=Linear(), settings=settings)
    own = slice(50, 60)
    x, y = standardised(toy).reshape(60, 16)[own], np.asarray(train.labels)[own]
    error = before[1][own] @ before[0]["a"] + before[0]["b"][y] - x
    slopes = {"a": before[1][own].T @ error, "b": np.stack([error[y == label].sum(axis=0) for label in (0, 1)])}
    for name, slope in slopes.items():
        np.testing.assert_allclose(after.weights[name], before[0][name] - 0.01 * np.sign(slope), atol=1e-5)
    np.testing.assert_allclose(after.codes[own], before[1][own] - 0.1 * np.sign(error @ before[0]["a"].T), atol=1e-4)
    np.testing.assert_array_equal(after.codes[:50], before[1][:50])


def test_what_decides_the_weights_decides_the_cache_and_test_images_decide_no_weight(tmp_path):
    settings = AutoDecoding(images=40, epochs=2, batch_size=15)
    first = train_generator(Linear(), dataset(), settings, cache_dir=tmp_path)
    again = train_generator(Linear(), dataset(), settings, cache_dir=tmp_path)
    assert (first.cached, again.cached) == (False, True)
    jax.tree.map(np.testing.assert_array_equal, first._replace(cached=True), again)
    assert len(np.unique(first.rows)) == 40 and (np.diff(first.rows) > 0).all()
    other = train_generator(Linear(), dataset(test_seed=2), settings)
    jax.tree.map(np.testing.assert_array_equal, first, other)
    kinds = [(Linear(), settings), (Linear(3), settings), (Linear(), dataclasses.replace(settings, lr=0.1))]
    known = {autodecoder.cache_key(kind, toy, way) for toy in (dataset(), dataset(3)) for kind, way in kinds}
    assert len(known) == 6


def test_a_training_that_cannot_be_is_refused_and_one_that_diverged_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match=r"makes images \(8, 8, 1\), but those of toy are \(4, 4, 1\); make it for"):
        train_generator(generators.Decoder((8, 8, 1), 2, width=1), dataset(), AutoDecoding())
    with pytest.raises(ValueError, match="the training of linear diverged; lower its learning rates"):
        train_generator(Linear(), dataset(), AutoDecoding(epochs=2, lr=1e30), cache_dir=tmp_path)
    assert not list(tmp_path.rglob("linear-*"))
    with pytest.raises(ValueError, match="epochs=0 must be a whole number, at least 1"):
        AutoDecoding(epochs=0)
