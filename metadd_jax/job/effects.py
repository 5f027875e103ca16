"""What MetaDD costs and how it pulls: seconds a step, gradient norms and cosines, read back for the results."""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import storage


class Stopwatch:
    """Measures the seconds a step of each method takes.

    The first chunk of a set is not counted: compilation, or the other set's last work, is in it.
    """

    def __init__(self) -> None:
        # Seconds a step of each chunk, and (method, steps, moment) of the last one.
        self._seconds: dict[str, list[float]] = {}
        self._last: tuple[str, int, float] | None = None

    def start(self) -> None:
        """Begins a set: its first chunk has no earlier moment to be measured from."""
        self._last = None

    def lap(self, method: str, done: int) -> float | None:
        """Takes the time after a chunk of ``method`` that brought the set to ``done`` steps.

        Returns:
          The seconds a step of that chunk; None for the first of a set.
        """
        # Not time.time, which jumps when the machine's clock is set.
        now, seconds = time.perf_counter(), None
        if self._last is not None and done > self._last[1]:
            seconds = (now - self._last[2]) / (done - self._last[1])
            self._seconds.setdefault(method, []).append(seconds)
        self._last = (method, done, now)
        return seconds

    def saves_now(self) -> bool:
        """Tells whether the state is to be saved behind this chunk, whatever the grid of checkpoints says."""
        return False

    def medians(self) -> dict[str, float]:
        """Returns the median seconds a step by method, of the methods that ran in this start."""
        # The median: other work on the machine makes single chunks slower, never quicker.
        return {method: statistics.median(values) for method, values in self._seconds.items()}


def pulls(directory: pathlib.Path, methods: Iterable[str], seeds: Iterable[int]) -> dict[str, dict[str, Any]]:
    """Reads back how each added term pulled beside the base method's gradient.

    Args:
      directory: the run's folder.
      methods: the names of its sets.
      seeds: their distillation seeds, over which is averaged.

    Returns:
      By set, then "start" and "end", then term: "norm" (of the term's gradient over that of the base loss) and "cosine"
      (between the two). The term "metadd" is the weighted sum of all. A set without two such reports is left out.
    """
    found = {}
    for method in methods:
        logs = [storage.JsonLines(directory / method / f"seed{seed}" / "metrics.jsonl").read() for seed in seeds]
        lines = [[line for line in log if "report/gradient_norm_base" in line] for log in logs]
        # A report is written at the start and at the end; a run that is not done, or a bare method, has fewer.
        if all(len(reported) > 1 for reported in lines):
            found[method] = {
                "start": _of([reported[0] for reported in lines]),
                "end": _of([reported[-1] for reported in lines]),
            }
    return found


def conditions(
    directory: pathlib.Path, sets: Mapping[str, Sequence[mdd.SyntheticSet]], seeds: Iterable[int], dataset: mdd.Dataset
) -> list[str]:
    """Says in lines for the head of the results what the pixels, the loss and the gradient of each set came to.

    Args:
      directory: the run's folder.
      sets: by name, one of each seed.
      seeds: their distillation seeds.
      dataset: the real data, whose range of pixels the sets are held against.
    """
    lines = []
    for method, group in sets.items():
        found = {}
        # From the log, not from memory: of a run that goes on, only the last part was lived through here.
        for seed, synthetic in zip(seeds, group, strict=True):
            log = storage.JsonLines(directory / method / f"seed{seed}" / "metrics.jsonl").read()
            if looked := mdd.distillers.examine(synthetic, dataset, log):
                found[seed] = looked
        if found:
            mean = mdd.distillers.Condition(*(_mean(values) for values in zip(*found.values(), strict=True)))
            lines += ["", f"{method}: {mean.describe()}."]
            lines += [
                line
                for seed, looked in found.items()
                for text in looked.warnings()
                for line in ("", f"**Warning**, {method} seed {seed}: {text}.")
            ]
    return lines


def _mean(values: Sequence[Any]) -> Any:
    mean = np.mean(values, axis=0)
    return tuple(mean.tolist()) if mean.ndim else float(mean)


def _of(lines: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    terms = [name.removeprefix("report/cosine_") for name in lines[0] if name.startswith("report/cosine_")]
    # Each seed's norm over that seed's own base norm: means of both first would weigh seeds by their scale.
    return {
        term: {
            "norm": float(
                np.mean([line[f"report/gradient_norm_{term}"] / line["report/gradient_norm_base"] for line in lines])
            ),
            "cosine": float(np.mean([line[f"report/cosine_{term}"] for line in lines])),
        }
        for term in terms
    }
