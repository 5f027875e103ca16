"""From plain arrays to a checked ``Dataset``: class-major uint8 images, constants, validation, hash."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from numpy.typing import ArrayLike

from metadd_jax import files
from metadd_jax.data import catalog
from metadd_jax.structs import Dataset, ImageArrays

Device = TypeVar("Device", ImageArrays, Dataset)
_LONGEST_NAME = 200
_ROUNDING = 1e-6  # how far float pixels may stand outside [0, 1]: what float32 arithmetic leaves
_FLAT = 1e-6  # A channel whose pixels spread less than this has no scale to divide by.


def from_arrays(
    name: str,
    train_images: ArrayLike,
    train_labels: ArrayLike,
    test_images: ArrayLike,
    test_labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    train_per_class: int | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Checks arrays and builds a ``Dataset`` from them.

    Images are sorted by class, so that one class is a slice; the order within a class is kept. Float images are rounded
    to the nearest of 256 levels: a data set is stored as uint8, a quarter of the memory of float32. The result holds
    NumPy arrays on the host; ``to_device`` puts them on the device.

    Args:
      name: what to call the set; a name of ``catalog.CONSTANTS`` brings its constants and class names.
      train_images: [N, H, W, C] or [N, H, W], C 1 or 3: integers in [0, 255] or floats in [0, 1].
      train_labels: [N] integers in [0, K) of any width; every class must occur.
      test_images: as ``train_images``, of the same H, W and C.
      test_labels: [N_test] integers in [0, K); a class may be missing.
      class_names: K names in label order, each one printable line of at most 200 characters; default the
        catalog's where their number fits, else "0", "1", ...
      mean: [C] of pixels in [0, 1]; default the catalog's, else computed from all training images.
      std: [C], positive, given together with ``mean``.
      train_per_class: most training images of a class to use, drawn before any are set aside; None uses all. The
        draw does not depend on ``seed``. Computed constants are those of the images in use.
      validation_fraction: share of each training class to set aside, in [0, 1). Above 0, a class of two or
        more images gives at least one and keeps at least one; a single image stays in training.
      seed: which images are set aside.

    Raises:
      ValueError: for arrays that are no image-classification set, with the numbers and the mend.

    Example:
      >>> images = np.arange(6 * 8 * 8 * 3).reshape(6, 8, 8, 3) % 256
      >>> dataset = from_arrays("mine", images, [2, 0, 1, 1, 0, 2], images[:3], [0, 1, 2])
      >>> dataset.image_shape, dataset.train.labels.tolist()
      ((8, 8, 3), [0, 0, 1, 1, 2, 2])
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; give a share from 0 to below 1")
    if train_per_class is not None and train_per_class < 1:
        raise ValueError(f"train_per_class is {train_per_class}; give a number of images, or None for all")
    # Everything is checked before anything is sorted or copied: ImageNet takes minutes.
    images = check_images(train_images, "training")
    test_images = check_images(test_images, "test")
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"training images are {images.shape[1:]} but test images {test_images.shape[1:]} "
            "(height, width, channels); bring both to one size"
        )
    labels = check_labels(train_labels, len(images), "training")
    test_labels = check_labels(test_labels, len(test_images), "test")
    if train_per_class:
        kept = first_of_each_class(labels, train_per_class)
        images, labels = images[kept], labels[kept]
    class_names = _class_names(name, labels, class_names)
    _check_classes(labels, test_labels, class_names)
    # Before validation images leave: constants must not change with the seed that chooses these.
    constants = _constants(name, images, mean, std)

    def build(picked_images: np.ndarray, picked_labels: np.ndarray) -> ImageArrays:
        return _class_major(picked_images, picked_labels, len(class_names), constants)

    validation = None
    if validation_fraction > 0:
        kept, taken = stratified_split(labels, validation_fraction, seed)
        if not len(taken):
            raise ValueError("every class has a single image, none can be set aside; use validation_fraction 0")
        validation = build(images[taken], labels[taken])
        images, labels = images[kept], labels[kept]
    arrays, test = build(images, labels), build(test_images, test_labels)
    splits = [split for split in (arrays, test, validation) if split is not None]
    # Of what is used, not of the files: the same pixels from a folder and from an .npz are the same data.
    fingerprint = files.hash_arrays(*constants, *(array for split in splits for array in (split.images, split.labels)))
    return Dataset(name, arrays, test, validation, class_names, fingerprint)


def to_device(arrays: Device) -> Device:
    """Puts a split or a whole data set on the default device, so that draws from it copy nothing.

    Args:
      arrays: one split (``ImageArrays``), or a ``Dataset`` with all of its splits.

    Returns:
      The same with JAX arrays.
    """
    if not isinstance(arrays, Dataset):
        return jax.device_put(arrays)
    splits = {name: getattr(arrays, name) for name in ("train", "test", "validation")}
    return dataclasses.replace(arrays, **{name: jax.device_put(split) for name, split in splits.items() if split})


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sets a share of each class aside.

    Args:
      labels: [N] int, all at least 0.
      fraction: the share, in (0, 1), rounded to whole images but at least one and never all of a class; a
        class with a single image gives none.
      seed: which images.

    Returns:
      kept, taken: increasing positions in ``labels`` that together name each image once.
    """
    # RandomState's stream is frozen by NumPy's policy, so a split stays the same over NumPy versions.
    generator = np.random.RandomState(seed)
    is_taken = np.zeros(len(labels), bool)
    # One draw a class, so that the share holds in each and not only on average.
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # Half up: Python's round would take the even neighbour, and 2.5 and 3.5 images would give 2 and 4.
        share = min(max(int(fraction * len(members) + 0.5), 1), len(members) - 1)
        is_taken[generator.permutation(members)[:share]] = True
    return np.flatnonzero(~is_taken), np.flatnonzero(is_taken)


