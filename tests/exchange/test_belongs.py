"""A set meets real data: whatever a number depends on is compared, and each difference is said with both sides."""

import dataclasses

import numpy as np
import pytest

from metadd_jax import data, exchange

NAMES = ["ant", "bee", "cow"]


def make_data(names=NAMES, seed=0, **settings):
    images = np.random.default_rng(seed).integers(0, 256, (12, 4, 4, 1), np.uint8)
    labels = np.arange(12) % 3
    return data.from_arrays(
        "pets", images, labels, images, labels, class_names=names, mean=[0.5], std=[0.25], **settings
    )


def facts_of(dataset):
    return {
        **exchange.value_space(dataset),
        "class_names": list(dataset.class_names),
        "dataset_fingerprint": dataset.fingerprint,
    }


def test_what_was_made_from_the_data_belongs_to_it():
    facts = facts_of(make_data())
    assert exchange.check_belongs(facts, make_data()) is None
    del facts["dataset_fingerprint"]  # a set of another program
    assert exchange.check_belongs(facts, make_data(seed=1)) is None


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["bee", "cow", "zebra"], "the set's classes are ant, bee, cow, but pets has bee, cow, zebra"),
        (["ant", "cow", "bee"], r"same 3 classes in another order \(class 1 is 'bee' there and 'cow' here\)"),
        (["ant", "bee", "Cow"], "but pets has ant, bee, Cow"),
    ],
)
def test_other_classes_are_refused_whoever_asks(names, words, asked):
    renamed = dataclasses.replace(make_data(), class_names=tuple(names))
    with pytest.raises(ValueError, match=words):
        exchange.check_belongs(facts_of(make_data()), renamed, other_data=asked)


def test_other_images_are_refused_unless_they_are_asked_for():
    other = make_data(seed=1)
    with pytest.raises(
        ValueError, match=r"does not hold the images that the set was made from \(fingerprint .*--dataset"
    ):
        exchange.check_belongs(facts_of(make_data()), other)
    assert "was not made from the images of pets" in exchange.check_belongs(
        facts_of(make_data()), other, other_data=True
    )


def test_other_constants_and_whitening_are_refused():
    made = make_data()
    for changes in ({"mean": [0.4]}, {"std": [0.2, 0.2, 0.2]}):
        with pytest.raises(ValueError, match=f"the set was made with {next(iter(changes))}"):
            exchange.check_belongs(facts_of(made) | changes, made, other_data=True)
    white, whiter = data.whiten(made), data.whiten(make_data(seed=1))
    assert exchange.check_belongs(facts_of(white), white) is None
    with pytest.raises(ValueError, match="only one is whitened"):
        exchange.check_belongs(facts_of(white), made)
    with pytest.raises(ValueError, match="whitened for other images"):
        exchange.check_belongs(facts_of(white), whiter, other_data=True)
