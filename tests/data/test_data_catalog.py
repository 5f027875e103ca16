"""The catalog agrees with itself and with what the papers print."""

import pytest

from metadd_jax import data
from metadd_jax.data import catalog


def test_constants_are_plausible_and_named_sets_have_them():
    for name, (mean, std) in data.CONSTANTS.items():
        assert len(mean) == len(std) and len(mean) in (1, 3), name
        assert all(0.1 < value < 0.6 for value in (*mean, *std)), name
    for table in (catalog.CLASS_NAMES, catalog.TFDS_NAMES, catalog.NOT_FLIPPED):
        assert set(table) <= set(data.CONSTANTS)


def test_repositories_that_disagree_have_their_own_names():
    assert data.CONSTANTS["cifar100_mtt"] == data.CONSTANTS["cifar10"] != data.CONSTANTS["cifar100"]
    assert data.CONSTANTS["mnist5k"] == ((0.1307,), (0.3081,))
    assert data.CONSTANTS["cifar10"].mean == data.CONSTANTS["cifar10_frepo"].mean
    assert data.CONSTANTS["cifar10"].std != data.CONSTANTS["cifar10_frepo"].std
    # SRe2L's squeeze, recovery and post-training on Tiny-ImageNet (its three programs say the same).
    assert data.CONSTANTS["tiny_imagenet_sre2l"] == ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))


def test_imagenet_subsets_are_ten_distinct_classes_in_label_order():
    for name, classes in data.IMAGENET_SUBSETS.items():
        assert len(set(classes)) == 10 and min(classes) >= 0 and max(classes) < 1000, name
    assert data.IMAGENET_SUBSETS["imagewoof"] == (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)
    assert len(data.IMAGENET_SUBSETS) == 12


@pytest.mark.parametrize(
    ("name", "flips"), [("mnist5k", False), ("svhn", False), ("fashion_mnist", True), ("imagewoof", True)]
)
def test_digits_are_not_mirrored(name, flips):
    tokens = data.augmentation(name).split("_")
    assert ("flip" in tokens) == flips
    assert {"color", "crop", "cutout", "scale", "rotate"} <= set(tokens)


def test_a_set_that_is_not_known_is_not_mirrored_and_that_is_said():
    with pytest.warns(
        UserWarning, match=r"of my/digits\.npz, .* no mirror images.*name color_crop_cutout_flip_"
    ) as said:
        assert data.augmentation("my/digits.npz") == data.augmentation("mnist")
    assert "\n" not in str(said[0].message) and said[0].filename == __file__
