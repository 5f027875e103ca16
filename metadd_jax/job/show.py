"""Draw a distilled set and its loss; with networks (trained on the real data, from the cache) also their maps.

metadd show runs/mnist5k/dm/seed0 --out pictures --networks vgg11:width=8 lenet
metadd show mnist5k --networks vgg11:width=8 lenet    (real images; also a folder or an .npz of yours)
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import augment, exchange, files, keys, pictures, storage
from metadd_jax.job import common, parsing, plugins
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Pictures of a distilled set.

    Attributes:
      file: synthetic.npz or the folder that holds it; or, for one real image of each class, a data set: a name, a
        folder with train/CLASS/ and test/CLASS/, or an .npz with images and labels.
      out: folder for synthetic.png, maps.png and, of a set in its run's folder, loss.png.
      networks: networks whose activation maps are drawn (of the default kind, whatever the set was distilled under);
        they are pre-trained on the real data if need be.
      epochs: of that pre-training.
      augmentation: DSA tokens for it, or "none".
      train_per_class: for a data set: most images of a class to train on, None uses all (a distilled set
        names its own).
      image_size: for a data set: side in pixels to which pictures of a folder or a TFDS set are brought; None leaves
        them.
      data_dir: where prepared TFDS data lies.
      cache_dir: where trained networks are kept (default: ~/.cache/metadd_jax).
      plugin: a Python file that is read first: the networks and data sets that it registers can be named here
        (repeatable).
    """

    file: Annotated[str, Mark.POSITIONAL]
    out: str = "pictures"
    networks: tuple[str, ...] = ()
    epochs: Annotated[int, Whole(1)] = 5
    augmentation: str = "none"
    train_per_class: Annotated[int | None, Whole(1)] = None
    image_size: Annotated[int | None, Whole(1)] = None
    data_dir: str | None = None
    cache_dir: str | None = None
    plugin: Annotated[tuple[str, ...], Mark.REPEATED] = ()


def run(arguments: list[str], *, program: str = "metadd show") -> None:
    """Parses the command line and draws.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    plugins.load(arguments)
    config = parsing.parse(ShowConfig, arguments, program=program, description=__doc__)
    common.check_names(config.networks)
    augment.strategy(config.augmentation)
    name, synthetic, metadata, dataset = _images(config)  # what is refused leaves no folder
    folder = pathlib.Path(files.require_writable(config.out))
    pixels, names = exchange.to_pixels(synthetic.images, metadata), metadata["class_names"]
    pictures.grid(folder / f"{name}.png", pixels, synthetic.labels, class_names=names)
    print(f"wrote {folder / name}.png")
    if name == "synthetic":
        _curve(pathlib.Path(config.file).expanduser(), folder / "loss.png")
    if not config.networks:
        return
    auxiliaries = _pretrained(config, dataset)
    first = np.unique(np.asarray(synthetic.labels), return_index=True)[1]  # one image of each class fills a page
    labels = synthetic.labels[first]
    stack = mdd.evaluation.map_stack(auxiliaries, synthetic.images[first], labels)
    shown = [auxiliary.net.label for auxiliary in auxiliaries]
    pictures.maps(folder / "maps.png", pixels[first], labels, stack, network_names=shown, class_names=names)
    print(f"wrote {folder / 'maps.png'}: {mdd.features.CamConfig().describe()}")


def _curve(source: pathlib.Path, file: pathlib.Path) -> None:
    """Draws the loss over the steps, where the set lies beside the metrics of its run."""
    # Of a set that was copied out of its run there are no metrics: no curve, and no error.
    metrics = (source if source.is_dir() else source.parent) / "metrics.jsonl"
    if not metrics.exists():
        return
    lines = [line for line in storage.JsonLines(metrics).read() if "distill/loss" in line]
    steps, losses = (np.array([line[name] for line in lines]) for name in ("step", "distill/loss"))
    pictures.curves(file, {metrics.resolve().parent.parent.name: (steps, losses)}, ylabel="loss")
    print(f"wrote {file}")


def _images(config: ShowConfig) -> tuple[str, Any, dict[str, Any], Any]:
    """What to call the picture, the images, the constants they go with, and the real data where it is needed."""
    places = {"data_dir": config.data_dir, "cache_dir": config.cache_dir}
    if not common.is_set(config.file):
        dataset = mdd.data.load(
            config.file,
            data_dir=config.data_dir,
            cache_dir=config.cache_dir,
            train_per_class=config.train_per_class,
            image_size=config.image_size,
        )
        facts = {**exchange.value_space(dataset), "class_names": dataset.class_names}
        return "real", mdd.evaluation.random_real(keys.root(0, "random"), dataset, 1), facts, dataset
    synthetic, metadata = common.load_set(config.file)
    if not config.networks:
        return "synthetic", synthetic, metadata, None
    return "synthetic", synthetic, metadata, common.real_data(metadata, **places)


def _pretrained(config: ShowConfig, dataset: Any) -> list[Any]:
    cache = common.open_cache(config.cache_dir)
    recipe = mdd.training.pretraining(config.epochs, augmentation=config.augmentation)
    nets = common.networks(config.networks, dataset)
    every = common.pretrain(nets, dataset, recipe, cache)
    return [mdd.features.freeze(trained.net, trained.variables, dataset) for trained in every]
