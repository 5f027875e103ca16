"""What every set must satisfy, on its way to a file, out of one, or to be judged; and what may be overwritten."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from metadd_jax import structs

SPACES = ("standardised", "zca")
REQUIRED = ("mean", "std", "class_names", "value_space")
_SUM_TOLERANCE = 1e-3  # of probabilities that add up to 1, in float32 and through other programs


def check_set(source: object, synthetic: structs.SyntheticSet, metadata: dict[str, Any]) -> None:
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
    names = metadata["class_names"]
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names of {source} are {_short(names)}; they must be a list of names, one a class")
    if metadata["value_space"] not in SPACES:
        wanted = " or ".join(SPACES)
        raise ValueError(f"value_space of {source} is {_short(metadata['value_space'])}; it must be {wanted}")
    # The arrays next: what is said of channels and sizes below assumes images [N, H, W, C].
    check_arrays(source, synthetic, len(names))
    shape = np.shape(synthetic.images)
    _check_constants(source, shape[-1], metadata)
    if metadata["value_space"] == "zca":
        check_whitening(source, shape, metadata)


def check_arrays(source: object, synthetic: structs.SyntheticSet, classes: int) -> None:
    """Checks the arrays of a set: shapes, types, labels in range, numbers that mean something.

    Args:
      source: what the error names.
      synthetic: the set.
      classes: K, how many classes there are.

    Raises:
      ValueError: for images that are not finite floats [N, H, W, C], labels that are not one integer in [0, K) an
        image, soft labels that are no probabilities [N, K], or a learning rate that is not one finite number above 0.
    """
    images, labels = np.asarray(synthetic.images), np.asarray(synthetic.labels)
    _check_shapes(source, images, labels)
    if not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(
            f"{source} has labels {labels.min()} to {labels.max()} but {classes} class names; "
            f"labels must lie in 0..{classes - 1}"
        )
    check_finite(source, "pixels", images)
    if synthetic.soft_labels is not None:
        soft = np.asarray(synthetic.soft_labels)
        if soft.shape != (len(images), classes):
            raise ValueError(f"{source} has soft labels {soft.shape}; they must be ({len(images)}, {classes})")
        check_probabilities(source, soft)
    if synthetic.learning_rate is not None:
        # Learned by gradient descent, so it may have crossed zero: training with it would climb.
        rate = np.asarray(synthetic.learning_rate)
        if rate.ndim or not (np.isfinite(rate) and rate > 0):
            raise ValueError(
                f"{source} has the learning rate {_short(rate.tolist())}; training needs one finite number above 0: "
                "distil it again with smaller steps of the learning rate"
            )


def check_probabilities(source: object, soft: np.ndarray) -> None:
    """Checks that every row of soft labels is a distribution.

    Args:
      source: what the error names.
      soft: [N, K] floats.

    Raises:
      ValueError: for logits, and for what is not finite.
    """
    check_finite(source, "soft labels", soft)
    if not (soft.min() >= 0 and np.allclose(soft.sum(axis=1), 1, atol=_SUM_TOLERANCE)):
        raise ValueError(f"{source} has soft labels that are no probabilities; turn logits into softmax(logits)")


def whole(source: object, labels: np.ndarray) -> np.ndarray:
    """Reads labels as class numbers, never cut to fit: 2^32 is no class 0, and 0.5 neither.

    Args:
      source: what the error names.
      labels: [N] of any type.

    Returns:
      [N] int32.

    Raises:
      ValueError: if they are no whole numbers in int32.
    """
    # The kind first: integers beyond 64 bits come as objects, which NumPy cannot convert.
    if labels.dtype.kind in "iuf":
        with np.errstate(invalid="ignore"):  # NaN is caught by the comparison
            hard = labels.astype(np.int32)
        if np.array_equal(labels, hard):
            return hard
    raise ValueError(f"{source} has labels that are no whole numbers in int32 ({labels.dtype}); give class indices")


def check_whitening(source: object, shape: tuple[int, ...], metadata: dict[str, Any]) -> None:
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
        check_finite(source, f"numbers of {name}", np.asarray(metadata[name]))


def refuse_existing(*paths: pathlib.Path, overwrite: bool, is_ours: Callable[[pathlib.Path], bool]) -> None:
    """Refuses to write over files, unless that is asked for and this package wrote them.

    Args:
      paths: files about to be written.
      overwrite: whether what is ours may be replaced.
      is_ours: tells by its content whether an existing file is one that this package wrote; nobody loses another.

    Raises:
      ValueError: naming the first file that must stay.
    """
    for path in paths:
        # lexists: a link to nothing is something of the user's too, and writing would go where it points.
        if not os.path.lexists(path):
            continue
        if not overwrite:
            raise ValueError(f"{path} exists already; choose another path or ask to overwrite it")
        if not path.is_file() or not is_ours(path):
            raise ValueError(
                f"{path} is not what metadd_jax wrote, so it is not overwritten; choose another path or move it away"
            )


def _check_shapes(source: object, images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 4 or not images.size or not np.issubdtype(images.dtype, np.floating):
        # uint8 is what a set looks like that somebody made of pictures: it lacks the step into the value space.
        mend = "; standardise pixels as the data set's mean and std say" if images.dtype == np.uint8 else ""
        raise ValueError(f"{source} has images {images.dtype}{images.shape}; they must be float32 [N, H, W, C]{mend}")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{source} has {len(images)} images and labels {labels.dtype}{labels.shape}; "
            "there must be one integer label an image"
        )


def _check_constants(source: object, channels: int, metadata: dict[str, Any]) -> None:
    for name in ("mean", "std"):
        try:
            values = np.asarray(metadata[name], np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name} of {source} is {_short(metadata[name])}; give one number a channel") from error
        if values.shape != (channels,):
            raise ValueError(
                f"{source} has {channels} channels and {name} {values.shape}; {name} must have one number a channel"
            )
        # In float32, as it is used: 1e-50 is positive in float64 and 0 as a divisor.
        with np.errstate(over="ignore"):
            usable = np.isfinite(values.astype(np.float32)).all() and (name == "mean" or values.min() > 0)
        if not usable:
            wanted = "be finite" if name == "mean" else "be finite and above 0"
            raise ValueError(f"{name} of {source} is {_short(values.tolist())}; it must {wanted}")


def check_finite(source: object, what: str, values: np.ndarray) -> None:
    """Checks that no number is NaN or infinite.

    Args:
      source: what the error names.
      what: the numbers, in the plural, "pixels".
      values: of any shape.

    Raises:
      ValueError: with how many are.
    """
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{source} has {bad} {what} that are NaN or infinite; distil or export it again")


def _short(value: Any) -> str:
    """``value`` for a message of one line, however long or deep it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # deeper than Python prints, or an integer of too many digits
        text = f"an odd {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
