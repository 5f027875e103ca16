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
_OLD = ",old"  # ends the hidden name of a folder that is being replaced


@contextlib.contextmanager
def whole_folder(
    directory: str | os.PathLike,
    *,
    overwrite: bool = False,
    keep: bool = False,
    partial: pathlib.Path | None = None,
) -> Iterator[pathlib.Path]:
    """Yields a hidden empty folder that becomes ``directory`` when the block ends without an error.

    Args:
      directory: the final path; parents are made.
      overwrite: replace a sealed folder that stands there, or an empty one. The old one is removed only after the new
        one is complete.
      keep: leave what stands there, or what another process has put there meanwhile; the new one is dropped.
      partial: the hidden folder, from ``files.temporary_path``, where other processes must know it.

    Raises:
      ValueError: if ``directory`` exists and neither is asked for: before anything is written, or at the end if another
        process was first; and if something stands there that was not written here (see ``refuse_foreign``).
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    if os.path.lexists(directory) and not (overwrite or keep):
        raise _exists(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # What an earlier run left of this very folder first: its old version may be waiting to come back.
    tidy(directory.parent, name=glob.escape(directory.name))
    refuse_foreign(directory)
    # Beside its place, not in the system's temporary folder: only within one file system is renaming a single step.
    partial = partial or files.temporary_path(directory)
    partial.mkdir()
    try:
        with files.full_disk_as_such(directory):
            yield partial
            if overwrite and os.path.lexists(directory):
                _replace(directory, partial)
            else:
                _name(partial, directory, keep)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _name(partial: pathlib.Path, directory: pathlib.Path, keep: bool) -> None:
    """Gives a complete folder its name; the file system lets one of several do so."""
    try:
        os.rename(partial, directory)
    except OSError as error:
        # Only an empty folder gives way.
        if not os.path.lexists(directory):
            raise
        if not keep:
            raise _exists(directory) from error


def _exists(directory: pathlib.Path) -> ValueError:
    return ValueError(f"{directory} exists already; choose another path or ask to overwrite it")


def _replace(directory: pathlib.Path, replacement: pathlib.Path) -> None:
    """Renames ``directory`` away and ``replacement`` into its place; if that fails the old one comes back."""
    # Two steps, since no system call exchanges two folders everywhere; ``tidy`` mends what is killed between them.
    old = _old_path(directory)
    os.rename(directory, old)
    try:
        os.rename(replacement, directory)
    except OSError as error:
        if os.path.lexists(directory):  # another process was quicker
            files.discard(old)
            raise _exists(directory) from error
        os.rename(old, directory)
        raise
    files.discard(old)


def remove(directory: pathlib.Path) -> None:
    """Deletes a folder, which is whole or absent at every moment.

    Args:
      directory: the folder, which exists.
    """
    # Deleting takes many steps; the first one takes the name away.
    gone = files.temporary_path(directory)
    os.rename(directory, gone)
    files.discard(gone)


def _old_path(directory: pathlib.Path) -> pathlib.Path:
    return files.temporary_path(directory.with_name(f"{directory.name}{_OLD}"))


def tidy(parent: pathlib.Path, *, name: str = "*") -> None:
    """Deletes what killed processes were writing; what they had renamed away comes back.

    What a living process is writing at this moment stays: parallel runs share caches.

    Args:
      parent: the folder to look in.
      name: a pattern (as of ``glob``) for the names of the folders that were being written.
    """
    # The old folders first: below they count as left behind, and one whose place is empty is the only copy.
    for path in parent.glob(f".{name}{_OLD}-metadd.*"):
        directory = parent / path.name[1 : path.name.rindex(f"{_OLD}-metadd.")]
        if files.is_left_behind(path) and not os.path.lexists(directory):
            os.rename(path, directory)
    files.remove_left_behind(parent, pattern=name)
    files.remove_left_behind(parent, pattern=f"{name}{_OLD}")


def seal(directory: pathlib.Path) -> None:
    """Writes ``manifest.json``: size in bytes and SHA-256 of each file, and versions.

    Args:
      directory: the folder, complete but for the manifest.
    """
    entries = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": files.hash_file(directory / name)}
        for name in _names(directory)
    }
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    files.write_json(directory / MANIFEST, {"versions": versions, "files": entries})


def check(directory: str | os.PathLike) -> pathlib.Path:
    """Proves that a folder holds exactly the files it was sealed with.

    Args:
      directory: the folder.

    Returns:
      Its absolute path.

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
        # The size says more than the hash, and most damage is a file cut short.
        if (size := path.stat().st_size) != entry["bytes"]:
            raise _damaged(path, f"has {size} bytes instead of {entry['bytes']}")
        if files.hash_file(path) != entry["sha256"]:
            raise _damaged(path, "is not what was written (its SHA-256 differs)")
    foreign = sorted(set(_names(directory)) - set(entries))
    if foreign:
        raise _damaged(directory / foreign[0], "does not belong to this checkpoint")
    return directory


def refuse_foreign(directory: pathlib.Path) -> None:
    """Proves that nothing of the user is lost with a folder: it is absent, empty, or sealed and nothing was added.

    A file of its manifest may be damaged or missing: that is why a checkpoint is written anew.

    Args:
      directory: what is about to be replaced.

    Raises:
      ValueError: naming what was not written here; it is left as it is.
    """
    if not os.path.lexists(directory):
        return
    # A link may lead to a folder of another's: renaming would replace the link and lose the way there.
    if not directory.is_dir() or directory.is_symlink():
        raise _foreign(directory, "it is no folder")
    names = _names(directory)
    if not names and not os.path.lexists(directory / MANIFEST):
        return
    if not (directory / MANIFEST).is_file():
        raise _foreign(directory, f"it holds {names[0]} and no {MANIFEST}")
    # Names alone: what is damaged is about to be written anew, what was added is somebody's.
    added = sorted(set(names) - set(_read_entries(directory)))
    if added:
        raise _foreign(directory, f"it holds {added[0]}")


def _foreign(directory: pathlib.Path, why: str) -> ValueError:
    return ValueError(
        f"{directory} is not what metadd_jax wrote ({why}), so it is not replaced; choose another path or move it away"
    )


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
