"""TensorFlow Datasets without TensorFlow: a tiny ArrayRecord set made here, and CIFAR-10 where it lies."""

import io
import json
import os
import pathlib
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest

from metadd_jax import data
from metadd_jax.data import arrays, prepared

CIFAR = pathlib.Path(__file__).parents[3] / "shared" / "tfds"
NAMES = ("ant", "bee", "cow")


def png(image):
    content = io.BytesIO()
    PIL.Image.fromarray(image).save(content, format="PNG")
    return content.getvalue()


def write_split(folder, name, images, labels):
    """Writes images as TFDS does: one tf.train.Example with a PNG and a label each, in an ArrayRecord."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2
    from tensorflow_datasets.proto import tf_feature_pb2 as pb

    writer = ArrayRecordWriter(str(folder / f"tiny-{name}.array_record-00000-of-00001"), "group_size:1")
    for image, label in zip(images, labels, strict=True):
        features = {
            "image": pb.Feature(bytes_list=pb.BytesList(value=[png(image)])),
            "label": pb.Feature(int64_list=pb.Int64List(value=[int(label)])),
        }
        writer.write(tf_example_pb2.Example(features=pb.Features(feature=features)).SerializeToString())
    writer.close()


def prepare(root, *, version="1.0.0", file_format="array_record", test="test", hide_test=False, keys=True):
    """Makes a prepared set ``tiny`` of 3 classes; returns its training images and labels."""
    folder = root / "tiny" / version
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    labels = np.array([2, 0, 1, 1, 0, 2, 2, 2, 0])
    splits = {"train": (images, labels), test: (images[:4], labels[:4])}
    if hide_test:
        splits["test"] = (images[:4], [-1] * 4)
        splits["validation"] = (images[:5], labels[:5])
    for name, (some_images, some_labels) in splits.items():
        write_split(folder, name, some_images, some_labels)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "name": "tiny",
        "version": version,
        "fileFormat": file_format,
        "splits": [
            {"name": name, "shardLengths": [str(len(part[1]))], "numBytes": "1", "filepathTemplate": template}
            for name, part in splits.items()
        ],
    }
    if keys:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    module = "tensorflow_datasets.core.features."
    image = {"dtype": "uint8", "shape": {"dimensions": ["4", "4", "3"]}}
    features = {
        "image": {"pythonClassName": module + "image_feature.Image", "image": image},
        "label": {
            "pythonClassName": module + "class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "3"},
        },
    }
    top = {"pythonClassName": module + "features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(top))
    (folder / "label.labels.txt").write_text("\n".join(NAMES))
    return images, labels


def load(root, name="tiny"):
    return data.load(name, data_dir=root / "tfds", cache_dir=root / "cache", progress=False)


def test_images_labels_and_names_are_read_without_tensorflow(tmp_path):
    images, labels = prepare(tmp_path / "tfds")
    dataset = load(tmp_path)
    assert "tensorflow" not in sys.modules
    assert dataset.class_names == NAMES
    np.testing.assert_array_equal(dataset.train.images, images[np.argsort(labels, kind="stable")])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 1, 2])


def test_second_load_comes_from_the_cache_until_the_files_change(tmp_path, monkeypatch):
    prepare(tmp_path / "tfds")
    first = load(tmp_path)

    def forbid(*args, **options):
        raise AssertionError("decoded again")

    monkeypatch.setattr(prepared, "read", forbid)
    assert load(tmp_path).fingerprint == first.fingerprint
    with open(tmp_path / "tfds" / "tiny" / "1.0.0" / "dataset_info.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(AssertionError, match="decoded again"):
        load(tmp_path)


def test_mended_labels_and_pictures_are_seen_though_the_files_keep_size_and_time(tmp_path):
    """ArrayRecord pads its files to 64 KiB."""
    images, labels = prepare(tmp_path / "tfds")
    first, folder = load(tmp_path), tmp_path / "tfds" / "tiny" / "1.0.0"
    records = folder / "tiny-train.array_record-00000-of-00001"
    status = records.stat()

    def rewrite(images, labels):
        write_split(folder, "train", images, labels)
        assert records.stat().st_size == status.st_size
        os.utime(records, ns=(status.st_atime_ns, status.st_mtime_ns))
        return load(tmp_path)

    mended = labels.copy()
    mended[0] = 1
    np.testing.assert_array_equal(rewrite(images, mended).train.counts, np.bincount(mended))
    turned = rewrite(255 - images, labels)
    np.testing.assert_array_equal(turned.train.images, 255 - np.asarray(first.train.images))
    assert rewrite(images, labels).fingerprint == first.fingerprint


def test_pictures_of_sixteen_bits_and_too_large_ones_are_refused_by_number():
    deep = png(np.full((4, 4), 1000, np.uint16))
    with pytest.raises(ValueError, match="image 1 of train in set has pixels of kind I;16; save it as 8-bit"):
        decode([{"image": png(np.zeros((4, 4), np.uint8)), "label": 0}, {"image": deep, "label": 1}], "train")
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    huge = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + bytes(4) + b"IDAT"
    )
    with pytest.raises(ValueError, match=r"image 0 of train in set is larger than can be opened \(.*3600000000"):
        decode([{"image": huge + bytes(4), "label": 0}], "train")


def test_newest_version_counts_by_number(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.1.0"):
        prepare(tmp_path / "tfds", version=version)
    assert prepared.find("tiny", tmp_path / "tfds").name == "10.0.0"


def test_hidden_test_labels_send_us_to_validation(tmp_path):
    prepare(tmp_path / "tfds", hide_test=True)
    assert len(load(tmp_path).test.labels) == 5


def test_configurations_must_be_named(tmp_path):
    for config in ("small", "large"):
        prepare(tmp_path / "tfds" / "many" / config)
        (tmp_path / "tfds" / "many" / config / "tiny" / "1.0.0").rename(tmp_path / "tfds" / "many" / config / "1.0.0")
    with pytest.raises(ValueError, match="2 configurations; name one of many/large, many/small"):
        load(tmp_path, "many")
    assert load(tmp_path, "many/small").num_classes == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_format": "tfrecord"}, "stored as tfrecord, which only TensorFlow reads; prepare it again"),
        ({"test": "extra"}, "has the splits train, extra, not a train split and"),
        ({"keys": False}, "does not pair an image with one class label"),
    ],
)
def test_unfit_sets_are_refused(tmp_path, options, message):
    prepare(tmp_path / "tfds", **options)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_records_are_refused(tmp_path):
    prepare(tmp_path / "tfds")
    path = tmp_path / "tfds" / "tiny" / "1.0.0" / "tiny-train.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="prepare it again") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["tensorflow_datasets", "PIL"])
def test_missing_library_is_named(tmp_path, monkeypatch, library):
    prepare(tmp_path / "tfds")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"{library}.*pip install tensorflow-datasets pillow"):
        load(tmp_path)


def test_unknown_name_without_the_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"'mnist' is not under .*pip install tensorflow-datasets"):
        load(tmp_path, "mnist")


def decode(source, split, **settings):
    settings = {"classes": (), "mode": "RGB", "image_size": None, "progress": False} | settings
    return prepared._decode(source, ("image", "label"), pathlib.Path("set"), split, **settings)


def test_images_of_several_sizes_are_refused_or_brought_to_one():
    source = [{"image": png(np.full((side, 4, 3), side, np.uint8)), "label": side - 4} for side in (4, 4, 5)]
    with pytest.raises(ValueError, match=r"image 2 of train in set is \(5, 4, 3\) but image 0 is \(4, 4, 3\)"):
        decode(source, "train")
    images, labels = decode(source, "train", image_size=2)
    np.testing.assert_array_equal(images, np.broadcast_to(np.reshape([4, 4, 5], (3, 1, 1, 1)), (3, 2, 2, 3)))
    np.testing.assert_array_equal(labels, [0, 0, 1])


@pytest.mark.skipif(not (CIFAR / "cifar10").is_dir(), reason=f"no CIFAR-10 under {CIFAR}")
def test_real_cifar10_reads_as_published():
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepared.find("cifar10", CIFAR))
    source = builder.as_data_source("test[:300]", decoders={"image": tfds.decode.SkipDecoding()})
    images, labels = decode(source, "test")
    np.testing.assert_array_equal(images[7], builder.as_data_source("test[:300]")[7]["image"])
    assert images.shape == (300, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(labels), np.arange(10))
    mean, _ = arrays.channel_statistics(images)
    np.testing.assert_allclose(mean, data.CONSTANTS["cifar10"].mean, atol=0.02)
