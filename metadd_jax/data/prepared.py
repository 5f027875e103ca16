"""Reads image sets that TensorFlow Datasets prepared as ArrayRecord, without TensorFlow."""

from __future__ import annotations

import difflib
import os
import pathlib

import numpy as np

from metadd_jax import files
from metadd_jax.data import catalog
from metadd_jax.data.cache import RawSet

_TEST_SPLITS = ("test", "validation")
_INSTALL = "do `pip install tensorflow-datasets pillow importlib_resources`"


def find(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Finds the newest prepared version of a set: the folder that holds its ``dataset_info.json``.

    Only files are looked at: TFDS itself would go to the network for a set that is not there.

    Args:
      name: TFDS name, ``NAME`` or ``NAME/CONFIG``, or a name of the catalog that stands for one.
      data_dir: where TFDS sets lie; None stands for $TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Raises:
      ValueError: if it is unknown, not prepared, of several configurations, or not an ArrayRecord.
    """
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    tfds_name = catalog.TFDS_NAMES.get(name, name)
    folder = root / tfds_name
    versions = list(folder.glob("*/dataset_info.json")) or list(folder.glob("*/*/dataset_info.json"))
    if not versions:
        raise ValueError(_absent(name, tfds_name, root))
    configs = sorted({path.parent.parent for path in versions})
    if len(configs) > 1:
        choices = ", ".join(f"{tfds_name}/{config.name}" for config in configs)
        raise ValueError(f"{name} is prepared in {len(configs)} configurations; name one of {choices}")
    info = max(versions, key=lambda path: _version(path.parent.name))
    file_format = files.read_json(info).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise ValueError(
            f"{info.parent} is stored as {file_format}, which only TensorFlow reads; prepare it again with "
            f"`tfds build {tfds_name} --file_format=array_record`, or give another --data-dir"
        )
    return info.parent


def facts(folder: pathlib.Path) -> list:
    """Names and sizes of all files, hashes of the small ones that describe them: the key of the cache."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    describing = [path for path in paths if path.suffix in (".json", ".txt")]
    return [
        [[path.name, path.stat().st_size] for path in paths],
        [files.hash_file(path) for path in describing],
    ]


def read(folder: pathlib.Path, *, progress: bool) -> RawSet:
    """Decodes the training split and the test split (validation where the test labels are not public).

    Raises:
      ValueError: if a library is missing, or the set has no such splits, is no image-classification set, has
        images of several sizes, or is damaged.
    """
    try:
        import PIL  # noqa: F401  (TFDS decodes with it)
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
    except ImportError as error:
        raise ValueError(f"cannot read {folder} ({error}); {_INSTALL}") from error
    features, keys = builder.info.features, builder.info.supervised_keys
    if keys is None or len(keys) != 2 or not isinstance(features[keys[1]], tfds.features.ClassLabel):
        raise ValueError(f"{folder} does not pair an image with one class label; choose a classification set")
    test = _test_split(builder, keys[1])
    splits = [_decode(builder.as_data_source(split), keys, folder, split, progress) for split in ("train", test)]
    return RawSet(*splits[0], *splits[1], class_names=np.array(features[keys[1]].names))


def _test_split(builder, label_key: str) -> str:
    present = [split for split in _TEST_SPLITS if split in builder.info.splits]
    if "train" in builder.info.splits:
        for split in present:
            # Competitions hide the labels of the test split: TFDS then gives -1.
            if builder.as_data_source(split)[0][label_key] >= 0:
                return split
    raise ValueError(
        f"{builder.name} has the splits {', '.join(builder.info.splits)}, not a train split and a labelled "
        "test or validation split; give its arrays as .npz instead"
    )


def _decode(source, keys: tuple[str, str], folder: pathlib.Path, split: str, progress: bool):
    from tqdm import tqdm

    images, labels = None, np.empty(len(source), np.int64)
    for i in tqdm(range(len(source)), desc=f"decode {split}", disable=not progress):
        try:
            example = source[i]
        except (RuntimeError, OSError, IndexError, ValueError) as error:
            raise ValueError(f"image {i} of {split} in {folder} is damaged ({error}); prepare it again") from error
        image, labels[i] = example[keys[0]], example[keys[1]]
        if images is None:
            images = np.empty((len(source), *image.shape), image.dtype)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"image {i} of {split} in {folder} is {image.shape} but image 0 is {images.shape[1:]}; "
                "resize the images to one size and give them as folders or .npz"
            )
        images[i] = image
    return images, labels


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def _absent(name: str, tfds_name: str, root: pathlib.Path) -> str:
    """Says, in one line, what to do about a set that is not under ``root``."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        return f"{name!r} is not under {root}, and TensorFlow Datasets is not there ({error}); {_INSTALL}"
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
    known = {"mnist5k", *catalog.CONSTANTS, *published, *(path.name for path in root.glob("[!.]*"))}
    close = difflib.get_close_matches(name, sorted(known))
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return (
        f"unknown data set {name!r}{hint}; give mnist5k, a TensorFlow Datasets name such as cifar10, a path "
        "ending in .npz, or a folder with train/CLASS/ and test/CLASS/"
    )
