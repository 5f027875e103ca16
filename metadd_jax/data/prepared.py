"""Reads image sets that TensorFlow Datasets prepared as ArrayRecord, without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metadd_jax import files
from metadd_jax.data import catalog, decoding
from metadd_jax.data.cache import RawSet, content

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_TEST_SPLITS = ("test", "validation")
_CLASS_NAMES = ("pythonClassName", "python_class_name", "type")  # in features.json: what is imported for a feature
_MOST_CLASSES = 1_000_000  # each gets a name
# What TFDS needs to read without TensorFlow; it does not name all of it among its own requirements.
_INSTALL = "do `pip install tensorflow-datasets pillow importlib_resources`"


def root(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Finds the folder of TFDS sets.

    Args:
      data_dir: the folder; None stands for $TFDS_DATA_DIR, or else ~/tensorflow_datasets, as in TFDS itself.
    """
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Finds the newest prepared version of a set: the folder that holds its ``dataset_info.json``.

    Only files are looked at: TFDS itself would go to the network for a set that is not there.

    Args:
      name: TFDS name, ``NAME`` or ``NAME/CONFIG``, or a name of the catalog that stands for one.
      data_dir: where TFDS sets lie; None stands for $TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Returns:
      The folder DATA_DIR/NAME[/CONFIG]/VERSION.

    Raises:
      ValueError: if it is unknown, not prepared, of several configurations, or not an ArrayRecord.
    """
    # A name of the catalog may be another set's with constants of its own.
    tfds_name = catalog.TFDS_NAMES.get(name, name)
    folder = root(data_dir) / tfds_name
    # NAME/VERSION, or NAME/CONFIG/VERSION.
    versions = list(folder.glob("*/dataset_info.json")) or list(folder.glob("*/*/dataset_info.json"))
    if not versions:
        raise ValueError(_absent(name, tfds_name, root(data_dir)))
    configs = sorted({path.parent.parent for path in versions})
    if len(configs) > 1:
        choices = ", ".join(f"{tfds_name}/{config.name}" for config in configs)
        raise ValueError(f"{name} is prepared in {len(configs)} configurations; name one of {choices}")
    # By number: as text 10.0.0 comes before 9.0.0.
    info = max(versions, key=lambda path: _version(path.parent.name))
    described = files.read_json(info)
    if not isinstance(described, dict):
        raise ValueError(f"{info} describes no data set; prepare it again")
    file_format = described.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise ValueError(
            f"{info.parent} is stored as {file_format}, which only TensorFlow reads; prepare it again with "
            f"`tfds build {tfds_name} --file_format=array_record`, or give another --data-dir"
        )
    return info.parent


def facts(folder: pathlib.Path) -> str:
    """Hashes the content of all files of a prepared set, for the key of the cache.

    Args:
      folder: from ``find``.

    Returns:
      SHA-256 (hex); of the content, since ArrayRecord pads: a mended label leaves the files' sizes as they were.
    """
    return content(folder, sorted(path for path in folder.iterdir() if path.is_file()))


def read(folder: pathlib.Path, *, classes: Sequence[int] = (), image_size: int | None = None, progress: bool) -> RawSet:
    """Decodes the training split and the test split (validation where the test labels are not public).

    Args:
      folder: a prepared set, from ``find``.
      classes: ImageNet's indices of the classes to read, in label order; empty for all of any set.
      image_size: side of the square that images are brought to (see ``decoding.to_array``); None leaves them.
      progress: whether to show bars.

    Raises:
      ValueError: if a library is missing, or the set has no such splits, is no image-classification set, has
        images of several sizes, or is damaged.
    """
    builder, keys, image, names = _open(folder)
    if classes and len(names) != catalog.IMAGENET_CLASSES:
        raise ValueError(
            f"{folder} has {len(names)} classes, not ImageNet's {catalog.IMAGENET_CLASSES}; prepare it again"
        )
    mode = "L" if image.shape[-1] == 1 else "RGB"
    # Decoded here, not by TFDS, which takes cv2 where it finds it and leaves a CMYK picture its four channels.
    decoders = _undecoded(keys)

    def decode(split: str) -> tuple[np.ndarray, np.ndarray]:
        records = _records(builder, split, decoders, folder)
        return _decode(
            records, keys, folder, split, classes=classes, mode=mode, image_size=image_size, progress=progress
        )

    train, test = decode("train"), decode(_test_split(builder, decoders, keys[1], folder))
    return RawSet(*train, *test, np.array([names[index] for index in classes] or names))


def read_split(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decodes one split of a prepared set, which need have no other.

    Args:
      folder: a prepared set.
      split: its name.

    Returns:
      images [N, H, W, C] uint8, labels [N] int64, and the class names.

    Raises:
      ValueError: as ``read``.
    """
    builder, keys, image, names = _open(folder)
    if split not in builder.info.splits:
        raise ValueError(f"{folder} has the splits {', '.join(builder.info.splits)}, not {split}; prepare it again")
    mode = "L" if image.shape[-1] == 1 else "RGB"
    records = _records(builder, split, _undecoded(keys), folder)
    images, labels = _decode(records, keys, folder, split, classes=(), mode=mode, image_size=None, progress=False)
    return images, labels, list(names)


