"""The page of a report: what the folders hold, laid out by a template into one file that needs nothing else."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import metadd_jax
from metadd_jax.job import report_facts, report_images, report_plots, report_tables
from metadd_jax.job.report_facts import Source

GENERATOR = f"metadd_jax {metadd_jax.__version__}"
MARK = '<meta name="generator" content="metadd_jax '  # by which a report is known
_POINTS = 60_000  # of all lines of a page: about a megabyte
_LATER = ("report/", "distill/weight_")  # metrics that are level, or have two points


@dataclasses.dataclass(frozen=True)
class _Group:
    """The galleries of one folder, and every view that one of their images has."""

    name: str
    views: tuple[str, ...]
    galleries: tuple[report_images.Gallery, ...]


def html(sources: Sequence[Source], *, title: str) -> str:
    """Writes a report of one run or study, or a comparison of several.

    Args:
      sources: of ``report_facts.read``; names of sets get that of their folder before them where there are several.
      title: of the page.

    Returns:
      HTML in ASCII: other letters are character references, so that no encoding can break them.

    Raises:
      ValueError: if a folder holds what nothing can be drawn of, such as a text for a number.
    """
    import jinja2

    template = importlib.resources.files("metadd_jax.job").joinpath("report.html").read_text(encoding="utf-8")
    # Escaping is on: names of sets, classes and networks come from files that travel.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False)
    try:
        text = environment.from_string(template).render(_context(sources, title))
    except Exception as error:  # files that travel may hold anything under the right names
        where = ", ".join(str(source.folder) for source in sources)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{where} holds what no report can show ({reason:.200}); restore its files") from error
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _context(sources: Sequence[Source], title: str) -> dict[str, Any]:
    several = len(sources) > 1
    rows: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        for heading, own in source.rows.items():
            rows.setdefault(heading, []).extend({**row, "set": _label(source, row["set"], several)} for row in own)
    charts, legend, thinned = _charts(sources, several)
    galleries, left_out = _galleries(sources)
    forests, differences, gains = _intervals(rows), _differences(sources, several), _gains(sources, several)
    agreement, pulls, cost = _agreement(sources, several), _pulls(sources, several), _cost(sources, several)
    sections = {
        "accuracy": rows, "intervals": forests or differences or gains, "images": galleries, "curves": charts,
        "agreement": agreement or pulls, "history": True, "cost": cost, "settings": True,
    }  # fmt: skip
    kinds = collections.Counter(source.kind for source in sources)
    what = " and ".join(f"{number} {kind if number == 1 else _plural(kind)}" for kind, number in kinds.items())
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "generator": GENERATOR, "written": now, "title": title, "several": several,
        "subtitle": f"Dataset distillation: {what}, read {now}.",
        "sections": [(name, name.capitalize()) for name, there in sections.items() if there],
        "sources": [_shown(source) for source in sources],
        "tables": [report_tables.accuracy_table(heading, own) for heading, own in rows.items() if own],
        "forests": forests, "differences": differences, "gains": gains, "galleries": galleries, "left_out": left_out,
        "charts": charts, "legend": legend, "thinned": thinned, "agreement": agreement, "pulls": pulls, "cost": cost,
        "colours": report_plots.COLOURS, "width": report_plots.WIDTH, "height": report_plots.HEIGHT,
        "left": report_plots.LEFT, "right": report_plots.RIGHT,
    }  # fmt: skip


def _plural(kind: str) -> str:
    return "studies" if kind == "study" else f"{kind}s"


def _label(source: Source, name: str, several: bool) -> str:
    return f"{source.name}: {name}" if several else name


def _intervals(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[report_plots.Forest]]]:
    found = []
    for heading, own in rows.items():
        plots = [
            report_plots.forest(f"Mean over the networks of role {role!r}, percent", lines)
            for role, lines in report_tables.role_means(own).items()
        ]
        if plots:
            found.append((heading, plots))
    return found


def _differences(sources: Sequence[Source], several: bool) -> list[report_plots.Forest]:
    """A plot for each set that others are compared with, or, of a run's pairs, for each pair."""
    found = []
    for source in sources:
        plots: dict[str, list[tuple[str, float, Sequence[float] | None]]] = {}
        # A study has one reference and many rows: all of a role stand on one axis.
        for one in source.comparisons:
            for role, facts in one["by_role"].items():
                if "diverged" in facts:
                    continue
                pair = (facts["difference"], facts["t_interval"])
                if source.kind == "study":
                    plots.setdefault(f"To {one['first']}, role {role!r}", []).append((one["second"], *pair))
                else:
                    plots.setdefault(f"{one['second']} − {one['first']}", []).append((role, *pair))  # noqa: RUF001
        found += [report_plots.forest(_label(source, title, several), lines) for title, lines in plots.items()]
    return found


def _gains(sources: Sequence[Source], several: bool) -> list[report_plots.Forest]:
    """A plot for each kind of real images and role: what every set has over them."""
    plots: dict[str, list[tuple[str, float, Sequence[float] | None]]] = {}
    for source in sources:
        for of_table in source.gains:
            for name, by_kind in of_table.items():
                for kind, by_role in by_kind.items():
                    for role, facts in by_role.items():
                        if "diverged" not in facts:
                            line = (_label(source, name, several), facts["difference"], facts["t_interval"])
                            plots.setdefault(f"Over {kind} images, role {role!r}", []).append(line)
    return [report_plots.forest(title, lines) for title, lines in plots.items()]


