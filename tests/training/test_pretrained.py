"""Pre-training: what it reports, and a cache that is hit by the same request and by no other."""

import dataclasses
import sys
import threading

import jax
import numpy as np
import pytest

from metadd_jax import data, provenance, training, zoo
from metadd_jax.training import recipes
from metadd_jax.training.pretrained import cache_key

SHAPE = (8, 8, 1)


def make_dataset(flipped_pixel=0):
    """Dark and bright pictures: a mlp learns them in a few steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 2
    images = (rng.integers(0, 60, (30, *SHAPE)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    images[0, 0, 0, 0] += flipped_pixel
    return data.from_arrays("shades", images, labels, images[:11], labels[:11], mean=[0.5], std=[0.25])


@pytest.fixture(scope="module")
def request_():
    recipe = dataclasses.replace(recipes.pretraining(4, learning_rate=0.01), batch_size=8)
    return zoo.parse("mlp:width=8", 2, SHAPE), make_dataset(), recipe


@pytest.fixture(scope="module")
def first(request_, tmp_path_factory):
    """The folder of the cache and the network that was trained into it."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, training.pretrain(*request_, seed=1, cache_dir=folder)


def test_it_learns_and_reports_the_test_accuracy(request_, first):
    _, trained = first
    net, dataset, _ = request_
    test = dataset.test
    logits, _ = net.apply(trained.variables, data.standardise(test.images, test.mean, test.std))
    accuracy = (np.asarray(logits).argmax(1) == test.labels).mean()
    assert trained.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert accuracy > 0.9
    assert trained.net == net and not trained.cached


def test_the_accuracy_is_that_of_the_split_asked_for(request_, tmp_path):
    """While settings are chosen the test split's accuracy must not stand under the name of the validation split."""
    net, dataset, recipe = request_
    train, test = dataset.train, dataset.test
    wrong = 1 - np.asarray(test.labels)  # whoever is right on the validation images is wrong on these
    chosen = data.from_arrays(
        "shades", train.images, train.labels, test.images, wrong, mean=[0.5], std=[0.25], validation_fraction=0.3
    )
    for cached in (False, True):
        trained = training.pretrain(net, chosen, recipe, split="validation", cache_dir=tmp_path)
        assert (trained.split, trained.cached) == ("validation", cached)
        right, total = training.count_correct(net, trained.variables, chosen.validation)
        assert trained.accuracy == pytest.approx(float(right / total))
    test = training.pretrain(net, chosen, recipe, cache_dir=tmp_path)
    assert test.cached and test.split == "test" and test.accuracy < 0.2 and trained.accuracy > 0.8
    with pytest.raises(ValueError, match="loaded without validation images"):
        training.pretrain(net, dataset, recipe, split="validation")


def test_the_same_request_is_answered_from_the_cache_bit_for_bit(request_, first, monkeypatch):
    folder, trained = first
    monkeypatch.setattr(sys.modules["metadd_jax.training.pretrained"], "fit", None)  # training again would fail
    again = training.pretrain(*request_, seed=1, cache_dir=folder)
    assert again.cached and again.accuracy == trained.accuracy
    assert jax.tree.structure(again.variables) == jax.tree.structure(trained.variables)
    for one, other in zip(jax.tree.leaves(again.variables), jax.tree.leaves(trained.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(TypeError):
        training.pretrain(*request_, seed=2, cache_dir=folder)


def test_everything_that_decides_the_weights_is_in_the_key(request_):
    net, dataset, recipe = request_
    variants = [
        (net, dataset, recipe, 1),
        (net, dataset, recipe, 2),
        (net, dataset, dataclasses.replace(recipe, weight_decay=0.0), 1),
        (zoo.parse("mlp:width=9", 2, SHAPE), dataset, recipe, 1),
        (net, make_dataset(flipped_pixel=1), recipe, 1),
    ]
    keys = [cache_key(*variant) for variant in variants]
    assert len(set(keys)) == len(keys)
    assert cache_key(zoo.parse("mlp:width=8", 2, SHAPE), make_dataset(), recipe, 1) == keys[0]


OWN = """
import jax.numpy as jnp
from flax import linen as nn
from typing import Any

class Own(nn.Module):
    last: Any = None

    @nn.compact
    def __call__(self, images, *, train):
        x = jnp.sin(nn.Dense(4)(images.reshape(len(images), -1)))
        return nn.Dense(2)(x), {"embedding": x}
"""


def own(text, **fields):
    """A user's network, from the text of its file."""
    space = {"__name__": "own_network"}
    exec(text, space)
    return zoo.Architecture("own", "own", space["Own"](**fields), 2, SHAPE)


def test_another_version_of_a_users_network_is_trained_anew(request_, tmp_path):
    _, dataset, recipe = request_
    first, again, edited = (own(text) for text in (OWN, OWN, OWN.replace("jnp.sin", "jnp.cos")))
    assert repr(first) == repr(edited)
    settings = {"recipe": dataclasses.replace(recipe, epochs=1), "cache_dir": tmp_path}
    trained, kept, anew = (training.pretrain(net, dataset, **settings) for net in (first, again, edited))
    assert [result.cached for result in (trained, kept, anew)] == [False, True, False]
    leaves = [jax.tree.leaves(result.variables) for result in (trained, kept, anew)]
    assert all(np.array_equal(one, other) for one, other in zip(*leaves[:2], strict=True))
    assert not all(np.allclose(one, other) for one, other in zip(*leaves[1:], strict=True))


def test_a_network_of_unknown_code_is_not_kept_and_that_is_said(request_, tmp_path):
    _, dataset, recipe = request_
    net = own(OWN, last=threading.Lock())
    with pytest.warns(UserWarning, match="own is not kept in the cache: a .*lock tells nothing"):
        training.pretrain(net, dataset, dataclasses.replace(recipe, epochs=1), cache_dir=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "value"),
    [("sources", lambda *places: "other"), ("machine", lambda: {"versions": "other"}), ("settings", lambda: {"x": 1})],
)
def test_code_versions_and_switches_are_in_the_key(request_, monkeypatch, place, value):
    before = cache_key(*request_, 1)
    monkeypatch.setattr(provenance, place, value)
    assert cache_key(*request_, 1) != before


def test_a_damaged_cache_is_named_and_left_alone(request_, first):
    folder, _ = first
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    largest.write_bytes(damaged)
    with pytest.raises(ValueError, match="left as it is"):
        training.pretrain(*request_, seed=1, cache_dir=folder)
    assert largest.read_bytes() == damaged
    largest.write_bytes(whole)


def test_a_training_that_diverges_is_told_and_never_cached(request_, tmp_path):
    net, dataset, recipe = request_
    with pytest.raises(ValueError, match=r"mlp:width=8 has weights, or logits .* not finite"):
        training.pretrain(net, dataset, dataclasses.replace(recipe, learning_rate=1e30), cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("place", ["weight", "logit"])
def test_a_network_that_is_not_finite_counts_nothing_right(request_, first, place):
    net, dataset, _ = request_
    variables = jax.tree.map(np.array, first[1].variables)
    right, total = training.count_correct(net, variables, dataset.test)
    assert 0 < right <= total == 11
    head = variables["params"]["head"]
    if place == "weight":
        head["bias"][0] = np.nan
    else:  # every weight is finite, their sums are not
        head["kernel"][:, 1] = head["bias"][1] = 3e38
        variables["params"]["fc2"]["bias"][:] = 10
    assert np.isnan(training.count_correct(net, variables, dataset.test)[0])
