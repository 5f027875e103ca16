"""Files on the host: whole-or-absent writes, content hashes, and the checks made before long work starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of ``path`` that replaces it only when the block ends without an error."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` so that ``path`` holds all of it or what it held before."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, default=_plain) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON; a damaged file is refused by name.

    Raises:
      ValueError: if the file is not valid JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); move it away or restore it") from error


def hash_arrays(*arrays: Any, text: str = "") -> str:
    """SHA-256 (hex) over the bytes, shapes and types of ``arrays`` and over ``text``."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        plain = np.ascontiguousarray(array)
        digest.update(f"{plain.dtype.str}{plain.shape}".encode())
        digest.update(plain.tobytes())
    return digest.hexdigest()


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_writable(directory: str | os.PathLike) -> pathlib.Path:
    """Makes ``directory`` and proves that a file can be written there; returns its absolute path.

    Raises:
      ValueError: if it cannot be made or written to.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(f"cannot write in {directory} ({error.strerror}); choose another folder") from error
    return directory


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "tolist"):
        return np.asarray(value).tolist()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
