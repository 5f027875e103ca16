"""Statistics of accuracies from few and nested seeds.

A comparison is *paired*: the same distillation seed, network and training seed with and without a component.
The independent observation is the **distillation seed** (a cluster): all networks and training seeds of one
distillation seed judge the same set, so they are repeated measurements and no further observations.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_CONFIDENCE = 0.95
_DRAWS = 10_000  # the 2.5 % quantile then rests on 250 of them
# n seeds have n^n resamples: 46,656 for six, all of them enumerated; 823,543 for seven.
_MOST_ENUMERATED = 6
# Equal means of accuracies may differ by rounding (1e-16); unequal ones differ by about 1e-6 or more.
_TIE = 1e-9


def paired(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """Computes paired differences b - a of accuracies, clustered on distillation seeds.

    Args:
      a: [distillation seeds, networks, training seeds] accuracies in [0, 1], say without a component.
      b: the same runs with it.
      seed: of the bootstrap's draws (used from seven distillation seeds on).

    Returns:
      A dict of plain numbers and lists, ready for JSON:
        difference: mean of b - a.
        per_seed: mean difference of each distillation seed (the clusters).
        per_network: mean difference of each network.
        bootstrap: [low, high], 95 % percentile interval over resampled clusters, from all n^n resamples of
          n <= 6 clusters and else from 10,000 draws. With few clusters it is too narrow (normal clusters,
          simulated: it holds the truth in 67 % of cases for 3, 84 % for 5), with one it says nothing.
        t_interval: [low, high], 95 % t interval over the cluster means, the one to trust for few seeds; None
          for one seed.
        sd_sets, sd_trainings: what the spread of the differences, averaged over networks, is made of (``components``).
        sign_test: {positive, negative, p} over distillation seeds x networks (means over training seeds).
          Pairs of one seed judge the same set and are *not* independent, so p is too small: no proof.
        sign_test_seeds: the same over the cluster means: independent, but p never falls below 2^(1 - n).
        seeds: number of clusters n.

    Raises:
      ValueError: if the shapes differ or are not three-dimensional, or values lie outside [0, 1].
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 3 or not a.size:
        raise ValueError(
            f"paired runs have shapes {a.shape} and {b.shape}; give both as "
            "[distillation seeds, networks, training seeds], run for run"
        )
    if not all(((x >= 0) & (x <= 1)).all() for x in (a, b)):
        raise ValueError(
            f"accuracies range from {min(a.min(), b.min()):g} to {max(a.max(), b.max()):g}; "
            "give fractions in [0, 1] and drop failed runs"
        )
    pairs = (b - a).mean(axis=2)  # [seeds, networks]
    clusters = pairs.mean(axis=1)
    return {
        "difference": float(clusters.mean()),
        "per_seed": clusters.tolist(),
        "per_network": pairs.mean(axis=0).tolist(),
        "bootstrap": _bootstrap(clusters, seed),
        "t_interval": _t_interval(clusters),
        **components((b - a).mean(axis=1)),
        "sign_test": _sign_test(pairs),
        "sign_test_seeds": _sign_test(clusters),
        "seeds": len(clusters),
    }


def components(values: ArrayLike) -> dict[str, float | None]:
    """Splits the spread of nested runs into that between sets and that between trainings on one set.

    The usual estimate for y_dt = mean + set_d + training_dt (one-way analysis of variance with random effects):
    sd_trainings^2 is the mean over sets of the variance within a set; sd_sets^2 is the variance of the sets' means,
    less sd_trainings^2 / T, the part that trainings contribute to it, and 0 where that would be negative. A mean over D
    sets of T trainings has standard error sqrt(sd_sets^2 / D + sd_trainings^2 / (D T)).

    Args:
      values: [D, T], D distillation seeds (D sets), T training seeds each.

    Returns:
      sd_sets, sd_trainings, in the unit of ``values``; None where D or T is 1, so that it cannot be estimated.

    Raises:
      ValueError: if ``values`` is not two-dimensional or not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"values have shape {values.shape}; give finite numbers as [distillation seeds, training seeds]"
        )
    sets, trainings = values.shape
    if trainings < 2:
        return {"sd_sets": None, "sd_trainings": None}
    within = values.var(axis=1, ddof=1).mean()
    if sets < 2:
        return {"sd_sets": None, "sd_trainings": float(np.sqrt(within))}
    between = values.mean(axis=1).var(ddof=1) - within / trainings
    return {"sd_sets": float(np.sqrt(max(between, 0.0))), "sd_trainings": float(np.sqrt(within))}


def t_test(differences: ArrayLike) -> float:
    """Computes the two-sided p-value of a paired t test: is the mean of ``differences`` 0?

    Args:
      differences: [n] of independent pairs, such as ``per_seed`` of ``paired``.

    Returns:
      p in [0, 1]; NaN for one pair, 1 where all differences are 0 and 0 where they are one other number.
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    if values.size < 2:
        return float("nan")
    spread = values.std(ddof=1)
    if spread == 0:  # t is 0/0 or infinite
        return float(values.mean() == 0)
    return float(2 * stats.t.sf(abs(values.mean()) / (spread / np.sqrt(values.size)), values.size - 1))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Corrects p-values for their number (Holm, Scand. J. Statist. 1979): the chance of any false alarm stays p.

    Args:
      p_values: [m] in [0, 1]; NaN stands for a test that was not made, and counts for none.

    Returns:
      [m] corrected values; the sorted k-th (from 0) is max over j <= k of min(1, (m - j) p_j).
    """
    p = np.asarray(p_values, np.float64)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def _bootstrap(clusters: np.ndarray, seed: int) -> list[float]:
    n = len(clusters)
    # All resamples where they are few: the interval is then exact and depends on no seed.
    if n <= _MOST_ENUMERATED:
        resamples = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        resamples = np.random.default_rng(seed).integers(n, size=(_DRAWS, n))
    tail = (1 - _CONFIDENCE) / 2
    return np.quantile(clusters[resamples].mean(axis=1), [tail, 1 - tail]).tolist()


def _t_interval(clusters: np.ndarray) -> list[float] | None:
    if len(clusters) < 2:
        return None
    from scipy import stats

    n, mean = len(clusters), clusters.mean()
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * clusters.std(ddof=1) / np.sqrt(n)
    return [float(mean - half), float(mean + half)]


def _sign_test(differences: np.ndarray) -> dict[str, Any]:
    """Two-sided exact binomial test of gains against losses; ties are dropped, p = 1 if nothing is left."""
    from scipy import stats  # here, because the package imports without scipy

    positive, negative = int((differences > _TIE).sum()), int((differences < -_TIE).sum())
    p = float(stats.binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0
    return {"positive": positive, "negative": negative, "p": p}
