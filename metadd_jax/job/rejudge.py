"""Judging the set of a bundle again by its own protocol, and by how much the numbers differ."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metadd_jax import distillers, ranges
from metadd_jax.job import command, common, options, prepare, recipes, stages
from metadd_jax.job.bundle import Bundle
from metadd_jax.job.options import DistillConfig

# What decides how a set is judged.
_JUDGING = (
    "dataset", "image_size", "zca", "train_per_class", "validation_fraction", "evaluate_on", "backbone", "seen",
    "unseen", "train_seeds", "pretrain_epochs", "pretrain_augmentation", "eval_recipe", "eval_labels", "eval_epochs",
    "eval_same_compute", "eval_batch", "eval_augmentation", "eval_kd", "at_once",
)  # fmt: skip


def judging(bundle: Bundle) -> DistillConfig:
    """Reads from a bundle the options by which its run judged the set.

    Args:
      bundle: of ``read``.

    Raises:
      ValueError: if they cannot be read, or name code or files that are not in the bundle.
    """
    held, labels = bundle.manifest["config"], np.asarray(bundle.synthetic.labels)
    said = {name: _tuples(held[name]) for name in _JUDGING if name in held}
    odd = [name for name in ("pretrain_augmentation", "eval_augmentation") if not isinstance(said.get(name, ""), str)]
    if odd:
        raise ValueError(f"{odd[0]} of the bundle is code of its maker's own; judge it by --recipe and --augmentation")
    stored = bundle.metadata.get("ipc")
    counts = tuple(np.bincount(labels, minlength=len(bundle.metadata["class_names"])).tolist())
    if isinstance(stored, int) or (isinstance(stored, list) and len(stored) == len(counts)):
        counts = (stored,) * len(counts) if isinstance(stored, int) else tuple(stored)
    own = options.settings_of("dm")
    try:
        config = DistillConfig(
            **said, own=own, wrapped=False, distill_seeds=1, first_seed=int(bundle.manifest["seed"] or 0),
            ipc_per_class=counts, short_class="repeat",
        )  # fmt: skip
        ranges.check(dataclasses.replace(config, ipc_per_class=()))  # counts may be 0, of a class without images
        # Only where the method's own teacher labels do its settings decide anything.
        chosen = recipes.labels(config)
        if chosen.rule == "teacher" and not chosen.networks:
            own = type(distillers.get(held["method"]))(**{name: _tuples(value) for name, value in held["own"].items()})
            config = dataclasses.replace(config, method=held["method"], own=own)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"the bundle's own protocol cannot be read ({error}); judge it by options of yours") from error
    return config


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def judge(bundle: Bundle, *, data_dir: str | None = None, cache_dir: str | None = None) -> list[dict[str, Any]]:
    """Judges the set of a bundle by its own protocol: networks, recipe, labels, seeds.

    Args:
      bundle: of ``read``.
      data_dir: where prepared TFDS data lies.
      cache_dir: of the cache.

    Returns:
      Rows as in its manifest, in their order, with the accuracies of now.

    Raises:
      ValueError: if the real data are others, or the protocol cannot be followed.
    """
    config = dataclasses.replace(judging(bundle), data_dir=data_dir, cache_dir=cache_dir)
    common.check_names((config.backbone, *config.seen, *config.unseen))
    common.open_cache(cache_dir)
    dataset = common.real_data(bundle.metadata, data_dir=data_dir, cache_dir=cache_dir)
    groups = ((config.backbone,), config.seen, config.unseen)
    (backbone,), seen, unseen = (tuple(common.networks(specs, dataset)) for specs in groups)
    job = prepare.Job(config, pathlib.Path(), dataset, backbone, seen, unseen)
    trained = {}
    chosen = recipes.labels(config)
    if chosen.rule == "teacher" and not chosen.networks:
        trained = stages.pretrain_all(dataclasses.replace(job, seen=()), unseen=False)
    teachers = stages.label_teachers(job, trained)
    return stages.judge(job, {bundle.manifest["set"]: [bundle.synthetic]}, teachers)


def differences(told: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says in lines by how much the accuracies of now differ from those of a bundle.

    Args:
      told: its rows.
      now: of ``judge``.
    """
    found = {row["network"]: row for row in now}
    lines = [
        "| network | role | in the bundle | now | difference | largest of one training |",
        "|---|---|---|---|---|---|",
    ]
    largest = 0.0
    for row in told:
        a, b = (np.array(one["accuracies"], float) for one in (row, found.get(row["network"], {"accuracies": []})))
        head = f"| {row['network']} | {row['role']} | {_mean(a)} | {_mean(b)} |"
        if a.shape != b.shape or not np.isfinite([a, b]).all():
            lines.append(f"{head} . | . |")
            largest = max(largest, 0.0 if np.array_equal(a, b, equal_nan=True) else np.inf)
            continue
        most = float(np.abs(b - a).max())
        largest = max(largest, most)
        lines.append(f"{head} {100 * (b.mean() - a.mean()):+.2f} | {100 * most:.2f} |")
    said = (
        "Every accuracy is the same to the bit."
        if largest == 0
        else f"The largest difference of one training: {100 * largest:.2f} points."
    )
    if np.isinf(largest):
        said = "Some accuracies cannot be compared: a training diverged, or a network was not judged."
    return [*lines, "", said]


def _mean(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f}" if values.size and np.isfinite(values).all() else "."


def versions_now(told: Mapping[str, Any]) -> list[str]:
    """Names the versions that are others than those of a bundle, in lines."""
    now = command.versions()
    return [f"{name}: {value} then, {now[name]} now" for name, value in told.items() if now.get(name, value) != value]
