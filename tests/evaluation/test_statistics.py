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
    # Of float32, as accuracies are: 0.3 + 0.1 and 0.2 + 0.2 differ by 7e-9.
    single = [np.asarray(x, np.float32) for x in (a, b)]
    assert statistics.paired(*single)["sign_test"] == {"positive": 1, "negative": 0, "p": 1.0}


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


def nested(rng, sets, networks, trainings, *, sd):
    """Draws [sets, networks, trainings] whose four parts have these standard deviations."""
    shapes = ((sets, 1, 1), (1, networks, 1), (sets, networks, 1), (sets, networks, trainings))
    return sum(rng.normal(0, one, shape) for one, shape in zip(sd, shapes, strict=True))


def test_the_parts_of_a_spread_by_hand():
    # Additive: sets -1, 1 and networks -2, 0, 2, so nothing is left for both; variances 2 and 4.
    values = (np.array([-1, 1])[:, None] + np.array([-2, 0, 2]))[..., None] + np.zeros(2)
    parts = statistics.decompose(values)
    assert parts == pytest.approx(
        {"sd_sets": math.sqrt(2), "sd_networks": 2, "sd_sets_networks": 0, "sd_trainings": 0}, abs=1e-12
    )
    # Trainings +-1 have variance 2 and leave the means as they are; -2 / T of both is cut off at 0.
    parts = statistics.decompose(values + np.array([-1, 1]))
    assert parts == pytest.approx(
        {"sd_sets": math.sqrt(2), "sd_networks": 2, "sd_sets_networks": 0, "sd_trainings": math.sqrt(2)}
    )


def test_the_parts_of_a_spread_are_found_in_draws_of_them():
    sd = (0.03, 0.04, 0.02, 0.05)
    found = [statistics.decompose(nested(np.random.default_rng(seed), 60, 60, 3, sd=sd)) for seed in range(30)]
    mean = {name: np.sqrt(np.mean([one[name] ** 2 for one in found])) for name in found[0]}
    # The estimates of variances are unbiased: 30 of them come within 5 % (their spread is 18 % / sqrt(30) each).
    names = ("sd_sets", "sd_networks", "sd_sets_networks", "sd_trainings")
    assert mean == pytest.approx(dict(zip(names, sd, strict=True)), rel=0.05)


def test_parts_that_few_runs_cannot_tell_are_none():
    values = np.random.default_rng(0).normal(size=(3, 4, 2))
    for cut, unknown in (
        (values[:1], {"sd_sets", "sd_networks", "sd_sets_networks"}),
        (values[:, :1], {"sd_networks", "sd_sets_networks"}),
        (values[..., :1], {"sd_sets_networks", "sd_trainings"}),
        (values[:, :1, :1], {"sd_sets", "sd_networks", "sd_sets_networks", "sd_trainings"}),
    ):
        assert {name for name, value in statistics.decompose(cut).items() if value is None} == unknown
    for bad in (values[0], values * np.nan):
        with pytest.raises(ValueError, match="distillation seeds, networks, training seeds"):
            statistics.decompose(bad)


def test_the_seeds_that_are_needed_by_the_table_of_t():
    # sd 0.01: t(0.975, 16) = 2.1199 gives 0.00514 for 17 seeds, t(0.975, 17) = 2.1098 gives 0.00497 for 18.
    sets = np.array([0.01, 0.02, 0.03])[:, None, None]
    assert statistics.seeds_needed(sets) == {1: 18}
    assert statistics.seeds_needed(sets, half_width=0.01) == {1: 7}  # 2.4469 / sqrt(7) = 0.92, 2.5706 / sqrt(6) = 1.05
    assert statistics.seeds_needed(sets + np.zeros(2), trainings=(1, 4)) == {1: 18, 4: 18}
    assert statistics.seeds_needed(sets[:1] + np.zeros(2)) == {}
    assert statistics.seeds_needed(np.zeros((3, 2, 2)), trainings=(1,)) == {1: 2}
    # Trainings +-0.01 on one network: variance 2e-4, its mean of two 1e-4, which is all that the sets' 1e-4 shows.
    only = statistics.seeds_needed(sets + np.array([-0.01, 0.01]), trainings=(2, 8))
    assert only == {2: 18, 8: 7}  # at eight trainings sd 0.005
    for bad in ({"half_width": 0}, {"trainings": (0,)}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}=0 must"):
            statistics.seeds_needed(sets, **bad)


def test_so_many_seeds_give_intervals_of_that_width():
    """Planned from 400 seeds of known parts, and tried: the mean squared half-width of new studies is the one asked."""
    sd, rng = (0.008, 0.02, 0.01, 0.02), np.random.default_rng(1)
    plan = statistics.seeds_needed(nested(rng, 400, 4, 3, sd=sd), trainings=(1, 5))
    for trainings, seeds in plan.items():
        drawn = [nested(rng, seeds, 4, trainings, sd=sd).mean(axis=(1, 2)) for _ in range(2000)]
        widths = [stats.t.ppf(0.975, seeds - 1) * one.std(ddof=1) / math.sqrt(seeds) for one in drawn]
        assert math.sqrt(np.mean(np.square(widths))) == pytest.approx(0.005, rel=0.1)
    assert plan[5] < plan[1]


def test_how_well_a_standard_deviation_is_known():
    # Of three: chi^2 with 2 degrees has quantiles -2 ln(1 - p): 0.05064 and 7.3778.
    assert statistics.sd_known(3) == pytest.approx((math.sqrt(2 / 7.3778), math.sqrt(2 / 0.05064)), rel=1e-3)
    with pytest.raises(ValueError, match="seeds=1 must"):
        statistics.sd_known(1)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_permutation_test_is_scipys(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert statistics.sign_flip_test(values) == pytest.approx(theirs.pvalue, rel=1e-12)


def test_the_permutation_test_by_hand():
    # Means of +-1 +-2 +-4: of eight, 7/3 and -7/3 alone are as far as 1 + 2 + 4; 1 + 2 - 4 = -1 is as near as any.
    assert statistics.sign_flip_test([1, 2, 4]) == 0.25 and statistics.sign_flip_test([1, 2, -4]) == 1
    assert statistics.sign_flip_test([0, 0]) == 1 and np.isnan(statistics.sign_flip_test([0.3]))
    # Equal but for float32's rounding.
    assert statistics.sign_flip_test(np.array([0.1, 0.2, -0.3], np.float32)) == 1
    with pytest.raises(ValueError, match="give finite numbers"):
        statistics.sign_flip_test([[0.1]])


def test_the_permutation_test_draws_for_many_pairs():
    values = np.random.default_rng(0).normal(0.25, 1, 20)
    p = statistics.sign_flip_test(values)
    assert p == statistics.sign_flip_test(values) and p != statistics.sign_flip_test(values, seed=1)
    # All 2^20 patterns, by another way: the distribution of the sum, pair by pair. Four standard errors.
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    exact = (abs(sums) >= abs(values.sum()) - 1e-9).mean()
    assert p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 100_000))
    assert statistics.sign_flip_test(np.ones(30)) == 1 / 100_001


def test_paired_tells_the_parts_and_the_plan():
    a, b = runs([[0.01, 0.03], [0.02, 0.02], [0.03, 0.07]])
    facts = statistics.paired(a, b)
    assert facts["parts"] == statistics.decompose(b - a)
    assert facts["sign_flip_test"] == 0.25
    assert facts["seeds_needed"] == {str(t): n for t, n in statistics.seeds_needed(b - a).items()}
    assert statistics.paired(a[:1], b[:1])["sign_flip_test"] is None
