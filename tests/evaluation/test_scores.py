"""Scores against the reference's test vectors and arithmetic by hand."""

import json

import numpy as np
import pytest

from metadd_jax.evaluation import report, scores


@pytest.mark.parametrize(
    ("real", "hard", "own", "random", "alpha", "score"),
    [
        (0.848, 0.286, 0.286, 0.15, -0.213, 0.187320),
        (0.848, 0.65, 0.65, 0.28, 0.086, 0.307150),
        (0.565, 0.10, 0.213, 0.06, -0.156, 0.207488),
        (0.848, 0.651, 0.651, 0.28, 0.087, 0.307614),
        (1, 0, 0, 1, -1, 0),
        (0, 0, 0, 0, 0, 0.268941),
    ],
)
def test_the_label_robust_score_in_numbers(real, hard, own, random, alpha, score):
    found = scores.label_robust(real_hard=real, synthetic_hard=hard, synthetic_any=own, random_any=random)
    assert found.balance == pytest.approx(alpha, abs=1e-12) and found.score == pytest.approx(score, abs=1e-6)


def test_the_augmentation_robust_score_in_numbers():
    accuracies = {"synthetic_augmented": 0.65, "random_augmented": 0.28, "synthetic_plain": 0.55, "random_plain": 0.25}
    found = scores.augmentation_robust(**accuracies)
    assert found.balance == pytest.approx(0.335) and found.score == pytest.approx(0.438248, abs=1e-6)
    found = scores.augmentation_robust(**accuracies, weight=1)
    assert found.balance == pytest.approx(0.37)


def test_what_the_tool_makes_of_percent():
    real, hard = [0.848, 0.848], [0.286, 0.65]
    found = scores.label_robust(real_hard=real, synthetic_hard=hard, synthetic_any=hard, random_any=[0.15, 0.28])
    assert found.of_percent == pytest.approx([-0.156518, 2310.79], rel=1e-5)


def test_the_tools_own_run_gives_the_same_scores():
    """What ddranking 0.2.0 printed on a set of ours (docs/formats.md): five accuracies of each kind, and the scores."""
    kinds = {
        "synthetic": [28.4, 29.6, 28.8, 28.6, 29.9],
        "real": [38.5, 37.2, 38.7, 38.3, 37.4],
        "random": [25.8, 26.5, 25.8, 22.5, 27.4],
        "synthetic_augmented": [28.7, 29.4, 28.3, 29.1, 29.2],
        "random_augmented": [26.0, 25.7, 25.6, 22.8, 25.7],
        "synthetic_plain": [27.4, 28.0, 27.9, 29.1, 28.7],
        "random_plain": [23.8, 24.7, 24.0, 21.5, 26.5],
    }
    of = {name: np.array(values) / 100 for name, values in kinds.items()}
    hard = scores.label_robust(
        real_hard=of["real"], synthetic_hard=of["synthetic"], synthetic_any=of["synthetic"], random_any=of["random"]
    )
    robust = scores.augmentation_robust(**{name: of[name] for name in list(of)[3:]})
    for found, mean, spread in (
        (hard, -0.12179622688926754, 0.02205105329924496),
        (robust, 97.18865794664026, 173.24999863203084),
    ):
        assert found.of_percent.mean() == pytest.approx(mean, rel=1e-9)
        assert found.of_percent.std() == pytest.approx(spread, rel=1e-9)


def test_the_ends_of_the_scale_and_the_weight():
    best = scores.label_robust(real_hard=0, synthetic_hard=1, synthetic_any=1, random_any=0)
    assert best.score == pytest.approx(1)
    half = {"real_hard": 0.9, "synthetic_hard": 0.5, "synthetic_any": 0.6, "random_any": 0.4}
    assert scores.label_robust(**half, weight=1).balance == pytest.approx(0.2)
    assert scores.label_robust(**half, weight=0).balance == pytest.approx(-0.4)
    with pytest.raises(ValueError, match="weight=2 must"):
        scores.label_robust(**half, weight=2)


@pytest.mark.parametrize(("bad", "told"), [(56.5, "to 56.5; give fractions"), (-0.1, "from -0.1"), (np.nan, "nan")])
def test_percent_and_failed_runs_are_refused(bad, told):
    with pytest.raises(ValueError, match=told):
        scores.label_robust(real_hard=bad, synthetic_hard=0.5, synthetic_any=0.5, random_any=0.5)


