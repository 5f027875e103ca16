"""Train networks from scratch on a distilled set, ours or a peer's, and print their accuracy on the real test split.

metadd evaluate runs/mnist5k/dm/seed0/synthetic.npz --networks vgg11:width=8 mlp
metadd evaluate dm.zip    (a bundle of metadd export: by its own protocol, and by how much the numbers differ)
metadd evaluate images_best.pt --dataset cifar10 --space zca --networks convnet
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import numpy as np

import metadd_jax as mdd
from metadd_jax.exchange import peer, peers
from metadd_jax.job import bundle, command, common, judged, labels, parsing, plugins, rejudge, set_scores
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import OneOf, Real, Whole
from metadd_jax.training import recipes


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge one distilled set across architectures.

    Attributes:
      file: synthetic.npz, or the folder that holds it; or a peer's file or folder, with --dataset (docs/formats.md); or
        a bundle, which is judged by its own protocol where no option below says another.
      networks: what to train on it.
      format: of the file: "metadd", "dc" (DC, DSA, DM), "mtt" (MTT, TESLA, DATM), "ddranking", "idc" (IDC, NCFM),
        "tensordataset", "images" (folders: SRe2L, RDED), "webdataset", "npz" (plain, KIP), "frepo" (FRePo, RCIG),
        "safetensors", "tfds"; "auto" goes by what is there.
      space: how the numbers of a peer's file are scaled, where it does not say: "pixels" in [0, 1], "standardised" by
        the constants of --dataset ("standardised:imagenet": by those of another), "zca"
        (MTT's whitening) or "zca_frepo" (FRePo's and RCIG's).
      factor: how many cells a side each packed image of IDC's or NCFM's file holds.
      set: of a file with several sets (DC's): "last", "all", or a number from 0 on.
      file_labels: how a peer's labels [N, K] are read: "logits", "probabilities", or "hard" (the largest); default: as
        its format says.
      learning_rate: the step size learned with a peer's set, where no file beside it has it (MTT's is in its log).
      image_size: side that the real images are brought to for a peer's set.
      dataset: other real data to judge on, of the same classes and constants; default: what the set was made from.
        A peer's file does not say, so that it must be named.
      data_dir: where prepared TFDS data lies.
      cache_dir: where decoded images are kept (default: ~/.cache/metadd_jax).
      seeds: trainings of each network.
      recipe: how they train: "dc" (the DC family's), or another of ``metadd distill --eval-recipe``.
      labels: what they learn from: "own" (the set's soft labels where it has them), "hard", "teacher:NET+NET" (mean
        logits of networks trained on the real data; one or several), "teacher:0.7*NET+0.3*NET", or
        "prior:63*NET+65*NET" (weights softmax(number / 10)).
      kd: a network, such as the one that distilled, that trains on the set first and then guides the others beside the
        labels (ModelPool's distillation of knowledge).
      epochs: passes over the distilled set (the DC family's recipe: 300, or 1000 with DSA).
      augmentation: DSA tokens joined by "_", "none", or "auto" (by data set); the sre2l recipes have their own.
      scores: tell DD-Ranking's label-robust and augmentation-robust scores too: random real images, hard labels and
        trainings without augmentation for comparison, about three times the work (docs/methods.md).
      pretrain_epochs: passes over the real data for the teachers and, with --scores, for the row of all real images.
      pretrain_augmentation: as augmentation, for those trainings.
      plugin: a Python file that is read first: the networks and data sets that it registers can be named here
        (repeatable).
    """

    file: Annotated[str, Mark.POSITIONAL]
    networks: tuple[str, ...] = ("convnet:width=16", "lenet", "mlp")
    format: Annotated[str, OneOf(("auto", "metadd", *peers.FORMATS))] = "auto"
    space: str | None = None
    factor: Annotated[int | None, Whole(1)] = None
    set: str = "last"
    file_labels: Annotated[str | None, OneOf(peer.LABELS)] = None
    learning_rate: Annotated[float | None, Real(0, above=True)] = None
    image_size: Annotated[int | None, Whole(1)] = None
    dataset: str | None = None
    data_dir: str | None = None
    cache_dir: str | None = None
    seeds: Annotated[int, Whole(1)] = 3
    recipe: Annotated[str, OneOf(tuple(recipes.EVALUATIONS))] = "dc"
    labels: str = "own"
    kd: str | None = None
    epochs: Annotated[int, Whole(1)] = 300
    augmentation: str = "auto"
    scores: bool = False
    pretrain_epochs: Annotated[int, Whole(1)] = 12
    pretrain_augmentation: str = "auto"
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
    common.check_names(() if config.kd is None else (config.kd,))
    chosen = labels.read(config.labels)
    if chosen.rule == "teacher" and not chosen.networks:
        raise ValueError("a set brings no teacher with it; name one, --labels teacher:NET")
    train = recipes.EVALUATIONS[config.recipe]
    for words in (config.augmentation, config.pretrain_augmentation):
        mdd.training.dc_evaluation(1, augmentation="none" if words == "auto" else words)  # refuses what it cannot read
    places = {name: getattr(config, name) for name in ("data_dir", "cache_dir", "plugin")}
    place = pathlib.Path(config.file).expanduser()
    if config == EvaluateConfig(file=config.file, **places) and place.is_file() and bundle.is_bundle(place):
        _again(config)
        return
    source = judged.Source.of(config, format=config.format)
    # After the names and the words of the command: typos cost no loading.
    sets, dataset, lines, metadata = judged.load(
        source, dataset=config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir
    )
    for line in lines:
        print(line)
    cache = common.open_cache(config.cache_dir)
    words = _tokens(config.augmentation, dataset)
    nets = common.networks(config.networks, dataset)
    guidance = None if config.kd is None else mdd.training.Guidance(common.networks((config.kd,), dataset)[0])
    if config.scores:
        set_scores.require_fit(chosen, sets)
    teacher = labels.join(chosen, _on_real_data(config, chosen.networks, dataset, cache))
    judge = set_scores.Judge(
        dataset,
        nets,
        config.seeds,
        train(config.epochs, augmentation=words),
        "hard" if chosen.rule == "hard" else "own",
        teacher,
        guidance,
    )
    with command.bar(len(nets), "judge", "net") as progress:
        accuracies = judge.train(sets, on_network=lambda label: progress.update())
    print(
        f"{config.file}: recipe {config.recipe!r}, {config.epochs} epochs, augmentation {words}, labels "
        f"{labels.told(chosen, teacher, {'': sets})}"
        f"{f' and a guide ({guidance.net.label})' if guidance else ''}, {config.seeds} trainings, test split"
    )
    # Of several sets one row a network, over all trainings of all of them, as the DC family reports.
    for net, values in zip(nets, 100 * accuracies, strict=True):
        # A mean with a NaN in it says nothing, and one of the others would hide it.
        if not np.isfinite(values).all():
            print(f"{net.label:<28} diverged ({int(np.isnan(values).sum())} of {len(values)} trainings)")
            continue
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        print(f"{net.label:<28} {values.mean():5.1f}{spread}")
    if config.scores:
        whole = [one.accuracy for one in _on_real_data(config, config.networks, dataset, cache)]
        counts = set_scores.stored(sets[0], metadata, dataset)
        with command.bar(set_scores.trainings(judge), "scores", "net") as progress:
            found = set_scores.measure(
                judge, sets[0], accuracies, whole, counts, on_network=lambda label: progress.update()
            )
        print("\n" + "\n".join(set_scores.lines([net.label for net in nets], found, counts)))


