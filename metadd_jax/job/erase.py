"""The erasing experiment: train networks on images without what all of them see, one alone sees, or only others see.

    metadd erase runs/cifar10_cpu/dm --networks vgg11_bn:width=8 alexnet:width=8 resnet18_bn:width=8
    metadd erase random --dataset cifar10 --ipc 100 --sets 3

Each network learns from the set without its own maps' areas, beside as much erased elsewhere. Started again it goes on
with the sets that are not measured yet.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import features, files, keys, storage
from metadd_jax.data.splits import SPLITS
from metadd_jax.evaluation import erasing, report, statistics
from metadd_jax.job import command, common, parsing, plugins
from metadd_jax.job.parsing import Mark
from metadd_jax.job.prepare import BASELINES
from metadd_jax.ranges import OneOf, Real, Whole
from metadd_jax.training import recipes

FILE = "erasing.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """Erase areas of a set's images, train on what is left, compare.

    Attributes:
      file: a distilled set, the folder of a method with one set a seed (runs/NAME/dm), or "random" or "kmeans" for real
        training images.
      networks: at least two, trained on the real data; their maps say what is meta and what is whose, and they learn.
      dataset: for real images, as ``metadd distill --dataset``; of a set the data that it was made from.
      train_per_class: most training images of a class to use, with real images; None uses all.
      validation_fraction: share of the training images set aside, with real images.
      evaluate_on: "test", or "validation" for choosing settings.
      ipc: real images of a class in a set.
      sets: sets of real images, each from a seed of its own.
      threshold: from which value on a map counts as high.
      alpha: how maps are made: "local" (HiResCAM) or "mean" (Grad-CAM).
      seeds: trainings of each network on each set.
      recipe: how they train, as ``metadd distill --eval-recipe``.
      epochs: passes over a set.
      augmentation: DSA tokens of these trainings, "none", or "auto" (by data set).
      pretrain_epochs: passes over the real data for the networks whose maps are made.
      pretrain_augmentation: as augmentation, for them.
      out: the folder of erasing.json and erasing.md (default: runs/erasing_NAME).
      data_dir: where prepared TFDS data lies.
      cache_dir: where decoded images and trained networks are kept (default: ~/.cache/metadd_jax).
      plugin: a Python file of yours that is read first (repeatable).
    """

    file: Annotated[str, Mark.POSITIONAL]
    networks: tuple[str, ...] = ("vgg11_bn:width=8", "alexnet:width=8", "resnet18_bn:width=8")
    dataset: str = "mnist5k"
    train_per_class: Annotated[int | None, Whole(1)] = None
    validation_fraction: Annotated[float, Real(0, 1, below=True)] = 0.0
    evaluate_on: Annotated[str, OneOf(SPLITS)] = "test"
    ipc: Annotated[int, Whole(1)] = 10
    sets: Annotated[int, Whole(1)] = 3
    threshold: Annotated[float, Real(0, 1)] = 0.5
    alpha: Annotated[str, OneOf(features.ALPHA)] = "local"
    seeds: Annotated[int, Whole(1)] = 1
    recipe: Annotated[str, OneOf(tuple(recipes.EVALUATIONS))] = "short"
    epochs: Annotated[int, Whole(1)] = 100
    augmentation: str = "auto"
    pretrain_epochs: Annotated[int, Whole(1)] = 30
    pretrain_augmentation: str = "auto"
    out: str | None = None
    data_dir: str | None = None
    cache_dir: str | None = None
    plugin: Annotated[tuple[str, ...], Mark.REPEATED] = ()


def run(arguments: list[str], *, program: str = "metadd erase") -> None:
    """Parses the command line, erases, trains, prints the table.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    plugins.load(arguments)
    config = parsing.parse(EraseConfig, arguments, program=program, description=__doc__)
    common.require_names(config.networks)
    if len(config.networks) < 2:
        raise ValueError(
            f"meta features are those of several networks, and --networks names {config.networks[0]} alone"
        )
    for words in (config.augmentation, config.pretrain_augmentation):
        mdd.training.short_evaluation(1, augmentation="none" if words == "auto" else words)
    cache = common.open_cache(config.cache_dir)
    dataset, sets = _sets(config)
    mdd.evaluation.split_of(dataset, config.evaluate_on)
    nets = common.networks(config.networks, dataset)
    for net in nets:
        if not net.has_map:
            raise ValueError(f"{net.label} has no activation map, so nothing of it can be erased; leave it out")
    folder = files.require_writable(config.out or f"runs/erasing_{pathlib.Path(config.file).stem}")
    with storage.Lock(folder / storage.LOCK):
        found = _begun(config, dataset, sets, folder)
        looking = _frozen(config, nets, dataset, cache)
        for seed, synthetic in sets.items():
            if all(row["distill_seed"] != seed for row in found["rows"]):
                rows, shares = measure(config, seed, synthetic, looking, dataset)
                found = found | {"rows": [*found["rows"], *rows], "shares": found["shares"] | {str(seed): shares}}
                report.write_rows(folder / FILE, found)
        text = "\n".join(lines(found)) + "\n"
        files.write_text(folder / "erasing.md", text)
    print(text)
    print(f"The numbers lie in {folder}")


