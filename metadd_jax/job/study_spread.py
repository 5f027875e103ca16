"""What the spread of a study's differences is made of, and how many seeds would settle them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metadd_jax.evaluation import report, statistics

HALF_WIDTH = 0.5  # points; what ``statistics.seeds_needed`` is asked for by default


def shown_role(comparison: Mapping[str, Any]) -> str | None:
    """Gives the role that a comparison is read by: the unseen networks where there are any, else seen, else same.

    Args:
      comparison: of ``study.json``.

    Returns:
      Of ``report.ROLES``; None where no row is compared.
    """
    return next(
        (role for role in reversed(report.ROLES) if any(role in one for one in comparison["rows"].values())), None
    )


def lines(comparison: Mapping[str, Any]) -> list[str]:
    """Writes the parts of the spread of each row's difference as Markdown, and the seeds for +-0.5 points.

    Args:
      comparison: of ``study.json``.

    Returns:
      The lines; [] where no row has two seeds.
    """
    role = shown_role(comparison)
    rows = {name: one[role] for name, one in comparison["rows"].items() if role in one}
    rows = {name: numbers for name, numbers in rows.items() if numbers["seeds"] > 1}
    if not rows:
        return []
    fewest = min(numbers["seeds"] for numbers in rows.values())
    low, high = statistics.sd_known(fewest)
    asked = list(dict.fromkeys(trainings for numbers in rows.values() for trainings in numbers["seeds_needed"]))
    heads = ["sd of sets", "of networks", "of sets x networks", "of trainings"]
    heads += [f"seeds at {trainings} training{'s' * (trainings != '1')}" for trainings in asked]
    text = [
        f"What these differences on {role} networks vary by, in points: from one distilled set to the next, from one "
        "network to the next (in all sets alike, and in each its own way), from one training of a network to the next; "
        f"and the distillation seeds that make the 95 % interval ±{HALF_WIDTH} points, by the trainings of each "
        f"network on each set. Of {fewest} seeds a standard deviation is known to a factor of {low:.2g} to {high:.2g}.",
        "",
        f"| row | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for name, numbers in rows.items():
        parts = numbers["parts"]
        cells = [_points(parts[f"sd_{part}"]) for part in ("sets", "networks", "sets_networks", "trainings")]
        cells += [str(numbers["seeds_needed"].get(trainings, ".")) for trainings in asked]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return text


def _points(value: float | None) -> str:
    return "." if value is None else f"{100 * value:.2f}"
