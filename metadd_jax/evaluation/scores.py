"""Scores of a distilled set: DD-Ranking's two, and its gain over real images on networks that did not distil it.

DD-Ranking (Li et al., arXiv 2505.13300; github.com/NUS-HPC-AI-Lab/DD-Ranking, release 0.2.0, commit b8b0966) asks how
much of a set's accuracy is the images' own, and how much comes from soft labels (label-robust score) or from the
augmentation of the training (augmentation-robust score). Facts about the tool that make its numbers other ones:

* It puts percent where its formulas mean fractions: a balance of -0.213 becomes exp(-21.3) and one of 0.086 exp(8.6),
  so that a score in [0, 1] becomes -0.1565 or 2310.8 (``Scores.of_percent``). Divide its accuracies by 100 first.
* Each of its accuracies is the best on the test images over checks at every 20 epochs and, without a given step size
  and always for random images, over five step sizes. Here none is chosen on test images.
* Its networks on the real data train for the set's number of epochs and without augmentation; its "cosine" ends at one
  half; CIFAR-100 is standardised by CIFAR-10's constants.
* Its hard-label class appends each score twice and fails when it writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metadd_jax import ranges
from metadd_jax.evaluation import statistics

REAL = ("random", "kmeans")
"""The sets of real images that ``gains`` compares with."""


class Scores(NamedTuple):
    """A score of DD-Ranking, one for each run: average scores, not accuracies, since the map is not linear.

    Attributes:
      balance: [R] what is mapped, alpha or beta in [-1, 1]; 0 where the set is worth nothing more than random images
        and its labels or augmentation cost nothing.
      score: [R] (exp(balance) - exp(-1)) / (e - exp(-1)) in [0, 1]; a balance of 0 gives 0.26894.
      of_percent: [R] what the tool computes from the same accuracies: ``score`` of 100 times the balance.
    """

    balance: np.ndarray
    score: np.ndarray
    of_percent: np.ndarray


def label_robust(
    *,
    real_hard: ArrayLike,
    synthetic_hard: ArrayLike,
    synthetic_any: ArrayLike,
    random_any: ArrayLike,
    weight: float = 0.5,
) -> Scores:
    """Computes DD-Ranking's label-robust score (LRS).

    alpha = w IOR - (1 - w) HLR, with the hard-label recovery HLR = real_hard - synthetic_hard and the improvement over
    random IOR = synthetic_any - random_any. Of a set judged under hard labels alone, ``synthetic_any`` is
    ``synthetic_hard``, and at w = 0.5 alpha is synthetic - (real + random) / 2.

    Args:
      real_hard: [] or [R] accuracies in [0, 1] of networks trained on all real images with hard labels.
      synthetic_hard: the same of networks trained on the set with hard labels and plain cross-entropy.
      synthetic_any: the same by the method's own recipe, with its labels and augmentation.
      random_any: the same by that recipe on as many random real images.
      weight: w, of the improvement over random, in [0, 1].

    Raises:
      ValueError: if an accuracy is no fraction, or ``weight`` is out of its range.

    Example:
      >>> found = label_robust(real_hard=0.848, synthetic_hard=0.651, synthetic_any=0.651, random_any=0.28)
      >>> float(found.balance[0].round(3)), float(found.score[0].round(4))
      (0.087, 0.3076)
    """
    real, hard, own, random = _accuracies(real_hard, synthetic_hard, synthetic_any, random_any)
    return _scores(own - random, hard - real, weight)


def augmentation_robust(
    *,
    synthetic_augmented: ArrayLike,
    random_augmented: ArrayLike,
    synthetic_plain: ArrayLike,
    random_plain: ArrayLike,
    weight: float = 0.5,
) -> Scores:
    """Computes DD-Ranking's augmentation-robust score (ARS).

    beta = g (synthetic_augmented - random_augmented) + (1 - g) (synthetic_plain - random_plain).

    Args:
      synthetic_augmented: [] or [R] accuracies in [0, 1] of networks trained on the set with the recipe's augmentation.
      random_augmented: the same on as many random real images.
      synthetic_plain: the same on the set without augmentation.
      random_plain: the same on random real images without augmentation.
      weight: g, of the gain with augmentation, in [0, 1].

    Raises:
      ValueError: if an accuracy is no fraction, or ``weight`` is out of its range.

    Example:
      >>> found = augmentation_robust(
      ...     synthetic_augmented=0.5, random_augmented=0.3, synthetic_plain=0.4, random_plain=0.3
      ... )
      >>> float(found.balance[0].round(3))
      0.15
    """
    one, other, plain, random = _accuracies(synthetic_augmented, random_augmented, synthetic_plain, random_plain)
    return _scores(one - other, plain - random, weight)


def _accuracies(*values: ArrayLike) -> list[np.ndarray]:
    found = [np.asarray(value, np.float64) for value in values]
    low, high = min(value.min() for value in found), max(value.max() for value in found)
    if not (low >= 0 and high <= 1):  # also where one is NaN
        raise ValueError(
            f"accuracies range from {low:g} to {high:g}; give fractions in [0, 1] (percent by 100) and drop failed runs"
        )
    return found


def _scores(first: np.ndarray, second: np.ndarray, weight: float) -> Scores:
    ranges.require("weight", weight, ranges.Real(0, 1))
    balance = np.atleast_1d(weight * first + (1 - weight) * second)
    return Scores(balance, _mapped(balance), _mapped(100 * balance))


def _mapped(balance: np.ndarray) -> np.ndarray:
    return (np.exp(balance) - np.exp(-1)) / (np.e - np.exp(-1))


def gains(
    rows: Sequence[Mapping[str, Any]], *, real: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Computes the cross-architecture score of each set: its gain over real images, averaged over networks.

    Under hard labels alone, since a teacher's lift random images as much as distilled ones. Networks that did not
    distil are counted: "seen" by the penalty, "unseen", and "foreign" for both together. Differences are paired by
    distillation seed; networks and trainings of one seed judge one set and are no further observations.

    Args:
      rows: of ``report.rows_of``, all under hard labels, with those of the real images.
      real: set -> {"random": name of the rows to compare it with, "kmeans": name}, for tables with several sizes.
        None: every other set is compared with the sets "random" and "kmeans", where they are there.

    Returns:
      set -> "random" or "kmeans" -> role -> the numbers of ``statistics.paired`` (of them ``difference``,
      ``t_interval``, ``per_seed``, ``per_network`` and ``seeds``) and ``networks``; {"diverged": number} in place of
      these where a training has no accuracy. Seeds and networks are those that both sets have; a role without any is
      left out, and so is a set that nothing is there for.

    Raises:
      ValueError: if rows were judged under other labels than hard ones, or ``real`` names a set that has no rows.
    """
    for row in rows:
        if row.get("labels") != "hard":
            raise ValueError(
                f"{row['set']} was judged under the labels {row.get('labels')!r}, and a gain over real images is told "
                "under hard ones; judge it by --eval-labels hard"
            )
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_set.setdefault(row["set"], []).append(row)
    if real is None:
        there = {name: name for name in REAL if name in by_set}
        real = {name: there for name in by_set if name not in REAL}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, others in real.items():
        for kind, other in others.items():
            if missing := [one for one in (name, other) if one not in by_set]:
                raise ValueError(f"no rows of a set {missing[0]!r}; there are {', '.join(by_set) or 'none'}")
            if by_role := _by_role(by_set[other], by_set[name]):
                found.setdefault(name, {})[kind] = by_role
    return found


