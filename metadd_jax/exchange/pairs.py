"""An npz that NumPy alone opens, with a JSON of facts beside it: signed, hashed, and read only if both are whole."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import pathlib
import platform
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from metadd_jax import files
from metadd_jax.exchange import checks

WHITENING = ("zca_mean", "zca_inverse")
"""Facts of a whitened set that are too large for a JSON; they are among the arrays of the set."""
_JSON_HASH = "json_sha256"
_SIGN = b"metadd_jax"  # the archive's comment, which NumPy passes over: real data may have the same fields


@dataclasses.dataclass(frozen=True)
class Kind:
    """What distinguishes one kind of pair from another, and from files of the user.

    Attributes:
      what: what it is called in errors, "set".
      writer: the function that writes it.
      first: how the name of its first array begins.
      facts: names that its JSON has.
      flaw: from the type of each array by name to what is wrong with them, "" where nothing is.
    """

    what: str
    writer: str
    first: str
    facts: frozenset[str]
    flaw: Callable[[Mapping[str, np.dtype]], str]


def write(
    file: pathlib.Path, kind: Kind, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Writes ``file`` and its JSON; the same arrays give the same bytes.

    Args:
      file: as from ``path_of``.
      kind: what is written.
      arrays: the arrays by name.
      facts: for the JSON, which gets versions and hashes besides.
      overwrite: replace an existing pair of this kind; any other file stays.

    Raises:
      ValueError: if a file exists that may not be replaced.
    """
    refuse_existing(file, kind, overwrite=overwrite)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    added = {"versions": {"python": platform.python_version()} | versions, "sha256": _hash(arrays)}
    described = files.plain(dict(facts) | added)
    # The JSON first: an npz under its name is then never without the facts needed to read it.
    files.write_json(file.with_suffix(".json"), described | {_JSON_HASH: _hash_facts(described)})
    with files.atomic_path(file) as temporary:
        # Stored, not compressed: the same set gives the same bytes whatever version of zlib packs it.
        stored: dict[str, Any] = dict(arrays)
        np.savez(temporary, **stored)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = _SIGN


def read(file: pathlib.Path, kind: Kind) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what ``write`` wrote and proves it whole.

    Args:
      file: the ``.npz``; its JSON must lie beside it.
      kind: what it should be.

    Returns:
      The arrays by name, and the content of the JSON without its own hash.

    Raises:
      ValueError: if a file is missing, truncated, foreign or changed; files stay as they are.
    """
    arrays = _read_arrays(file, kind)
    facts = file.with_suffix(".json")
    if not facts.is_file():
        raise ValueError(f"{facts} is missing beside {file.name}; put it back or export the {kind.what} again")
    metadata = files.read_json(facts)
    if not isinstance(metadata, dict) or not {"sha256", _JSON_HASH} <= metadata.keys():
        raise ValueError(
            f"{facts} was not written by metadd_jax (no sha256 and {_JSON_HASH}); restore it or export the "
            f"{kind.what} again"
        )
    # A class name or a mean edited by hand would change what every number says, and no array would show it.
    if _hash_facts(metadata) != metadata.pop(_JSON_HASH):
        raise ValueError(f"{facts} was changed after it was written (its {_JSON_HASH} differs); restore it")
    if _hash(arrays) != metadata["sha256"]:
        raise ValueError(f"{file} does not hold the arrays that {facts.name} describes (SHA-256 differs); restore it")
    return arrays, metadata


def path_of(file: Any) -> pathlib.Path:
    """Makes the path of an npz absolute.

    Args:
      file: as the user gave it.

    Raises:
      ValueError: if it does not end in ".npz".
    """
    file = pathlib.Path(file).expanduser().absolute()
    if file.suffix != ".npz":
        raise ValueError(f"{file} does not end in .npz; name it {file.name}.npz")
    return file


def refuse_existing(file: pathlib.Path, kind: Kind, *, overwrite: bool) -> None:
    """Refuses to write over a file or its JSON unless that is asked for and they are a pair of this kind.

    Args:
      file: the ``.npz``.
      kind: what is about to be written.
      overwrite: whether a pair of this kind may be replaced.

    Raises:
      ValueError: naming the file that must stay.
    """
    # Both halves before either is written: a new JSON beside an old npz is a pair that no reader takes.
    checks.refuse_existing(
        file, file.with_suffix(".json"), overwrite=overwrite, is_ours=lambda path: _is_ours(path, kind)
    )


def _read_arrays(file: pathlib.Path, kind: Kind) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    try:
        # Fields first: of an npz of real data NumPy would unpack gigabytes before anybody looks at their names.
        if flaw := kind.flaw(_describe(file)):
            raise ValueError(f"{file} is no {kind.what} of metadd_jax ({flaw}); give a file written by {kind.writer}")
        return _arrays(file)
    except _UNREADABLE as error:
        raise ValueError(f"{file} is not a readable npz ({error}); move it away or export it again") from error


def _arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz that ``_describe`` has seen."""
    found = {}
    # Not by numpy.load, which goes by the first bytes, and may take for a pickle what zipfile finds an archive in.
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as stream:
                try:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                except ValueError as error:
                    raise _NoArrays(f"{info.filename} is no array ({error!s:.100})") from error
            found[info.filename.removesuffix(".npy")] = array
    return found


