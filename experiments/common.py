"""Options and steps that the small scripts share."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import command
import numpy as np

import metadd_jax as mdd
from metadd_jax import files, storage


def load_set(file: str) -> tuple[mdd.SyntheticSet, dict[str, Any]]:
    """A distilled set from ``synthetic.npz`` or from the folder that holds it.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    path = pathlib.Path(file)
    return mdd.exchange.load_npz(path / "synthetic.npz" if path.is_dir() else path)


def open_cache(cache_dir: str | None) -> pathlib.Path:
    """The folder of everything that need not be made twice: decoded images, trained networks, compiled programs.

    Raises:
      ValueError: if it cannot be made or written to.
    """
    folder = files.require_writable(mdd.data.cache_folder(cache_dir))
    for place in (folder, folder / "networks", folder / "experts"):  # what killed runs were writing
        storage.folder.tidy(place)
        storage.lock.remove_free(place)
    storage.cache_compilations(folder / "compiled")
    return folder


def check_names(specs: tuple[str, ...]) -> None:
    """Finds a typo in a network before any data is read.

    Raises:
      ValueError: naming what exists.
    """
    for spec in specs:
        with contextlib.suppress(mdd.zoo.SizeError):  # whether it suits the images is seen when they are there
            mdd.zoo.parse(spec, 10, (32, 32, 3))


def networks(specs: tuple[str, ...], dataset: mdd.Dataset) -> list[mdd.zoo.Architecture]:
    """Architectures for this data set."""
    return [mdd.zoo.parse(spec, dataset.num_classes, dataset.image_shape) for spec in specs]


def pretrain(
    nets: Sequence[mdd.zoo.Architecture],
    dataset: mdd.Dataset,
    recipe: mdd.training.Recipe,
    cache: pathlib.Path,
    *,
    seed: int = 0,
    split: str = "test",
    description: str = "pretrain",
) -> list[mdd.training.Trained]:
    """Trains networks on the real images, or takes them from the cache; shows a bar and prints each accuracy."""
    every = []
    with command.bar(len(nets), description, "net") as progress:
        for net in nets:
            progress.set_postfix_str(net.label)
            every.append(mdd.training.pretrain(net, dataset, recipe, seed=seed, split=split, cache_dir=cache))
            source = " (from the cache)" if every[-1].cached else ""
            progress.write(f"{net.label:<28} {100 * every[-1].accuracy:5.1f} % on the {split} split{source}")
            progress.update()
    return every


def real_data(metadata: dict[str, Any], *, name: str | None = None, **places: str | None) -> mdd.Dataset:
    """The real data that a set was made from, in the set's own value space.

    Args:
      name: another data set to judge it on.
      places: ``data_dir`` and ``cache_dir``.

    Raises:
      ValueError: if the data is absent or of another value space.
    """
    settings = {key: metadata.get(key, 0) for key in ("image_size", "train_per_class", "validation_fraction")}
    dataset = mdd.data.load(name or metadata["dataset"], zca=metadata["value_space"] == "zca", **settings, **places)
    check_same_space(metadata, dataset)
    return dataset


def check_same_space(metadata: dict[str, Any], dataset: mdd.Dataset) -> None:
    """Refuses to judge a set with real images of other constants: the numbers would mean nothing.

    Raises:
      ValueError: naming both constants.
    """
    if dataset.whitening is not None and not np.allclose(metadata["zca_mean"], dataset.whitening.mean, atol=1e-5):
        raise ValueError(
            f"the set was whitened for other images than those of {dataset.name}; judge it on its own data"
        )
    for name in ("mean", "std"):
        ours, theirs = np.asarray(metadata[name]), np.asarray(getattr(dataset.arrays, name))
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=1e-4):
            raise ValueError(
                f"the set was made with {name} {ours.tolist()}, but {dataset.name} is standardised with "
                f"{theirs.tolist()}; judge it on the data set it was made from"
            )
