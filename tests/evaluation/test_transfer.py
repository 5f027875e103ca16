"""Correlation of gains: SciPy's own numbers, differences between networks by least squares, intervals over clusters."""

import numpy as np
import pytest
from scipy import stats

from metadd_jax.evaluation import transfer

RNG = np.random.default_rng(0)
X = RNG.normal(size=40)
Y = 0.5 * X + RNG.normal(size=40)
SETS = [i // 4 for i in range(40)]


def test_both_correlations_and_the_slope_are_scipys():
    y = np.round(Y, 1)  # with ties
    found = transfer.correlation(X, y, SETS)
    assert found["pearson"] == pytest.approx(stats.pearsonr(X, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(X, y).statistic)
    assert found["slope"] == pytest.approx(stats.linregress(X, y).slope)
    assert (found["points"], found["clusters"]) == (40, 10)


def test_differences_between_groups_are_taken_off_as_least_squares_with_dummies_does():
    nets = [i % 4 for i in range(40)]
    # Networks that gain more from everything: over all points x goes with y, within a network it does not.
    shift = 5.0 * np.array(nets)
    found = transfer.correlation(X + shift, Y + shift, SETS, groups=nets)
    design = np.eye(4)[nets]
    rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (X + shift, Y + shift)]
    assert found["pearson"] == pytest.approx(stats.pearsonr(*rest).statistic)
    assert transfer.correlation(X + shift, Y + shift, SETS)["pearson"] > 0.9 > found["pearson"]


def test_the_interval_grows_with_the_luck_of_sets():
    """Ten sets of one value each are ten observations, though every one is told four times."""
    x, y = np.repeat(RNG.normal(size=(2, 10)), 4, axis=1)
    whole = transfer.correlation(x, y, SETS)["interval"]
    alone = transfer.correlation(x, y, range(40))["interval"]
    assert whole[1] - whole[0] > 1.6 * (alone[1] - alone[0])  # sqrt(4) in theory
    low, high = transfer.correlation(X, 2 * X + 1, SETS)["interval"]
    assert (low, high) == pytest.approx((1, 1))


def test_what_does_not_vary_has_no_correlation_and_two_sets_no_interval():
    found = transfer.correlation(np.full(4, 0.1), [1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1])
    assert found["pearson"] is None and found["slope"] is None and found["interval"] is None
    assert transfer.pearson(np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize("x", [[1.0, 2.0], [1.0, 2.0, np.nan]])
def test_points_that_are_none_are_refused(x):
    with pytest.raises(ValueError, match=r"one of each a point|not finite"):
        transfer.correlation(x, [1.0, 2.0, 3.0], [0, 1, 2])
