"""Cost curves of ``benchmark.py``: one setting takes several values, a straight line goes through what they cost."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

from settings import BenchmarkConfig

_WRAPPED = "+metadd"
_COSTS = {
    "s": lambda r: r["median_seconds"],
    "MB": lambda r: (r["peak_device_bytes"] or r["peak_resident_bytes"]) / 1e6,
    "temporary MB": lambda r: r["temporary_bytes"] / 1e6,
    "GFLOP": lambda r: r["flops"] / 1e9,
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement: the work, what differs from the given settings, and the name of its line in the table."""

    work: str
    settings: dict[str, Any]
    line: str


def points(config: BenchmarkConfig) -> list[Point]:
    """What is measured: each work alone, or at each value of ``config.sweep``.

    Raises:
      ValueError: if the sweep cannot be read, or a work states the size that it sweeps.
    """
    if not config.sweep:
        return [Point(work, {}, work) for work in config.works]
    field, values = _read(config)
    if field == "ipc" and (sized := [work for work in config.works if "@" in work]):
        raise ValueError(
            f"--sweep ipc and the size of {sized[0]!r} contradict each other; write {sized[0].split('@')[0]}"
        )
    return [
        Point(_without_metadd(work, field, value), _setting(field, value, config), f"{work}, {field} {value}")
        for work in config.works
        for value in values
    ]


def _read(config: BenchmarkConfig) -> tuple[str, list[int]]:
    field, _, listed = config.sweep.partition("=")
    kinds = typing.get_type_hints(BenchmarkConfig)
    known = [field.name for field in dataclasses.fields(config) if kinds[field.name] in (int, int | None)]
    known.append("auxiliaries")
    if field not in known:
        raise ValueError(f"cannot sweep {field!r}; one of {', '.join(sorted(known))}, such as ipc=1,10,50")
    values = [int(part) for part in listed.split(",") if part.isdecimal()]
    if len(values) != len(listed.split(",")) or len(set(values)) < 2:
        raise ValueError(f"a sweep is two or more whole numbers, such as {field}=1,10,50, not {config.sweep!r}")
    if field == "auxiliaries" and 1 in values:
        raise ValueError("the invariant loss compares networks, so 1 auxiliary is too few; sweep auxiliaries=0,2,3,4")
    if field == "auxiliaries" and max(values) > len(config.auxiliaries):
        raise ValueError(
            f"{max(values)} auxiliaries are more than the {len(config.auxiliaries)} given; add --auxiliaries"
        )
    return field, values


def _setting(field: str, value: int, config: BenchmarkConfig) -> dict[str, Any]:
    return {field: config.auxiliaries[:value] if field == "auxiliaries" else value}


def _without_metadd(work: str, field: str, value: int) -> str:
    return work.removesuffix(_WRAPPED) if (field, value) == ("auxiliaries", 0) else work


def lines(config: BenchmarkConfig, results: list[dict[str, Any]]) -> list[str]:
    """For each work, ours and PyTorch's: the straight line of time, memory and FLOPs, and how far it is from them.

    What comes first is an empty line, for these follow a table.
    """
    if not config.sweep:
        return []
    field, values = _read(config)
    rows = ["", f"| work | cost | at {field} 0 | for one more | largest deviation % |", "|---|---|---|---|---|"]
    for work, measured in zip(config.works, _groups(results, len(values)), strict=False):
        rows += _rows(work, values, measured)
        if all(r["torch"] for r in measured):
            rows += _rows(f"{work}, PyTorch", values, [r["torch"] for r in measured])
    return rows


def _groups(results: list, size: int) -> Iterator[list]:
    return (results[i : i + size] for i in range(0, len(results) - size + 1, size))


def _rows(work: str, values: list[int], measured: list[dict[str, Any]]) -> Iterator[str]:
    for cost, read in _COSTS.items():
        if "temporary_bytes" not in measured[0] and cost in ("temporary MB", "GFLOP"):
            continue  # PyTorch does not tell
        start, slope, deviation = fit(values, [read(r) for r in measured])
        yield f"| {work} | {cost} | {start:.3g} | {slope:.3g} | {100 * deviation:.0f} |"


def fit(values: list[int], costs: list[float]) -> tuple[float, float, float]:
    """The line through costs by least squares: value at 0, slope, and the largest deviation as a share of its cost."""
    slope, start = np.polyfit(values, costs, 1)
    deviation = np.abs(start + slope * np.asarray(values) - costs) / costs
    return float(start), float(slope), float(deviation.max())