def _again(config: EvaluateConfig) -> None:
    """Judges a bundle by its own protocol and prints by how much the numbers differ."""
    held = bundle.read(pathlib.Path(config.file).expanduser())
    told = held.manifest["rows"]
    if not told:
        raise ValueError(f"{config.file} holds no accuracies to compare with; judge its set by --networks and --recipe")
    now = rejudge.judge(held, data_dir=config.data_dir, cache_dir=config.cache_dir)
    print(f"{config.file}: {held.manifest['set']}, seed {held.manifest['seed']}, judged again by its own protocol")
    print("\n".join(rejudge.differences(told, now)))
    others = rejudge.versions_now(held.manifest["versions"])
    print(f"Versions: {'; '.join(others) or 'the same'}.")


def _tokens(words: str, dataset: mdd.Dataset) -> mdd.augment.Augmentation:
    return mdd.data.augmentation(dataset.name) if words == "auto" else words


def _on_real_data(
    config: EvaluateConfig, networks: tuple[str, ...], dataset: mdd.Dataset, cache: pathlib.Path
) -> list[mdd.training.Trained]:
    """Networks trained on the real data as the auxiliaries of a distillation are."""
    if not networks:
        return []
    seen = _tokens(config.pretrain_augmentation, dataset)
    recipe = mdd.training.pretraining(config.pretrain_epochs, augmentation=seen)
    return common.pretrain(common.networks(networks, dataset), dataset, recipe, cache, description="real data")
