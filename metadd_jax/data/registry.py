"""Data sets of one's own by name: a function that gives the arrays, for ``load`` and the scripts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from metadd_jax import ranges, registries
from metadd_jax.data import catalog, npz
from metadd_jax.structs import Dataset

Loader = Callable[..., Dataset | Mapping[str, Any]]
OPTIONS = ("data_dir", "cache_dir", "image_size", "progress")
_OWN: dict[str, Loader] = {}


def register(name: str, load: Loader, *, augmentation: str | None = None) -> None:
    """Gives a data set of your own a name that ``data.load`` and the scripts' ``--dataset`` know.

    >>> def load(data_dir):
    ...     return {"images": numpy.load(f"{data_dir}/x.npy"), "labels": numpy.load(f"{data_dir}/y.npy")}
    >>> register("mine", load, augmentation="crop_flip")
    >>> dataset = data.load("mine", data_dir="~/data", validation_fraction=0.1)

    The arrays are checked, split and standardised as those of an .npz are, at every start: nothing of them is cached,
    and the set's fingerprint is that of what ``load`` gave.

    Args:
      name: letters, digits and underscores; no name of the catalog.
      load: called with those of ``OPTIONS`` that it names, gives a dictionary of arrays as an .npz holds them
        (``images``, ``labels``; if you like ``test_images`` with ``test_labels``, ``class_names``, ``mean`` with
        ``std``; see ``data.load``), or a ``Dataset`` without validation images and not whitened, since ``data.load``
        sets aside and whitens.
      augmentation: the tokens that augmentation "auto" means for this set. None: all without mirror images, with a
        warning, since nobody knows whether a mirrored image means the same.

    Raises:
      ValueError: if the name is no word or taken, or if ``load`` asks for more than ``OPTIONS``.
    """
    # Now, not at the first load: a wrong name in a plugin would show after other long work.
    for argument in inspect.signature(load).parameters.values():
        is_named = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        if argument.default is argument.empty and not (is_named and argument.name in OPTIONS):
            raise ValueError(f"data set {name}: load asks for {argument}; it can have {', '.join(OPTIONS)}")
    registries.claim(_OWN, name, load, kind="data set", taken=catalog.names())
    catalog.OWN[name] = augmentation


def read(
    name: str,
    *,
    data_dir: str | os.PathLike | None,
    cache_dir: str | os.PathLike | None,
    image_size: int | None,
    progress: bool,
) -> npz.Contents:
    """Calls the loader of ``name`` and checks what it gives; see ``register``.

    Args:
      name: one that is registered.
      data_dir: as in ``data.load``, like the others: passed on to a loader that names it.
      cache_dir: likewise.
      image_size: likewise, in pixels; None leaves the images as they are.
      progress: likewise.

    Raises:
      ValueError: if that is no image-classification set, or ``image_size`` is given to a loader that takes none.
    """
    load, options = _OWN[name], dict(zip(OPTIONS, (data_dir, cache_dir, image_size, progress), strict=True))
    taken = inspect.signature(load).parameters
    if image_size and "image_size" not in taken:
        raise ValueError(f"image_size is {image_size}, and the loader of {name} takes none; leave it out")
    found = load(**{option: value for option, value in options.items() if option in taken})
    # Back to arrays: a Dataset of the user's gets the same checks, splits and fingerprint as an .npz of them.
    if isinstance(found, Dataset):
        found = _arrays(name, found)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"the loader of {name} gives a {type(found).__name__}; return a dictionary with images and labels, or a "
            "Dataset"
        )
    # Refused, where an .npz has a warning: a dictionary is written for this purpose, so a foreign word is a slip.
    for field in found:
        if field not in npz.FIELDS:
            near = ranges.nearest(str(field), npz.FIELDS)
            raise ValueError(f"the loader of {name} gives {field!r}{near}; what is used is {', '.join(npz.FIELDS)}")
    arrays = {field: np.asarray(value) for field, value in found.items() if value is not None}
    npz.required(f"what the loader of {name} gives", arrays)
    return npz.contents(name, arrays)


def _arrays(name: str, dataset: Dataset) -> dict[str, Any]:
    if dataset.validation is not None or dataset.whitening is not None:
        what = "is whitened" if dataset.whitening is not None else "has validation images"
        raise ValueError(
            f"the Dataset of {name} {what}; give it plain and whole, and ask data.load for that (zca, "
            "validation_fraction)"
        )
    train, test = dataset.train, dataset.test
    return {
        "images": train.images, "labels": train.labels, "test_images": test.images, "test_labels": test.labels,
        "class_names": dataset.class_names, "mean": train.mean, "std": train.std,
    }  # fmt: skip
