"""The gain of a study's rows over real images: over those that store as many, under hard labels, in the table."""

import pytest

from metadd_jax.job import studies, study_table

ROWS = {
    "few": "random --ipc 1", "random": "random", "centres": "kmeans", "dm": "", "dm of few": "--ipc 1",
    "dm of many": "--ipc 50",
}  # fmt: skip
STUDY = studies.Study(name="mine", about="Real images and distilled ones.", rows=ROWS)
ACCURACY = {"few": 0.1, "random": 0.2, "centres": 0.3, "dm": 0.5, "dm of few": 0.25, "dm of many": 0.7}
IPC = {"few": 1, "dm of few": 1, "dm of many": 50}


def found(labels="hard"):
    return [(row, seed, cell(row, seed, labels)) for row in ROWS for seed in (0, 1)]


def cell(row, seed, labels):
    # Real images move by a point from one seed to the next, distilled ones by none.
    value = ACCURACY[row] + 0.01 * seed * (STUDY.real(row) is not None)
    return {
        "config": {
            "dataset": "mnist5k", "train_per_class": None, "evaluate_on": "test", "train_seeds": 1,
            "eval_recipe": "short", "eval_epochs": 2, "eval_augmentation": "auto", "ipc": IPC.get(row, 10),
            "ipc_per_class": [],
        },
        "set": "dm",
        "labels": labels,
        "rows": [
            {"set": "dm", "labels": labels, "network": net, "role": role, "accuracies": [value]}
            for net, role in {"convnet": "same", "lenet": "unseen", "mlp": "unseen"}.items()
        ],
        "images": 10, "stored_values": 7840, "frozen_values": 0, "distil_seconds": 2.0, "with_compilation": False,
        "wall_seconds": {"prepare": 1.0, "distil": 2.0, "judge": 3.0},
        "versions": {"jax": "0", "device": "cpu", "machine": "x"},
    }  # fmt: skip


def test_rows_are_held_against_real_images_of_their_own_number():
    table = study_table.summary(STUDY, found(), cells=12)
    ((gains, text),) = [(one["gains"], study_table.markdown(table)) for one in table["tables"].values()]
    assert set(gains) == {"dm", "dm of few"}  # of fifty real images there is no row
    assert gains["dm"]["random"]["unseen"]["per_seed"] == pytest.approx([0.3, 0.29])
    assert list(gains["dm of few"]) == ["random"]
    # 29.5 points; t(0.975, 1) = 12.7062 times half a point.
    assert "| dm | unseen | +29.50 [+23.15, +35.85] | +19.50 [+13.15, +25.85] |" in text
    assert "| dm of few | unseen | +14.50 [+8.15, +20.85] | . |" in text


def test_under_a_teachers_labels_no_gain_is_told():
    table = study_table.summary(STUDY, found("teacher:lenet 1f2e3d4c"), cells=12)
    assert [one["gains"] for one in table["tables"].values()] == [{}]
    assert "over random images" not in study_table.markdown(table)
