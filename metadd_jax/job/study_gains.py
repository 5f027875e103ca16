"""The gain of a study's rows over real images of the same number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metadd_jax.evaluation import scores
from metadd_jax.job.studies import Study

Cells = Sequence[tuple[int, Mapping[str, Any]]]  # (seed, what cell.json holds)


def over_real(study: Study, by_row: Mapping[str, Cells]) -> dict[str, Any]:
    """Computes ``scores.gains`` of each distilled row over the rows of real images that store as many.

    Args:
      study: says which rows are real images.
      by_row: the finished cells of rows that share one kind of labels.

    Returns:
      Of ``scores.gains``, by row; {} under other labels than hard ones.
    """
    rows = [
        {**line, "set": row, "distill_seed": seed, "labels": result["labels"]}
        for row, cells in by_row.items()
        for seed, result in cells
        for line in result["rows"]
    ]
    if not all(row["labels"] == "hard" for row in rows):
        return {}
    real: dict[str, dict[str, str]] = {}
    for row, cells in by_row.items():
        if study.real(row) is None:
            alike = {study.real(name): name for name, others in by_row.items() if _stored(others) == _stored(cells)}
            real[row] = {kind: alike[kind] for kind in scores.REAL if kind in alike}
    return scores.gains(rows, real=real)


def _stored(cells: Cells) -> tuple[Any, Any]:
    # Of the options and not of the arrays: latents store other numbers than the images that they stand for.
    config = cells[0][1]["config"]
    return config.get("ipc"), tuple(config.get("ipc_per_class", ()))
