"""Where the sets of a job start (``--init``): images that are there before the method is, found or saved."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import exchange, files, storage
from metadd_jax.distillers import starts
from metadd_jax.job import common, judged
from metadd_jax.job.options import DistillConfig


def given(config: DistillConfig, dataset: mdd.Dataset, counts: tuple[int, ...]) -> np.ndarray | None:
    """Gives the images that all sets start from, proved against the data; None where the method draws its start.

    Images found among the real ones differ by seed and take a while, so they come later (``stages.start_of``); until
    then NaN stands for them, from which no run starts.

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
    if init in starts.FOUND:
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


def content(path: str | pathlib.Path) -> str:
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
    """The set at ``init``: one of ours, or a peer's in any format that ``metadd evaluate`` judges."""
    path, space = starts.place_of(init)
    orbax = (path / "tree.json").is_file()  # of ``storage.save``, whose folders may look like any other's
    if not orbax and not judged.is_ours(judged.Source(str(path))):
        return _settle(path, _of_peer(path), space, dataset)
    if space is not None:
        raise ValueError(f"--init {init}: {path} says itself how its images are scaled; leave :{space} out")
    if orbax or (path.is_dir() and not (path / "synthetic.npz").is_file() and not common.sets_inside(path)):
        synthetic, metadata = storage.restore(path)
        exchange.check_set(path, synthetic, metadata)
        return synthetic, metadata
    return common.load_set(str(path))


def _of_peer(path: pathlib.Path) -> exchange.Peer:
    """The peer's set there, the last of several; a packed one decoded."""
    found = exchange.load_peer(path)
    if len(found) > 1:
        print(f"--init {path}: the last of its {len(found)} sets is started from")
    if found[-1].packed and found[-1].factor is None:
        raise ValueError(
            f"--init {path} does not say how many images each of its holds; make a set of ours of it first: metadd "
            f"export {path} --factor 2 --dataset NAME --out start.npz"
        )
    return judged.unpack(found[-1])


def _settle(
    path: pathlib.Path, found: exchange.Peer, space: str | None, dataset: mdd.Dataset
) -> tuple[mdd.SyntheticSet, dict[str, Any]]:
    """A peer's set in a value space that its metadata describe; ``given`` brings it into the run's."""
    if found.space is None and space is None:
        raise ValueError(
            f"--init {path} does not say how its numbers were scaled ({found.images.min():.3g} to "
            f"{found.images.max():.3g}); say it behind a colon: --init {path}:standardised, :zca, :zca_frepo or :pixels"
        )
    settled = exchange.space_of(found, space)
    # Only the classes are asked of the labels here, and the largest entry names them, whatever they are.
    kind = "hard" if found.labels.ndim == 2 and found.label_kind is None else None
    said = {name: found.said[name] for name in ("mean", "std") if name in found.said}
    if settled == "standardised" and dataset.whitening is not None:
        if len(said) < 2:
            raise ValueError(
                f"--init {path}: the run is whitened, so say by whose constants the set was standardised, such as "
                f"--init {path}:standardised:cifar10"
            )
        # Taken as it is, and told as what it is.
        held = dataclasses.replace(found, space="zca", said={**found.said, "mean": (0,), "std": (1,)})
        synthetic, metadata = exchange.settle(held, dataset, labels=kind)
        kept = {name: value for name, value in metadata.items() if not name.startswith("zca_")}
        return synthetic, {**kept, **said, "value_space": "standardised"}
    real = dataset
    if settled in ("zca", "zca_frepo"):
        whitening = "frepo" if settled == "zca_frepo" else "mtt"
        if dataset.whitening is None:
            real = mdd.data.whiten(dataset, kind=whitening)
        elif whitening == "frepo":
            raise ValueError(f"--init {path}: the run is whitened as MTT does, not as FRePo; leave --zca out")
    return exchange.settle(found, real, space=space, labels=kind)
