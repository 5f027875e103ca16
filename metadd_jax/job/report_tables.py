"""Tables of a report: sets x networks with means and intervals, from rows of accuracies. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from metadd_jax.evaluation import report, statistics


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the heat map.

    Attributes:
      text: "84.4 ± 0.4", or why there is no number; "" where nothing was trained.
      value: the mean in percent; None where there is none.
      more: what a tooltip says.
      heat, own: place of the mean between the lowest and the highest of the table and of its column, 0..1.
    """

    text: str
    value: float | None = None
    more: str = ""
    heat: float = 0.0
    own: float = 0.0


@dataclasses.dataclass(frozen=True)
class Table:
    """A heat map: (network, role) of each column, and by set the cells."""

    heading: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def accuracy_table(heading: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Makes the table of sets x networks, and the means over seen and over unseen networks.

    Args:
      heading: what its rows share.
      rows: ``{set, distill_seed, network, role, accuracies}``; sets may lack networks.
    """
    networks = list(dict.fromkeys((row["network"], row["role"]) for row in rows))
    order = {role: number for number, role in enumerate(report.ROLES)}
    networks.sort(key=lambda pair: order.get(pair[1], len(order)))
    means = [role for role in ("seen", "unseen") if any(of == role for _, of in networks)]
    columns = [*networks, *(("mean", role) for role in means)]
    every = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        cells = [_cell([row for row in own if (row["network"], row["role"]) == pair]) for pair in networks]
        cells += [_cell([row for row in own if row["role"] == role]) for role in means]
        every.append((name, cells))
    return Table(heading, tuple(columns), tuple(_heated(every)))


def by_seed(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Averages accuracies over networks and trainings.

    Args:
      rows: of one set.

    Returns:
      [distillation seeds] in [0, 1], NaN where a training of that seed diverged.
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        # Trainings first: a network that was trained more often counts no more.
        found.setdefault(row["distill_seed"], []).append(float(np.mean(row["accuracies"])))
    return np.array([np.mean(found[seed]) for seed in sorted(found)])


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Computes the 95 % t interval of a mean over distillation seeds.

    Args:
      values: [n] in [0, 1].

    Returns:
      (low, high); None for fewer than two finite values, where there is none.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    a = values[:, None, None]
    low, high = statistics.paired(np.zeros_like(a), a)["t_interval"]
    return low, high


def _cell(rows: Sequence[Mapping[str, Any]]) -> Cell:
    if not rows:
        return Cell("")
    values = by_seed(rows)
    trainings = [value for row in rows for value in row["accuracies"]]
    lost = int(np.isnan(trainings).sum())
    if lost:  # no number stands for a training that has no accuracy
        return Cell(f"diverged ({lost} of {len(trainings)})")
    mean = 100 * float(values.mean())
    spread = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
    more = f"{len(values)} distilled set(s), {len(trainings)} trainings"
    if pair := interval(values):
        more += f"; 95 % t interval {100 * pair[0]:.1f} to {100 * pair[1]:.1f}"
    return Cell(f"{mean:.1f}{spread}", mean, more)


def _heated(every: Sequence[tuple[str, Sequence[Cell]]]) -> list[tuple[str, tuple[Cell, ...]]]:
    """The same with the place of each mean in the table and in its column."""
    number = len(every[0][1]) if every else 0
    columns = [[cells[i].value for _, cells in every] for i in range(number)]
    whole = [value for column in columns for value in column]
    return [
        (
            name,
            tuple(
                dataclasses.replace(cell, heat=_place(cell.value, whole), own=_place(cell.value, columns[i]))
                for i, cell in enumerate(cells)
            ),
        )
        for name, cells in every
    ]


def _place(value: float | None, among: Sequence[float | None]) -> float:
    known = [other for other in among if other is not None]
    if value is None or max(known) == min(known):
        return 0.0
    return (value - min(known)) / (max(known) - min(known))


def role_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, float, tuple[float, float] | None]]]:
    """Computes the mean of every set over the networks of each role, with its interval.

    Args:
      rows: as for ``accuracy_table``.

    Returns:
      By role (set, mean, 95 % t interval over distillation seeds); sets with a training that diverged are left out.
    """
    found: dict[str, list[tuple[str, float, tuple[float, float] | None]]] = {}
    for role in report.ROLES:
        for name in dict.fromkeys(row["set"] for row in rows):
            values = by_seed(row for row in rows if row["set"] == name and row["role"] == role)
            if len(values) and np.isfinite(values).all():
                found.setdefault(role, []).append((name, float(values.mean()), interval(values)))
    return found
