"""The native exchange format: ``synthetic.npz`` that NumPy alone opens, with ``synthetic.json`` beside it.

``numpy.load(file, allow_pickle=False)`` gives ``images`` [N, H, W, C] float32 in the value space that the
JSON names (standardised: (x / 255 - mean) / std), ``labels`` [N] int64, ``mean`` and ``std`` [C] float32 and,
where the set has them, ``soft_labels`` [N, K] float32 (probabilities) and ``learning_rate`` [] float32.
A whitened set (value space "zca") also holds ``zca_mean`` [D] and ``zca_inverse`` [D, D] float32, D = H * W * C:
its pixels in [0, 1] are ``images.reshape(N, D) @ zca_inverse + zca_mean``.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from metadd_jax import structs
from metadd_jax.exchange import checks, pairs

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


def _flaw(described: Mapping[str, np.dtype]) -> str:
    missing = [name for name in _ALWAYS if name not in described]
    wrong = [name for name, dtype in described.items() if dtype != _DTYPES.get(name)]
    if missing:
        return f"it lacks {', '.join(missing)}"
    return f"{wrong[0]} is {described[wrong[0]]}" if wrong else ""


_SET = pairs.Kind("set", "export_npz", "images.npy", frozenset({*checks.REQUIRED, "layout"}), _flaw)


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
    file = pairs.path_of(file)
    pairs.refuse_existing(file, _SET, overwrite=overwrite)  # before the checks, which take long for a large set
    checks.check_set("the set", synthetic, metadata)
    facts = {name: value for name, value in metadata.items() if name not in pairs.WHITENING} | {"layout": "NHWC"}
    pairs.write(file, _SET, _to_arrays(synthetic, metadata), facts, overwrite=overwrite)


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
    arrays, metadata = pairs.read(file, _SET)
    synthetic = structs.SyntheticSet(
        images=jnp.asarray(arrays["images"]),
        labels=jnp.asarray(arrays["labels"].astype(np.int32)),
        soft_labels=jnp.asarray(arrays["soft_labels"]) if "soft_labels" in arrays else None,
        learning_rate=jnp.asarray(arrays["learning_rate"]) if "learning_rate" in arrays else None,
    )
    metadata |= {name: arrays[name] for name in pairs.WHITENING if name in arrays}
    checks.check_set(file, synthetic, metadata)
    return synthetic, metadata


def is_set_file(file: str | os.PathLike) -> bool:
    """Tells the npz of a distilled set from one of real data, which may hold the same fields: ``export_npz`` signs it.

    Args:
      file: any path; what is no file is no set.
    """
    file = pathlib.Path(file).expanduser()
    likely = pairs.looks_like_npz(file, _SET)
    # Undecided, where it is damaged or of another version: a JSON beside it then speaks for a set.
    return bool(likely) or (likely is None and file.with_suffix(".json").is_file())


def _to_arrays(synthetic: structs.SyntheticSet, metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    values = vars(synthetic) | {name: metadata.get(name) for name in ("mean", "std", *pairs.WHITENING)}
    return {name: np.asarray(values[name]).astype(dtype) for name, dtype in _DTYPES.items() if values[name] is not None}