def _open(folder: pathlib.Path) -> tuple[Any, Any, Any, Any]:
    """The builder of a prepared set, what image and label are called in it, the image's feature and the class names."""
    try:
        import PIL  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f"cannot read {folder} ({error}); {_INSTALL}") from error
    _refuse_code(folder / "features.json")
    try:
        builder = tfds.builder_from_directory(folder)
        keys = _keys(builder, folder)
        image, label = (builder.info.features[key] for key in keys)
        if not 0 < (label.num_classes or 0) <= _MOST_CLASSES:
            raise ValueError(f"{folder} claims {label.num_classes} classes; prepare it again")
        return builder, keys, image, label.names
    except Exception as error:  # of a damaged description TFDS raises whatever its steps stumble over
        if isinstance(error, ValueError) and str(error).startswith(str(folder)):
            raise
        raise ValueError(
            f"{folder} has a description that cannot be read ({files.reason(error)}); prepare it again"
        ) from error


def _refuse_code(file: pathlib.Path) -> None:
    """Refuses a description that names classes of others: TFDS would import their modules, which runs them."""
    if not file.is_file():
        raise ValueError(f"{file} is missing; prepare the set again")
    left = [files.read_json(file)]
    while left:
        value = left.pop()
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # a description within, as text
            with contextlib.suppress(ValueError, RecursionError):
                left.append(json.loads(value))
        elif isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        for name in _CLASS_NAMES if isinstance(value, dict) else ():
            named = value.get(name)
            if isinstance(named, str) and "." in named and not named.startswith("tensorflow_datasets.core.features."):
                raise ValueError(f"{file} names the class {named:.100}, which is none of TFDS's own; prepare it again")


def _undecoded(keys: Any) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return {keys[0]: tfds.decode.SkipDecoding()}


def _keys(builder: tfds.core.DatasetBuilder, folder: pathlib.Path) -> tuple[str, str]:
    """What image and label are called in a record, once they are seen to be such."""
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, builder.info.supervised_keys
    if keys is None or len(keys) != 2 or not isinstance(features[keys[1]], tfds.features.ClassLabel):
        raise ValueError(f"{folder} does not pair an image with one class label; choose a classification set")
    image = features[keys[0]]
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(f"{folder} holds no 8-bit images; give its arrays as .npz instead")
    return keys


def _records(builder: tfds.core.DatasetBuilder, split: str, decoders: dict, folder: pathlib.Path) -> Any:
    """The records of a split by number.

    Raises:
      ValueError: for a description of another kind of file than can be read so; TFDS has many errors for it.
    """
    try:
        return builder.as_data_source(split, decoders=decoders)
    except Exception as error:
        raise ValueError(
            f"{folder} has no records that can be read ({files.reason(error)}); prepare it again"
        ) from error


def _test_split(builder: tfds.core.DatasetBuilder, decoders: dict, label_key: str, folder: pathlib.Path) -> str:
    present = [split for split in _TEST_SPLITS if split in builder.info.splits]
    if "train" in builder.info.splits:
        for split in present:
            # Competitions hide the labels of the test split: TFDS then gives -1.
            if _records(builder, split, decoders, folder)[0][label_key] >= 0:
                return split
    raise ValueError(
        f"{builder.name} has the splits {', '.join(builder.info.splits)}, not a train split and a labelled "
        "test or validation split; give its arrays as .npz instead"
    )


