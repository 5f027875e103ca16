"""Keeps decoded data sets on disk, so that the second start takes seconds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import lzma
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metadd_jax import files, provenance

# What NumPy and zipfile raise for damaged files; NumPy parses a head as Python text.
UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, MemoryError,
    SyntaxError, tokenize.TokenError,
)  # fmt: skip
_WHOLE = 1 << 29  # bytes of a set that are all hashed at every start: a second
_BLOCK, _BLOCKS = 1 << 16, 1024  # of a larger set: 64 MB, spread over all of it


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
    """Finds the folder for decoded images, trained networks and compiled programs.

    Args:
      cache_dir: the folder; None stands for $METADD_CACHE, or else ~/.cache/metadd_jax.
    """
    return pathlib.Path(cache_dir or os.environ.get("METADD_CACHE") or "~/.cache/metadd_jax").expanduser()


def content(root: pathlib.Path, paths: Sequence[pathlib.Path]) -> str:
    """Hashes what files hold, for the key of the cache.

    Up to 512 MB in all that is every byte, so that a mended label is seen whatever the file's size and time. Above, it
    is size and time of change of each file, and 64 MB in blocks at even distances over all of them.

    Args:
      root: the folder that their names count from: a copied set has the same key.
      paths: regular files, in any fixed order.

    Returns:
      SHA-256 (hex).
    """
    status = [(path, path.stat()) for path in paths]
    total = sum(facts.st_size for _, facts in status)
    digest = hashlib.sha256()
    for path, facts in status:
        # Of a large set the times count as well: an edit between the blocks leaves them as they are.
        held = files.hash_file(path) if total <= _WHOLE else f"{facts.st_size} {facts.st_mtime_ns}"
        digest.update(f"{path.relative_to(root).as_posix()}\0{held}\n".encode("utf-8", "surrogateescape"))
    if total > _WHOLE:
        # Blocks count their distance through all files as if these were one: a thousand small files get few of them.
        start, due, step = 0, 0, total // _BLOCKS
        for path, facts in status:
            with contextlib.ExitStack() as opened:
                stream = None
                while due < start + facts.st_size:
                    stream = stream or opened.enter_context(open(path, "rb"))
                    stream.seek(due - start)
                    digest.update(stream.read(_BLOCK))
                    due += step
            start += facts.st_size
    return digest.hexdigest()


def cached(cache_dir: str | os.PathLike | None, name: str, facts: Any, decode: Callable[[], RawSet]) -> RawSet:
    """Reads the set from the cache, or decodes it and leaves a copy there.

    A damaged cache file is decoded anew and replaced. A cache that cannot be written costs only time at the
    next start, so it is logged and no error.

    Args:
      cache_dir: the folder; None stands for $METADD_CACHE, or else ~/.cache/metadd_jax.
      name: start of the file's name, for the human reader.
      facts: JSON value that changes whenever the data would (``content``, settings); with the readers' own code it is
        the key.
      decode: reads the data set itself.
    """
    key = files.hash_arrays(text=json.dumps([provenance.sources(*provenance.READING), facts]))[:16]
    path = cache_folder(cache_dir) / f"{name}-{key}.npz"
    raw = _read(path)
    if raw is not None:
        return raw
    raw = decode()
    try:
        with files.atomic_path(path) as temporary:
            # Not compressed: pictures shrink little, and unpacking takes longer than reading.
            np.savez(temporary, **raw._asdict())
    except OSError as error:
        logging.getLogger(__name__).warning("decoded images are not kept: cannot write %s (%s)", path, error)
    return raw


def _read(path: pathlib.Path) -> RawSet | None:
    try:
        # A zip archive carries checksums: reading all of it proves it whole.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return RawSet(*(archive[field] for field in RawSet._fields))
    except (*UNREADABLE, KeyError):
        return None
