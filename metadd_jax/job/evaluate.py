"""Train networks from scratch on a distilled set and print their accuracy on the real test split.

metadd evaluate runs/mnist5k/dm/seed0/synthetic.npz --networks vgg11:width=8 mlp
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

import metadd_jax as mdd
from metadd_jax import keys
from metadd_jax.job import command, common, parsing, plugins
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge one distilled set across architectures.

    Attributes:
      file: synthetic.npz, or the folder that holds it.
      networks: what to train on it.
      dataset: other real data to judge on, of the same classes and constants; default: what the set was made from.
      data_dir: where prepared TFDS data lies.
      cache_dir: where decoded images are kept (default: ~/.cache/metadd_jax).
      seeds: trainings of each network.
      epochs: passes over the distilled set (the DC family's recipe: 300, or 1000 with DSA).
      augmentation: DSA tokens joined by "_", "none", or "auto" (by data set).
      plugin: a Python file that is read first: the networks and data sets that it registers can be named here
        (repeatable).
    """

    file: Annotated[str, Mark.POSITIONAL]
    networks: tuple[str, ...] = ("convnet:width=16", "lenet", "mlp")
    dataset: str | None = None
    data_dir: str | None = None
    cache_dir: str | None = None
    seeds: Annotated[int, Whole(1)] = 3
    epochs: Annotated[int, Whole(1)] = 300
    augmentation: str = "auto"
    plugin: Annotated[tuple[str, ...], Mark.REPEATED] = ()


def run(arguments: list[str], *, program: str = "metadd evaluate") -> None:
    """Parses the command line, trains, prints the table.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    plugins.load(arguments)
    config = parsing.parse(EvaluateConfig, arguments, program=program, description=__doc__)
    common.require_names(config.networks)
    if config.augmentation != "auto":
        mdd.training.dc_evaluation(config.epochs, augmentation=config.augmentation)  # refuses what it cannot read
    synthetic, metadata = common.load_set(config.file)
    common.open_cache(config.cache_dir)
    # After the names and the words of the command: typos cost no loading.
    dataset = common.real_data(metadata, name=config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir)
    words = mdd.data.augmentation(dataset.name) if config.augmentation == "auto" else config.augmentation
    nets = common.networks(config.networks, dataset)
    with command.bar(len(nets), "judge", "net") as progress:
        rows = mdd.evaluation.cross_architecture(
            keys.root(0, "judge"),
            synthetic,
            dataset,
            nets,
            seeds=config.seeds,
            recipe=mdd.training.dc_evaluation(config.epochs, augmentation=words),
            on_network=lambda label: progress.update(),
        )
    print(f"{config.file}: {config.epochs} epochs, augmentation {words}, {config.seeds} trainings, test split")
    for row in rows:
        values = 100 * np.array(row.accuracies)
        # A mean with a NaN in it says nothing, and one of the others would hide it.
        if not np.isfinite(values).all():
            print(f"{row.network:<28} diverged ({int(np.isnan(values).sum())} of {len(values)} trainings)")
            continue
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        print(f"{row.network:<28} {values.mean():5.1f}{spread}")
