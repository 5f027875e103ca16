"""Where the sets of a job start (``--init``): images that are there before the method is, k-means or a saved set."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import exchange, files, storage
from metadd_jax.distillers import starts
from metadd_jax.job import common
from metadd_jax.job.options import DistillConfig


def given(config: DistillConfig, dataset: mdd.Dataset, counts: tuple[int, ...]) -> np.ndarray | None:
    """Gives the images that all sets start from, proved against the data; None where the method draws its start.

    K-means images differ by seed and take a while, so they come later (``stages.start_of``); until then NaN stands for
    them, from which no run starts.

    Args:
      config: the settings of the job.
      dataset: the real data.
      counts: images of each class of a set, as networks see it.

    Returns:
      [N, H, W, C] float32 in the value space of ``dataset``, class-major.

    Raises:
      ValueError: if what is saved there cannot be read, or has other images, classes or numbers of images.
    """
    init = config.own.start
    if init in starts.DRAWN:
        return None
    if init == "kmeans":
        return np.broadcast_to(np.float32(np.nan), (sum(counts), *dataset.image_shape))
    synthetic, metadata = _read(init, dataset)
    if tuple(synthetic.images.shape[1:]) != dataset.image_shape:
        raise ValueError(
            f"--init {init} holds {tuple(synthetic.images.shape[1:])} images, but {dataset.name} has "
            f"{dataset.image_shape}; start from a set of this data"
        )
    names = list(metadata["class_names"])
    if names != list(dataset.class_names):
        theirs = [one for one in zip(names, dataset.class_names, strict=False) if one[0] != one[1]]
        differs = f", first {theirs[0][0]!r} in place of {theirs[0][1]!r}" if theirs else ""
        raise ValueError(
            f"--init {init} has {len(names)} classes{differs}, but {dataset.name} has {dataset.num_classes}; start "
            "from a set of these classes, in this order"
        )
    labels = np.asarray(synthetic.labels)
    held = np.bincount(labels, minlength=dataset.num_classes)
    if tuple(held) != counts:
        label = int(np.flatnonzero(held != np.array(counts))[0])
        packed = "" if config.parameterisation == "pixels" else f" (--parameterisation {config.parameterisation})"
        raise ValueError(
            f"--init {init} has {held[label]} images of class {label}, but this run's sets have {counts[label]}"
            f"{packed}; set --ipc or --ipc-per-class so that both agree"
        )
    extra = [
        name.replace("_", " ") for name in ("soft_labels", "learning_rate") if getattr(synthetic, name) is not None
    ]
    if extra:
        print(f"--init {init}: the set's {' and '.join(extra)} play no part; its images alone are started from")
    images = exchange.to_value_space(synthetic.images, metadata, dataset)
    return images[np.argsort(labels, kind="stable")]


def content(path: str) -> str:
    """Hashes what a saved set is made of, so that a run goes on from that set alone.

    Args:
      path: a file or a folder.

    Returns:
      SHA-256 in hex.
    """
    place = pathlib.Path(path).expanduser()
    if (place / "synthetic.npz").is_file():
        place = place / "synthetic.npz"
    if place.is_file():
        # MTT's line keeps the labels beside the images.
        beside = place.with_name(place.name.replace("images", "labels", 1))
        return "+".join(files.hash_file(one) for one in dict.fromkeys((place, beside)) if one.is_file())
    inside = sorted(file for file in place.rglob("*") if file.is_file())
    return files.hash_arrays(text="".join(f"{file.relative_to(place)} {files.hash_file(file)}\n" for file in inside))


def _read(init: str, dataset: mdd.Dataset) -> tuple[mdd.SyntheticSet, dict[str, Any]]:
    """The set at ``init``, in any of the package's formats."""
    path = pathlib.Path(init).expanduser()
    if path.suffix in (".pt", ".pth"):
        space = exchange.value_space(dataset)
        facts = {name: space[name] for name in ("mean", "std")}
        synthetic, metadata = exchange.load_torch(path, class_names=dataset.class_names, **facts)
        # A peer's file does not say how its images are scaled: as those of this run, or it could not be read at all.
        return synthetic, metadata if metadata["constants"] == "file" else metadata | space
    if path.is_dir() and not (path / "synthetic.npz").is_file() and not common.sets_inside(path):
        synthetic, metadata = storage.restore(path)
        exchange.check_set(path, synthetic, metadata)
        return synthetic, metadata
    return common.load_set(init)
