"""The table of a study: one for each kind of labels, and the paired differences to its reference rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metadd_jax.evaluation import report, scores, statistics
from metadd_jax.job import study_gains, study_spread
from metadd_jax.job.studies import Study

ROLES = report.ROLES
FORMAT = 1
_KEPT = ("difference", "per_seed", "t_interval", "seeds", "parts", "seeds_needed", "sign_flip_test")


def summary(study: Study, found: Sequence[tuple[str, int, Mapping[str, Any]]], *, cells: int) -> dict[str, Any]:
    """Gathers what the finished cells of a study say.

    Args:
      study: the study.
      found: (row, seed, what ``cell.json`` holds) of every finished cell.
      cells: how many cells the study has.

    Returns:
      ``study.json``: the study, ``tables`` (by labels: rows and comparisons), ``notes``, ``cells`` (every accuracy).
    """
    kinds = list(dict.fromkeys(_kind(result) for _, _, result in found))
    return {
        "format": FORMAT,
        "study": {
            "name": study.name,
            "about": study.about,
            "preset": study.preset,
            "options": study.options,
            "rows": dict(study.rows),
            "references": list(study.references),
            "against": dict(study.against),
            "split": study.split,
        },
        "done": len(found),
        "cells_in_all": cells,
        "notes": _notes(found),
        # Accuracies under other labels, or by another recipe, are of another experiment: they never share a table.
        "tables": {
            kind: _table(study, [entry for entry in found if _kind(entry[2]) == kind]) for kind in kinds
        },
        "cells": [
            {
                "row": row,
                "seed": seed,
                "folder": result.get("folder"),
                **{name: result[name] for name in ("set", "labels", "images", "stored_values", "frozen_values")},
                "accuracies": [
                    {name: line[name] for name in ("network", "role", "accuracies")} for line in _plain(result["rows"])
                ],
                "distil_seconds": result["distil_seconds"],
                "wall_seconds": result["wall_seconds"],
            }
            for row, seed, result in found
        ],
    }  # fmt: skip


def _kind(result: Mapping[str, Any]) -> str:
    """What rows of one table share: labels, recipe and images; the words of its heading."""
    config = result["config"]
    limit = f" ({config['train_per_class']} training images a class)" if config["train_per_class"] else ""
    return (
        f"labels: {result['labels']}; recipe {config['eval_recipe']!r}, {config['eval_epochs']} epochs, augmentation "
        f"{config['eval_augmentation']}; {config['evaluate_on']} images of {config['dataset']}{limit}"
    )


def _plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "accuracies": [None if np.isnan(x) else x for x in row["accuracies"]]} for row in rows]


def _table(study: Study, found: Sequence[tuple[str, int, Mapping[str, Any]]]) -> dict[str, Any]:
    names = [row for row in study.rows if any(row == other for other, _, _ in found)]
    by_row = {name: [(seed, result) for row, seed, result in found if row == name] for name in names}
    comparisons = [
        _comparison(dict.fromkeys((row for row in others if row in by_row), reference), by_row, reference=reference)
        for reference, others in study.compared().items()
        if reference in by_row
    ]
    # One family of tests, however many bases its rows have.
    if own := {row: base for row, base in study.against.items() if {row, base} <= set(names)}:
        comparisons.append(_comparison(own, by_row, reference=None))
    return {
        "rows": [{"row": name, **_facts(cells)} for name, cells in by_row.items()],
        "comparisons": comparisons,
        "gains": study_gains.over_real(study, by_row),
    }


def _facts(cells: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """One row of the table."""
    results = [result for _, result in cells]
    memory = next((result["memory"] for result in results if result.get("memory")), None)
    seconds = [result["distil_seconds"] for result in results if result["distil_seconds"] is not None]
    # A process of its own tells what a set takes; beside a cell other cells may have run.
    a_step = (memory or {}).get("seconds_a_step")
    if a_step is not None:
        seconds = [a_step * results[0]["config"]["steps"]]
    return {
        "seeds": [seed for seed, _ in cells],
        **{role: _spread(results, role) for role in ROLES},
        "networks": {line["network"]: line["role"] for line in results[0]["rows"]},
        "seconds": float(np.median(seconds)) if seconds else None,
        "with_compilation": a_step is None and any(result["with_compilation"] for result in results),
        "memory": memory,
        **{name: results[0][name] for name in ("images", "stored_values", "frozen_values")},
    }


def _spread(results: Sequence[Mapping[str, Any]], role: str) -> dict[str, Any] | None:
    """Mean and standard deviation over seeds of the mean over the networks of a role and trainings."""
    values = [[x for line in result["rows"] if line["role"] == role for x in line["accuracies"]] for result in results]
    if not values[0]:
        return None
    lost = int(np.isnan(np.concatenate(values)).sum())
    if lost:  # no number stands for a training that has no accuracy
        return {"diverged": lost, "mean": None, "sd": None}
    means = np.array([np.mean(each) for each in values])
    return {"diverged": 0, "mean": float(means.mean()), "sd": float(means.std(ddof=1)) if len(means) > 1 else None}


def _paired(by_row: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]], first: str, second: str) -> dict[str, Any]:
    """Differences ``second`` - ``first`` by role, over the seeds of both and the networks that have it in both."""
    before, after = dict(by_row[first]), dict(by_row[second])
    seeds = sorted(set(before) & set(after))
    if not seeds:
        return {}
    found = {}
    for role in ROLES:
        labels = [
            [line["network"] for line in cells[seeds[0]]["rows"] if line["role"] == role] for cells in (before, after)
        ]
        # Another backbone is another network under "same"; what one row looks through may be unseen by another.
        shared = [label for label in labels[0] if label in labels[1]]
        if not shared:
            continue
        each = [
            {seed: {line["network"]: line["accuracies"] for line in cells[seed]["rows"]} for seed in seeds}
            for cells in (before, after)
        ]
        pair = [np.array([[of[seed][label] for label in shared] for seed in seeds]) for of in each]
        if pair[0].shape == pair[1].shape and np.isfinite(pair).all():
            numbers = statistics.paired(*pair)
            kept = {name: numbers[name] for name in _KEPT}
            found[role] = kept | {"p": statistics.t_test(numbers["per_seed"])}
            if labels[0] != labels[1]:
                found[role]["networks"] = shared
    return found


def _comparison(
    against: Mapping[str, str],
    by_row: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]],
    *,
    reference: str | None,
) -> dict[str, Any]:
    """The rows of ``against`` compared with the one that each names; ``reference`` where it is one for all."""
    rows = {row: _paired(by_row, base, row) for row, base in against.items()}
    for role in ROLES:
        named = [name for name, by_role in rows.items() if role in by_role]
        corrected = statistics.holm([rows[name][role]["p"] for name in named])
        for name, p in zip(named, corrected, strict=True):
            of_role = rows[name][role]
            # JSON has no NaN, which is the p of a single seed.
            of_role["p"] = None if np.isnan(of_role["p"]) else of_role["p"]
            of_role["p_holm"] = None if np.isnan(p) else float(p)
        flips = [rows[name][role]["sign_flip_test"] for name in named]
        for name, p in zip(named, statistics.holm([np.nan if p is None else p for p in flips]), strict=True):
            rows[name][role]["sign_flip_holm"] = None if np.isnan(p) else float(p)
    return {"reference": reference, "rows": rows} | ({} if reference else {"against": dict(against)})


def _notes(found: Sequence[tuple[str, int, Mapping[str, Any]]]) -> list[str]:
    """How the numbers came about, and on which machines."""
    if not found:
        return []
    machines = dict.fromkeys(
        f"jax {result['versions']['jax']}, {result['versions']['device']}, {result['versions']['machine']}"
        for _, _, result in found
    )
    trainings = dict.fromkeys(str(result["config"]["train_seeds"]) for _, _, result in found)
    return [
        "Accuracy in percent, mean ± standard deviation over distillation seeds of the mean over the networks of a "
        f"role, each trained {' or '.join(trainings)} time(s) on each set; last epoch. {'; '.join(machines)}."
    ]


def markdown(table: Mapping[str, Any]) -> str:
    """Writes ``summary`` as Markdown: for each kind of labels a table, then the paired differences."""
    study = table["study"]
    lines = [f"# Study {study['name']}", "", study["about"], "", *table["notes"]]
    if study["split"] == "validation":
        lines += ["", "Judged on held-out training images: settings are chosen here, and measured by --split test."]
    lines += ["", f"{table['done']} of {table['cells_in_all']} cells are done."]
    for kind, one in table["tables"].items():
        lines += ["", f"## {kind[0].upper()}{kind[1:]}", "", *_table_lines(one["rows"])]
        for comparison in one["comparisons"]:
            lines += ["", *_comparison_lines(comparison)]
            if spread := study_spread.lines(comparison):
                lines += ["", *spread]
        if gained := scores.gain_lines(one["gains"]):
            lines += ["", *gained]
    return "\n".join(lines) + "\n"


def _table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    networks = [tuple(row["networks"].items()) for row in rows]
    roles = {role: [net for net, of in networks[0] if of == role] for role in ROLES}
    said = "; ".join(f"{role}: {', '.join(nets)}" for role, nets in roles.items() if nets)
    lines = [
        "| row | seeds | same | seen | unseen | seconds | peak MiB | stored numbers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = [_cell(row[role]) for role in ROLES]
        seconds = "." if row["seconds"] is None else f"{row['seconds']:.1f}{'*' if row['with_compilation'] else ''}"
        memory = f"{row['memory']['peak_mib']:.0f}" if row["memory"] else "."
        stored = f"{row['stored_values']:,}" + (f" + {row['frozen_values']:,} shared" if row["frozen_values"] else "")
        lines.append(f"| {row['row']} | {len(row['seeds'])} | {' | '.join(values)} | {seconds} | {memory} | {stored} |")
    lines += ["", f"{said}. Seconds: of distilling one set, steps alone."]
    if any(row["with_compilation"] for row in rows):
        lines[-1] += " *: with compilation, where one dispatch holds all steps."
    if others := [row["row"] for row, nets in zip(rows, networks, strict=True) if nets != networks[0]]:
        lines[-1] += f" Other networks or roles: {', '.join(others)} (study.json)."
    return lines


def _cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "."
    if spread["diverged"]:
        return f"diverged ({spread['diverged']})"
    sd = "" if spread["sd"] is None else f" ± {100 * spread['sd']:.1f}"
    return f"{100 * spread['mean']:.1f}{sd}"


def _comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    rows, against = comparison["rows"], comparison.get("against", {})
    base = "the row in brackets" if against else f"**{comparison['reference']}**"
    lines = [
        f"Difference to {base} in points, paired by distillation seed, with 95 % t intervals; "
        f"p of the t test / of the sign-flip test (never below 2^(1 - seeds)), each corrected for {len(rows)} rows "
        "(Holm):",
        "",
        "| row | " + " | ".join(f"{role} | p" for role in ROLES) + " |",
        "|---" * (1 + 2 * len(ROLES)) + "|",
    ]
    for name, by_role in rows.items():
        cells = [cell for role in ROLES for cell in _difference(by_role.get(role))]
        lines.append(f"| {name}{f' ({against[name]})' if against else ''} | {' | '.join(cells)} |")
    if any("networks" in numbers for by_role in rows.values() for numbers in by_role.values()):
        lines += ["", "*: over the networks that have this role in both rows (study.json)."]
    return lines


def _difference(numbers: Mapping[str, Any] | None) -> tuple[str, str]:
    if numbers is None:
        return ".", "."
    interval = numbers["t_interval"]
    spread = "one seed" if interval is None else f"[{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
    p = "." if numbers["p_holm"] is None else f"{numbers['p_holm']:.2g} / {numbers['sign_flip_holm']:.2g}"
    return f"{100 * numbers['difference']:+.1f}{'*' * ('networks' in numbers)} {spread}", p
