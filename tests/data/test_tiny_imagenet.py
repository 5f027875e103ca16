"""Tiny-ImageNet: a stand-in for the original download goes through TFDS, without TensorFlow, and comes back."""

import io
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest

from metadd_jax import data
from metadd_jax.data import prepared, tiny_imagenet
from metadd_jax.job import prepare_tiny_imagenet

WORDS = {"n02": "goldfish, Carassius auratus", "n01": "tench", "n03": "axolotl, mud puppy"}
GREY = "train/n03/images/n03_1.JPEG"


def jpeg(seed, *, grey=False, size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], *(() if grey else (3,))), dtype=np.uint8)
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, format="JPEG")
    return content.getvalue()


def original():
    """The files of the download by path: 3 classes, 4 training and 2 validation images of each, one of them grey."""
    found = {"wnids.txt": "n02\nn03\nn01\n", "test/images/test_0.JPEG": jpeg(99)}
    found["words.txt"] = "".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()) + "n99\tunused\n"
    for wnid in WORDS:
        found[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t9\t9\n"
        for i in range(4):
            path = f"train/{wnid}/images/{wnid}_{i}.JPEG"
            found[path] = jpeg(10 * int(wnid[1:]) + i, grey=path == GREY)
    validation = ["n01", "n03", "n02", "n02", "n01", "n03"]
    found |= {f"val/images/val_{i}.JPEG": jpeg(100 + i) for i in range(6)}
    found["val/val_annotations.txt"] = "".join(f"val_{i}.JPEG\t{w}\t0\t0\t9\t9\n" for i, w in enumerate(validation))
    return {path: content.encode() if isinstance(content, str) else content for path, content in found.items()}


def unpack(root, found):
    for path, content in found.items():
        file = root / "tiny-imagenet-200" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root / "tiny-imagenet-200"


def pack(file, found):
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in found.items():
            archive.writestr(f"tiny-imagenet-200/{path}", content)
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of the set prepared from the zip, by the script."""
    root = tmp_path_factory.mktemp("tiny")
    prepare_tiny_imagenet.run([str(pack(root / "tiny.zip", original())), "--data-dir", str(root / "tfds")])
    return root / "tfds"


def records(data_dir, split):
    """Bytes and label of each record, as they lie in the file."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepared.find("tiny_imagenet", data_dir))
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [(example["image"], int(example["label"])) for example in source]


def load(data_dir, **options):
    return data.load("tiny_imagenet", data_dir=data_dir, cache_dir=data_dir.parent / "cache", progress=False, **options)


def test_the_jpegs_go_over_byte_for_byte_under_labels_in_wnid_order(made):
    found, order = original(), sorted(WORDS)
    train = {content: order.index(path.split("/")[1]) for path, content in found.items() if path.startswith("train/")
             and path.endswith("JPEG")}  # fmt: skip
    assert sorted(records(made, "train")) == sorted(train.items())
    answers = [line.split("\t")[:2] for line in found["val/val_annotations.txt"].decode().splitlines()]
    validation = [(found[f"val/images/{file}"], order.index(wnid)) for file, wnid in answers]
    assert sorted(records(made, "validation")) == sorted(validation)


def test_load_gives_the_pixels_the_names_and_the_constants(made):
    dataset = load(made)
    assert "tensorflow" not in sys.modules
    assert dataset.class_names == ("n01 tench", "n02 goldfish", "n03 axolotl")
    assert dataset.image_shape == (64, 64, 3) and dataset.train.images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train.counts, [4, 4, 4])
    np.testing.assert_array_equal(dataset.test.counts, [2, 2, 2])
    np.testing.assert_allclose(dataset.train.mean, data.CONSTANTS["tiny_imagenet"].mean, rtol=1e-6)
    images = {np.asarray(image).tobytes() for image in dataset.train.images[8:]}
    pictures = [PIL.Image.open(io.BytesIO(original()[f"train/n03/images/n03_{i}.JPEG"])) for i in range(4)]
    assert [picture.mode for picture in pictures] == ["RGB", "L", "RGB", "RGB"]
    assert images == {np.asarray(picture.convert("RGB")).tobytes() for picture in pictures}


