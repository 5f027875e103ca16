"""The native exchange format: ``synthetic.npz`` that NumPy alone opens, with ``synthetic.json`` beside it.

``numpy.load(file, allow_pickle=False)`` gives ``images`` [N, H, W, C] float32 in the value space that the
JSON names (standardised: (x / 255 - mean) / std), ``labels`` [N] int64, ``mean`` and ``std`` [C] float32 and,
where the set has them, ``soft_labels`` [N, K] float32 (probabilities) and ``learning_rate`` [] float32.
A whitened set (value space "zca") also holds ``zca_mean`` [D] and ``zca_inverse`` [D, D] float32, D = H * W * C:
its pixels in [0, 1] are ``images.reshape(N, D) @ zca_inverse + zca_mean``.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from metadd_jax import files, structs
from metadd_jax.exchange import checks

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
      synthetic: the set.
      metadata: written to the JSON as it is, with the layout, versions and the SHA-256 of the arrays added.
        ``mean``, ``std``, ``class_names`` and ``value_space`` are required (see ``pixels.value_space``); the method,
        seed and ipc usual. ``zca_mean`` and ``zca_inverse`` of a whitened set go into the npz instead.
      overwrite: replace existing files.

    Raises:
      ValueError: if a file exists, or if the set or its metadata are unfit (see ``checks.check_set``).
    """
    file = pathlib.Path(file).expanduser().absolute()
    if file.suffix != ".npz":
        raise ValueError(f"{file} does not end in .npz; name it {file.name}.npz")
    checks.refuse_existing(file, file.with_suffix(".json"), overwrite=overwrite)
    checks.check_set("the set", synthetic, metadata)
    arrays = _to_arrays(synthetic, metadata)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    added = {
        "layout": "NHWC",
        "versions": {"python": platform.python_version()} | versions,
        "sha256": _hash(arrays),
    }
    # The JSON first: an npz under its name is then never without the facts needed to read it.
    facts = {name: value for name, value in metadata.items() if name not in _WHITENING}
    files.write_json(file.with_suffix(".json"), facts | added)
    with files.atomic_path(file) as temporary:
        np.savez(temporary, **arrays)


def load_npz(file: str | os.PathLike) -> tuple[structs.SyntheticSet, dict[str, Any]]:
    """Reads what ``export_npz`` wrote and proves it whole.

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
    if not isinstance(metadata, dict) or "sha256" not in metadata:
        raise ValueError(f"{facts} was not written by metadd_jax (no sha256); restore it or export the set again")
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


def _to_arrays(synthetic: structs.SyntheticSet, metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    values = vars(synthetic) | {name: metadata.get(name) for name in ("mean", "std", *_WHITENING)}
    return {name: np.asarray(values[name]).astype(dtype) for name, dtype in _DTYPES.items() if values[name] is not None}


def _read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = dict(content)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a readable npz ({error}); move it away or export it again") from error
    missing = [name for name in _ALWAYS if name not in arrays]
    wrong = [name for name, array in arrays.items() if array.dtype != _DTYPES.get(name)]
    if missing or wrong:
        what = f"it lacks {', '.join(missing)}" if missing else f"{wrong[0]} is {arrays[wrong[0]].dtype}"
        raise ValueError(f"{file} is no set of metadd_jax ({what}); give a file written by export_npz")
    return arrays


def _hash(arrays: dict[str, np.ndarray]) -> str:
    names = sorted(arrays)
    return files.hash_arrays(*(arrays[name] for name in names), text=" ".join(names))
