"""PyTorch files of the peers: the DC family's result file out and in, MTT's pairs of bare tensors in.

DC, DSA, DM, DataDAM: one dictionary whose ``data`` is a list over runs of [images, labels].
MTT, TESLA, DD-Ranking: ``images*.pt`` and ``labels*.pt``, one tensor each.
Images are [N, C, H, W] float32 in training space there, [N, H, W, C] here. torch is optional.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import types
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from metadd_jax import files, structs
from metadd_jax.exchange import checks


def export_torch(
    file: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes the DC family's file: ``{"data": [[images, labels]], "accs_all_exps": {}, ...}``.

    Args:
      file: the ``.pt`` to write.
      synthetic: the set; ``soft_labels`` and ``learning_rate`` are added under these names where present.
      metadata: see ``checks.check_set``; ``mean``, ``std`` and ``class_names`` are written too. A whitened set brings
        ``zca_mean`` [D] and ``zca_inverse`` [D, D], D in the order of a flattened [C, H, W] image: its pixels in [0, 1]
        are ``images.flatten(1) @ zca_inverse + zca_mean``.
      overwrite: replace an existing file.

    Raises:
      ValueError: if the file exists, torch is missing, or the set or its metadata are unfit.
    """
    torch = _torch()
    file = pathlib.Path(file).expanduser().absolute()
    checks.refuse_existing(file, overwrite=overwrite)
    checks.check_set("the set", synthetic, metadata)
    images = np.ascontiguousarray(np.asarray(synthetic.images, np.float32).transpose(0, 3, 1, 2))
    content = {
        "data": [[torch.tensor(images), torch.tensor(np.asarray(synthetic.labels, np.int64))]],
        "accs_all_exps": {},
        "mean": np.asarray(metadata["mean"]).tolist(),
        "std": np.asarray(metadata["std"]).tolist(),
        "class_names": list(metadata["class_names"]),
    }
    for name in ("soft_labels", "learning_rate"):
        if getattr(synthetic, name) is not None:
            content[name] = torch.tensor(np.asarray(getattr(synthetic, name), np.float32))
    if metadata["value_space"] == "zca":
        order = _channels_first_order(synthetic.images.shape[1:])
        content["zca_mean"] = torch.tensor(np.asarray(metadata["zca_mean"], np.float32)[order])
        content["zca_inverse"] = torch.tensor(np.asarray(metadata["zca_inverse"], np.float32)[np.ix_(order, order)])
    with files.atomic_path(file) as temporary:
        torch.save(content, temporary)


def load_torch(
    file: str | os.PathLike,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
) -> tuple[structs.SyntheticSet, dict[str, Any]]:
    """Reads a peer's file; only tensors and plain containers are unpickled (``weights_only=True``).

    Args:
      file: a DC-family file (the last run is taken) or ``images*.pt`` with ``labels*.pt`` beside it.
      mean, std: [C], the constants the peer standardised with; their files do not say. Nor do they say that a set is
        whitened: then update the metadata by ``pixels.value_space`` of the whitened data set. A file of
        ``export_torch`` says both.
      class_names: K names in label order.

    Returns:
      The set, sorted by class, and its metadata. Labels [N, K] that are probabilities become ``soft_labels``
      (``labels`` is then their argmax).

    Raises:
      ValueError: if torch is missing, or if the file is missing, damaged or holds something else.
    """
    file = pathlib.Path(file).expanduser().absolute()
    content = _read(file)
    if isinstance(content, dict):
        try:
            images, labels = content["data"][-1]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{file} has no data list of [images, labels]; give a DC-family file") from error
    else:
        images, labels = content, _read(file.with_name(file.name.replace("images", "labels", 1)))
    metadata = {
        "value_space": "standardised",
        "mean": list(mean),
        "std": list(std),
        "class_names": list(class_names),
        "source": str(file),
    }
    synthetic = from_channels_first(file, np.asarray(images), np.asarray(labels))
    if isinstance(content, dict) and "zca_inverse" in content:
        order = np.argsort(_channels_first_order(synthetic.images.shape[1:]))
        zca_mean, zca_inverse = np.asarray(content["zca_mean"]), np.asarray(content["zca_inverse"])
        metadata |= {
            "value_space": "zca",
            "zca_mean": zca_mean[order],
            "zca_inverse": zca_inverse[np.ix_(order, order)],
        }
    checks.check_set(file, synthetic, metadata)
    return synthetic, metadata


def from_channels_first(source: Any, images: np.ndarray, labels: np.ndarray) -> structs.SyntheticSet:
    """A set from [N, C, H, W] images and [N] integer or [N, K] probability labels, sorted by class.

    Raises:
      ValueError: if the shapes do not fit or two-dimensional labels are not probabilities.
    """
    if images.ndim != 4 or labels.shape[:1] != images.shape[:1] or labels.ndim not in (1, 2):
        raise ValueError(f"{source} has images {images.shape} and labels {labels.shape}; need [N, C, H, W] and [N]")
    soft = labels.astype(np.float32) if labels.ndim == 2 else None
    if soft is not None and not (soft.min() >= 0 and np.allclose(soft.sum(axis=1), 1, atol=1e-3)):
        raise ValueError(f"{source} has soft labels that are no probabilities; turn logits into softmax(logits)")
    hard = labels.astype(np.int32) if soft is None else soft.argmax(axis=1).astype(np.int32)
    order = np.argsort(hard, kind="stable")
    return structs.SyntheticSet(
        images=jnp.asarray(images.astype(np.float32).transpose(0, 2, 3, 1)[order]),
        labels=jnp.asarray(hard[order]),
        soft_labels=None if soft is None else jnp.asarray(soft[order]),
    )


def _channels_first_order(shape: tuple[int, int, int]) -> np.ndarray:
    """Where each number of a flattened [C, H, W] image stands in the flattened [H, W, C] image of ``shape``."""
    return np.arange(np.prod(shape)).reshape(shape).transpose(2, 0, 1).ravel()


def _read(file: pathlib.Path) -> Any:
    torch = _torch()
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is not a readable PyTorch file ({reason}); restore it") from error


def _torch() -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ValueError("PyTorch files need torch; run: pip install torch") from error
    return torch
