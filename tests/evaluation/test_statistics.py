"""Statistics against closed forms, brute force and tabulated values."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from metadd_jax.evaluation import statistics


def runs(per_seed_and_network, training_seeds=2):
    """Accuracies a, b whose differences have these means; training seeds scatter around them in both."""
    wanted = np.asarray(per_seed_and_network, float)[..., None]
    noise = np.linspace(-0.02, 0.02, training_seeds)
    a = 0.5 + 0.1 * np.random.default_rng(0).uniform(size=(*wanted.shape[:2], training_seeds))
    return a, a + wanted + noise


def test_means_of_the_paired_differences():
    facts = statistics.paired(*runs([[0.1, 0.0], [0.2, 0.04], [-0.05, 0.01]]))
    assert facts["per_seed"] == pytest.approx([0.05, 0.12, -0.02])
    assert facts["per_network"] == pytest.approx([0.25 / 3, 0.05 / 3])
    assert facts["difference"] == pytest.approx(0.05)
    assert facts["seeds"] == 3
    assert json.loads(json.dumps(facts)) == facts


def test_t_interval_closed_form():
    # Three clusters: t(0.975, 2) = 4.302653, standard deviation of 1, 2, 3 (x 0.01) is 0.01.
    facts = statistics.paired(*runs([[0.01], [0.02], [0.03]]))
    half = 4.302652729696142 * 0.01 / math.sqrt(3)
    assert facts["t_interval"] == pytest.approx([0.02 - half, 0.02 + half])
    assert statistics.paired(*runs([[0.01, 0.03]]))["t_interval"] is None


def test_bootstrap_enumerates_the_resamples_of_few_seeds():
    # Resampling two clusters 0 and 1: means 0, 1/2, 1/2, 1; quantile 2.5 % lies 7.5 % of the way to 1/2.
    facts = statistics.paired(*runs([[0.0], [0.1]]))
    assert facts["bootstrap"] == pytest.approx([0.00375, 0.09625])
    clusters = [0.03, -0.01, 0.05, 0.02]
    means = sorted(sum(draw) / 4 for draw in itertools.product(clusters, repeat=4))
    position = 0.025 * (len(means) - 1)
    low = means[int(position)] + (position % 1) * (means[int(position) + 1] - means[int(position)])
    facts = statistics.paired(*runs([[c - 0.01, c + 0.01] for c in clusters]))
    assert facts["bootstrap"][0] == pytest.approx(low)
    one = statistics.paired(*runs([[0.02, 0.04]]))
    assert one["bootstrap"] == pytest.approx([0.03, 0.03])


def test_bootstrap_draws_for_many_seeds():
    a, b = runs(np.random.default_rng(3).normal(0.02, 0.03, size=(40, 1)))
    facts = statistics.paired(a, b)
    assert facts == statistics.paired(a, b)
    assert facts["bootstrap"] != statistics.paired(a, b, seed=1)["bootstrap"]
    # Forty clusters: the percentile interval is near mean +- 1.96 s / sqrt(n).
    half = 1.96 * np.std(facts["per_seed"]) / math.sqrt(40)
    assert facts["bootstrap"] == pytest.approx([facts["difference"] - half, facts["difference"] + half], abs=1e-3)


def test_components_by_hand_and_by_simulation():
    # Two sets, two trainings: within .02 (x 1e-2 squared), means 0.1 apart: .005 - .01 / 2 = 0.
    assert statistics.components([[0.5, 0.7], [0.6, 0.8]]) == pytest.approx(
        {"sd_sets": 0.0, "sd_trainings": math.sqrt(0.02)}
    )
    assert statistics.components([[0.4, 0.4], [0.6, 0.6]]) == pytest.approx(
        {"sd_sets": math.sqrt(0.02), "sd_trainings": 0.0}
    )
    assert statistics.components([[0.4], [0.6]]) == {"sd_sets": None, "sd_trainings": None}
    assert statistics.components([[0.4, 0.6]]) == {"sd_sets": None, "sd_trainings": pytest.approx(math.sqrt(0.02))}
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, 0.03, (4000, 1)) + rng.normal(0, 0.05, (4000, 3))
    assert statistics.components(drawn) == pytest.approx({"sd_sets": 0.03, "sd_trainings": 0.05}, rel=0.05)
    for bad in ([0.5], [[math.nan, 0.5]]):
        with pytest.raises(ValueError, match="distillation seeds, training seeds"):
            statistics.components(bad)


def test_sign_tests_are_exact_binomials():
    facts = statistics.paired(*runs([[0.01] * 5, [0.02] * 4 + [-0.01]]))
    # 9 of 10: 2 (1 + 10) / 2^10
    assert facts["sign_test"] == {"positive": 9, "negative": 1, "p": pytest.approx(22 / 1024)}
    assert facts["sign_test_seeds"] == {"positive": 2, "negative": 0, "p": pytest.approx(0.5)}


def test_sign_test_drops_ties_also_rounded_ones():
    a = np.array([[[0.3, 0.1], [0.2, 0.2], [0.1, 0.1]]])
    b = np.array([[[0.2, 0.2], [0.3, 0.1], [0.2, 0.2]]])
    assert statistics.paired(a, b)["sign_test"] == {"positive": 1, "negative": 0, "p": 1.0}
    assert statistics.paired(a, a)["sign_test"] == {"positive": 0, "negative": 0, "p": 1.0}


def test_paired_refuses_what_is_no_pair_of_accuracies():
    a = np.full((2, 3, 2), 0.5)
    for first, second, text in (
        (a, a[:1], r"\(2, 3, 2\) and \(1, 3, 2\)"),
        (a[0], a[0], "shapes"),
        (a, 100 * a, "from 0.5 to 50"),
        (a, a * np.nan, "drop failed runs"),
    ):
        with pytest.raises(ValueError, match=text):
            statistics.paired(first, second)


def test_the_t_test_is_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, 7)
    assert statistics.t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-12)
    assert np.isnan(statistics.t_test([0.3])) and statistics.t_test([0, 0]) == 1 and statistics.t_test([1, 1]) == 0


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1, and never less than one before.
    assert statistics.holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert statistics.holm([0.9, float("nan"), 0.6])[[0, 2]] == pytest.approx([1, 1])
    assert np.isnan(statistics.holm([0.9, float("nan")])[1]) and statistics.holm([]).shape == (0,)
