"""Statistics of accuracies from few and nested seeds.

A comparison is *paired*: the same distillation seed, network and training seed with and without a component.
The independent observation is the **distillation seed** (a cluster): all networks and training seeds of one
distillation seed judge the same set, so they are repeated measurements and no further observations.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metadd_jax import ranges

_CONFIDENCE = 0.95
_DRAWS = 10_000  # the 2.5 % quantile then rests on 250 of them
# n seeds have n^n resamples: 46,656 for six, all of them enumerated; 823,543 for seven.
_MOST_ENUMERATED = 6
# 2^16 patterns of signs: all of them in a few milliseconds.
_MOST_FLIPPED = 16
# Equal means of accuracies may differ by rounding: they are float32, so by up to 6e-8. Unequal ones differ by about
# 1e-6 or more.
_TIE = 1e-7


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
        sign_flip_test: p of ``sign_flip_test`` over the cluster means; None for one seed.
        parts: of the spread of single differences (``decompose``).
        seeds_needed: trainings of each network on each set (as text) -> seeds for +-0.5 points (``seeds_needed``).
        seeds: number of clusters n.

    Raises:
      ValueError: if the shapes differ or are not three-dimensional, or values lie outside [0, 1].

    Example:
      >>> without = [[[0.30, 0.32]], [[0.31, 0.29]], [[0.33, 0.33]]]  # three seeds, one network, two trainings
      >>> found = paired(without, [[[0.33, 0.33]], [[0.32, 0.30]], [[0.36, 0.34]]])
      >>> round(found["difference"], 3), [round(end, 3) for end in found["t_interval"]]
      (0.017, [0.002, 0.031])
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
        "sign_flip_test": sign_flip_test(clusters, seed=seed) if len(clusters) > 1 else None,
        "parts": decompose(b - a),
        "seeds_needed": {str(trainings): needed for trainings, needed in seeds_needed(b - a).items()},
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


def decompose(values: ArrayLike) -> dict[str, float | None]:
    """Splits the spread of runs, or of their differences, into that of sets, of networks and of trainings.

    The usual estimates for y_dnt = mean + set_d + network_n + (set x network)_dn + training_dnt, from the mean squares
    of the two-way analysis of variance with random effects; a variance that comes out negative is 0. Networks are no
    random draw: ``sd_networks`` says how far the effect differs from one to the next of those in the table.

    Args:
      values: [D, N, T] of D sets (distillation seeds), N networks, T trainings of each network on each set.

    Returns:
      sd_sets, sd_networks, sd_sets_networks (a set that suits one network more than the others) and sd_trainings (of
      one training of one network), in the unit of ``values``. None where it cannot be estimated: sd_sets and
      sd_networks need two sets, sd_networks two networks, sd_trainings two trainings, sd_sets_networks all three.

    Raises:
      ValueError: if ``values`` is not three-dimensional or not finite.

    Example:
      >>> runs = [[[0.30, 0.32], [0.20, 0.22]], [[0.34, 0.36], [0.24, 0.26]]]  # two sets, two networks, two trainings
      >>> {name: round(spread, 3) for name, spread in decompose(runs).items()}
      {'sd_sets': 0.028, 'sd_networks': 0.071, 'sd_sets_networks': 0.0, 'sd_trainings': 0.014}
    """
    values = _runs(values)
    sets, networks, trainings = values.shape
    found: dict[str, float | None] = dict.fromkeys(("sd_sets", "sd_networks", "sd_sets_networks", "sd_trainings"))
    cells = values.mean(axis=2)
    within = values.var(axis=2, ddof=1).mean() if trainings > 1 else None  # MS of trainings
    if within is not None:
        found["sd_trainings"] = _root(within)
    if sets < 2:
        return found
    of_sets = networks * trainings * cells.mean(axis=1).var(ddof=1)  # MS of sets
    if networks < 2:  # what a set does to this network is part of the set
        found["sd_sets"] = None if within is None else _root((of_sets - within) / trainings)
        return found
    of_networks = sets * trainings * cells.mean(axis=0).var(ddof=1)
    rest = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
    of_both = trainings * (rest**2).sum() / ((sets - 1) * (networks - 1))
    found["sd_sets"] = _root((of_sets - of_both) / (networks * trainings))
    found["sd_networks"] = _root((of_networks - of_both) / (sets * trainings))
    if within is not None:
        found["sd_sets_networks"] = _root((of_both - within) / trainings)
    return found


def seeds_needed(
    values: ArrayLike, *, half_width: float = 0.005, trainings: Sequence[int] = (1, 2, 3, 5, 10)
) -> dict[int, int]:
    """Tells how many distillation seeds make the 95 % t interval of a mean difference no wider than +- ``half_width``.

    The mean over networks of one seed's set has the variance sd_sets^2 + sd_sets_networks^2 / N + sd_trainings^2 /
    (N T) for T trainings, the networks being always these. The answer for n seeds is the least n with
    t(0.975, n - 1) sqrt(variance / n) <= ``half_width``. It is as uncertain as the variance is: see ``sd_known``.

    Args:
      values: [D, N, T] paired differences of D distillation seeds, N networks, T trainings.
      half_width: in the unit of ``values``, above 0; 0.005 are 0.5 points of accuracy.
      trainings: numbers of trainings of each network on each set to tell it for.

    Returns:
      Trainings -> seeds, at least 2. Of one training each it is known for one training alone, of one seed not at all.

    Raises:
      ValueError: if ``values`` is not three-dimensional or not finite, or ``half_width`` or a number of trainings is
        out of its range.

    Example:
      >>> differences = [[[0.02]], [[0.01]], [[0.03]]]  # three seeds, one network, one training
      >>> seeds_needed(differences)  # of a standard deviation of one point
      {1: 18}
    """
    from scipy import stats

    values = _runs(values)
    ranges.require("half_width", half_width, ranges.Real(0, above=True))
    for number in trainings:
        ranges.require("trainings", number, ranges.Whole(1))
    sets, networks, known = values.shape
    if sets < 2:
        return {}
    total = values.mean(axis=(1, 2)).var(ddof=1)
    within = values.var(axis=2, ddof=1).mean() / networks if known > 1 else 0.0
    between = max(total - within / known, 0.0)
    found = {}
    for number in trainings if known > 1 else (1,) * (1 in trainings):
        spread = np.sqrt(between + within / number)
        # The normal quantile is below every t, so the search starts below its end, and near it.
        seeds = max(2, int((1.95996 * spread / half_width) ** 2))
        while stats.t.ppf((1 + _CONFIDENCE) / 2, seeds - 1) * spread / np.sqrt(seeds) > half_width:
            seeds += 1
        found[number] = seeds
    return found


def sd_known(seeds: int) -> tuple[float, float]:
    """Tells how well a standard deviation is known from few seeds.

    Args:
      seeds: n, at least 2.

    Returns:
      The 95 % interval of the true one (normal values) over the estimated one: 0.52 to 6.3 for three seeds.

    Raises:
      ValueError: for fewer than two seeds.

    Example:
      >>> [round(ratio, 2) for ratio in sd_known(3)]
      [0.52, 6.28]
    """
    from scipy import stats

    ranges.require("seeds", seeds, ranges.Whole(2))
    tail = (1 - _CONFIDENCE) / 2
    low, high = (np.sqrt((seeds - 1) / stats.chi2.ppf(p, seeds - 1)) for p in (1 - tail, tail))
    return float(low), float(high)


def t_test(differences: ArrayLike) -> float:
    """Computes the two-sided p-value of a paired t test: is the mean of ``differences`` 0?

    Args:
      differences: [n] of independent pairs, such as ``per_seed`` of ``paired``.

    Returns:
      p in [0, 1]; NaN for one pair, 1 where all differences are 0 and 0 where they are one other number.

    Example:
      >>> round(t_test([1.0, 2.0, 3.0]), 4)
      0.0742
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    if values.size < 2:
        return float("nan")
    spread = values.std(ddof=1)
    if spread == 0:  # t is 0/0 or infinite
        return float(values.mean() == 0)
    return float(2 * stats.t.sf(abs(values.mean()) / (spread / np.sqrt(values.size)), values.size - 1))