# accuracies[set][seed][network] = trainings; "dm" has a third seed and a network that real images were not judged by.
ACCURACIES = {
    "random": [
        {"vgg11": [0.2, 0.4], "lenet": [0.1, 0.1], "mlp": [0.3, 0.3]},
        {"vgg11": [0.3], "lenet": [0.2], "mlp": [0.4]},
    ],
    "kmeans": [{"vgg11": [0.5], "lenet": [0.2], "mlp": [0.4]}, {"vgg11": [0.5], "lenet": [0.2], "mlp": [0.4]}],
    "dm": [
        {"vgg11": [0.4], "lenet": [0.3], "mlp": [0.4], "vit": [0.9]},
        {"vgg11": [0.5], "lenet": [0.4], "mlp": [0.4], "vit": [0.9]},
        {"vgg11": [0.9], "lenet": [0.9], "mlp": [0.9], "vit": [0.9]},
    ],
}  # fmt: skip
ROLES = {"vgg11": "seen", "lenet": "unseen", "mlp": "unseen", "vit": "unseen"}


def rows(labels="hard"):
    return [
        {"set": name, "distill_seed": seed, "network": net, "role": ROLES[net], "labels": labels, "accuracies": values}
        for name, seeds in ACCURACIES.items()
        for seed, by_network in enumerate(seeds)
        for net, values in by_network.items()
    ]


def test_the_gain_over_real_images_by_hand():
    found = scores.gains(rows())
    assert list(found) == ["dm"] and list(found["dm"]) == ["random", "kmeans"]
    unseen = found["dm"]["random"]["unseen"]
    # lenet .2 .2, mlp .1 .0: seeds .15 and .10; t(0.975, 1) = 12.7062 times .025.
    assert unseen["per_seed"] == pytest.approx([0.15, 0.1]) and unseen["per_network"] == pytest.approx([0.2, 0.05])
    assert unseen["difference"] == pytest.approx(0.125) and unseen["networks"] == ["lenet", "mlp"]
    assert unseen["t_interval"] == pytest.approx([0.125 - 12.7062 * 0.025, 0.125 + 12.7062 * 0.025], rel=1e-5)
    # The two trainings of random images on vgg11 count as their mean: .1 and .2.
    assert found["dm"]["random"]["seen"]["per_seed"] == pytest.approx([0.1, 0.2])
    assert found["dm"]["random"]["foreign"]["per_seed"] == pytest.approx([0.4 / 3, 0.4 / 3])
    assert found["dm"]["kmeans"]["unseen"]["difference"] == pytest.approx(0.075)
    assert json.loads(json.dumps(found)) == found


def test_each_set_may_have_real_images_of_its_own_size():
    found = scores.gains(rows(), real={"dm": {"random": "kmeans"}, "kmeans": {}})
    assert found["dm"]["random"]["unseen"]["difference"] == pytest.approx(0.075) and "kmeans" not in found
    with pytest.raises(ValueError, match="no rows of a set 'no'; there are random, kmeans, dm"):
        scores.gains(rows(), real={"dm": {"random": "no"}})


def test_a_gain_is_told_under_hard_labels_alone():
    with pytest.raises(ValueError, match="random was judged under the labels 'own'"):
        scores.gains(rows("own"))


def test_a_training_that_diverged_has_no_gain_and_roles_without_real_rows_are_left_out():
    lost = rows()
    lost[1]["accuracies"] = [np.nan, 0.1]
    found = scores.gains(lost)["dm"]["random"]
    assert found["unseen"] == {"diverged": 1} and "difference" in found["seen"]
    assert scores.gains([row for row in rows() if row["set"] == "dm"]) == {}
    alone = [row for row in rows() if row["set"] == "dm" or row["network"] == "mlp"]
    assert list(scores.gains(alone)["dm"]["random"]) == ["unseen"]


def test_gains_stand_under_the_results():
    lost = rows()
    lost[1]["accuracies"] = [np.nan, 0.1]
    lines = scores.gain_lines(scores.gains(lost))
    assert "| dm | unseen | none: 1 trainings diverged | +7.50 [-24.27, +39.27] |" in lines
    assert "| dm | seen | +15.00 [-48.53, +78.53] | -5.00 [-68.53, +58.53] |" in lines
    assert scores.gain_lines({}) == []
    whole = {"rows": [row for row in rows() if row["distill_seed"] == 0], "notes": [], "whole_data": {}}
    whole |= {"comparisons": [], "agreement": {}, "gains": scores.gains(whole["rows"])}
    assert "| dm | seen | +10.00 one seed | -10.00 one seed |" in report.markdown(whole | {"rows": whole["rows"][:6]})
