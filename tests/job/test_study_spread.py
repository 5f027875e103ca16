"""What a study's differences vary by, in its table: numbers that are known by hand."""

import json
import math

import pytest

from metadd_jax.job import studies, study_table

ROWS = {"dm": "", "a": "--ipc 2", "b": "--ipc 3"}
STUDY = studies.Study(name="mine", about="Three rows.", rows=ROWS, references=("dm",))
# Of three seeds and two unseen networks; two trainings, which are 0.002 apart.
GAINS = {"dm": [(0, 0)] * 3, "a": [(0.01, 0.03), (0.02, 0.04), (0.03, 0.05)], "b": [(0.01, -0.01)] * 3}


def found(trainings=2):
    return [(row, seed, cell(gains, trainings, row)) for row, each in GAINS.items() for seed, gains in enumerate(each)]


def cell(gains, trainings, row):
    apart = 0.001 if row == "a" else 0.0
    return {
        "cell": {"settings": {"real": None}},
        "config": {
            "dataset": "mnist5k", "train_per_class": None, "evaluate_on": "test", "train_seeds": trainings,
            "eval_recipe": "short", "eval_epochs": 2, "eval_augmentation": "auto", "ipc": 1,
        },
        "set": "dm",
        "labels": "hard",
        "rows": [
            {"network": net, "role": "unseen", "accuracies": [0.5 + gain - apart, 0.5 + gain + apart][:trainings]}
            for net, gain in zip(("lenet", "mlp"), gains, strict=True)
        ],
        "images": 10, "stored_values": 7840, "frozen_values": 0, "distil_seconds": 2.0, "with_compilation": False,
        "wall_seconds": {"prepare": 1.0, "distil": 2.0, "judge": 3.0},
        "versions": {"jax": "0", "device": "cpu", "machine": "x"},
    }  # fmt: skip


def comparison(table):
    ((one,),) = ([*one["comparisons"]] for one in table["tables"].values())
    return one["rows"]


def test_the_table_says_what_differences_vary_by_and_how_many_seeds_they_need():
    table = study_table.summary(STUDY, found(), cells=9)
    text = study_table.markdown(table)
    # Row a: sets .02 .03 .04 and networks +-.01, additive; trainings +-.001, sd .0014; 18 seeds, as for sd .01.
    assert "| a | 1.00 | 1.41 | 0.00 | 0.14 | 18 | 18 | 18 | 18 | 18 |" in text
    assert "| b | 0.00 | 1.41 | 0.00 | 0.00 | 2 | 2 | 2 | 2 | 2 |" in text
    assert "Of 3 seeds a standard deviation is known to a factor of 0.52 to 6.3." in text
    numbers = comparison(table)["a"]["unseen"]
    assert numbers["parts"]["sd_networks"] == pytest.approx(0.01 * math.sqrt(2), rel=0.01)
    json.dumps(table, allow_nan=False)


def test_both_tests_stand_in_the_table_corrected():
    text = study_table.markdown(study_table.summary(STUDY, found(), cells=9))
    # a: t = .03 / (.01 / sqrt 3) with 2 degrees gives .0351; all signs alike of three give .25; two rows: twice.
    # b: no difference at all.
    assert "| a | . | . | . | . | +3.0 [+0.5, +5.5] | 0.07 / 0.5 |" in text
    assert "| b | . | . | . | . | +0.0 [+0.0, +0.0] | 1 / 1 |" in text


def test_of_one_seed_there_is_no_spread():
    cells = [one for one in found() if one[1] == 0]
    text = study_table.markdown(study_table.summary(STUDY, cells, cells=9))
    assert "| a | . | . | . | . | +2.0 one seed | . |" in text and "vary by" not in text


def test_of_one_training_the_seeds_are_told_for_one():
    text = study_table.markdown(study_table.summary(STUDY, found(trainings=1), cells=9))
    assert "| row | sd of sets | of networks | of sets x networks | of trainings | seeds at 1 training |" in text
    assert "| a | 1.00 | 1.41 | . | . | 18 |" in text
