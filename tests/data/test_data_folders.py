"""Folders of pictures: labels by name, grey and colour, the cache's key, and what is refused."""

import os

import numpy as np
import PIL.Image
import pytest

from metadd_jax import data
from metadd_jax.data import folders


def paint(path, value, *, mode="L", size=(5, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(value)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = generator.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path):
    """Two classes with 3 and 2 training pictures and one test picture each, all grey."""
    root = tmp_path / "set"
    for label, count in {"dog": 2, "cat": 3}.items():
        for i in range(count):
            paint(root / "train" / label / f"{i}.png", 10 * count + i)
        paint(root / "val" / label / "a.png", count)
    (root / "train" / "notes.txt").write_text("no picture")
    return root


def load(root):
    return data.load(str(root), cache_dir=root.parent / "cache", progress=False)


def test_grey_pictures_with_labels_in_the_order_of_names(root):
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog") and dataset.image_shape == (4, 5, 1)
    np.testing.assert_array_equal(dataset.arrays.counts, [3, 2])
    np.testing.assert_array_equal(dataset.test.counts, [1, 1])
    expected = np.array(PIL.Image.open(root / "train" / "dog" / "1.png"))
    np.testing.assert_array_equal(dataset.arrays.images[4, ..., 0], expected)


def test_one_colour_picture_makes_all_rgb_and_alpha_is_dropped(root):
    pixels = paint(root / "train" / "cat" / "9.png", 7, mode="RGBA")
    dataset = load(root)
    assert dataset.image_shape == (4, 5, 3)
    np.testing.assert_array_equal(dataset.arrays.images[3], pixels[..., :3])
    grey = dataset.arrays.images[0]
    assert (grey[..., 0] == grey[..., 2]).all()


def test_cache_is_used_until_a_picture_changes(root, monkeypatch):
    first = load(root)

    def forbid(*args, **options):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "read_pictures", forbid)
        assert load(root).fingerprint == first.fingerprint
    picture = root / "train" / "cat" / "0.png"
    paint(picture, 99)
    os.utime(picture, ns=(1, 1))
    assert load(root).fingerprint != first.fingerprint


def empty_class(root):
    (root / "train" / "eel").mkdir()


def lone_class(root):
    paint(root / "train" / "eel" / "0.png", 1)


def other_size(root):
    paint(root / "val" / "dog" / "b.png", 1, size=(6, 4))


def deep_pixels(root):
    PIL.Image.fromarray(np.zeros((4, 5), np.uint16)).save(root / "val" / "dog" / "b.png")


def not_a_picture(root):
    (root / "train" / "cat" / "7.jpg").write_text("text")


def cut_short(root):
    picture = root / "train" / "cat" / "1.png"
    picture.write_bytes(picture.read_bytes()[:45])


def no_test(root):
    (root / "val").rename(root / "held_out")


def no_classes(root):
    (root / "test").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, r"eel holds 0 pictures \(0 other files; .* are read\); fill it"),
        (lone_class, "1 classes of .* only in train/ or only in val/, such as eel"),
        (other_size, r"b.png is 6 x 4 pixels but .*0.png is 5 x 4; resize"),
        (deep_pixels, "b.png has pixels of kind I;16; save it as 8-bit"),
        (not_a_picture, "7.jpg is no readable picture"),
        (cut_short, "1.png is no readable picture"),
        (no_test, "must hold train/CLASS"),
        (no_classes, "test holds 0 class folders"),
    ],
)
def test_bad_folders_are_refused_in_one_line(root, spoil, message):
    spoil(root)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    assert not (root.parent / "cache").exists()