class _NoArrays(Exception):
    """A zip archive whose members are not the plain arrays that NumPy stores."""


_UNREADABLE = (_NoArrays, OSError, EOFError, TypeError, zipfile.BadZipFile, RuntimeError, NotImplementedError)


def _describe(file: pathlib.Path) -> dict[str, np.dtype]:
    """The type of each array, after proof that what its header claims is what the file holds.

    NumPy makes room for what a header claims before it reads: a few bytes could ask for terabytes.
    """
    size, described = file.stat().st_size, {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as stream:
                try:
                    shape, dtype = files.array_head(stream)
                except ValueError as error:
                    raise _NoArrays(f"{info.filename} is no array") from error
                claimed = stream.tell() + math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise _NoArrays(f"{info.filename} holds Python objects")
            # Exactly as large as numpy.savez makes it: what is packed, or longer than it says, others have made.
            if info.compress_type != zipfile.ZIP_STORED or claimed != info.file_size or claimed > size:
                raise _NoArrays(
                    f"{info.filename} claims {claimed} bytes that are not stored as numpy.savez stores them"
                )
            described[info.filename.removesuffix(".npy")] = dtype
    return described


def _is_ours(path: pathlib.Path, kind: Kind) -> bool:
    """Whether ``write`` wrote ``path``; a damaged half of a pair counts by the other half."""
    is_npz = looks_like_npz(path.with_suffix(".npz"), kind)
    is_facts = _looks_like_facts(path.with_suffix(".json"), kind)
    this, other = (is_npz, is_facts) if path.suffix == ".npz" else (is_facts, is_npz)
    return this is True or (this is None and other is True)


def looks_like_npz(path: pathlib.Path, kind: Kind) -> bool | None:
    """Tells whether a file is an npz of this kind; None for one that may be: damaged, or of another version.

    Args:
      path: any path.
      kind: what it may be.
    """
    if not path.is_file():
        return False
    try:
        if kind.flaw(_describe(path)):
            return False
        with zipfile.ZipFile(path) as archive:
            return True if archive.comment == _SIGN else None  # it may be real data, or a set of another version
    except _UNREADABLE:
        # A killed copy keeps its beginning: one of ours may be made anew, a stranger's archive not.
        with open(path, "rb") as stream:
            name = stream.read(30 + len(kind.first))[30:]  # of a zip archive's first member
        return None if name == kind.first.encode() else False


def _looks_like_facts(path: pathlib.Path, kind: Kind) -> bool | None:
    """Whether a file is the JSON of this kind; None for one that may be (a JSON cut short)."""
    if not path.is_file():
        return False
    try:
        facts = files.read_json(path)
    except ValueError:
        return None
    return isinstance(facts, dict) and {*kind.facts, "versions", "sha256"} <= facts.keys()


def _hash_facts(facts: dict[str, Any]) -> str:
    counted = {name: value for name, value in facts.items() if name != _JSON_HASH}
    return files.hash_json(counted)


def _hash(arrays: Mapping[str, np.ndarray]) -> str:
    # Names too, and in one order: arrays that changed places would otherwise have the same hash.
    names = sorted(arrays)
    return files.hash_arrays(*(arrays[name] for name in names), text=" ".join(names))
