"""From arrays to a data set: order, constants, validation, and what is refused."""

import re

import jax
import numpy as np
import pytest

from metadd_jax import data


def make(labels, *, seed=0, channels=3):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 5, channels), dtype=np.uint8)
    return images, np.asarray(labels)


TRAIN = make([2, 0, 1, 1, 0, 2, 1, 1, 2, 0, 1])
TEST = make([1, 0, 2], seed=1)


def build(train=TRAIN, test=TEST, **options):
    return data.from_arrays("own", *train, *test, **options)


def test_classes_lie_together_and_keep_their_order():
    arrays = build().train
    np.testing.assert_array_equal(arrays.labels, [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(arrays.images, TRAIN[0][[1, 4, 9, 2, 3, 6, 7, 10, 0, 5, 8]])
    np.testing.assert_array_equal(arrays.offsets, [0, 3, 8])
    np.testing.assert_array_equal(arrays.counts, [3, 5, 3])
    assert arrays.max_count == 5 and arrays.images.dtype == np.uint8
    assert {str(x.dtype) for x in (arrays.labels, arrays.offsets, arrays.counts)} == {"int32"}


def test_constants_of_unknown_set_are_those_of_its_pixels():
    arrays = build(validation_fraction=0.4).train  # Computed before images are set aside.
    pixels = TRAIN[0].reshape(-1, 3) / 255.0
    np.testing.assert_allclose(arrays.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(arrays.std, pixels.std(axis=0), rtol=1e-6)


def test_constants_given_beat_the_catalog_and_the_catalog_beats_pixels():
    named = data.from_arrays("cifar100", *TRAIN, *TEST)
    np.testing.assert_allclose(named.train.std, (0.2673, 0.2564, 0.2762))
    given = data.from_arrays("cifar100", *TRAIN, *TEST, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_array_equal(given.test.std, 1)
    assert named.fingerprint != given.fingerprint


def test_grey_images_without_channel_and_floats_are_brought_to_bytes():
    images, labels = make([0, 1, 0, 1], channels=1)
    whole = data.from_arrays("own", images, labels, images, labels)
    flat = (images[..., 0] / 255.0).astype(np.float32)
    rounded = data.from_arrays("own", flat, labels, images.astype(np.int64), labels)
    assert whole.image_shape == (4, 5, 1)
    assert rounded.fingerprint == whole.fingerprint


def test_fingerprint_follows_content_not_name_or_order_of_classes():
    other = data.from_arrays("another", *TRAIN, *TEST)
    assert other.fingerprint == build().fingerprint
    changed = TRAIN[0].copy()
    changed[3, 0, 0, 0] ^= 1
    assert build((changed, TRAIN[1])).fingerprint != build().fingerprint


def test_validation_comes_from_each_class_by_seed():
    labels = np.repeat([0, 1, 2, 3], [20, 2, 1, 9])
    images = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None, None], (32, 2, 2, 1))
    sets = [
        data.from_arrays("own", images, labels, images, labels, validation_fraction=0.3, seed=seed)
        for seed in (0, 0, 1)
    ]
    first = sets[0]
    np.testing.assert_array_equal(first.validation.counts, [6, 1, 0, 3])
    np.testing.assert_array_equal(first.train.counts, [14, 1, 1, 6])
    names = np.concatenate([first.train.images, first.validation.images])[:, 0, 0, 0]
    assert sorted(names) == list(range(32))
    assert sets[1].fingerprint == first.fingerprint != sets[2].fingerprint
    assert build().validation is None


def test_stratified_split_never_empties_a_class():
    labels = np.array([0] * 10 + [1] * 2 + [2])
    kept, taken = data.stratified_split(labels, 0.99, 3)
    np.testing.assert_array_equal(np.bincount(labels[kept], minlength=3), [1, 1, 1])
    np.testing.assert_array_equal(np.bincount(labels[taken], minlength=3), [9, 1, 0])


def replaced(array, place, value):
    array = array.copy()
    array[place] = value
    return array


FLOATS = TRAIN[0].astype(np.float32) / 255
BAD = {
    "rank": ((TRAIN[0][0, 0], TRAIN[1]), TEST, r"training images have shape \(5, 3\)"),
    "none": ((TRAIN[0][:0], TRAIN[1][:0]), TEST, r"shape \(0, 4, 5, 3\); give at least one"),
    "channels": ((TRAIN[0][..., :2], TRAIN[1]), TEST, "2 channels, not 1 or 3; give grey or RGB"),
    "layout": ((TRAIN[0].transpose(0, 3, 1, 2), TRAIN[1]), TEST, r"5 channels.*transpose\(0, 2, 3, 1\)"),
    "nan": ((replaced(FLOATS, (2, 1), np.nan), TRAIN[1]), TEST, "15 NaN or infinite"),
    "standardised": ((FLOATS * 4 - 2, TRAIN[1]), TEST, r"float32 from -2 to 2, outside \[0, 1\]"),
    "scale": ((TRAIN[0].astype(np.int32) * 2, TRAIN[1]), TEST, r"int32 from 0 to 5\d\d, outside \[0, 255\]"),
    "kind": ((TRAIN[0].astype(str), TRAIN[1]), TEST, "are <U"),
    "size": (TRAIN, (TEST[0][:, :3], TEST[1]), r"\(4, 5, 3\) but test images \(3, 5, 3\)"),
    "number": ((TRAIN[0], TRAIN[1][:9]), TEST, "9 training labels for 11 images"),
    "one-hot": ((TRAIN[0], np.eye(3)[TRAIN[1]]), TEST, r"labels have shape \(11, 3\)"),
    "float label": ((TRAIN[0], TRAIN[1] * 1.0), TEST, "labels are float64; give integers"),
    "negative": ((TRAIN[0], TRAIN[1] - 1), TEST, "go down to -1"),
    "gap": (
        (TRAIN[0], replaced(TRAIN[1], TRAIN[1] == 1, 3)),
        TEST,
        r"1 of 4 classes have no .* class 1 \(1\)",
    ),
    "test label": (TRAIN, (TEST[0], TEST[1] + 5), "test labels go up to 7, but there are 3 classes"),
    "one class": ((TRAIN[0], TRAIN[1] * 0), (TEST[0], TEST[1] * 0), "at least 2 classes"),
    "flat": ((replaced(TRAIN[0], (..., 1), 7), TRAIN[1]), TEST, "channel 1 is the same in all"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_in_one_line(case):
    train, test, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        build(train, test)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"mean": (0, 0, 0)}, "only one of mean and std"),
        ({"mean": (0.5,), "std": (0.5,)}, r"images of 3 channels need (3,)"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "std positive"),
        ({"mean": np.zeros((), "V0"), "std": (1, 1, 1)}, "mean holds no real numbers (|V0)"),
        ({"mean": (0, 0, 0), "std": (1, [1, 2], 1)}, "std holds no real numbers"),
        ({"mean": (0, 0, 1e300), "std": (1, 1, 1)}, "must be finite"),
        ({"class_names": ("a", "b")}, "up to 2, but there are 2 classes"),
        ({"class_names": ("a", "b", "c", "d")}, "class 3 (d)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**options)


@pytest.mark.parametrize(
    ("values", "number"),
    [
        ([0, 1, 2**32], 2**32),  # as 32 bits 0
        ([0, 2**32 + 1, 2], 2**32 + 1),
        ([0, 1, 3_000_000_000], 3_000_000_000),
        ([0, 1, 400_000_000], 400_000_000),  # counting its classes took 8.5 GB
        (np.array([0, 1, 2**64 - 1], np.uint64), 2**64 - 1),
    ],
)
def test_wide_labels_are_refused_by_their_true_number(values, number):
    labels = np.asarray(values)[TRAIN[1]]
    with pytest.raises(ValueError, match=f"training labels go up to {number} for 11 images"):
        build((TRAIN[0], labels))
    with pytest.raises(ValueError, match=f"test labels go up to {number}"):
        build(test=(TEST[0], np.asarray(values)[TEST[1]]))


def test_a_whole_dataset_goes_to_the_device_in_one_call():
    dataset = build(validation_fraction=0.4)
    assert isinstance(dataset.train.images, np.ndarray)
    placed = data.to_device(dataset)
    for split in ("arrays", "test", "validation"):
        images = getattr(placed, split).images
        assert isinstance(images, jax.Array)
        np.testing.assert_array_equal(images, getattr(dataset, split).images)
    assert data.to_device(build()).validation is None and placed.fingerprint == dataset.fingerprint
    assert isinstance(data.to_device(dataset.test).images, jax.Array)


def test_pixels_without_constants_are_refused_where_they_are_standardised():
    with pytest.raises(ValueError, match="images are uint8 pixels but come without mean and std"):
        data.standardise(TRAIN[0], None, None)


def test_single_images_cannot_be_set_aside():
    images, labels = make([0, 1])
    with pytest.raises(ValueError, match="every class has a single image"):
        data.from_arrays("own", images, labels, images, labels, validation_fraction=0.5)


def test_a_limit_keeps_some_of_each_class_before_any_are_set_aside():
    labels = np.repeat([0, 1, 2], [30, 4, 12])
    images = np.arange(46, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)

    def load(**settings):
        return data.from_arrays("limited", images, labels, images[:3], labels[[0, 31, 40]], **settings)

    limited = load(train_per_class=10, validation_fraction=0.2)
    assert np.asarray(limited.train.counts).tolist() == [8, 3, 8]
    assert np.asarray(limited.validation.counts).tolist() == [2, 1, 2]
    other = load(train_per_class=10, validation_fraction=0.2, seed=1)

    def used(dataset):
        splits = (dataset.train, dataset.validation)
        return sorted(np.concatenate([np.asarray(split.images)[:, 0, 0, 0] for split in splits]).tolist())

    assert used(limited) == used(other) and len(used(limited)) == 24
    assert limited.fingerprint != load(validation_fraction=0.2).fingerprint
    assert load(train_per_class=99).fingerprint == load().fingerprint
    with pytest.raises(ValueError, match="train_per_class is 0; give a number of images, or None for all"):
        load(train_per_class=0)