def first_of_each_class(labels: np.ndarray, most: int) -> np.ndarray:
    """Chooses at most ``most`` images of each class, always the same ones.

    Args:
      labels: [N] int, all at least 0.
      most: images a class, at least 1.

    Returns:
      Increasing positions in ``labels``.
    """
    # One permutation cut at ``most``: a smaller limit gives a part of what a larger one gives. At random, since files
    # often lie in the order in which they were taken.
    order = np.random.RandomState(0).permutation(len(labels))
    kept = [order[labels[order] == label][:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))


def check_labels(labels: ArrayLike, number: int, split: str) -> np.ndarray:
    """Converts labels to [N] int32, once they are seen to fit.

    Args:
      labels: what the user gave.
      number: how many images there are, N.
      split: "training", whose labels are all below N, or "test"; an error calls them so.

    Raises:
      ValueError: if they are not N integers, all at least 0 and, of training images, below N.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"{split} labels have shape {labels.shape}; give one integer an image ([N])")
    if len(labels) != number:
        raise ValueError(f"{len(labels)} {split} labels for {number} images; give one label an image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{split} labels are {labels.dtype}; give integers from 0 to K - 1")
    # Before any conversion: 2**32 + 1 as 32 bits is 1.
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise ValueError(f"{split} labels go down to {least}; number the classes from 0")
    # Every class must occur, so N training images have labels below N; what counts the classes would take their memory.
    if most > np.iinfo(np.int32).max or (split == "training" and most >= number):
        raise ValueError(
            f"{split} labels go up to {most} for {number} images, so that classes are without images; number the "
            "classes from 0 to K - 1 without gaps"
        )
    return labels.astype(np.int32)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and standard deviation of each channel, over all pixels in [0, 1].

    Args:
      images: [N, H, W, C] uint8 (may be memory-mapped).

    Returns:
      mean, std: [C] float64 each; the deviation is that over all pixels (divided by their number).
    """
    channels = images.shape[-1]
    # How often each of the 256 levels occurs decides both, exactly and without a float copy of the set.
    histogram = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024].reshape(-1, channels)
        histogram += [np.bincount(channel, minlength=256) for channel in block.T]
    share = histogram / histogram.sum(axis=1, keepdims=True)
    levels = np.arange(256) / 255.0
    mean = share @ levels
    return mean, np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))


def _class_major(
    images: np.ndarray, labels: np.ndarray, num_classes: int, constants: tuple[np.ndarray, np.ndarray]
) -> ImageArrays:
    # A sorted set is not copied: a memory-mapped one may be larger than the memory.
    if np.any(np.diff(labels) < 0):
        order = np.argsort(labels, kind="stable")
        images, labels = images[order], labels[order]
    counts = np.bincount(labels, minlength=num_classes).astype(np.int32)
    offsets = (np.cumsum(counts) - counts).astype(np.int32)
    return ImageArrays(images, labels, offsets, counts, *constants, max_count=int(counts.max()))