def _decode(
    records: Sequence[dict[str, Any]],
    keys: tuple[str, str],
    folder: pathlib.Path,
    split: str,
    *,
    classes: Sequence[int],
    mode: str,
    image_size: int | None,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes into one array; where only some classes are wanted, first looks which records to decode."""
    import PIL.Image
    from tqdm import tqdm

    # Every error by the record's number: TFDS's own do not say which of a million it was.
    def read(i: int, take: Callable[[dict[str, Any]], Any]) -> Any:
        try:
            return take(records[i])
        except decoding.UnfitError as error:
            raise ValueError(f"image {i} of {split} in {folder} {error}, or give the set's arrays as .npz") from error
        except (PIL.Image.DecompressionBombError, MemoryError) as error:
            raise ValueError(f"image {i} of {split} in {folder} is larger than can be opened ({error})") from error
        except (RuntimeError, OSError, SyntaxError, IndexError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"image {i} of {split} in {folder} is damaged ({error}); prepare it again") from error

    def label(record: dict[str, Any]) -> int:
        return int(record[keys[1]])

    def example(record: dict[str, Any]) -> tuple[np.ndarray, int]:
        with PIL.Image.open(io.BytesIO(record[keys[0]]), formats=decoding.FORMATS) as picture:
            return decoding.to_array(picture, mode, image_size), label(record)

    kept: Sequence[int] = range(len(records))
    if classes:
        # By the labels alone: decoding takes the time, and ten classes are a hundredth of ImageNet's pictures.
        kept = [
            i for i in tqdm(kept, desc=f"find classes in {split}", disable=not progress) if read(i, label) in classes
        ]
    if not kept:
        raise ValueError(
            f"{split} of {folder} holds no image{' of the classes asked for' if classes else ''}; prepare it again"
        )
    labels = np.empty(len(kept), np.int64)
    # The first picture gives the shape; all are decoded into one array, since a list of them would take twice the room.
    images = decoding.allocate(len(kept), read(kept[0], example)[0].shape)
    for row, i in enumerate(tqdm(kept, desc=f"decode {split}", disable=not progress)):
        image, labels[row] = read(i, example)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"image {i} of {split} in {folder} is {image.shape} but image {kept[0]} is {images.shape[1:]}; "
                "bring all to one size with image_size"
            )
        images[row] = image
    if classes:
        # From ImageNet's indices to places in the catalog's list.
        labels = np.array([classes.index(index) for index in labels.tolist()])
    return images, labels


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def _absent(name: str, tfds_name: str, root: pathlib.Path) -> str:
    """Says, in one line, what to do about a set that is not under ``root``: each kind has another mend."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        return f"{name!r} is not under {root}, and TensorFlow Datasets is not there ({error}); {_INSTALL}"
    if tfds_name == "tiny_imagenet":
        return (
            f"{name} is not prepared under {root}; give the --data-dir that holds tiny_imagenet/, or prepare it once "
            f"with `metadd prepare_tiny_imagenet tiny-imagenet-200.zip --data-dir {root}`"
        )
    if name in catalog.IMAGENET_SUBSETS:
        return (
            f"{name} is ten classes of ImageNet, which is not under {root}; give the --data-dir that holds "
            "imagenet2012/ (TFDS, ArrayRecord), or ImageNet's own folder with train/CLASS/ and val/CLASS/"
        )
    # Without the community's sets, whose list lies on the network.
    published = tfds.list_builders(with_community_datasets=False)
    if tfds_name.partition("/")[0] in published:
        return (
            f"{name} is not prepared under {root}; give the --data-dir that holds {tfds_name}/, or prepare "
            f"it once with `pip install tensorflow && tfds build {tfds_name} --file_format=array_record "
            f"--data_dir={root}`"
        )
    if name in catalog.CONSTANTS:
        return (
            f"{name} is not under {root} and not among the sets that TensorFlow Datasets publishes; give the "
            "--data-dir of a prepared copy, or a folder with train/CLASS/ and test/CLASS/"
        )
    # Also what lies in the folder already: a set of the user's own may be meant.
    known = {"mnist5k", *catalog.OWN, *catalog.CONSTANTS, *published, *(path.name for path in root.glob("[!.]*"))}
    close = difflib.get_close_matches(name, sorted(known))
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return (
        f"unknown data set {name!r}{hint}; give mnist5k, a TensorFlow Datasets name such as cifar10, a path "
        "ending in .npz, or a folder with train/CLASS/ and test/CLASS/"
    )
