"""Plots of a report as numbers for its template: pure functions from values to coordinates of SVG."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 380, 210  # of a chart, in units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 30  # margins for the labels of the axes
MOST_POINTS = 160  # of a line; longer ones are averaged
COLOURS = 8  # of the style sheet; further lines are dashed


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart: its name, its number (which decides colour and dashes), its path, and what it says."""

    name: str
    number: int
    path: str
    first: float
    last: float


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart: its lines, and (place, text) of the marks on both axes."""

    title: str
    lines: tuple[Line, ...]
    x_marks: tuple[tuple[float, str], ...]
    y_marks: tuple[tuple[float, str], ...]


@dataclasses.dataclass(frozen=True)
class Whisker:
    """A mean with its interval, places in percent of the axis; no interval where there is one observation."""

    name: str
    text: str
    middle: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Forest:
    """Means with intervals below each other, on one axis; ``zero`` is the place of 0 where it is on the axis."""

    title: str
    rows: tuple[Whisker, ...]
    marks: tuple[tuple[float, str], ...]
    zero: float | None


def marks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Chooses round numbers that cover an interval: multiples of 1, 2 or 5 times a power of ten.

    Args:
      low: the smallest value.
      high: the largest, not below ``low``.
      about: how many steps there should be.

    Returns:
      Evenly spaced values of which the first is at most ``low`` and the last at least ``high``.
    """
    span = high - low
    # Of a line that is level, and where float64 has no smaller step, some room around it.
    if not span > 1e-9 * max(abs(low), abs(high)):
        span = abs(low) or 1.0
        low, high = low - span / 2, high + span / 2
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((factor for factor in (1, 2, 5) if raw <= factor * power * (1 + 1e-9)), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(steps: np.ndarray, values: np.ndarray, *, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Averages a long line in equal parts.

    Args:
      steps: [T], rising.
      values: [T]; a part with a value that is not finite is NaN, so that a chart shows the gap.
      most: how many points there may be.

    Returns:
      Steps (the last of each part) and means, both of at most ``most`` values.
    """
    if len(steps) <= most:
        return steps, np.where(np.isfinite(values), values, np.nan)
    cuts = np.linspace(0, len(steps), most + 1).astype(int)
    means = [values[start:end].mean() for start, end in itertools.pairwise(cuts)]
    return steps[cuts[1:] - 1], np.where(np.isfinite(means), means, np.nan)


def chart(
    title: str, series: Sequence[tuple[str, int, Sequence[float], Sequence[float]]], *, most: int = MOST_POINTS
) -> Chart | None:
    """Lays out lines over the steps.

    Args:
      title: what the values are.
      series: (name, number, steps [T], values [T]) of each line; lines of one number look alike.
      most: points of a line; a longer one is averaged.

    Returns:
      The chart; None if no value is finite.
    """
    points = [
        (name, number, *thinned(np.asarray(steps, np.float64), np.asarray(values, np.float64), most=most))
        for name, number, steps, values in series
    ]
    every = np.concatenate([np.array([]), *(values for *_, values in points)])
    finite = every[np.isfinite(every)]
    if not finite.size:
        return None
    x_marks = marks(0, max(float(steps[-1]) for *_, steps, _ in points if len(steps)))
    y_marks = marks(float(finite.min()), float(finite.max()))
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(step: float) -> float:
        return LEFT + wide * (step - x_marks[0]) / (x_marks[-1] - x_marks[0])

    def down(value: float) -> float:
        return TOP + tall * (1 - (value - y_marks[0]) / (y_marks[-1] - y_marks[0]))

    lines = []
    for name, number, steps, values in points:
        seen = values[np.isfinite(values)]
        if seen.size:
            path = _path([(across(x), down(y)) for x, y in zip(steps, values, strict=True)])
            lines.append(Line(name, number, path, float(seen[0]), float(seen[-1])))
    return Chart(
        title,
        tuple(lines),
        tuple((round(across(x), 1), _short(x)) for x in x_marks),
        tuple((round(down(y), 1), _short(y)) for y in y_marks),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    """The path of a line; where a point is not finite the pen is lifted."""
    parts, pen = [], "M"
    for i, (x, y) in enumerate(points):
        if not math.isfinite(y):
            pen = "M"
            continue
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        # A point between two gaps would not be seen: a line of no length has round ends.
        if pen == "M" and (i + 1 == len(points) or not math.isfinite(points[i + 1][1])):
            parts.append("h0")
        pen = "L"
    return "".join(parts)


def forest(title: str, rows: Sequence[tuple[str, float, Sequence[float] | None]], *, unit: float = 100) -> Forest:
    """Lays out means with their intervals.

    Args:
      title: what they are.
      rows: (name, mean, (low, high) or None), at least one.
      unit: what values are multiplied with to be shown: 100 for percent.
    """
    ends = [unit * value for _, mean, pair in rows for value in (mean, *(pair or ()))]
    axis = marks(min(ends), max(ends))

    def place(value: float) -> float:
        return round(100 * (value - axis[0]) / (axis[-1] - axis[0]), 2)

    signed = min(ends) < 0

    def said(mean: float, pair: Sequence[float] | None) -> str:
        form = "{:+.2f}" if signed else "{:.1f}"
        interval = "" if pair is None else f" [{form.format(unit * pair[0])}, {form.format(unit * pair[1])}]"
        return form.format(unit * mean) + interval

    return Forest(
        title,
        tuple(
            Whisker(
                name,
                said(mean, pair),
                place(unit * mean),
                None if pair is None else place(unit * pair[0]),
                None if pair is None else place(unit * pair[1]),
            )
            for name, mean, pair in rows
        ),
        tuple((place(value), _short(value)) for value in axis),
        place(0.0) if axis[0] <= 0 <= axis[-1] else None,
    )


def _short(value: float) -> str:
    """A number of an axis: 0.1, 20, 20k, 1e-05."""
    value = 0.0 if abs(value) < 1e-12 else value  # a multiple of 0.1 may come out as 2.8e-17
    if 1e4 <= abs(value) < 1e7:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"