def check_images(images: ArrayLike, split: str) -> np.ndarray:
    """Converts images to [N, H, W, C] uint8, once they are seen to be grey or RGB pictures.

    Args:
      images: what the user gave: [N, H, W, C] or [N, H, W] (grey).
      split: what to call them in an error ("training", "test").

    Raises:
      ValueError: if they are no grey or RGB images: integers in [0, 255] or floats in [0, 1].
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{split} images have shape {images.shape}; give at least one, as [N, H, W, C] or [N, H, W]")
    if images.shape[-1] not in (1, 3):
        # PyTorch's users bring channels first; the line to mend that is one they can paste.
        mend = "images.transpose(0, 2, 3, 1)" if images.shape[1] in (1, 3) else "grey or RGB images"
        raise ValueError(f"{split} images have {images.shape[-1]} channels, not 1 or 3; give {mend}")
    if images.dtype == np.uint8:
        return images
    is_float = np.issubdtype(images.dtype, np.floating)
    if not is_float and not np.issubdtype(images.dtype, np.integer):
        raise ValueError(f"{split} images are {images.dtype}; give uint8, or floats in [0, 1]")
    if is_float and (bad := int((~np.isfinite(images)).sum())):
        raise ValueError(f"{split} images hold {bad} NaN or infinite pixels; remove or mend these images")
    # Floats from 0 to 255 and integers from 0 to 1 are not guessed at: a dark picture would pass for either.
    top = 1 if is_float else 255
    slack = _ROUNDING if is_float else 0
    if images.min() < -slack or images.max() > top + slack:
        raise ValueError(
            f"{split} images are {images.dtype} from {images.min():.9g} to {images.max():.9g}, "
            f"outside [0, {top}]; give uint8, or floats in [0, 1]"
        )
    return np.rint(np.clip(images, 0, 1) * 255.0).astype(np.uint8) if is_float else images.astype(np.uint8)


def _check_classes(labels: np.ndarray, test_labels: np.ndarray, class_names: Sequence[str]) -> None:
    num_classes = len(class_names)
    for split, values in (("training", labels), ("test", test_labels)):
        if values.max() >= num_classes:
            raise ValueError(  # class_names are too few, or a class has test images only
                f"{split} labels go up to {values.max()}, but there are {num_classes} classes; "
                f"give labels from 0 to {num_classes - 1}"
            )
    if num_classes < 2:
        raise ValueError("all training labels are 0; a classification set needs at least 2 classes")
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {num_classes} classes have no training image, first class {empty[0]} "
            f"({class_names[empty[0]]}); add images or renumber the labels without gaps"
        )


def _class_names(name: str, labels: np.ndarray, class_names: Sequence[str] | None) -> tuple[str, ...]:
    if class_names is not None:
        names = tuple(str(class_name) for class_name in class_names)
        for number, text in enumerate(names):
            # Names become folder names, table cells and JSON: no line breaks, no control characters.
            if not text.isprintable() or not 0 < len(text) <= _LONGEST_NAME:
                raise ValueError(
                    f"the name of class {number} has {len(text)} characters and reads {text[:40]!r}; give 1 to "
                    f"{_LONGEST_NAME} printable ones in one line"
                )
        return names
    num_classes = int(labels.max()) + 1
    known = catalog.CLASS_NAMES.get(name, ())
    return known if len(known) == num_classes else tuple(str(label) for label in range(num_classes))


def _constants(
    name: str, images: np.ndarray, mean: ArrayLike | None, std: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses mean and std, [C] float32: those given, else those of the catalog, else those of the images."""
    channels = images.shape[-1]
    if (mean is None) != (std is None):
        raise ValueError("only one of mean and std is given; give both or neither")
    known = catalog.CONSTANTS.get(name)
    # The number of channels tells a user's set that happens to be called "svhn" from the catalog's.
    if mean is None and known and len(known.mean) == channels:
        mean, std = known
    elif mean is None:
        mean, std = channel_statistics(images)
        if std.min() < _FLAT:
            raise ValueError(
                f"channel {std.argmin()} is the same in all training pixels, so it has no deviation to divide by; save "
                "grey images, or pass mean and std: as arrays of the .npz, or to load or from_arrays"
            )
    mean, std = _real_numbers("mean", mean), _real_numbers("std", std)
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"mean has shape {mean.shape} and std {std.shape}; images of {channels} channels need ({channels},) each"
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and std.min() > 0):
        raise ValueError(f"mean {mean.tolist()} and std {std.tolist()} must be finite, and std positive")
    return mean, std


def _real_numbers(what: str, values: ArrayLike | None) -> np.ndarray:
    try:
        found = np.asarray(values)
    except (ValueError, TypeError, OverflowError):  # of lists of unequal lengths, or numbers without end
        found = np.array(None)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{what} holds no real numbers ({found.dtype}); give one number a channel")
    with np.errstate(over="ignore"):  # becomes infinite, and is told as such
        return found.astype(np.float32)
