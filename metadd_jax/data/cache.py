"""Keeps decoded data sets on disk, so that the second start takes seconds."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from metadd_jax import files

_LAYOUT = 1  # Raise when RawSet or a decoder changes: older cache files are then no longer looked at.


class RawSet(NamedTuple):
    """What a decoder reads, as it lies on disk: not yet checked, not yet sorted.

    Attributes:
      train_images: [N, H, W, C].
      train_labels: [N] integers.
      test_images: [N_test, H, W, C].
      test_labels: [N_test] integers.
      class_names: [K] strings in label order, or None where the source names none (never so in the cache).
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: np.ndarray | None


def cache_folder(cache_dir: str | os.PathLike | None) -> pathlib.Path:
    """The folder for decoded images and trained networks: ``cache_dir``, else $METADD_CACHE, else the user's own."""
    return pathlib.Path(cache_dir or os.environ.get("METADD_CACHE") or "~/.cache/metadd_jax").expanduser()


def cached(cache_dir: str | os.PathLike | None, name: str, facts: Any, decode: Callable[[], RawSet]) -> RawSet:
    """Reads the set from the cache, or decodes it and leaves a copy there.

    A damaged cache file is decoded anew and replaced. A cache that cannot be written costs only time at the
    next start, so it is logged and no error.

    Args:
      cache_dir: the folder; None stands for $METADD_CACHE, or else ~/.cache/metadd_jax.
      name: start of the file's name, for the human reader.
      facts: JSON value that changes whenever the data would (sizes, times, hashes): the key.
      decode: reads the data set itself.
    """
    key = files.hash_arrays(text=json.dumps([_LAYOUT, facts]))[:16]
    path = cache_folder(cache_dir) / f"{name}-{key}.npz"
    raw = _read(path)
    if raw is not None:
        return raw
    raw = decode()
    try:
        with files.atomic_path(path) as temporary:
            np.savez(temporary, **raw._asdict())
    except OSError as error:
        logging.getLogger(__name__).warning("decoded images are not kept: cannot write %s (%s)", path, error)
    return raw


def _read(path: pathlib.Path) -> RawSet | None:
    try:
        # A zip archive carries checksums: reading all of it proves it whole.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return RawSet(*(archive[field] for field in RawSet._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
