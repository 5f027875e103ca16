"""Steps that several commands share: sets, data, networks, the cache."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import metadd_jax as mdd
from metadd_jax import files, storage
from metadd_jax.job import bundle, command


def load_set(file: str) -> tuple[mdd.SyntheticSet, dict[str, Any]]:
    """Reads a distilled set from ``synthetic.npz``, from the folder that holds it, or from a bundle.

    Args:
      file: the path, as the user wrote it ("~" is their home).

    Returns:
      The set, and its metadata.

    Raises:
      ValueError: if there is none, or it is damaged; the folder of a run names the sets that it holds.
    """
    path = pathlib.Path(file).expanduser()
    if path.is_file() and path.suffix != ".npz" and bundle.is_bundle(path):
        held = bundle.read(path)
        return held.synthetic, held.metadata
    if not path.is_dir():
        return mdd.exchange.load_npz(path)
    inside = [] if (path / "synthetic.npz").exists() else sets_inside(path)
    if inside:
        raise ValueError(f"{path} is a run's folder with {len(inside)} sets; give one: {' '.join(map(str, inside))}")
    return mdd.exchange.load_npz(path / "synthetic.npz")


def sets_inside(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders of the sets that a run's folder holds, or that of one of its methods.

    Args:
      folder: ``runs/smoke`` or ``runs/smoke/dm``.
    """
    return sorted(file.parent for pattern in ("*/seed*", "seed*") for file in folder.glob(f"{pattern}/synthetic.npz"))


def is_set(file: str) -> bool:
    """Tells a distilled set, or a run of such, from real data: what lies there decides, and not its name.

    Args:
      file: a path or the name of a data set. A file that does not exist counts as a set if it ends in .npz, so that the
        error speaks of a missing set.
    """
    path = pathlib.Path(file).expanduser()
    if path.is_dir():
        return (path / "synthetic.npz").exists() or bool(sets_inside(path))
    if path.suffix == ".npz":
        return not path.is_file() or mdd.exchange.is_set_file(path)
    return path.is_file()


def open_cache(cache_dir: str | None) -> pathlib.Path:
    """Opens the folder of what need not be made twice: decoded images, trained networks, compiled programs.

    Args:
      cache_dir: the folder; None stands for $METADD_CACHE, or else ~/.cache/metadd_jax.

    Raises:
      ValueError: if it cannot be made or written to.
    """
    folder = files.require_writable(mdd.data.cache_folder(cache_dir))
    for place in (folder, folder / "networks", folder / "experts"):
        # A killed run leaves half a file and a lock that nobody holds.
        storage.folder.tidy(place)
        storage.lock.remove_free(place)
    # Most of a short job is compiling, and the next one starts with the same programs.
    storage.cache_compilations(folder / "compiled")
    return folder


def check_names(specs: tuple[str, ...]) -> None:
    """Finds a typo in a network before any data is read.

    Args:
      specs: networks as the user writes them, "vgg11:width=8".

    Raises:
      ValueError: naming what exists.
    """
    for spec in specs:
        mdd.zoo.check(spec)  # whether it suits the images is seen once they are read


def require_names(specs: tuple[str, ...]) -> None:
    """Refuses what ``check_names`` refuses, and no network at all.

    Args:
      specs: networks to train, as the user writes them.

    Raises:
      ValueError: naming what exists, or what to do.
    """
    if not specs:
        raise ValueError("no network to train; name some by --networks, or leave --networks out")
    check_names(specs)


def networks(specs: tuple[str, ...], dataset: mdd.Dataset) -> list[mdd.zoo.Architecture]:
    """Makes the architectures for the images and classes of a data set.

    Args:
      specs: networks as the user writes them, "vgg11:width=8".
      dataset: the data set.
    """
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
    """Trains networks on the real images, or takes them from the cache; shows a bar and prints each accuracy.

    Args:
      nets: the networks.
      dataset: the real data.
      recipe: how they are trained.
      cache: the folder of the cache.
      seed: of the initialisation and the order of the images.
      split: which images the accuracy is measured on.
      description: what the bar is called.

    Returns:
      The trained networks, in the order of ``nets``.
    """
    every: list[mdd.training.Trained] = []
    if not nets:
        return every
    with command.bar(len(nets), description, "net") as progress:
        for net in nets:
            progress.set_postfix_str(net.label)
            every.append(mdd.training.pretrain(net, dataset, recipe, seed=seed, split=split, cache_dir=cache))
            source = " (from the cache)" if every[-1].cached else ""
            # Said for each: a network that learned nothing explains what follows.
            progress.write(f"{net.label:<28} {100 * every[-1].accuracy:5.1f} % on the {split} split{source}")
            progress.update()
    return every


def real_data(metadata: dict[str, Any], *, name: str | None = None, **places: str | None) -> mdd.Dataset:
    """Loads the real data that a set was made from, in the set's own value space; prints a note if it is other data.

    Args:
      metadata: what was exported beside the set.
      name: another data set to judge it on, named by the user.
      places: ``data_dir`` and ``cache_dir``.

    Raises:
      ValueError: if the data is absent, the set does not name it, or the two do not belong together.
    """
    # The metadata is a file that travels: nothing in it is taken for what it should be.
    own = name or metadata.get("dataset")
    if not isinstance(own, str):
        raise ValueError("the set does not say which data it was made from; name it by --dataset")
    settings = {key: metadata.get(key) for key in ("image_size", "train_per_class", "validation_fraction")}
    for key, value in settings.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} of the set is {value!r}, not a number; export the set with the data's own {key}")
    # Sets exported before None meant "all" say 0.
    dataset = mdd.data.load(
        own,
        image_size=settings["image_size"] or None,
        train_per_class=settings["train_per_class"] or None,
        validation_fraction=settings["validation_fraction"] or 0.0,
        zca=metadata["value_space"] == "zca",
        data_dir=places.get("data_dir"),
        cache_dir=places.get("cache_dir"),
    )
    note = mdd.exchange.check_belongs(metadata, dataset, other_data=name is not None)
    if note:
        print(note)
    return dataset