def _by_role(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # What a network learns from real images does not ask what it is to the distilled set, so its role is the set's.
    roles = {row["network"]: row["role"] for row in after}
    known = {row["network"] for row in before}
    groups = {role: [net for net, of in roles.items() if of == role and net in known] for role in ("seen", "unseen")}
    groups["foreign"] = groups["seen"] + groups["unseen"] if all(groups.values()) else []
    values = [{(row["distill_seed"], row["network"]): row["accuracies"] for row in side} for side in (before, after)]
    seeds = sorted({row["distill_seed"] for row in before} & {row["distill_seed"] for row in after})
    return {role: _paired(values, seeds, nets) for role, nets in groups.items() if nets and seeds}


def _paired(values: Sequence[Mapping[tuple[int, str], Any]], seeds: Sequence[int], nets: list[str]) -> dict[str, Any]:
    runs = [[[side[seed, net] for net in nets] for seed in seeds] for side in values]
    if lost := sum(int(np.isnan(each).sum()) for side in runs for of_seed in side for each in of_seed):
        return {"diverged": lost}
    # Over trainings first: of real images there may be another number of them.
    means = [np.array([[[np.mean(each)] for each in of_seed] for of_seed in side]) for side in runs]
    numbers = statistics.paired(*means)
    kept = ("difference", "t_interval", "per_seed", "per_network", "seeds")
    return {name: numbers[name] for name in kept} | {"networks": nets}


def gain_lines(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Writes ``gains`` as a Markdown table, in points of accuracy.

    Args:
      found: of ``gains``.

    Returns:
      The lines; [] where nothing was found.
    """
    if not found:
        return []
    lines = [
        "Gain over as many real images, in points, averaged over the networks of a role, under hard labels (95 % t "
        "intervals over distillation seeds):",
        "",
        "| set | networks | over random images | over k-means images |",
        "|---|---|---|---|",
    ]
    for name, by_real in found.items():
        for role in dict.fromkeys(role for by_role in by_real.values() for role in by_role):
            cells = [_gain(by_real.get(kind, {}).get(role)) for kind in REAL]
            lines.append(f"| {name} | {role} | {' | '.join(cells)} |")
    return lines


def _gain(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None:
        return "."
    if "diverged" in numbers:
        return f"none: {numbers['diverged']} trainings diverged"
    interval = numbers["t_interval"]
    spread = "one seed" if interval is None else f"[{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"
    return f"{100 * numbers['difference']:+.2f} {spread}"
