"""The split of the maps and its measures, on maps whose answers are known."""

import jax
import numpy as np
import pytest

from metadd_jax import split

at_matched_area = jax.jit(split.at_matched_area, static_argnums=1)
measure = jax.jit(split.measure)  # eager, its many small kernels compile one by one for each shape
VALUE = {".": 0.1, "#": 0.9, "+": 0.5}


def stack(*networks):
    """Maps drawn as text: one list of images (rows joined by spaces) a network."""
    return np.array([[[[VALUE[c] for c in row] for row in image.split()] for image in net] for net in networks])


# Three networks, one 2 x 4 image: high areas 4, 4 and 2 of 8 pixels, one pixel common to all.
THREE = stack(["##.. ##.."], [".##. .##."], [".+.. ...#"])


def test_split_by_hand():
    parts = split.split(THREE)
    np.testing.assert_array_equal(parts.meta[0], [[0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(parts.heterogeneous[0, 0], [[1, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(parts.heterogeneous[2, 0], [[0, 0, 0, 0], [0, 0, 0, 1]])
    assert parts.meta.dtype == bool


def test_measures_by_hand():
    facts = measure(THREE)
    np.testing.assert_allclose(facts["meta_ratio"], 1 / 8)
    np.testing.assert_allclose(facts["high_area"], [4 / 8, 4 / 8, 2 / 8])
    np.testing.assert_allclose(facts["heterogeneous_ratio"], [3 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(facts["exclusive_ratio"], [2 / 8, 2 / 8, 1 / 8])
    np.testing.assert_allclose(facts["mean_iou"], (2 / 6 + 1 / 5 + 1 / 5) / 3, rtol=1e-6)
    chance = 4 * 4 * 2 / 8**3
    np.testing.assert_allclose(facts["chance_corrected"], (1 / 8 - chance) / (2 / 8 - chance), rtol=1e-6)
    np.testing.assert_array_equal(facts["dead_share"], [0, 0, 0])


def test_threshold_moves_the_high_area():
    np.testing.assert_allclose(measure(THREE, threshold=0.6)["high_area"], [4 / 8, 4 / 8, 1 / 8])
    np.testing.assert_allclose(measure(THREE, threshold=0.05)["meta_ratio"], 1.0)


def test_equal_maps_agree_fully_and_independent_ones_by_chance():
    rng = np.random.default_rng(0)
    maps = rng.uniform(size=(40, 16, 16))
    facts = measure(np.stack([maps] * 3))
    np.testing.assert_allclose(facts["chance_corrected"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(facts["mean_iou"], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(facts["heterogeneous_ratio"], 0)
    independent = rng.uniform(size=(3, 200, 16, 16)) ** 0.3  # high areas of 0.9: raw ratio 0.73, agreement none
    facts = measure(independent)
    assert facts["meta_ratio"] > 0.7
    assert abs(facts["chance_corrected"]) < 0.02
    flipped = measure(np.stack([maps, 1 - maps]))
    assert facts["chance_corrected"] > flipped["chance_corrected"] < -0.9


def test_dead_and_full_maps_are_no_agreement():
    dead = measure(np.zeros((3, 2, 4, 4)))
    assert {float(dead[k]) for k in ("meta_ratio", "mean_iou", "chance_corrected", "entropy")} == {0.0}
    np.testing.assert_array_equal(dead["dead_share"], 1.0)
    assert measure(np.ones((3, 2, 4, 4)))["chance_corrected"] == 0.0
    # A dead image beside a live one halves the ratio and leaves the corrected ratio alone.
    live = stack(["##.. ##.."], [".##. .##."])
    mixed = np.concatenate([live, np.zeros_like(live)], axis=1)
    one, two = measure(live), measure(mixed)
    np.testing.assert_allclose(two["meta_ratio"], one["meta_ratio"] / 2)
    np.testing.assert_allclose(two["chance_corrected"], one["chance_corrected"], atol=1e-7)
    np.testing.assert_array_equal(two["dead_share"], [0.5, 0.5])


def test_a_single_network_agrees_with_itself():
    facts = measure(THREE[:1])
    np.testing.assert_allclose(facts["meta_ratio"], 0.5)
    assert (facts["mean_iou"], facts["chance_corrected"]) == (1.0, 0.0)


def test_entropy_of_known_distributions():
    flat, single = np.full((1, 1, 4, 4), 0.3), np.zeros((1, 1, 4, 4))
    single[..., 1, 2] = 1
    half = np.zeros((1, 1, 4, 4))
    half[..., :2, :] = 0.7
    for maps, wanted in ((flat, 1.0), (single, 0.0), (half, 0.75)):  # log 8 / log 16
        np.testing.assert_allclose(measure(maps)["entropy"], wanted, atol=1e-6)
    dead_beside = np.concatenate([half, np.zeros_like(half)])
    np.testing.assert_allclose(measure(dead_beside)["entropy"], 0.75, atol=1e-6)


def test_measures_against_loops():
    maps = np.random.default_rng(1).beta(0.6, 0.9, size=(4, 5, 6, 7)).astype(np.float32)
    facts = measure(maps, threshold=0.4)
    count = (maps >= 0.4).sum(0)
    overlap, top, bottom, entropy = [], 0.0, 0.0, []
    for b in range(5):
        sets = [{tuple(p) for p in np.argwhere(m[b] >= 0.4)} for m in maps]
        overlap += [len(a & c) / len(a | c) for i, a in enumerate(sets) for c in sets[i + 1 :]]
        areas = [len(s) / 42 for s in sets]
        top += len(set.intersection(*sets)) / 42 - np.prod(areas)
        bottom += min(areas) - np.prod(areas)
        for m in maps:
            p = m[b].ravel() / m[b].sum()
            entropy.append(-sum(q * np.log(q) for q in p) / np.log(42))
    np.testing.assert_allclose(facts["mean_iou"], np.mean(overlap), rtol=1e-5)
    np.testing.assert_allclose(facts["chance_corrected"], top / bottom, rtol=1e-4)
    np.testing.assert_allclose(facts["entropy"], np.mean(entropy), rtol=1e-5)
    np.testing.assert_allclose(facts["meta_ratio"], (count == 4).mean(), rtol=1e-6)
    alone = [((count == 1) & (m >= 0.4)).mean() for m in maps]
    np.testing.assert_allclose(facts["exclusive_ratio"], alone, rtol=1e-6)


def test_matched_area_keeps_the_highest_pixels():
    maps = np.random.default_rng(2).uniform(size=(2, 3, 5, 5))
    kept = np.asarray(at_matched_area(maps, 0.2))
    for m in range(2):
        for b in range(3):
            np.testing.assert_array_equal(kept[m, b] == 1, maps[m, b] >= np.sort(maps[m, b].ravel())[-5])
    np.testing.assert_allclose(measure(kept)["high_area"], 0.2, rtol=1e-6)


def test_matched_area_breaks_ties_without_making_dead_maps_agree():
    facts = measure(at_matched_area(np.zeros((2, 40, 16, 16)), 0.5))
    np.testing.assert_allclose(facts["high_area"], 0.5)
    assert abs(facts["chance_corrected"]) < 0.03


@pytest.mark.parametrize("area", [0.0, -0.1, 1.5])
def test_matched_area_refuses_a_share_that_is_none(area):
    with pytest.raises(ValueError, match=str(area)):
        split.at_matched_area(THREE, area)
