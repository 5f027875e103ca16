"""Reads a user's .npz of images and labels. What it claims to hold is checked before anything is unpacked."""

from __future__ import annotations

import math
import pathlib
import warnings
import zipfile
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from metadd_jax import files
from metadd_jax.data import decoding
from metadd_jax.data.arrays import check_images, check_labels, stratified_split
from metadd_jax.data.cache import UNREADABLE, RawSet

# Fixed, so that everybody has the same test split: no option reaches them.
_TEST_FRACTION = 0.2
_TEST_SEED = 0
_IMAGES, _TEST = ("images", "labels"), ("test_images", "test_labels")
FIELDS = (*_IMAGES, *_TEST, "class_names", "mean", "std")
# No pictures are packed 200-fold, but for blank ones; a bomb of zeros is packed 1000-fold.
_PACKED, _LARGE = 200, 1 << 28
_SHOWN = 10


class Contents(NamedTuple):
    """What an .npz holds: the images and, where given, the constants to standardise them by, [C] each."""

    raw: RawSet
    mean: np.ndarray | None
    std: np.ndarray | None


def read(path: pathlib.Path) -> Contents:
    """Reads a user's .npz.

    Args:
      path: a file with ``images`` and ``labels`` and, where the user has them, ``test_images`` with ``test_labels``,
        ``class_names``, ``mean`` with ``std``. Without test images a fifth of each class is the test split, by a fixed
        seed.

    Raises:
      ValueError: if the file is absent, damaged or no .npz, lacks what it needs, or claims more than it holds.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path of an .npz with images and labels")
    # Told apart by content: np.save puts .npy at the end of a name, and people rename.
    with open(path, "rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            raise ValueError(f"{path} is a single array; save images and labels together by np.savez")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _arrays(path, archive)
    except UNREADABLE as error:
        if isinstance(error, _RefusedError):
            raise
        raise ValueError(f"{path} is no readable .npz of plain arrays ({error!s:.200}); save it again") from error
    return contents(path, arrays)


def contents(source: object, arrays: Mapping[str, np.ndarray]) -> Contents:
    """Makes a raw set of named arrays.

    Args:
      source: what to call the set in an error.
      arrays: those of ``FIELDS`` that there are, all that ``required`` names among them.

    Returns:
      The set; without test images a fifth of each class is the test split, by a fixed seed.

    Raises:
      ValueError: see ``split_off_test``; or if the class names are no list of texts.
    """
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        raise ValueError(f"class_names of {source} are {names.dtype} of shape {names.shape}; save a list of texts")
    if "test_images" in arrays:
        raw = RawSet(arrays["images"], arrays["labels"], arrays["test_images"], arrays["test_labels"], names)
    else:
        raw = RawSet(*split_off_test(source, arrays["images"], arrays["labels"]), names)
    return Contents(raw, arrays.get("mean"), arrays.get("std"))


def required(source: object, found: Collection[str]) -> list[str]:
    """Lists the arrays that a set must have.

    Args:
      source: what to call the set in an error.
      found: the names of the arrays that it has.

    Raises:
      ValueError: if one of them is missing.
    """
    wanted = list(_IMAGES)
    # Half of a pair is a slip that must not pass: test images without labels would be left out in silence.
    for pair in (_TEST, ("mean", "std")):
        wanted += pair if set(found) & set(pair) else ()
    if missing := [field for field in wanted if field not in found]:
        raise _RefusedError(
            f"{source} holds {sorted(found)[:_SHOWN]} but not {', '.join(missing)}; save images and labels (and both "
            "of test_images and test_labels, of mean and std, or neither)"
        )
    return wanted


def split_off_test(
    source: object, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Takes a fifth of each class as test split.

    Args:
      source: what to call the set in an error.
      images: [N, H, W, C] or [N, H, W], as ``arrays.check_images`` takes them.
      labels: [N] integers in [0, K).

    Returns:
      images, labels, test images, test labels.

    Raises:
      ValueError: if these are no images and labels, or no class has two images.
    """
    images = check_images(images, "training")
    labels = check_labels(labels, len(images), "training")
    kept, taken = stratified_split(labels, _TEST_FRACTION, _TEST_SEED)
    if not len(taken):
        raise ValueError(
            f"{source} has no test_images, and one image a class is too few to take some for a test split; "
            "add test_images and test_labels, or more images"
        )
    return images[kept], labels[kept], images[taken], labels[taken]


class _RefusedError(ValueError):
    """A member that is not read, in one line that says why."""


def _arrays(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    wanted = required(path, members)
    # A misspelt "class_name" would otherwise be without effect and without a word.
    if unused := sorted(members.keys() - set(FIELDS)):
        warnings.warn(
            f"{path}: {len(unused)} arrays are not used: {', '.join(unused[:_SHOWN])}; used are {', '.join(FIELDS)}",
            stacklevel=5,
        )
    wanted += ["class_names"] if "class_names" in members else []
    return {field: read_array(path, archive, members[field], field) for field in wanted}


def read_array(path: pathlib.Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, field: str) -> np.ndarray:
    """Reads one array of an npz, once what its head claims is seen to be there and to fit.

    Args:
      path: the npz, for errors.
      archive: the npz, opened.
      info: the member.
      field: what an error calls it.

    Returns:
      The array; never Python objects.

    Raises:
      ValueError: if it claims more than it holds or than fits into memory, or holds objects; of a damaged archive also
        those of ``cache.UNREADABLE``.
    """
    with archive.open(info) as stream:
        shape, dtype = files.array_head(stream)
    if dtype.hasobject:
        raise _RefusedError(
            f"{field} of {path} are Python objects, which are not read; save them as plain numbers or text"
        )
    claimed = math.prod(shape) * dtype.itemsize
    # Three ways to be too large, each with its own mend, and all before NumPy makes room for what the head claims.
    if claimed > info.file_size:
        raise _RefusedError(
            f"{field} of {path} claims {math.prod(shape)} numbers of {dtype} but holds {info.file_size} bytes; "
            "save it again"
        )
    if claimed > decoding.memory():
        raise _RefusedError(
            f"{field} of {path} takes {claimed / 1e9:.1f} GB, more than this machine's memory; save fewer"
        )
    if claimed > max(_LARGE, _PACKED * info.compress_size):
        raise _RefusedError(
            f"{field} of {path} unpacks to {claimed / 1e9:.1f} GB from {info.compress_size / 1e6:.1f} MB, which no "
            "pictures do; save it by np.savez, without compression, if it is meant so"
        )
    # Pickles may run any code, and a data set comes from anywhere.
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