def _galleries(sources: Sequence[Source]) -> tuple[list[_Group], int]:
    """The images that fit on the page, by folder, and how many more there would be."""
    drawn, owners = [], []
    for source in sources:
        first = {one.name: one.seed for one in reversed(source.sets)}
        # Of further seeds only where there are few sets: a study's rows are seen once.
        shown = [one for one in source.sets if one.seed == first[one.name] or len(source.sets) <= 12]
        for one in shown:
            try:
                found = report_images.gallery(one.folder, f"{one.name}, seed {one.seed}")
            except (OSError, ValueError) as error:
                if (one.folder / "synthetic.npz").exists():  # of a run that is not done there is none
                    source.troubles.append(f"{one.name}, seed {one.seed}: {error}")
                continue
            if found:
                drawn.append(found)
                owners.append(source)
    fitting = report_images.fitting(drawn)
    left_out = sum(len(one.figures) for one in drawn) - sum(len(one.figures) for one in fitting)
    groups = []
    for source in sources:
        own = tuple(one for one, owner in zip(fitting, owners, strict=True) if owner is source and one.figures)
        if own:
            views = tuple(dict.fromkeys(view for one in own for figure in one.figures for view in figure.views))
            groups.append(_Group(source.name, views, own))
    return groups, left_out


def _charts(sources: Sequence[Source], several: bool) -> tuple[list[report_plots.Chart], list[str], str]:
    """A chart for every metric, the names of the sets, and what was left out or averaged, in words."""
    every = [(_label(source, one.name, several), one) for source in sources for one in source.sets]
    logs = [(name, one.seed, lines) for name, one in every if (lines := report_facts.metrics(one))]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, *_ in logs))}
    metrics = sorted(
        {metric for *_, lines in logs for line in lines for metric in line if metric != "step"},
        key=lambda metric: (metric.startswith(_LATER), metric != "distill/loss", metric),
    )
    said = []
    if len(logs) * len(metrics) * 20 > _POINTS:  # of fewer points than 20 a line says little
        first = {name: seed for name, seed, _ in reversed(logs)}
        logs = [(name, seed, lines) for name, seed, lines in logs if seed == first[name]]
        said.append("here of each set's first seed alone")
    most = max(20, min(report_plots.MOST_POINTS, _POINTS // max(1, len(logs) * len(metrics))))
    if any(len(lines) > most for *_, lines in logs):
        said.append(f"averaged in {most} parts where it is longer")
    charts = []
    for metric in metrics:
        series = []
        for name, seed, lines in logs:
            own = [(line["step"], line[metric]) for line in lines if metric in line]
            if own:
                steps, values = zip(*own, strict=True)
                series.append((f"{name}, seed {seed}", numbers[name], steps, values))
        if (made := report_plots.chart(metric, series, most=most)) is not None:
            charts.append(made)
    return charts, list(numbers), ", ".join(said)


def _agreement(sources: Sequence[Source], several: bool) -> list[list[str]]:
    return [
        [_label(source, name, several), role, f"{facts['meta_ratio']:.3f}", f"{facts['chance_corrected']:+.3f}",
         f"{facts['mean_iou']:.3f}"]
        for source in sources
        for name, by_role in source.agreement.items()
        for role, facts in by_role.items()
    ]  # fmt: skip


def _pulls(sources: Sequence[Source], several: bool) -> list[list[str]]:
    return [
        [_label(source, name, several), term, f"{start['norm']:.2f}", f"{by_time['end'][term]['norm']:.2f}",
         f"{start['cosine']:+.2f}", f"{by_time['end'][term]['cosine']:+.2f}"]
        for source in sources
        for name, by_time in source.pulls.items()
        for term, start in by_time["start"].items()
    ]  # fmt: skip


def _cost(sources: Sequence[Source], several: bool) -> list[list[str]]:
    """The head and the rows of the table of costs; [] where nothing is known."""
    rows = {_label(source, name, several): facts for source in sources for name, facts in source.cost.items()}
    columns = list(dict.fromkeys(column for facts in rows.values() for column in facts))
    if not columns:
        return []
    return [
        ["set", *columns],
        *([name, *(facts.get(column, ".") for column in columns)] for name, facts in rows.items()),
    ]


def _shown(source: Source) -> dict[str, Any]:
    """What the template shows of a source beside its numbers."""
    starts = [
        [
            str(one.get("time", "")).replace("+00:00", "").replace("T", " "),
            _duration(one.get("seconds")),
            str(one.get("how", "no word of it: at work, or killed")),
            str(one.get("resumed") or "the start"),
            str(one.get("command", "")),
        ]
        for one in source.history
    ]
    if starts:
        again = sum(bool(one.get("resumed")) for one in source.history)
        text = f"{len(starts)} start(s), of which {again} went on from what an earlier one had left."
    else:
        file = source.folder / ("config.json" if source.kind == "run" else report_facts.STUDY)
        moment = report_facts.changed(file) or "unknown"
        text = f"No diary (history.jsonl) lies there. By the time of {file.name}: {moment}."
    return {
        "name": source.name, "kind": source.kind, "folder": str(source.folder), "about": source.about,
        "settings": source.settings, "versions": source.versions, "troubles": source.troubles,
        "whole_data": {net: value for net, value in source.whole_data.items() if np.isfinite(value)},
        "config_text": json.dumps(source.config, indent=1), "history_text": text, "starts": starts,
    }  # fmt: skip


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "."
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def is_report(file: pathlib.Path) -> bool:
    """Tells whether ``file`` was written by this module: only such a file may be replaced."""
    try:
        with open(file, "rb") as stream:
            return MARK.encode() in stream.read(4096)
    except OSError:
        return False
