"""What a study's gains go with, in one picture: strength of an option, cost of a set, agreement of networks."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metadd_jax import pictures
from metadd_jax.job import runfolder, study_spread

Found = Sequence[tuple[str, int, Mapping[str, Any]]]  # (row, seed, what cell.json holds)
_FEWEST = 3  # points of a curve
_MOST_CURVES, _MOST_COMPARISONS = 3, 4  # of one comparison, of one picture: study.json has all
_FREE = {*runfolder.FREE, "first_seed", "distill_seeds"}
# An option inside a word, as in "vgg11:width=8" or "paper,ai=0.3": its number is an option's as any other.
_INSIDE = re.compile(r"([\w-]+)=(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?=$|[,+: ])")


def gathered(table: Mapping[str, Any], found: Found) -> list[dict[str, Any]]:
    """Gathers what is plotted, for ``study.json``.

    Args:
      table: of ``study_table.summary``, with "agreement" where that was measured.
      found: (row, seed, what ``cell.json`` holds) of every finished cell.

    Returns:
      A dict for each comparison of each table: ``labels`` (the table's heading), ``reference`` (None where each row has
      its own), ``role`` whose gain is told, and three lists of points, each with ``row``, ``difference`` and
      ``t_interval``. ``cost`` has ``seconds`` of distilling a set, the reference among them at gain 0; ``ratio`` has
      ``meta_ratio``, chance-corrected, of the auxiliaries with an unseen network, mean over those; ``strength`` holds
      curves ``{option, series, points}`` of at least three rows that differ in the number of one option alone, which is
      the points' ``value``.
    """
    settings = {
        row: dict(_leaves({"real": result["cell"]["settings"]["real"], **result["config"]})) for row, _, result in found
    }
    ratios = {
        row: float(np.mean([*facts["unseen"].values()]))
        for row, facts in table.get("agreement", {}).get("rows", {}).items()
        if facts["unseen"]
    }
    plots = []
    for kind, one in table["tables"].items():
        seconds = {row["row"]: row["seconds"] for row in one["rows"] if row["seconds"] is not None}
        for comparison in one["comparisons"]:
            if (role := study_spread.shown_role(comparison)) is None:
                continue
            told = {name: by_role[role] for name, by_role in comparison["rows"].items() if role in by_role}
            gains = {
                name: {"row": name, "difference": numbers["difference"], "t_interval": numbers["t_interval"]}
                for name, numbers in told.items()
            }
            reference = comparison["reference"]
            all_rows = (
                {reference: {"row": reference, "difference": 0.0, "t_interval": None}} if reference else {}
            ) | gains
            plots.append(
                {
                    "labels": kind,
                    "reference": reference,
                    "role": role,
                    "cost": [{**gain, "seconds": seconds[row]} for row, gain in all_rows.items() if row in seconds],
                    "ratio": [{**gain, "meta_ratio": ratios[row]} for row, gain in all_rows.items() if row in ratios],
                    "strength": _curves({row: settings[row] for row in gains}, gains),
                }
            )
    return plots


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every option, and of every number inside a word; without what decides no number."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if path or name not in _FREE:
                yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{place}")
    elif isinstance(value, str):
        for name, number in _INSIDE.findall(value):
            yield f"{path} {name}", float(number)
        yield path, _INSIDE.sub(r"\1=", value)
    else:
        yield path, value


def _curves(settings: Mapping[str, Mapping[str, Any]], gains: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    paths = dict.fromkeys(path for own in settings.values() for path, value in own.items() if _is_number(value))
    curves = []
    for path in paths:
        groups: dict[frozenset, list[str]] = {}
        for row, own in settings.items():
            if _is_number(own.get(path)):
                others = frozenset((name, repr(value)) for name, value in own.items() if name != path)
                groups.setdefault(others, []).append(row)
        for rows in groups.values():
            if len(rows) >= _FEWEST:
                rows.sort(key=lambda row: settings[row][path])
                points = [{**gains[row], "value": settings[row][path]} for row in rows]
                curves.append({"option": _option(path), "series": _together(rows), "points": points})
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _option(path: str) -> str:
    return f"--{path.removeprefix('own.').replace('.0', '').replace('_', '-')}"  # the first of a list is as a rule all


def _together(rows: Sequence[str]) -> str:
    """A name for rows that differ in a number: what their names begin with."""
    letters = list(zip(*rows, strict=False))  # of the shortest name
    shared = next((place for place, each in enumerate(letters) if len(set(each)) > 1), len(letters))
    return f"{rows[0][:shared].rstrip(' 0123456789.:,=+-') or rows[0]} …"


class _Panel(NamedTuple):
    title: str
    xlabel: str
    key: str  # of a point: its x
    series: dict[str, list[dict[str, Any]]]
    joined: bool = False


def draw(file: pathlib.Path, plots: Sequence[Mapping[str, Any]]) -> None:
    """Draws what was gathered: a row of panels for each comparison, one legend for all.

    The y axes are made for the points, so that the wide intervals of few seeds run out of them.

    Args:
      file: the PNG to write; nothing is written where there is nothing to draw.
      plots: of ``gathered``; the first four comparisons and three options of each are drawn.

    Raises:
      ValueError: if a file stands there that this package did not draw.
    """
    rows = [(plot, _panels(plot)) for plot in plots if any(plot[name] for name in ("cost", "ratio", "strength"))]
    rows = rows[:_MOST_COMPARISONS]
    if not rows:
        return
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for _, panels in rows for panel in panels for name in panel.series))
    columns, longest = max(len(panels) for _, panels in rows), max(map(len, map(pictures.short, names)))
    height = max(3.2 * len(rows), 0.19 * len(names) + 0.5)  # the legend's lines, in inches
    figure = Figure(figsize=(3.6 * columns + 0.075 * longest + 0.7, height), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    handles: dict[str, Any] = {}
    for line, (plot, panels) in zip(grid, rows, strict=True):
        for axes, panel in zip(line, panels, strict=False):
            handles = _plot(axes, panel, names) | handles
            axes.set_ylabel(f"gain on {plot['role']} networks, points", fontsize=8)
        for axes in line[len(panels) :]:
            axes.set_axis_off()
    shown = [pictures.short(name) for name in names]
    legend = figure.legend([handles[name] for name in names], shown, loc="outside right upper", fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    pictures.write_png(file, figure)


def _panels(plot: Mapping[str, Any]) -> list[_Panel]:
    over = f"over {pictures.short(plot['reference'])}" if plot["reference"] else "over each row's own base"
    panels = []
    for name, xlabel, key in (
        ("cost", "seconds of distilling one set", "seconds"),
        ("ratio", "meta ratio with unseen networks, corrected for chance", "meta_ratio"),
    ):
        if plot[name]:
            panels.append(_Panel(f"{name}: {over}", xlabel, key, {point["row"]: [point] for point in plot[name]}))
    by_option: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for curve in plot["strength"]:
        by_option.setdefault(curve["option"], {})[curve["series"]] = curve["points"]
    # First the option with most points: the study was made for it.
    options = sorted(by_option, key=lambda option: -sum(map(len, by_option[option].values())))
    for option in options[:_MOST_CURVES]:
        panels.append(_Panel(f"strength: {over}", option, "value", by_option[option], joined=True))
    return panels


def _plot(axes: Any, panel: _Panel, names: Sequence[str]) -> dict[str, Any]:
    """Draws a panel; the handles of its series for the legend."""
    handles = {}
    axes.axhline(0, color="0.6", linewidth=0.8)
    for name, points in panel.series.items():
        x, y = (np.array([point[key] for point in points], np.float64) for key in (panel.key, "difference"))
        ends = np.array([point["t_interval"] or [np.nan] * 2 for point in points]).T  # of one seed there is none
        number = names.index(name)
        handles[name] = axes.errorbar(
            x, 100 * y, yerr=100 * abs(ends - y), color=f"C{number % 10}", marker="os^Dv*"[number // 10 % 6],
            markersize=5, linestyle="-" if panel.joined else "none", linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
    every = [point for points in panel.series.values() for point in points]
    low, high = (100 * end([0.0, *(point["difference"] for point in every)]) for end in (min, max))
    room = max(0.25 * (high - low), 0.25)
    axes.set_ylim(low - room, high + room)
    _scale(axes, sorted({point[panel.key] for point in every}), panel)
    axes.set_title(panel.title, fontsize=9, parse_math=False)
    axes.set_xlabel(panel.xlabel, fontsize=8, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _scale(axes: Any, values: Sequence[float], panel: _Panel) -> None:
    """A logarithmic x axis for numbers that go over a factor of 5; few ticks, whose labels have room."""
    from matplotlib import ticker

    if panel.key == "meta_ratio" or values[0] <= 0 or values[-1] < 5 * values[0]:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
        return
    axes.set_xscale("log")
    ticks = ticker.FixedLocator(list(values)) if panel.joined else ticker.LogLocator(subs=(1, 2, 5), numticks=8)
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
