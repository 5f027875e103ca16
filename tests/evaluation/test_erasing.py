"""The erasing experiment: areas by sets of places, the place of equal size, and that a network misses what it needs."""

import jax
import numpy as np
import pytest

from metadd_jax.evaluation import erasing
from metadd_jax.structs import SyntheticSet

RNG = np.random.default_rng(0)
STACK = RNG.random((3, 5, 6, 7)).astype(np.float32)


@pytest.mark.parametrize("network", [0, 2])
def test_areas_are_those_of_their_definition(network):
    """Place by place, from the numbers of the networks that are high there."""
    found = {name: np.asarray(mask) for name, mask in erasing.areas(STACK, network, threshold=0.6).items()}
    for place in np.ndindex(*STACK.shape[1:]):
        high = {m for m in range(3) if STACK[(m, *place)] >= 0.6}
        name = "meta" if len(high) == 3 else "own" if network in high else "others" if high else None
        assert [area for area in erasing.AREAS if found[area][place]] == ([name] if name else [])


def test_a_moved_mask_is_the_same_one_elsewhere():
    mask = STACK[0] > 0.5
    there = np.asarray(erasing.moved(jax.random.key(0), mask))
    for before, after in zip(mask, there, strict=True):
        shifts = [(i, j) for i in range(6) for j in range(7) if (np.roll(before, (i, j), (0, 1)) == after).all()]
        assert shifts
    assert (there != mask).any()
    # Uniform over the 42 places: of 420 draws none but by a chance of 1e-4 leaves one out.
    point = np.zeros((420, 6, 7), bool)
    point[:, 0, 0] = True
    counts = np.asarray(erasing.moved(jax.random.key(1), point)).sum(0)
    assert counts.sum() == 420 and (counts > 0).mean() > 0.95 and counts.max() < 26


def test_sets_lack_what_they_should_and_nothing_else():
    images = RNG.normal(size=(5, 6, 7, 2)).astype(np.float32) + 3
    whole = SyntheticSet(images, np.arange(5), soft_labels=np.eye(5, dtype=np.float32))
    sets, shares = erasing.erased(jax.random.key(2), whole, STACK, 1)
    assert tuple(sets) == erasing.KINDS and set(shares) == set(erasing.AREAS)
    masks = erasing.areas(STACK, 1)
    np.testing.assert_array_equal(sets["nothing"].images, images)
    for area in erasing.AREAS:
        gone = np.asarray(sets[area].images == 0)
        np.testing.assert_array_equal(gone, np.broadcast_to(np.asarray(masks[area])[..., None], images.shape))
        np.testing.assert_array_equal(np.asarray(sets[area].images)[~gone], images[~gone])
        moved = np.asarray(sets[erasing.MOVED + area].images == 0)
        assert moved.sum(axis=(1, 2, 3)).tolist() == gone.sum(axis=(1, 2, 3)).tolist()  # in every image as much
        assert shares[area] == pytest.approx(gone.mean())
        assert sets[area].labels is whole.labels and sets[area].soft_labels is whole.soft_labels


def test_one_network_and_an_index_outside_are_refused():
    with pytest.raises(ValueError, match="there is 1; give at least 2"):
        erasing.areas(STACK[:1], 0)
    with pytest.raises(ValueError, match="network=3 must be a whole number from 0 to 2"):
        erasing.areas(STACK, 3)
