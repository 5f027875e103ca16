"""The native exchange format: ``synthetic.npz`` that NumPy alone opens, with ``synthetic.json`` beside it.

``numpy.load(file, allow_pickle=False)`` gives ``images`` [N, H, W, C] float32 in the value space that the
JSON names (standardised: (x / 255 - mean) / std), ``labels`` [N] int64, ``mean`` and ``std`` [C] float32 and,
where the set has them, ``soft_labels`` [N, K] float32 (probabilities) and ``learning_rate`` [] float32.
A whitened set (value space "zca") also holds ``zca_mean`` [D] and ``zca_inverse`` [D, D] float32, D = H * W * C:
its pixels in [0, 1] are ``images.reshape(N, D) @ zca_inverse + zca_mean``.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import pathlib
import platform
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from metadd_jax import files, structs
from metadd_jax.exchange import checks

# Any other type in a file is refused: a float64 image is another set than the one whose accuracy was quoted.
_DTYPES = {
    "images": np.float32,
    "labels": np.int64,
    "mean": np.float32,
    "std": np.float32,
    "soft_labels": np.float32,
    "learning_rate": np.float32,
    "zca_mean": np.float32,
    "zca_inverse": np.float32,
}
_ALWAYS = ("images", "labels", "mean", "std")
_ADDED = ("layout", "versions", "sha256")  # to the JSON, beside the caller's facts and the hash of all of them
_JSON_HASH = "json_sha256"
_SIGN = b"metadd_jax"  # the archive's comment, which NumPy passes over: real data may have the same fields
_WHITENING = ("zca_mean", "zca_inverse")  # too large for the JSON


def export_npz(
    file: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a set for NumPy; the same set gives the same bytes.

    Args:
      file: the ``.npz`` to write; ``<stem>.json`` goes beside it.
      synthetic: the set, images [N, H, W, C].
      metadata: facts for the JSON, which gets the layout, versions and hashes besides. ``mean``, ``std``,
        ``class_names`` and ``value_space`` are required (see ``pixels.value_space``); method, seed and ipc are usual.
        ``zca_mean`` and ``zca_inverse`` of a whitened set go into the npz instead.
      overwrite: replace an existing pair that this function wrote; any other file stays.

    Raises:
      ValueError: if a file exists that may not be replaced, or if the set or its metadata are unfit (see
        ``checks.check_set``).
    """
    file = pathlib.Path(file).expanduser().absolute()
    if file.suffix != ".npz":
        raise ValueError(f"{file} does not end in .npz; name it {file.name}.npz")
    # Both halves before either is written: a new JSON beside an old npz is a pair that no reader takes.
    checks.refuse_existing(file, file.with_suffix(".json"), overwrite=overwrite, is_ours=_is_ours)
    checks.check_set("the set", synthetic, metadata)
    arrays: dict[str, Any] = _to_arrays(synthetic, metadata)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    added = {
        "layout": "NHWC",
        "versions": {"python": platform.python_version()} | versions,
        "sha256": _hash(arrays),
    }
    # The JSON first: an npz under its name is then never without the facts needed to read it.
    facts = {name: value for name, value in metadata.items() if name not in _WHITENING}
    described = files.plain(facts | added)
    files.write_json(file.with_suffix(".json"), described | {_JSON_HASH: _hash_facts(described)})
    with files.atomic_path(file) as temporary:
        # Stored, not compressed: the same set gives the same bytes whatever version of zlib packs it.
        np.savez(temporary, **arrays)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = _SIGN


def load_npz(file: str | os.PathLike) -> tuple[structs.SyntheticSet, dict[str, Any]]:
    """Reads what ``export_npz`` wrote and proves it whole.

    Args:
      file: the ``.npz``; its JSON must lie beside it.

    Returns:
      The set and its metadata: the content of the JSON file, and for a whitened set ``zca_mean`` and ``zca_inverse``.

    Raises:
      ValueError: if a file is missing, truncated, foreign or changed, or if the set is unfit; files stay as
        they are.
    """
    file = pathlib.Path(file).expanduser().absolute()
    arrays = _read_arrays(file)
    facts = file.with_suffix(".json")
    if not facts.is_file():
        raise ValueError(f"{facts} is missing beside {file.name}; put it back or export the set again")
    metadata = files.read_json(facts)
    if not isinstance(metadata, dict) or not {"sha256", _JSON_HASH} <= metadata.keys():
        raise ValueError(
            f"{facts} was not written by metadd_jax (no sha256 and {_JSON_HASH}); restore it or export the set again"
        )
    # A class name or a mean edited by hand would change what every number says, and no array would show it.
    if _hash_facts(metadata) != metadata.pop(_JSON_HASH):
        raise ValueError(f"{facts} was changed after it was written (its {_JSON_HASH} differs); restore it")
    if _hash(arrays) != metadata["sha256"]:
        raise ValueError(f"{file} does not hold the arrays that {facts.name} describes (SHA-256 differs); restore it")
    synthetic = structs.SyntheticSet(
        images=jnp.asarray(arrays["images"]),
        labels=jnp.asarray(arrays["labels"].astype(np.int32)),
        soft_labels=jnp.asarray(arrays["soft_labels"]) if "soft_labels" in arrays else None,
        learning_rate=jnp.asarray(arrays["learning_rate"]) if "learning_rate" in arrays else None,
    )
    metadata |= {name: arrays[name] for name in _WHITENING if name in arrays}
    checks.check_set(file, synthetic, metadata)
    return synthetic, metadata


