"""What ``prepare.open_job`` proves of the options, alone and beside the data, before a run takes its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import metadd_jax as mdd
from metadd_jax import augment, distillers, files, ranges, training
from metadd_jax.invariant import InvariantConfig
from metadd_jax.job import logs, recipes, seen_data, stopping
from metadd_jax.job.options import DistillConfig


def check_options(config: DistillConfig) -> None:
    """Refuses options outside their ranges and options that do not go together, before any data is read.

    Raises:
      ValueError: one line that names the option and what it may be.
    """
    ranges.check(config, spell=config.option)
    logs.require(config.log_to)
    if config.time_limit is not None:
        stopping.seconds_of(config.time_limit, option="--time-limit")
    distillers.parameterisations.check(config.parameterisation)
    # Each alone is in its range, and the last seed may still not be.
    if config.first_seed + config.distill_seeds > ranges.SEEDS:
        raise ValueError(
            f"--first-seed {config.first_seed} and --distill-seeds {config.distill_seeds} reach beyond the last seed "
            f"{ranges.SEEDS - 1}; lower one of them"
        )
    if not config.own.trains and (config.wrapped or config.steps != 1):
        given = "--wrapped puts MetaDD around a gradient" if config.wrapped else f"--steps {config.steps} are updates"
        raise ValueError(
            f"{given}, and {config.method} chooses real images and trains nothing; give --no-wrapped --steps 1, or let "
            "a method that trains start from its set"
        )
    if config.wrapped and not config.seen:
        raise ValueError("MetaDD looks through auxiliary networks: name some by --seen, or distil bare by --no-wrapped")
    if config.own.start == "consensus" and not config.seen:
        raise ValueError("--init consensus asks the seen networks: name some by --seen, or start from kmeans")
    if len(set(config.seen_epochs)) < len(config.seen_epochs):
        raise ValueError(f"--seen-epochs {' '.join(map(str, config.seen_epochs))} says a number twice; say it once")
    seen_data.check(config)
    # The default keeps no validation images: they would be missing from the real ones.
    if config.evaluate_on == "validation" and not config.validation_fraction:
        raise ValueError("--evaluate-on validation needs --validation-fraction, for example 0.1")
    chosen = recipes.labels(config)
    if chosen.rule == "teacher" and not chosen.networks and not config.own.teaches:
        teachers = [name for name in distillers.names() if distillers.get(name).teaches]
        said = "--eval-labels teacher" if config.eval_labels else f"--eval-recipe {config.eval_recipe}"
        raise ValueError(
            f"{said} wants the labels of a teacher, and {config.method} has none: name one by --eval-labels "
            f"teacher:NET, or take --method {' or '.join(teachers)}"
        )
    with spelled(config):
        config.own.check_pixels(zca=config.zca)
        config.own.check_prepare()
    augment.strategy(recipes.augmentation(config, config.pretrain_augmentation))
    # Also where the recipe has views of its own and leaves these words out.
    training.short_evaluation(1, augmentation=recipes.augmentation(config, config.eval_augmentation))
    # Made and thrown away: a recipe checks itself, and better now than after the pre-training.
    recipes.backbone(config), recipes.evaluation(config)


@contextlib.contextmanager
def spelled(config: DistillConfig) -> Iterator[None]:
    """Inside it an error of the package, which names settings ("batch_size=8"), names the options instead."""
    own = {name: config.option(f"own.{name}") for name in ranges.field_names(type(config.own))}
    options = {field.name: config.option(field.name) for field in dataclasses.fields(config)} | own
    # Here and not in the methods: whoever composes them in code knows no options.
    try:
        yield
    except ValueError as error:
        text = re.sub(r"(?<![\w.-])(\w+)=", lambda found: options.get(found[1], found[1]) + "=", str(error))
        raise ValueError(text) from error


def check_settings(config: DistillConfig, settings: Mapping[str, InvariantConfig]) -> None:
    """Refuses settings of the invariant loss that ``--seen`` cannot serve.

    Args:
      config: the settings of the job.
      settings: those of the invariant loss: "" for MetaDD's own, ",VARIANT" for each of ``--variants``.

    Raises:
      ValueError: naming the setting.
    """
    for name, setting in settings.items():
        of = f" in --variants {name[1:]}" if name else ""
        augment.strategy(recipes.augmentation(config, setting.views))
        joint = [name for name, term in setting.terms.items() if term.joint]
        if joint and setting.micro_batch:
            raise ValueError(
                f"--metadd.micro-batch {setting.micro_batch}{of} shows images in parts, and {joint[0]} compares all of "
                "them at once; leave one of the two out"
            )
        if setting.drawn and setting.drawn > config.auxiliaries:
            raise ValueError(
                f"--metadd.drawn {setting.drawn}{of} is more than the {config.auxiliaries} networks of --seen; lower "
                "it, or None for all of them"
            )
        if setting.focus and config.parameterisation != "pixels":
            raise ValueError(
                f"--metadd.focus {setting.focus}{of} weighs the gradient of pixels, and --parameterisation "
                f"{config.parameterisation} trains others; leave one of the two out"
            )
        own = {name for name, _ in setting.extra}
        compared = {
            f"--metadd.extra {name}" if name in own else f"--metadd.{name}": setting.strengths[name]
            for name, term in setting.terms.items()
            if term.compares
        }
        if compared and setting.drawn == 1:
            raise ValueError(
                f"--metadd.drawn 1{of} leaves one network a step, and {', '.join(compared)} compare networks: draw "
                "two, or set them to 0"
            )
        if compared and config.auxiliaries < 2:
            option, strength = next(iter(compared.items()))
            raise ValueError(
                f"{option} {strength}{of} compares networks, and --seen names {config.auxiliaries}: name two, or set "
                f"{' and '.join(compared)} to 0"
            )


def check_subsets(settings: Mapping[str, InvariantConfig], images: int) -> None:
    """Refuses a subset larger than the set.

    Args:
      settings: as in ``check_settings``.
      images: N, how many images the set has.

    Raises:
      ValueError: with both numbers.
    """
    for name, setting in settings.items():
        if setting.subset and setting.subset > images:
            of = f" in --variants {name[1:]}" if name else ""
            raise ValueError(
                f"--metadd.subset {setting.subset}{of} is larger than the {images} synthetic images; lower it, or "
                "None for all"
            )


def check_networks(networks: Sequence[mdd.zoo.Architecture], seen: Sequence[mdd.zoo.Architecture]) -> None:
    """Refuses a network listed twice and an auxiliary without an activation map.

    Args:
      networks: all of the job: backbone, seen and unseen.
      seen: those that MetaDD looks through.

    Raises:
      ValueError: naming it.
    """
    # By the label, with its options: results, caches and pictures go by it.
    labels = [net.label for net in networks]
    if len(set(labels)) < len(labels):
        raise ValueError(f"a network is listed twice: {', '.join(labels)}")
    for net in seen:
        if not net.has_map:
            raise ValueError(f"{net.label} has no activation map, so it cannot be an auxiliary; list it as unseen")


def data_facts(dataset: mdd.Dataset) -> dict[str, Any]:
    """What a run's ``config.json`` keeps of its data: one name can stand for other images another day."""
    return {"fingerprint": dataset.fingerprint, "class_names": list(dataset.class_names)}


def check_data(directory: pathlib.Path, dataset: mdd.Dataset) -> None:
    """Refuses a folder whose run began with other data; a folder without a run is let through.

    Args:
      directory: the run's folder.
      dataset: the data of this start.

    Raises:
      ValueError: with both fingerprints, or the first class whose name differs.
    """
    file = directory / "config.json"
    if not file.exists():
        return
    held, now = files.read_json(file).get("data"), data_facts(dataset)
    if held == now:
        return
    held = held if isinstance(held, dict) else {}  # a folder of an older format may say nothing of its data
    was = str(held.get("fingerprint"))
    what = f"the data {dataset.name} had the fingerprint {was[:12]}, now {dataset.fingerprint[:12]}"
    if was == dataset.fingerprint:
        # The images may be the same under other names: then the labels of the run mean something else.
        names = itertools.zip_longest(held.get("class_names") or (), dataset.class_names)
        label, (before, after) = next((label, pair) for label, pair in enumerate(names) if pair[0] != pair[1])
        what = f"class {label} of {dataset.name} was {before!r}, now {after!r}"
    raise ValueError(
        f"{directory} holds another run ({what}); bring the data back, use another --run-dir, or --overwrite to start "
        "anew"
    )
