"""What networks agree on in the sets of a study: hand-made maps, gains counted by hand."""

import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax import files
from metadd_jax.job import agreement


def test_an_unseen_network_is_measured_with_all_the_seen_ones():
    """Four pixels, two seen maps and two unseen ones, high or low: every ratio by hand."""
    high = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    stack = (0.2 + 0.4 * high).reshape(4, 1, 2, 2)  # 0.6 and 0.2
    found = agreement.measure(stack, 2, ["like", "unlike"])
    at_half = found["seen"]["0.5"]
    # Areas 1/2 and 3/4, shared 1/2, by chance 3/8: (1/2 - 3/8) / (1/2 - 3/8).
    assert (at_half["meta_ratio"], at_half["chance_corrected"], at_half["high_area"]) == pytest.approx((0.5, 1, 0.625))
    assert found["seen"]["0.7"]["high_area"] == 0 and found["seen"]["0.7"]["meta_ratio"] == 0
    # With the third: areas 1/2 3/4 1/4, by chance 3/32, and nothing more can be shared than its 1/4.
    assert found["unseen"]["like"]["0.5"]["chance_corrected"] == pytest.approx(1)
    # With the fourth nothing is shared: -3/32 of a possible 1/4 - 3/32.
    assert found["unseen"]["unlike"]["0.5"]["chance_corrected"] == pytest.approx(-3 / 5)
    assert found["seen"]["area"]["high_area"] == 0.25


def cell(row, seed, ratio, accuracy, *, real=None):
    """(row, seed, cell.json, agreement.json) of a set judged by two unseen networks."""
    nets = ("lenet", "vit")
    rows = [
        {"network": net, "role": "unseen", "accuracies": [accuracy + 0.1 * i]} for i, net in enumerate((*nets, "mlp"))
    ]
    by = {**{str(t): {"chance_corrected": ratio} for t in agreement.THRESHOLDS}, "area": {"chance_corrected": ratio}}
    return (
        row,
        seed,
        {"rows": rows, "cell": {"settings": {"real": real}}},
        {"seen": by, "unseen": dict.fromkeys(nets, by), "known": {"vgg": 0.25 + 0.5 * seed, "lenet": accuracy}},
    )


def test_gains_are_paired_by_seed_and_go_together_or_not():
    found = [cell("DM", seed, 0.1 * seed, 0.2 + 0.01 * seed) for seed in (0, 1)]
    # Over its own seed each row gains 3 points of accuracy for 0.1 of ratio.
    found += [
        cell(f"x{k}", seed, 0.1 * seed + 0.1 * k, 0.2 + 0.01 * seed + 0.03 * k) for k in (1, 2) for seed in (0, 1)
    ]
    found += [cell("random", 0, 0.9, 0.1, real="random"), cell("x1", 7, 0.9, 0.1)]  # no gain: real, and no such seed
    told = agreement.summary("DM", found)
    points = told["transfer"]["points"]
    assert [(p["row"], p["seed"]) for p in points[::2]] == [("x1", 0), ("x1", 1), ("x2", 0), ("x2", 1)]
    assert {p["network"] for p in points} == {"lenet", "vit"}  # the mlp has no map
    assert [p["ratio"] for p in points] == pytest.approx([0.1] * 4 + [0.2] * 4)
    one = told["transfer"]["all"]
    assert one["pearson"] == pytest.approx(1) and one["slope"] == pytest.approx(0.3) and one["clusters"] == 4
    text = "\n".join(agreement.lines(told))
    assert "| row | vgg | lenet |" in text and "| DM | 50 | 20 |" in text and "| random | 25 | 10 |" in text
    assert "| DM | 2 | +0.05 |" in text and "| all | +1.00 | [+1.00, +1.00] | +1.00 | +3.00 | 8 of 4 sets |" in text


def test_a_training_without_accuracy_is_no_point():
    found = [cell("DM", 0, 0.0, 0.2), cell("x", 0, 0.1, float("nan"))]
    assert agreement.summary("DM", found)["transfer"] is None


def test_a_set_is_looked_at_once_by_the_same_networks(tmp_path, monkeypatch):
    dataset = mdd.data.load("mnist5k", train_per_class=2)
    synthetic = mdd.evaluation.random_real(mdd.keys.root(0, "random"), dataset, 1)
    facts = {**mdd.exchange.value_space(dataset), "class_names": list(dataset.class_names), "method": "random"}
    mdd.exchange.export_npz(tmp_path / "synthetic.npz", synthetic, facts)
    looked = []

    def maps(networks, images, labels, *, config):
        looked.append(len(images))
        return np.zeros((2, len(images), 4, 4), np.float32)

    monkeypatch.setattr(mdd.evaluation, "map_stack", maps)
    monkeypatch.setattr(agreement, "known", lambda by, synthetic: {"one": 1.0})
    by = agreement.Lookers((None, None), {}, mdd.features.CamConfig(), "one")
    first = agreement.look(by, tmp_path, tmp_path / "synthetic.npz")
    assert agreement.look(by, tmp_path, tmp_path / "synthetic.npz") == first and looked == [10]
    assert files.read_json(tmp_path / agreement.FILE)["key"] == "one"
    agreement.look(agreement.Lookers((None, None), {}, by.cam, "another"), tmp_path, tmp_path / "synthetic.npz")
    assert looked == [10, 10]