def measure(
    config: EraseConfig, seed: int, synthetic: mdd.SyntheticSet, looking: Sequence[mdd.Auxiliary], dataset: mdd.Dataset
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Erases a set for each network and trains the network on what is left.

    Args:
      config: the settings.
      seed: the set's.
      synthetic: the set.
      looking: the frozen networks whose maps are made, each of which learns too.
      dataset: the real data to test on.

    Returns:
      Rows ``{set, distill_seed, network, role, labels, accuracies}`` with the kind as "set", and by network the shares
      of the pixels that each area has.
    """
    cam = mdd.features.CamConfig(alpha=config.alpha, threshold=config.threshold)
    stack = mdd.evaluation.map_stack(looking, synthetic.images, synthetic.labels, config=cam)
    words = mdd.data.augmentation(dataset.name) if config.augmentation == "auto" else config.augmentation
    recipe = recipes.EVALUATIONS[config.recipe](config.epochs, augmentation=words)
    rows: list[dict[str, Any]] = []
    shares: dict[str, dict[str, float]] = {}
    with command.bar(len(looking), f"erase, set {seed}", "net") as progress:
        for index, one in enumerate(looking):
            # The random places are those of the set, whichever network learns.
            sets, shares[one.net.label] = erasing.erased(
                keys.root(seed, "random"), synthetic, stack, index, threshold=config.threshold
            )
            tables = mdd.evaluation.cross_architecture(
                keys.root(0, "judge"), list(sets.values()), dataset, [one.net], seeds=config.seeds, recipe=recipe,
                draws=[seed] * len(sets), split=config.evaluate_on, labels="hard",
            )  # fmt: skip
            for kind, table in zip(sets, tables, strict=True):
                rows += report.rows_of(kind, seed, table, {one.net.label: "seen"}, labels="hard")
            progress.update()
    return rows, shares


def _sets(config: EraseConfig) -> tuple[mdd.Dataset, dict[int, mdd.SyntheticSet]]:
    """The real data, and the sets by their seed."""
    if config.file in BASELINES:
        dataset = mdd.data.load(
            config.dataset, train_per_class=config.train_per_class, validation_fraction=config.validation_fraction,
            data_dir=config.data_dir, cache_dir=config.cache_dir,
        )  # fmt: skip
        if config.file == "kmeans":
            made = {seed: mdd.evaluation.kmeans_real(seed, dataset, config.ipc) for seed in range(config.sets)}
        else:
            made = {
                seed: mdd.evaluation.random_real(keys.root(seed, "random"), dataset, config.ipc)
                for seed in range(config.sets)
            }
        return dataset, made
    path = pathlib.Path(config.file).expanduser()
    inside = [] if (path / "synthetic.npz").exists() else common.sets_inside(path) if path.is_dir() else []
    if len({file.parent for file in inside}) > 1:
        methods = " ".join(sorted({str(file.parent) for file in inside}))
        raise ValueError(f"{path} is a run's folder with the sets of several methods; give one: {methods}")
    loaded = [common.load_set(str(file)) for file in inside or [path]]
    dataset = common.real_data(loaded[0][1], data_dir=config.data_dir, cache_dir=config.cache_dir)
    if len({metadata.get("dataset_fingerprint") for _, metadata in loaded}) > 1:
        raise ValueError(f"the sets in {path} are of different data; give one of them")
    numbers = [metadata.get("seed") for _, metadata in loaded]
    known = len(set(numbers)) == len(numbers) and all(isinstance(number, int) for number in numbers)
    seeds = [int(number) for number in numbers if number is not None] if known else range(len(loaded))
    return dataset, {seed: synthetic for seed, (synthetic, _) in zip(seeds, loaded, strict=True)}


def _begun(
    config: EraseConfig, dataset: mdd.Dataset, sets: Mapping[int, mdd.SyntheticSet], folder: pathlib.Path
) -> dict[str, Any]:
    """What an earlier start of this very experiment found in the folder, or the beginning of a new one.

    Raises:
      ValueError: if the folder holds another experiment.
    """
    # Where things lie decides no number.
    said = files.plain(dataclasses.asdict(dataclasses.replace(config, out=None, data_dir=None, cache_dir=None)))
    content = files.hash_arrays(*(np.asarray(one.images) for one in sets.values()), text=dataset.fingerprint)
    wanted = {"config": said, "content": content, "versions": command.versions()}
    held = report.read_rows(folder / FILE)
    if held is None:
        if (folder / FILE).exists():
            raise ValueError(f"{folder / FILE} was not left so by this command; choose another --out")
        return {**wanted, "rows": [], "shares": {}}
    if any(held.get(name) != wanted[name] for name in ("config", "content")):
        raise ValueError(f"{folder} holds another experiment; choose another --out")
    return held


def _frozen(
    config: EraseConfig, nets: Sequence[mdd.zoo.Architecture], dataset: mdd.Dataset, cache: pathlib.Path
) -> list[mdd.Auxiliary]:
    words = config.pretrain_augmentation
    words = mdd.data.augmentation(dataset.name) if words == "auto" else words
    recipe = recipes.pretraining(config.pretrain_epochs, augmentation=words)
    trained = common.pretrain(nets, dataset, recipe, cache, split=config.evaluate_on)
    return [features.freeze(one.net, one.variables, dataset) for one in trained]


def lines(found: Mapping[str, Any]) -> list[str]:
    """Writes the numbers as Markdown: accuracy by kind and network, then what each area costs beside as much elsewhere.

    Args:
      found: what ``erasing.json`` holds.
    """
    rows, config = found["rows"], found["config"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    seeds = sorted({row["distill_seed"] for row in rows})
    text = [
        f"# Erased: {config['file']}",
        "",
        f"Accuracy in percent on {config['evaluate_on']} images, mean over {len(seeds)} set(s) of the mean of "
        f"{config['seeds']} training(s), recipe {config['recipe']!r}, {config['epochs']} epochs, hard labels; erased "
        f'pixels have the data\'s mean colour. An area is high from {config["threshold"]} on; "own" and "others" are '
        "those of the network that learns. "
        f"jax {found['versions']['jax']}, {found['versions']['device']}, {found['versions']['machine']}.",
        "",
        f"| erased | {' | '.join(networks)} | **mean** | share of the pixels |",
        "|---" * (3 + len(networks)) + "|",
    ]
    every = {kind: report.accuracies(rows, kind) for kind in erasing.KINDS}
    shares = {
        area: float(np.mean([of[net][area] for of in found["shares"].values() for net in networks]))
        for area in erasing.AREAS
    }
    for kind, values in every.items():
        cells = [_percent(values[:, index]) for index in range(len(networks))]
        share = shares.get(kind.removeprefix(erasing.MOVED), 0.0)
        text.append(f"| {kind} | {' | '.join(cells)} | **{_percent(values)}** | {share:.3f} |")
    text += [
        "",
        "Difference of each area to as much erased elsewhere, in points, paired by set and network, with 95 % t "
        "intervals over sets; p of the t test, corrected for three areas (Holm):",
        "",
        "| area | difference | p | to nothing erased |",
        "|---|---|---|---|",
    ]
    pairs = {area: _paired(every[erasing.MOVED + area], every[area]) for area in erasing.AREAS}
    whole = {area: _paired(every["nothing"], every[area]) for area in erasing.AREAS}
    tested = [np.nan if pair is None else statistics.t_test(pair["per_seed"]) for pair in pairs.values()]
    for (area, pair), p in zip(pairs.items(), statistics.holm(tested), strict=True):
        text.append(f"| {area} | {_told(pair)} | {'.' if np.isnan(p) else f'{p:.2g}'} | {_told(whole[area])} |")
    return text


def _paired(before: np.ndarray, after: np.ndarray) -> dict[str, Any] | None:
    """None where a training diverged, so that there is no difference."""
    return statistics.paired(before, after) if np.isfinite(before).all() and np.isfinite(after).all() else None


def _told(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return "diverged"
    interval = pair["t_interval"]
    spread = "one set" if interval is None else f"[{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
    return f"{100 * pair['difference']:+.1f} {spread}"


def _percent(values: np.ndarray) -> str:
    lost = int(np.isnan(values).sum())
    return f"diverged ({lost})" if lost else f"{100 * values.mean():.1f}"
