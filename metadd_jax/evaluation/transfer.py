"""Whether a gain in what networks agree on goes with a gain in accuracy: correlation of paired gains.

MetaDD's claim is a chain: the loss raises the share of an image that all networks look at, on networks that were never
looked through as well, and *so* these learn better from it. A point here is one network, distillation seed and setting:
its gain in meta ratio and its gain in accuracy over the same seed without the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_DRAWS = 10_000  # the 2.5 % quantile then rests on 250 of them


def correlation(
    x: ArrayLike, y: ArrayLike, clusters: Sequence[Any], *, groups: Sequence[Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Computes how far y goes with x, with an interval over clusters.

    Args:
      x: [n] gains in meta ratio, at most 1.
      y: [n] gains in accuracy, in [-1, 1].
      clusters: n names; points of one cluster (one distilled set) are no independent observations, so the bootstrap
        draws whole clusters.
      groups: n names, such as networks: differences between their means are taken off both sides first, since a network
        that gains more from everything says nothing of x. None takes nothing off.
      seed: of the bootstrap's draws.

    Returns:
      "pearson" and "spearman" in [-1, 1], None where one side does not vary; "interval" [low, high], the 95 %
      percentile interval of "pearson" over resampled clusters, None for fewer than three of them; "slope", points of y
      for a unit of x; "points" n and "clusters", their numbers.

    Raises:
      ValueError: if the lengths differ or a value is not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(clusters) != len(x) or (groups is not None and len(groups) != len(x)):
        raise ValueError(
            f"x and y have shapes {x.shape} and {y.shape} with {len(clusters)} clusters; give one of each a point"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y holds values that are not finite; drop the points of failed runs")
    if groups is not None:
        x, y = _centred(x, groups), _centred(y, groups)
    names = list(dict.fromkeys(clusters))
    members = [np.flatnonzero([name == one for name in clusters]) for one in names]
    interval = None
    if len(names) > 2:
        generator = np.random.default_rng(seed)
        drawn = (
            np.concatenate([members[i] for i in generator.integers(len(names), size=len(names))]) for _ in range(_DRAWS)
        )
        values = [value for rows in drawn if (value := pearson(x[rows], y[rows])) is not None]
        interval = np.quantile(values, [0.025, 0.975]).tolist() if values else None
    found = pearson(x, y)
    return {
        "pearson": found,
        "spearman": pearson(_ranks(x), _ranks(y)),
        "interval": interval,
        "slope": None if found is None else float(x @ (y - y.mean()) / ((x - x.mean()) ** 2).sum()),
        "points": len(x),
        "clusters": len(names),
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Computes Pearson's correlation, sum dx dy / sqrt(sum dx^2 sum dy^2); None where a side does not vary.

    Args:
      x: [n].
      y: [n].
    """
    if not len(x):
        return None
    dx, dy = x - x.mean(), y - y.mean()
    size = np.sqrt((dx**2).sum() * (dy**2).sum())
    # Relative to the values: equal numbers leave rounding behind.
    return None if size <= 1e-14 * max(1.0, np.abs(x).max() * np.abs(y).max()) else float(dx @ dy / size)


def _centred(values: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    found = values.copy()
    for name in dict.fromkeys(groups):
        own = np.flatnonzero([group == name for group in groups])
        found[own] -= values[own].mean()
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on; equal values share the mean of theirs."""
    # Differences of shares: rounding would rank equal ones.
    _, inverse, counts = np.unique(values.round(9), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]
