"""Whether a set and real data belong together: accuracy on other classes, constants or images is another number."""

from __future__ import annotations

from typing import Any

import numpy as np

from metadd_jax import structs


def check_belongs(metadata: dict[str, Any], dataset: structs.Dataset, *, other_data: bool = False) -> str | None:
    """Refuses to bring a set and real data together that differ in what a number depends on.

    Args:
      metadata: of the set, with ``class_names``, ``mean``, ``std`` and ``value_space``; ``dataset_fingerprint`` is
        compared where it is there (a peer's file has none).
      dataset: the real data.
      other_data: whether the caller asked for this data, and not for that which the set was made from; its images may
        then be others, its classes and constants not.

    Returns:
      A line to show if the images are others than those the set was made from, else None.

    Raises:
      ValueError: naming both sides, if class names or their order, constants, whitening or (unless ``other_data``)
        images differ.
    """
    # Classes, then constants, then images: the first difference is the one that explains the others.
    _check_classes(list(metadata["class_names"]), list(dataset.class_names), dataset.name)
    _check_constants(metadata, dataset)
    made_from = metadata.get("dataset_fingerprint")
    if made_from is None or made_from == dataset.fingerprint:
        return None
    facts = f"fingerprint {str(made_from)[:12]} then, {dataset.fingerprint[:12]} now"
    if other_data:
        return f"the set was not made from the images of {dataset.name} ({facts}); it is judged on them as asked"
    raise ValueError(
        f"{dataset.name} does not hold the images that the set was made from ({facts}); restore them, or let "
        "evaluate.py judge the set on other images by --dataset"
    )


def _check_classes(ours: list[str], theirs: list[str], name: str) -> None:
    if ours == theirs:
        return
    # Not mapped onto each other: two orders of one set of classes mean that something was mixed up before.
    if sorted(ours) == sorted(theirs):
        number = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"the set and {name} have the same {len(ours)} classes in another order (class {number} is "
            f"{ours[number]!r} there and {theirs[number]!r} here), so every label would mean another class; bring the "
            "data into the order it had"
        )
    raise ValueError(
        f"the set's classes are {_listed(ours)}, but {name} has {_listed(theirs)}; judge it on its own data"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name if len(name) <= 30 else f"{name[:27]}..." for name in names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown


def _check_constants(metadata: dict[str, Any], dataset: structs.Dataset) -> None:
    whitening = dataset.whitening
    if (metadata["value_space"] == "zca") != (whitening is not None):
        raise ValueError(f"of the set and {dataset.name} only one is whitened; load both the same way")
    # The mean stands for the whole transform, whose matrix differs in its last digits from machine to machine.
    if whitening is not None and not (
        np.shape(metadata["zca_mean"]) == whitening.mean.shape
        and np.allclose(metadata["zca_mean"], whitening.mean, atol=1e-5)
        # FRePo's whitening of the same images has the same mean, and a diagonal far away.
        and np.allclose(np.diag(metadata["zca_inverse"]), np.diag(whitening.inverse), rtol=0.01, atol=1e-4)
    ):
        raise ValueError(
            f"the set was whitened for other images than those of {dataset.name}; judge it on its own data"
        )
    for name in ("mean", "std"):
        ours, theirs = np.asarray(metadata[name]), np.asarray(getattr(dataset.train, name))
        # Published constants have four digits, and those of two repositories for one set differ in the second or third.
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=1e-4):
            raise ValueError(
                f"the set was made with {name} {ours.tolist()}, but {dataset.name} is standardised with "
                f"{theirs.tolist()}; judge it on the data set it was made from"
            )