def is_set_file(file: str | os.PathLike) -> bool:
    """Tells the npz of a distilled set from one of real data, which may hold the same fields: ``export_npz`` signs it.

    Args:
      file: any path; what is no file is no set.
    """
    file = pathlib.Path(file).expanduser()
    likely = _looks_like_npz(file)
    # Undecided, where it is damaged or of another version: a JSON beside it then speaks for a set.
    return bool(likely) or (likely is None and file.with_suffix(".json").is_file())


def _to_arrays(synthetic: structs.SyntheticSet, metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    values = vars(synthetic) | {name: metadata.get(name) for name in ("mean", "std", *_WHITENING)}
    return {name: np.asarray(values[name]).astype(dtype) for name, dtype in _DTYPES.items() if values[name] is not None}


def _read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    try:
        described = _describe(file)
        # Fields first: of an npz of real data NumPy would unpack gigabytes before anybody looks at their names.
        missing = [name for name in _ALWAYS if name not in described]
        wrong = [name for name, dtype in described.items() if dtype != _DTYPES.get(name)]
        if missing or wrong:
            what = f"it lacks {', '.join(missing)}" if missing else f"{wrong[0]} is {described[wrong[0]]}"
            raise ValueError(f"{file} is no set of metadd_jax ({what}); give a file written by export_npz")
        with np.load(file, allow_pickle=False) as content:
            return dict(content)
    except _UNREADABLE as error:
        raise ValueError(f"{file} is not a readable npz ({error}); move it away or export it again") from error


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
            if info.compress_type != zipfile.ZIP_STORED or claimed != info.file_size or claimed > size:
                raise _NoArrays(
                    f"{info.filename} claims {claimed} bytes that are not stored as numpy.savez stores them"
                )
            described[info.filename.removesuffix(".npy")] = dtype
    return described


def _is_ours(path: pathlib.Path) -> bool:
    """Whether ``export_npz`` wrote ``path``; a damaged half of a pair counts by the other half."""
    npz, facts = path.with_suffix(".npz"), path.with_suffix(".json")
    is_npz, is_facts = _looks_like_npz(npz), _looks_like_facts(facts)
    this, other = (is_npz, is_facts) if path.suffix == ".npz" else (is_facts, is_npz)
    return this is True or (this is None and other is True)


def _looks_like_npz(path: pathlib.Path) -> bool | None:
    """Whether a file is an npz of ours; None for one that may be."""
    if not path.is_file():
        return False
    try:
        described = _describe(path)
        if not set(_ALWAYS) <= described.keys() or any(_DTYPES.get(name) != dtype for name, dtype in described.items()):
            return False
        with zipfile.ZipFile(path) as archive:
            return True if archive.comment == _SIGN else None  # it may be real data, or a set of another version
    except _UNREADABLE:
        with open(path, "rb") as stream:
            first = stream.read(40)[30:]  # the name of a zip archive's first member
        return None if first == b"images.npy" else False


def _looks_like_facts(path: pathlib.Path) -> bool | None:
    """Whether a file is the JSON of a set of ours; None for one that may be (a JSON cut short)."""
    if not path.is_file():
        return False
    try:
        facts = files.read_json(path)
    except ValueError:
        return None
    return isinstance(facts, dict) and {*checks.REQUIRED, *_ADDED} <= facts.keys()


def _hash_facts(facts: dict[str, Any]) -> str:
    counted = {name: value for name, value in facts.items() if name != _JSON_HASH}
    return files.hash_json(counted)


def _hash(arrays: dict[str, np.ndarray]) -> str:
    # Names too, and in one order: arrays that changed places would otherwise have the same hash.
    names = sorted(arrays)
    return files.hash_arrays(*(arrays[name] for name in names), text=" ".join(names))
