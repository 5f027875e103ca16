"""ImageNet's ten-class subsets: the labels' order, from folders and from TFDS, and the resizing."""

import io
import itertools

import numpy as np
import PIL.Image
import pytest

from metadd_jax import data
from metadd_jax.data.decoding import to_array

WOOF = data.IMAGENET_SUBSETS["imagewoof"]
WNIDS = [f"n{7 * index:08d}" for index in range(1000)]
SIZES = ((9, 16), (16, 9), (20, 20))  # width, height


def colour(index):
    """A colour that tells the class."""
    return index // 256, index % 256, 77


def png(index, size):
    content = io.BytesIO()
    PIL.Image.new("RGB", size, colour(index)).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ImageNet's layout: 1000 class folders in train/ and in val/; only those of imagewoof hold pictures."""
    root = tmp_path_factory.mktemp("imagenet")
    (root / "test").mkdir()
    for split, (index, wnid) in itertools.product(("train", "val"), enumerate(WNIDS)):
        (root / split / wnid).mkdir(parents=True)
        if index in WOOF:
            for size in SIZES[: 3 if split == "train" else 2]:
                (root / split / wnid / f"{size[0]}.png").write_bytes(png(index, size))
    return root


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """The same, and a foreign class, as TFDS lays imagenet2012 down."""
    import tensorflow_datasets as tfds

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """A stand-in."""

        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=WNIDS)}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "validation": self._generate_examples(2)}

        def _generate_examples(self, per_class):
            for index, i in itertools.product((0, 3, *sorted(WOOF)), range(per_class)):
                yield f"{index} {i}", {"image": png(index, SIZES[i]), "label": index}

    root = tmp_path_factory.mktemp("tfds")
    Imagenet2012(data_dir=root, file_format="array_record").download_and_prepare(download_dir=root / "unused")
    return root


@pytest.mark.parametrize("kind", ["folder", "tfds_dir"])
def test_labels_follow_the_list_not_the_index(kind, request, tmp_path):
    assert list(WOOF) != sorted(WOOF)
    options = {"data_dir": request.getfixturevalue(kind), "cache_dir": tmp_path, "progress": False}
    dataset = data.load("imagewoof", image_size=8, **options)
    assert dataset.class_names == tuple(WNIDS[index] for index in WOOF)
    assert dataset.image_shape == (8, 8, 3) and dataset.name == "imagewoof"
    for split, count in ((dataset.train, 3), (dataset.test, 2)):
        np.testing.assert_array_equal(split.counts, [count] * 10)
        np.testing.assert_array_equal(split.labels, np.repeat(np.arange(10), count))
        expected = np.repeat([colour(index) for index in WOOF], count, axis=0)
        np.testing.assert_array_equal(split.images, np.broadcast_to(expected[:, None, None], split.images.shape))
    np.testing.assert_allclose(dataset.train.std, data.CONSTANTS["imagenet"].std, rtol=1e-6)
    assert data.load("imagewoof", **options).image_shape == (128, 128, 3)  # Another size is another cache entry.
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_of_that_name_beside_the_script_is_not_taken_for_it(folder, tmp_path, monkeypatch):
    for split in ("train", "val"):
        (tmp_path / "imagewoof" / split / "n1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    dataset = data.load("imagewoof", data_dir=folder, cache_dir=tmp_path / "cache", image_size=8, progress=False)
    assert dataset.num_classes == 10


def test_a_part_of_imagenet_is_refused(folder, tmp_path):
    for split in ("train", "val"):
        for wnid in WNIDS[1:]:
            (tmp_path / split / wnid).mkdir(parents=True)
    with pytest.raises(ValueError, match="train holds 999 class folders, not ImageNet's 1000") as caught:
        data.load("imagewoof", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "size"), [("mnist5k", 8), ("a.npz", 8), ("imagewoof", -1)])
def test_a_size_that_cannot_be_given_is_refused(name, size):
    with pytest.raises(ValueError, match=f"image_size is {size} for {name}; leave it out, or give"):
        data.load(name, image_size=size)


def triangle_weights(before, after):
    """[after, before]: linear interpolation; when shrinking, the triangle is as much wider (antialiasing)."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(before) + 0.5 - centres[:, None]) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(31, 50), (50, 31), (40, 40), (7, 9), (16, 33)])
def test_resizing_is_bilinear_with_antialiasing_and_the_crop_is_central(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = to_array(PIL.Image.fromarray(pixels), "RGB", 16)
    tall, wide = int(16 * height / min(height, width)), int(16 * width / min(height, width))
    resized = np.einsum("ah,bw,hwc->abc", triangle_weights(height, tall), triangle_weights(width, wide), pixels)
    top, left = round((tall - 16) / 2), round((wide - 16) / 2)
    assert ours.shape == (16, 16, 3)
    # Pillow rounds to 8 bits after each of its two passes.
    np.testing.assert_allclose(ours, resized[top : top + 16, left : left + 16], atol=1.01)


def test_grey_and_alpha_become_rgb_and_the_size_stays_when_none_is_asked_for():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    picture = PIL.Image.fromarray(grey)
    np.testing.assert_array_equal(to_array(picture, "RGB", 0), np.repeat(grey[..., None], 3, axis=-1))
    np.testing.assert_array_equal(to_array(picture, "L", 0), grey[..., None])
    alpha = np.random.default_rng(1).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    np.testing.assert_array_equal(to_array(PIL.Image.fromarray(alpha), "RGB", 0), alpha[..., :3])
