"""Metrics as JSON lines: valid for any reader, whole after a kill, cut back on resume."""

import json
import math
import sys
import types

import numpy as np
import pytest

from metadd_jax import storage


@pytest.fixture
def log(tmp_path):
    return storage.JsonLines(tmp_path / "run" / "metrics.jsonl")


def test_lines_are_plain_json_by_step(log):
    log.write(0, {"distill/loss": np.float32(0.5)})
    log.write(100, {"distill/loss": 0.25, "eval/accuracy": 1})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [
        {"step": 0, "distill/loss": 0.5},
        {"step": 100, "distill/loss": 0.25, "eval/accuracy": 1.0},
    ]
    assert log.read() == lines


def test_values_that_are_not_finite_stay_valid_json(log):
    log.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads(log.path.read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    (read,) = log.read()
    assert math.isnan(read["a"]) and (read["b"], read["c"]) == (math.inf, -math.inf)


def test_resume_drops_later_steps_and_the_torn_line(log):
    for step in (0, 100, 200, 300):
        log.write(step, {"loss": step / 7})
    kept = log.path.read_bytes().splitlines(keepends=True)[:3]
    with open(log.path, "ab") as stream:
        stream.write(b'{"step": 400, "lo')
    assert [line["step"] for line in log.read()] == [0, 100, 200, 300]
    log.truncate_after(200)
    assert log.path.read_bytes() == b"".join(kept)
    log.write(300, {"loss": 9.0})
    assert log.read()[-1] == {"step": 300, "loss": 9.0}


def test_nothing_to_resume_is_no_error(log):
    log.truncate_after(5)
    assert log.read() == [] and not log.path.exists()


@pytest.mark.parametrize("text", ["hello\n", "[1]\n", '{"loss": 1}\n', '{"step": 1, "loss": null}\n'])
def test_a_foreign_file_is_refused_and_left(log, text):
    log.write(1, {"loss": 1.0})
    with open(log.path, "a") as stream:
        stream.write(text)
    before = log.path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is no metrics line; mend or move the file away"):
        log.truncate_after(0)
    assert log.path.read_bytes() == before


def test_no_metrics_takes_the_same_calls(tmp_path):
    nothing = storage.NoMetrics()
    assert nothing.write(1, {"loss": 1.0}) is None and nothing.truncate_after(0) is None


def test_tensorboard_gets_the_same_scalars(tmp_path, monkeypatch):
    class Writer:
        def __init__(self, directory, **options):
            calls.append(("open", directory, options))

        def add_scalar(self, *call):
            calls.append(call)

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    calls = []
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    board = storage.TensorBoard(tmp_path)
    board.write(3, {"distill/loss": np.float32(0.5)})
    board.truncate_after(2)
    assert calls == [
        ("open", str(tmp_path), {}),
        ("distill/loss", 0.5, 3),
        "flush",
        "close",
        ("open", str(tmp_path), {"purge_step": 3}),
    ]


def test_weights_and_biases_goes_on_in_the_same_run(tmp_path, monkeypatch):
    calls = []
    made = types.SimpleNamespace(
        log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("finish")
    )
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: calls.append(options) or made)
    )
    board = storage.WeightsAndBiases(tmp_path / "new", name="dm/seed0", key="k", settings={"steps": 3})
    board.write(3, {"distill/loss": np.float32(0.5)})
    board.truncate_after(2)
    board.close()
    facts = {"dir": str(tmp_path / "new"), "project": "mine", "name": "dm/seed0", "id": "k", "config": {"steps": 3}}
    assert calls == [facts | {"resume": "allow"}, ({"distill/loss": 0.5}, 3), "finish"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="Weights & Biases needs wandb; run: pip install wandb"):
        storage.WeightsAndBiases(tmp_path, name="x", key="k", settings={})


def test_tensorboard_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="TensorBoard events need tensorboardX; run: pip install tensorboardX"):
        storage.TensorBoard(tmp_path)
