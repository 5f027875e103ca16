"""What every exported or imported set must satisfy, and the one rule about existing files."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import numpy as np

from metadd_jax import structs

REQUIRED = ("mean", "std", "class_names", "value_space")


def check_set(source: Any, synthetic: structs.SyntheticSet, metadata: dict[str, Any]) -> None:
    """Checks a set against its metadata.

    Args:
      source: what the error names: the file, or "the set".
      synthetic: the set.
      metadata: must hold ``mean`` and ``std`` ([C]), ``class_names`` (K names) and ``value_space``; with "zca" also
        ``zca_mean`` and ``zca_inverse`` (see ``check_whitening``).

    Raises:
      ValueError: naming what is missing, misshapen, out of range or not finite.
    """
    missing = [name for name in REQUIRED if name not in metadata]
    if missing:
        raise ValueError(f"the metadata of {source} lacks {', '.join(missing)}; add {', '.join(missing)}")
    images, labels = np.asarray(synthetic.images), np.asarray(synthetic.labels)
    classes = len(metadata["class_names"])
    _check_shapes(source, images, labels, metadata)
    if metadata["value_space"] == "zca":
        check_whitening(source, images.shape, metadata)
    if not np.isin(labels, np.arange(classes)).all():
        raise ValueError(
            f"{source} has labels {labels.min()} to {labels.max()} but {classes} class names; "
            f"labels must lie in 0..{classes - 1}"
        )
    _check_finite(source, "pixels", images)
    if synthetic.soft_labels is not None:
        soft = np.asarray(synthetic.soft_labels)
        if soft.shape != (len(images), classes):
            raise ValueError(f"{source} has soft labels {soft.shape}; they must be ({len(images)}, {classes})")
        _check_finite(source, "soft labels", soft)
    if synthetic.learning_rate is not None:
        _check_finite(source, "learning rates", np.asarray(synthetic.learning_rate))


def check_whitening(source: Any, shape: tuple[int, ...], metadata: dict[str, Any]) -> None:
    """Checks that a whitened set comes with what undoes the whitening.

    Args:
      source: what the error names.
      shape: of the images, [N, H, W, C].
      metadata: must hold ``zca_mean`` [D] and ``zca_inverse`` [D, D], D = H * W * C.

    Raises:
      ValueError: if they are missing, of another size or not finite: nothing can be guessed from whitened images.
    """
    size = math.prod(shape[1:])
    for name, wanted in {"zca_mean": (size,), "zca_inverse": (size, size)}.items():
        if name not in metadata:
            raise ValueError(f"{source} is whitened but {name} is missing; add it from the data set's whitening")
        if np.shape(metadata[name]) != wanted:
            raise ValueError(
                f"{source} has images {shape} and {name} {np.shape(metadata[name])}; {name} must be {wanted}"
            )
        _check_finite(source, f"numbers of {name}", np.asarray(metadata[name]))


def refuse_existing(*paths: pathlib.Path, overwrite: bool) -> None:
    """Raises ValueError if one of ``paths`` exists, unless it may be overwritten."""
    for path in paths:
        if os.path.lexists(path) and not overwrite:
            raise ValueError(f"{path} exists already; choose another path or ask to overwrite it")


def _check_shapes(source: Any, images: np.ndarray, labels: np.ndarray, metadata: dict[str, Any]) -> None:
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{source} has images {images.dtype}{images.shape}; they must be float32 [N, H, W, C]")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{source} has {len(images)} images and labels {labels.dtype}{labels.shape}; "
            "there must be one integer label an image"
        )
    for name in ("mean", "std"):
        if np.shape(metadata[name]) != images.shape[-1:]:
            raise ValueError(
                f"{source} has {images.shape[-1]} channels and {name} {np.shape(metadata[name])}; "
                f"{name} must have one number a channel"
            )


def _check_finite(source: Any, what: str, values: np.ndarray) -> None:
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{source} has {bad} {what} that are NaN or infinite; distil or export it again")