def sign_flip_test(differences: ArrayLike, *, seed: int = 0) -> float:
    """Computes the two-sided p-value of the paired permutation test: would other signs give as large a mean?

    If a component does nothing, each pair's difference is as likely to have the other sign, and all 2^n patterns of
    signs are equally likely (Fisher, The Design of Experiments, 1935). p is the share of patterns whose mean is as far
    from 0 as the observed one. It assumes no normal distribution, and never falls below 2^(1 - n): three seeds prove
    nothing by it.

    Args:
      differences: [n] of independent pairs, such as ``per_seed`` of ``paired``; means that differ by less than 1e-7
        count as equal.
      seed: of the 100,000 patterns that are drawn where n is above 16; up to 16 all patterns are enumerated.

    Returns:
      p in (0, 1]; NaN for one pair. Of drawn patterns p is (1 + those as far from 0) / (1 + all), as the observed one
      is one of them (Phipson and Smyth 2010).

    Raises:
      ValueError: if ``differences`` is not one-dimensional or not finite.

    Example:
      >>> sign_flip_test([1.0, 2.0, 3.0])  # two of the eight patterns of signs are as far from 0
      0.25
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"differences have shape {values.shape}; give finite numbers as [pairs]")
    n = len(values)
    if n < 2:
        return float("nan")
    least = abs(values.mean()) - _TIE
    if n <= _MOST_FLIPPED:
        # The last sign stays: a pattern and its opposite are equally far from 0.
        flipped = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
        return float((abs((1 - 2 * flipped) @ values / n) >= least).mean())
    rng, far = np.random.default_rng(seed), 0
    for _ in range(10):  # in parts, to bound the memory
        far += int((abs(rng.choice([-1.0, 1.0], size=(_DRAWS, n)) @ values / n) >= least).sum())
    return (1 + far) / (1 + 10 * _DRAWS)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Corrects p-values for their number (Holm, Scand. J. Statist. 1979): the chance of any false alarm stays p.

    Args:
      p_values: [m] in [0, 1]; NaN stands for a test that was not made, and counts for none.

    Returns:
      [m] corrected values; the sorted k-th (from 0) is max over j <= k of min(1, (m - j) p_j).

    Example:
      >>> holm([0.01, 0.04, 0.03]).tolist()
      [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def _runs(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 3 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"values have shape {values.shape}; give finite numbers as [distillation seeds, networks, training seeds]"
        )
    return values


def _root(variance: float) -> float:
    return float(np.sqrt(max(variance, 0.0)))


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
