"""Folders that are whole or absent: written beside their place, sealed with a manifest, then renamed.

A process that dies while it writes leaves a hidden sibling behind, never half a folder under the final name.
The manifest (sizes and SHA-256 of every file) lets a reader refuse a folder that was damaged afterwards.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import shutil
from collections.abc import Iterator

import jax
import numpy as np

from metadd_jax import files

MANIFEST = "manifest.json"


def partial_path(directory: pathlib.Path, process: int) -> pathlib.Path:
    """The hidden sibling of ``directory`` in which ``process`` (its id) writes."""
    return directory.with_name(f".{directory.name}.partial-{process}")


@contextlib.contextmanager
def whole_folder(directory: str | os.PathLike, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yields a hidden empty folder that becomes ``directory`` when the block ends without an error.

    Args:
      directory: the final path; parents are made.
      overwrite: replace what stands there. The old one is removed only after the new one is complete.

    Raises:
      ValueError: if ``directory`` exists and ``overwrite`` is False (before anything is written).
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    if os.path.lexists(directory) and not overwrite:
        raise ValueError(f"{directory} exists already; choose another path or ask to overwrite it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory.parent, glob.escape(directory.name))
    partial = partial_path(directory, os.getpid())
    partial.mkdir()
    try:
        yield partial
        if os.path.lexists(directory):
            remove(directory, replacement=partial)
        else:
            os.rename(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove(directory: pathlib.Path, *, replacement: pathlib.Path | None = None) -> None:
    """Renames ``directory`` away, puts ``replacement`` in its place, and only then deletes the old files."""
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    os.rename(directory, old)
    if replacement is not None:
        os.rename(replacement, directory)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    else:
        old.unlink()


def remove_leftovers(parent: pathlib.Path, name: str) -> None:
    """Deletes the hidden remains of saves to ``parent/name`` (a glob pattern) whose process is gone."""
    for kind in ("partial", "old"):
        for path in parent.glob(f".{name}.{kind}-*"):
            # Parallel runs share caches: what a living process is writing at this moment stays.
            if not _alive(int(path.name.rpartition("-")[2])):
                shutil.rmtree(path, ignore_errors=True)


def seal(directory: pathlib.Path) -> None:
    """Writes ``manifest.json``: size in bytes and SHA-256 of each file in ``directory``, and versions."""
    entries = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": files.hash_file(directory / name)}
        for name in _names(directory)
    }
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    files.write_json(directory / MANIFEST, {"versions": versions, "files": entries})


def check(directory: str | os.PathLike) -> pathlib.Path:
    """Proves that ``directory`` holds exactly the files it was sealed with; returns its absolute path.

    Raises:
      ValueError: naming the first file that is missing, truncated, changed or foreign.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    if not directory.is_dir():
        raise ValueError(f"no checkpoint at {directory}; check the path")
    entries = _read_entries(directory)
    for name, entry in entries.items():
        path = directory / name
        if not path.is_file():
            raise _damaged(path, "is missing")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise _damaged(path, f"has {size} bytes instead of {entry['bytes']}")
        if files.hash_file(path) != entry["sha256"]:
            raise _damaged(path, "is not what was written (its SHA-256 differs)")
    foreign = sorted(set(_names(directory)) - set(entries))
    if foreign:
        raise _damaged(directory / foreign[0], "does not belong to this checkpoint")
    return directory


def _read_entries(directory: pathlib.Path) -> dict:
    path = directory / MANIFEST
    if not path.is_file():
        raise _damaged(path, "is missing")
    try:
        entries = files.read_json(path)["files"]
        return {str(name): {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "is not a readable manifest") from error


def _damaged(path: pathlib.Path, what: str) -> ValueError:
    return ValueError(f"{path} {what}; left as it is; move the folder away or restore it")


def _names(directory: pathlib.Path) -> list[str]:
    found = (path for path in directory.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(directory).as_posix() for path in found if path != directory / MANIFEST)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
