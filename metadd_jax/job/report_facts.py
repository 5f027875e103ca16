"""What a report shows, read from the folder of a run or a study: tables, curves, images, history, cost."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from metadd_jax import files, storage
from metadd_jax.evaluation import report
from metadd_jax.job import history

STUDY = "study.json"
_SETTINGS = (
    "dataset", "train_per_class", "image_size", "zca", "method", "ipc", "parameterisation", "backbone", "seen",
    "unseen", "steps", "image_lr", "distill_seeds", "first_seed", "train_seeds", "eval_recipe", "eval_labels",
    "eval_epochs", "evaluate_on",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SetFolder:
    """Where one distilled set lies: its name, its distillation seed, its folder."""

    name: str
    seed: int
    folder: pathlib.Path


@dataclasses.dataclass
class Source:
    """What one folder holds.

    Attributes:
      name: of the folder.
      folder: its absolute path.
      kind: "run" or "study".
      about: paragraphs on the protocol.
      settings: (name, text) of what the user set, the most important first.
      config: all of ``config.json`` that is settings, or the study's definition.
      rows: by heading (labels, recipe, data: what rows must share to stand in one table) rows as in ``results.json``.
      gains: of ``scores.gains``, one for each table.
      comparisons: of ``report.compare``: ``{first, second, by_role}``.
      whole_data: accuracy of each network after training on all real images.
      agreement, pulls: as in ``results.json``.
      sets: the distilled sets that lie there.
      history: of ``history.read``.
      cost: columns of the table of costs, by set.
      versions: of programs, and the machine.
      troubles: what could not be read, in lines.
    """

    name: str
    folder: pathlib.Path
    kind: str = "run"
    about: list[str] = dataclasses.field(default_factory=list)
    settings: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    gains: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    comparisons: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    whole_data: dict[str, float] = dataclasses.field(default_factory=dict)
    agreement: dict[str, Any] = dataclasses.field(default_factory=dict)
    pulls: dict[str, Any] = dataclasses.field(default_factory=dict)
    sets: list[SetFolder] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    cost: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)
    troubles: list[str] = dataclasses.field(default_factory=list)


def read(folder: str | pathlib.Path) -> Source:
    """Reads a folder, finished or not; a damaged part is told in ``troubles`` and left out.

    Args:
      folder: of a run or a study.

    Raises:
      ValueError: if it is neither.
    """
    place = pathlib.Path(folder).expanduser().absolute()
    known: list[tuple[str, Callable[[Source], None]]] = [(STUDY, _study), ("config.json", _run)]
    for file, fill in known:
        if (place / file).is_file():
            found = Source(place.name, place, history=history.read(place))
            # Files that travel may hold anything under the right names.
            try:
                fill(found)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                found.troubles.append(f"{place / file}: {type(error).__name__}: {error}")
            return found
    raise ValueError(f"{place} holds neither a run (config.json) nor a study ({STUDY}); check the path")


def _run(found: Source) -> None:
    held = files.read_json(found.folder / "config.json")
    config = found.config = held["config"]
    found.settings = [(name, _said(config[name])) for name in _SETTINGS if config.get(name) is not None]
    found.versions = held.get("versions", {})
    found.sets = [
        SetFolder(path.parent.name, int(path.name.removeprefix("seed")), path)
        for path in sorted(found.folder.glob("*/seed*"), key=lambda path: (path.parent.name, len(path.name), path.name))
        if path.name.removeprefix("seed").isdigit() and path.is_dir()
    ]
    results = report.read(found.folder)
    for one in found.sets:
        if one.name not in found.cost:
            found.cost[one.name] = _stored(one.folder)
            found.cost[one.name]["steps"] = f"{config['steps']:,}"
    if results is None:
        damaged = (found.folder / "results.json").is_file()
        found.troubles.append(
            "results.json is not what was written; the same command judges the sets anew" if damaged
            else "The run is not finished: there are no results yet."
        )  # fmt: skip
        return
    found.about = [line for line in results["notes"] if line]
    found.rows = {_heading(config, results["rows"]): results["rows"]}
    found.comparisons = results["comparisons"]
    found.gains = [results.get("gains", {})]
    found.whole_data, found.agreement = results["whole_data"], results["agreement"]
    found.pulls = results.get("pulls", {})
    for name, seconds in results.get("seconds", {}).items():
        found.cost.setdefault(name, {})["seconds a step"] = f"{seconds:.3g}"
        found.cost[name]["seconds of all steps, one set"] = f"{seconds * config['steps']:.3g}"


def _study(found: Source) -> None:
    held = files.read_json(found.folder / STUDY)
    found.kind, found.config = "study", held["study"]
    found.name = f"study {held['study']['name']}"
    found.about = [held["study"]["about"], *held["notes"], f"{held['done']} of {held['cells_in_all']} cells are done."]
    found.settings = [(name, _said(held["study"][name])) for name in ("preset", "options", "references")]
    kinds = {row["row"]: kind for kind, table in held["tables"].items() for row in table["rows"]}
    for cell in held["cells"]:
        rows = found.rows.setdefault(kinds.get(cell["row"], cell["labels"]), [])
        for line in cell["accuracies"]:
            values = [np.nan if value is None else value for value in line["accuracies"]]
            rows.append({**line, "set": cell["row"], "distill_seed": cell["seed"], "accuracies": values})
        # Of a name alone: a path out of the study's folder is none of a cell.
        place, name = (pathlib.PurePath(str(cell.get(key) or "")).name for key in ("folder", "set"))
        folder = found.folder / "cells" / place / name / f"seed{int(cell['seed'])}"
        if place and name and folder.is_dir():
            found.sets.append(SetFolder(cell["row"], cell["seed"], folder))
    for table in held["tables"].values():
        found.gains.append(table.get("gains") or {})
        for row in table["rows"]:
            found.cost[row["row"]] = _cost_of(row)
        found.comparisons += [
            {"first": one["reference"] or one["against"][name], "second": name, "by_role": by_role}
            for one in table["comparisons"]
            for name, by_role in one["rows"].items()
        ]
    walls: dict[str, list[float]] = {}
    for cell in held["cells"]:
        walls.setdefault(cell["row"], []).append(sum(cell["wall_seconds"].values()))
    for name, seconds in walls.items():
        found.cost[name]["seconds of a whole cell"] = f"{np.median(seconds):.3g}"


def _cost_of(row: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    if row["seconds"] is not None:
        note = " (with compilation)" if row["with_compilation"] else ""
        found["seconds of all steps, one set"] = f"{row['seconds']:.3g}{note}"
    if row["memory"]:
        found["peak MiB"] = f"{row['memory']['peak_mib']:.0f}"
    shared = f" + {row['frozen_values']:,} shared" if row["frozen_values"] else ""
    return {**found, "stored numbers": f"{row['stored_values']:,}{shared}", "images": f"{row['images']:,}"}


def _stored(folder: pathlib.Path) -> dict[str, str]:
    try:
        facts = files.read_json(folder / "synthetic.json")
        shared = f" + {facts['frozen_values']:,} shared" if facts["frozen_values"] else ""
        return {"stored numbers": f"{facts['stored_values']:,}{shared}"}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _heading(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What rows of one table share, in the words of a study's table."""
    limit = f" ({config['train_per_class']} training images a class)" if config["train_per_class"] else ""
    labels = rows[0].get("labels", "not said") if rows else "none"
    return (
        f"labels: {labels}; recipe {config['eval_recipe']!r}, {config['eval_epochs']} epochs, augmentation "
        f"{config['eval_augmentation']}; {config['evaluate_on']} images of {config['dataset']}{limit}"
    )


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def metrics(one: SetFolder) -> list[dict[str, float]]:
    """Reads the metrics of a set, oldest first; none where the file is absent or damaged."""
    try:
        return storage.JsonLines(one.folder / "metrics.jsonl").read()
    except (OSError, ValueError):
        return []


def changed(file: pathlib.Path) -> str:
    """Tells when a file was last changed, in UTC as ISO 8601; "" where there is none."""
    try:
        moment = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
    except OSError:
        return ""
    return moment.isoformat(timespec="seconds")
