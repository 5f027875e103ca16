"""What is plotted of a study, in study.json and as a picture: rows and options that are known."""

import json

import numpy as np
import pytest

from metadd_jax.job import studies, study_plots, study_table

image_module = pytest.importorskip("matplotlib.image")

STRENGTHS = (0.3, 1, 3, 10)
ROWS = {"random": "random", "DM": "--no-wrapped"} | {f"CE {rho}": f"--metadd.ai {rho}" for rho in STRENGTHS}
ROWS |= {f"paper {rho}": f"--variants paper,kl={rho}" for rho in (1, 2, 4)}
ROWS |= {f"width {width}": f"--no-wrapped --backbone convnet:width={width}" for width in (8, 16)}
STUDY = studies.Study(name="mine", about="Strengths.", rows=ROWS, references=("DM",))


def found(seeds=(0, 1, 2)):
    return [(row, seed, cell(row, seed)) for row in ROWS for seed in seeds]


def cell(row, seed):
    name, _, number = row.partition(" ")
    number = float(number or 0)
    gain = {"random": -0.05, "DM": 0.0, "CE": 0.01 * np.sqrt(number), "paper": -0.01 * number, "width": 0.001 * number}
    config = {
        "dataset": "mnist5k", "train_per_class": None, "evaluate_on": "test", "train_seeds": 1, "eval_recipe": "short",
        "eval_epochs": 2, "eval_augmentation": "auto", "ipc": 10, "ipc_per_class": [], "first_seed": seed,
        "run_dir": f"runs/{row}", "backbone": f"convnet:width={int(number) if name == 'width' else 32}",
        "wrapped": name in ("CE", "paper"), "own": {"batch_size": 32},
        "metadd": {"ai": number if name == "CE" else 3.0, "kl_cap": None, "cam": {"threshold": 0.5}},
        "variants": [f"paper,kl={number:g}"] if name == "paper" else [],
    }  # fmt: skip
    rows = [
        {
            "network": net,
            "role": role,
            "labels": "hard",
            "accuracies": [0.5 + gain[name] + 0.004 * (seed - 1) * wrapped],
        }
        for wrapped in [config["wrapped"]]
        for net, role in {"convnet": "same", "lenet": "unseen", "mlp": "unseen"}.items()
    ]
    return {
        "cell": {"settings": {"real": "random" if name == "random" else None}},
        "config": config, "set": "dm", "labels": "hard", "rows": rows, "images": 10, "stored_values": 7840,
        "frozen_values": 0, "distil_seconds": None if name == "random" else 10 * (1 + number),
        "with_compilation": False, "wall_seconds": {"prepare": 1.0, "distil": 2.0, "judge": 3.0},
        "versions": {"jax": "0", "device": "cpu", "machine": "x"},
    }  # fmt: skip


def gathered(**more):
    table = study_table.summary(STUDY, found(), cells=33) | more
    (plot,) = study_plots.gathered(table, found())
    json.dumps(plot, allow_nan=False)
    return plot


def test_rows_that_differ_in_one_number_are_a_curve():
    plot = gathered()
    assert (plot["reference"], plot["role"]) == ("DM", "unseen")
    curves = {(curve["option"], curve["series"]): curve["points"] for curve in plot["strength"]}
    # Two widths are too few, also with DM's: that is the reference. Seeds and folders are no options.
    assert list(curves) == [("--metadd.ai", "CE …"), ("--variants kl", "paper …")]
    points = curves["--metadd.ai", "CE …"]
    assert [point["value"] for point in points] == [0.3, 1, 3, 10] and points[2]["row"] == "CE 3"
    np.testing.assert_allclose([point["difference"] for point in points], 0.01 * np.sqrt(STRENGTHS), rtol=1e-12)
    # Seeds +-.4 points: t(0.975, 2) = 4.3027 times .4 / sqrt(3).
    half = 4.3027 * 0.004 / np.sqrt(3)
    assert points[1]["t_interval"] == pytest.approx([0.01 - half, 0.01 + half], abs=1e-6)


def test_cost_is_told_of_every_distilled_row_and_the_reference():
    cost = {point["row"]: point for point in gathered()["cost"]}
    assert set(cost) == set(ROWS) - {"random"}
    assert cost["DM"] == {"row": "DM", "difference": 0.0, "t_interval": None, "seconds": 10.0}
    assert cost["CE 3"]["seconds"] == 40 and cost["CE 3"]["difference"] == pytest.approx(0.01 * np.sqrt(3))


def test_the_meta_ratio_is_the_mean_over_unseen_networks():
    agreement = {"rows": {"DM": {"unseen": {"lenet": 0.1, "mlp": 0.3}}, "CE 1": {"unseen": {"lenet": 0.5}}}}
    ratio = {point["row"]: point["meta_ratio"] for point in gathered(agreement=agreement)["ratio"]}
    assert ratio == {"DM": pytest.approx(0.2), "CE 1": 0.5}
    assert gathered()["ratio"] == []


def test_numbers_inside_words_are_options_and_dimensions_are_none():
    leaves = dict(
        study_plots._leaves({"seen": ["swin_t:width=24,depths=2-2", "mlp"], "at_once": 3, "own": {"ipc": True}})
    )
    assert leaves == {"seen.0 width": 24.0, "seen.0": "swin_t:width=,depths=2-2", "seen.1": "mlp", "own.ipc": True}


def test_the_picture(tmp_path):
    agreement = {"rows": {row: {"unseen": {"lenet": 0.1 + 0.02 * place}} for place, row in enumerate(ROWS)}}
    study_plots.draw(tmp_path / "plots.png", [gathered(agreement=agreement)])
    picture = image_module.imread(tmp_path / "plots.png")[..., :3]
    # Cost, ratio and two options beside each other; the first series of tab10 is blue.
    assert picture.shape[0] >= 320 and picture.shape[1] > 4 * 360
    assert (abs(picture - np.array([31, 119, 180]) / 255).max(-1) < 0.03).sum() > 20
    study_plots.draw(tmp_path / "none.png", [])
    assert not (tmp_path / "none.png").exists()


def test_of_one_seed_the_points_have_no_intervals(tmp_path):
    cells = found(seeds=(0,))
    plots = study_plots.gathered(study_table.summary(STUDY, cells, cells=11), cells)
    assert {point["t_interval"] for point in plots[0]["cost"]} == {None}
    study_plots.draw(tmp_path / "plots.png", plots)
    assert (tmp_path / "plots.png").stat().st_size > 0


def test_rows_with_bases_of_their_own_are_one_plot(tmp_path):
    own = {f"CE {rho}": "DM" for rho in STRENGTHS} | {"paper 1": "width 8"}
    study = studies.Study(name="mine", about="Strengths.", rows=ROWS, against=own)
    (plot,) = study_plots.gathered(study_table.summary(study, found(), cells=33), found())
    assert plot["reference"] is None and [point["row"] for point in plot["cost"]] == list(own)
    assert [curve["series"] for curve in plot["strength"]] == ["CE …"]
    assert plot["cost"][-1]["difference"] == pytest.approx(-0.01 - 0.008)
    study_plots.draw(tmp_path / "plots.png", [plot])
