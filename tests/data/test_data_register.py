"""Data sets of one's own by name: read as an .npz of the same arrays is, and refused in one line."""

import numpy as np
import pytest

from metadd_jax import data
from metadd_jax.data import catalog, registry

RNG = np.random.default_rng(0)
ARRAYS = {"images": RNG.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8), "labels": np.arange(40) % 4}
TEST = {"test_images": ARRAYS["images"][:8], "test_labels": ARRAYS["labels"][:8]}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    monkeypatch.setattr(catalog, "OWN", {})


def mine(**changes):
    data.register("mine", lambda: ARRAYS | changes)
    return data.load("mine", on_device=False)


def same(one, other):
    assert one.fingerprint == other.fingerprint and one.class_names == other.class_names
    for split in ("train", "test"):
        pairs = zip(vars(getattr(one, split)).values(), vars(getattr(other, split)).values(), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("extra", [{}, TEST, {"class_names": np.array(list("abcd")), "mean": [0.4], "std": [0.3]}])
@pytest.mark.parametrize("options", [{}, {"validation_fraction": 0.25, "train_per_class": 6, "seed": 3}, {"zca": True}])
def test_it_is_read_as_an_npz_of_the_same_arrays(tmp_path, extra, options):
    np.savez(tmp_path / "mine.npz", **ARRAYS, **extra)
    data.register("mine", lambda: ARRAYS | extra)
    one, other = (data.load(name, on_device=False, **options) for name in ("mine", str(tmp_path / "mine.npz")))
    assert one.name == "mine"
    same(one, other)


def test_a_dataset_serves_too_and_gets_the_name():
    made = data.from_arrays("other", *ARRAYS.values(), *TEST.values(), class_names=list("wxyz"))
    data.register("mine", lambda: made)
    same(data.load("mine", on_device=False), made)
    assert data.load("mine", validation_fraction=0.2).validation.labels.shape == (8,)
    data.register("white", lambda: data.whiten(made))
    with pytest.raises(ValueError, match="the Dataset of white is whitened; give it plain"):
        data.load("white")
    apart = data.from_arrays("other", *ARRAYS.values(), *TEST.values(), validation_fraction=0.25)
    data.register("apart", lambda: apart)
    with pytest.raises(ValueError, match="the Dataset of apart has validation images; give it plain"):
        data.load("apart")


def test_the_loader_gets_the_options_that_it_names():
    seen = {}

    def load(data_dir, *, image_size, rotated=False):
        seen.update(data_dir=data_dir, image_size=image_size, rotated=rotated)
        return {"images": ARRAYS["images"][:, :image_size, :image_size], "labels": ARRAYS["labels"]}

    data.register("mine", load)
    assert data.load("mine", data_dir="there", image_size=4).image_shape == (4, 4, 1)
    assert seen == {"data_dir": "there", "image_size": 4, "rotated": False}


def test_auto_augmentation_of_a_registered_set(recwarn):
    data.register("mine", lambda: ARRAYS, augmentation="flip_crop")
    assert data.augmentation("mine") == "flip_crop" and not recwarn
    data.register("other", lambda: ARRAYS)
    with pytest.warns(UserWarning, match="of other, which is not in the catalog, is .* no mirror images"):
        assert data.augmentation("other") == data.augmentation("mnist")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ARRAYS["labels"] + 1}, "1 of 5 classes have no training image"),
        ({"labels": ARRAYS["labels"] - 1}, "training labels go down to -1"),
        ({"labels": ARRAYS["labels"] * 1.0}, "training labels are float64"),
        ({**TEST, "test_labels": TEST["test_labels"] + 2}, "test labels go up to 5, but there are 4 classes"),
        ({"test_images": TEST["test_images"]}, "what the loader of mine gives holds .* but not test_labels"),
        ({"mean": [0.5]}, "but not std"),
        ({"class_name": "abcd"}, r"gives 'class_name' \(did you mean 'class_names'\?\)"),
        ({"class_names": [1, 2, 3, 4]}, r"class_names of mine are int64 of shape \(4,\)"),
        ({"images": ARRAYS["images"].transpose(0, 3, 1, 2)}, "8 channels, not 1 or 3"),
    ],
)
def test_arrays_that_are_no_set_are_refused_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        mine(**changes)
    assert "\n" not in str(caught.value)


def test_what_a_loader_must_give_and_take():
    data.register("mine", lambda: tuple(ARRAYS.values()))
    with pytest.raises(ValueError, match="the loader of mine gives a tuple; return a dictionary"):
        data.load("mine")
    with pytest.raises(ValueError, match="image_size is 4, and the loader of mine takes none; leave it out"):
        data.load("mine", image_size=4)
    with pytest.raises(ValueError, match="data set bad: load asks for split; it can have data_dir, cache_dir"):
        data.register("bad", lambda split: ARRAYS)
    assert "bad" not in catalog.OWN


def test_a_name_is_given_once():
    for _ in range(2):
        mine()
    with pytest.raises(ValueError, match=r"the data set 'mine' is .* already, not "):
        data.register("mine", same_as_mine)
    for name in ("cifar10", "mnist5k", "imagewoof", "imagenet2012"):
        with pytest.raises(ValueError, match=f"the data set '{name}' is one of metadd_jax"):
            data.register(name, same_as_mine)
    with pytest.raises(ValueError, match=r"no data set can be named './mine'"):
        data.register("./mine", same_as_mine)
    with pytest.raises(ValueError, match=r"unknown data set 'minne' \(did you mean .*mine"):
        data.load("minne")


def same_as_mine():
    return ARRAYS
