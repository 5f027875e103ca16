"""Train networks on the whole real training split and keep them in the cache, as MetaDD's auxiliaries.

metadd pretrain --networks vgg11:width=8 vit:width=48,depth=3
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import metadd_jax as mdd
from metadd_jax.job import common, parsing, plugins
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import SEEDS, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train networks on real images.

    Attributes:
      networks: what to train, e.g. "resnet18:width=8".
      dataset: "mnist5k" (embedded), a TFDS name, an .npz file, or a folder with train/CLASS/ and test/CLASS/.
      image_size: side in pixels to which pictures of a folder or a TFDS set are brought; None leaves them.
      data_dir: where prepared TFDS data lies.
      cache_dir: where decoded images and trained networks are kept (default: ~/.cache/metadd_jax).
      epochs: passes over the training images (AdamW, cosine).
      seed: initialisation and order of the images.
      plugin: a Python file that is read first: the networks and data sets that it registers can be named here
        (repeatable).
    """

    networks: tuple[str, ...] = ("convnet:width=16", "vgg11:width=8")
    dataset: str = "mnist5k"
    image_size: Annotated[int | None, Whole(1)] = None
    data_dir: str | None = None
    cache_dir: str | None = None
    epochs: Annotated[int, Whole(1)] = 5
    seed: Annotated[int, Whole(0, SEEDS - 1)] = 0
    plugin: Annotated[tuple[str, ...], Mark.REPEATED] = ()


def run(arguments: list[str], *, program: str = "metadd pretrain") -> None:
    """Parses the command line, trains, prints the accuracies.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    plugins.load(arguments)
    config = parsing.parse(PretrainConfig, arguments, program=program, description=__doc__)
    common.require_names(config.networks)
    cache = common.open_cache(config.cache_dir)
    places = {"data_dir": config.data_dir, "cache_dir": config.cache_dir}
    dataset = mdd.data.load(config.dataset, image_size=config.image_size, **places)
    recipe = mdd.training.pretraining(config.epochs)
    nets = common.networks(config.networks, dataset)
    common.pretrain(nets, dataset, recipe, cache, seed=config.seed)