def test_folder_and_zip_give_the_same_set(made, tmp_path):
    folder = unpack(tmp_path / "download", original())
    for i, source in enumerate((folder, folder.parent)):
        made_here = tiny_imagenet.prepare(source, tmp_path / f"tfds{i}")
        assert made_here == prepared.find("tiny_imagenet", tmp_path / f"tfds{i}")
        assert [path.name for path in (tmp_path / f"tfds{i}").iterdir()] == ["tiny_imagenet"]
        for split in ("train", "validation"):
            assert records(tmp_path / f"tfds{i}", split) == records(made, split)


def test_nothing_is_overwritten(made, tmp_path):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"tiny_imagenet/1\.0\.0 is there already"):
        tiny_imagenet.prepare(unpack(tmp_path, original()), made)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def drop(path):
    return lambda found: found.pop(path)


def replace(path, old, new):
    return lambda found: found.update({path: found[path].replace(old.encode(), new.encode())})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("wnids.txt"), "holds no wnids.txt; give tiny-imagenet-200.zip"),
        (drop("val/val_annotations.txt"), "holds no val/val_annotations.txt"),
        (replace("words.txt", "n02", "n88"), "names 1 classes not, such as n02"),
        (replace("wnids.txt", "n02\n", ""), "lists 2 classes in wnids.txt but holds training images of 3, .* is n02"),
        (replace("wnids.txt", "n02", "n99"), "lists 3 classes .* training images of 3, the first difference is n02"),
        (replace("val/val_annotations.txt", "n02", "n03"), "lists 3 classes .* validation images of 2, .* is n02"),
        (drop("train/n01/images/n01_2.JPEG"), "holds 3 training images of n01 but 4 of n0"),
        (drop("val/images/val_3.JPEG"), "holds 5 images in val/images but val_annotations.txt lists 6 of which 1 are"),
        (lambda found: found.update({GREY: b"text"}), "n03_1.JPEG is no readable picture"),
        (lambda found: found.update({GREY: jpeg(1)[:900]}), "n03_1.JPEG is no readable picture"),
        (lambda found: found.update({GREY: jpeg(1, size=(64, 32))}), r"n03_1.JPEG is JPEG of \(64, 32\), not a JPEG"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_bad_downloads_are_refused_in_one_line_and_leave_nothing(tmp_path, kind, spoil, message):
    found = original()
    spoil(found)
    source = pack(tmp_path / "tiny.zip", found) if kind == "zip" else unpack(tmp_path / "download", found)
    with pytest.raises(ValueError, match=message) as caught:
        tiny_imagenet.prepare(source, tmp_path / "tfds")
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "tfds").rglob("*") if path.is_file()]


def test_wrong_paths_and_damaged_archives_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*nowhere\.zip; give tiny-imagenet-200\.zip"):
        prepare_tiny_imagenet.run([str(tmp_path / "nowhere.zip"), "--data-dir", str(tmp_path)])
    file = pack(tmp_path / "tiny.zip", original())
    whole = file.read_bytes()
    middle = whole.index(original()[GREY]) + 500
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match=f"{GREY} of .* cannot be read .*CRC"):
        tiny_imagenet.prepare(file, tmp_path / "tfds")
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"tiny\.zip is no readable zip archive"):
        tiny_imagenet.prepare(file, tmp_path / "tfds")
    assert not list((tmp_path / "tfds").rglob("*.array_record*"))


def test_an_unprepared_set_names_the_command(tmp_path):
    for name in ("tiny_imagenet", "tiny_imagenet_sre2l", "tiny_imagenet_frepo"):
        with pytest.raises(ValueError, match=r"not prepared under .*`metadd prepare_tiny_imagenet ") as caught:
            data.load(name, data_dir=tmp_path)
        assert "\n" not in str(caught.value)
