"""What distilling a set takes, by a fresh process, and how the table tells it."""

import pytest

from metadd_jax.job import memory, studies, study_table

STUDY = studies.Study(name="mine", about="One method.", rows={"dm": ""})
CELL = {
    "config": {
        "dataset": "mnist5k", "train_per_class": None, "evaluate_on": "test", "train_seeds": 1, "eval_recipe": "short",
        "eval_epochs": 2, "eval_augmentation": "auto", "ipc": 10, "ipc_per_class": [], "steps": 7,
    },
    "set": "dm", "labels": "hard", "images": 10, "stored_values": 7840, "frozen_values": 0,
    "rows": [{"set": "dm", "labels": "hard", "network": "convnet", "role": "same", "accuracies": [0.5]}],
    "distil_seconds": 2.0, "with_compilation": True, "wall_seconds": {"prepare": 1.0, "distil": 2.0, "judge": 3.0},
    "versions": {"jax": "0", "device": "cpu", "machine": "x"},
}  # fmt: skip


def row(**more):
    (table,) = study_table.summary(STUDY, [("dm", 0, CELL | more)], cells=1)["tables"].values()
    return table["rows"][0]


def test_seconds_are_of_the_fresh_process_where_there_is_one():
    assert (row()["seconds"], row()["with_compilation"]) == (2.0, True)
    alone = row(memory={"peak_mib": 900.0, "idle_mib": 800.0, "seconds_a_step": 0.1})
    assert (alone["seconds"], alone["with_compilation"]) == (pytest.approx(0.7), False)
    # As older studies measured it.
    assert row(memory={"peak_mib": 900.0, "idle_mib": 800.0})["seconds"] == 2.0


@pytest.mark.slow
@pytest.mark.skipif(not memory.can_measure(), reason="the kernel tells no peak that can be set back")
def test_memory_and_seconds_are_of_a_fresh_process(tmp_path):
    words = ["smoke", "--no-wrapped", "--backbone=mlp:width=8", "--train-per-class=20", f"--cache-dir={tmp_path}"]
    found = memory.measure(words, 0)
    # More than Python and JAX alone, and within what such a process can take.
    assert 100 < found["idle_mib"] <= found["peak_mib"] < 3000
    assert 0 < found["seconds_a_step"] < 60
    with pytest.raises(ValueError, match=r"the process that measures memory failed .*--ipc"):
        memory.measure([*words, "--ipc", "0"], 0)
