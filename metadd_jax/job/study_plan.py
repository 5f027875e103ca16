"""What the cells of a study will take: by the time of cells that are done, and by FLOPs at their rate where none is."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import metadd_jax as mdd
from metadd_jax.job import plan, prepare
from metadd_jax.job.cells import Cell

Times = Mapping[str, Sequence[float]]  # row -> seconds of its cells that are done


def by_row(rows: Sequence[str], times: Times) -> dict[str, float]:
    """Tells the seconds of a cell of each row without more work: by its own cells, else by those of the slowest row.

    Args:
      rows: of the study.
      times: by row, where cells are done.

    Returns:
      By row; {} where no cell is done.
    """
    medians = {row: statistics.median(own) for row, own in times.items()}
    slowest = max(medians.values(), default=None)
    return {} if slowest is None else {row: medians.get(row, slowest) for row in rows}


def estimate(cells: Mapping[str, Cell], data: Mapping[str, mdd.Dataset], times: Times) -> dict[str, float]:
    """Tells the seconds of a cell of each row; of a row that has none that is done by its FLOPs.

    Args:
      cells: any cell of each row.
      data: the real data of each row.
      times: by row, where cells are done; where none is, the steps of one row are timed.

    Returns:
      By row. Neither compilation nor networks, experts and generators that the cache does not hold are in what is told
      by FLOPs.
    """
    found = {row: statistics.median(own) for row, own in times.items()}
    if set(found) == set(cells):
        return found
    flops: dict[str, float] = {}
    for row, cell in cells.items():
        with _opened(cell, data[row]) as job:
            # A row's set is the last that its options ask for.
            setting = list(prepare.settings(job.config).values())[-1] if job.config.wrapped else None
            distilling = 0.0 if cell.real else job.config.steps * plan.step_flops(job, setting)
            flops[row] = distilling + plan.judge_flops(job)
    measured = [flops[row] / seconds for row, seconds in found.items() if not cells[row].real]
    rate = statistics.median(measured) if measured else _rate(cells, data)
    return {row: found.get(row, flops[row] / rate) for row in cells}


def _rate(cells: Mapping[str, Cell], data: Mapping[str, mdd.Dataset]) -> float:
    """FLOP/s of a step of the first row that is distilled."""
    cell = next((cell for cell in cells.values() if not cell.real), next(iter(cells.values())))
    with _opened(cell, data[cell.row]) as job:
        first = plan.estimate(job)[0][0]
    return first.flops / first.seconds


@contextlib.contextmanager
def _opened(cell: Cell, dataset: mdd.Dataset) -> Iterator[prepare.Job]:
    """The cell's job as ``--plan`` opens it: without a lock, in a folder that goes again."""
    with tempfile.TemporaryDirectory() as folder:
        yield prepare.open_job(dataclasses.replace(cell.config, plan=True, run_dir=folder), dataset=dataset)
