"""Cells as jobs: what is refused, and submitit's local executor doing a study."""

import json
import pathlib
import sys

import pytest

from metadd_jax.job import executors, study

try:  # here, before a test captures anything: its logger keeps the streams that it finds
    import submitit
except ImportError:
    submitit = None


@pytest.mark.parametrize(
    ("executor", "settings", "more", "message"),
    [
        ("here", ("timeout_min=3",), {}, "--submit timeout_min=3 is of --executor submitit"),
        ("submitit", ("timeout_min",), {}, "cannot read --submit timeout_min; write NAME=VALUE"),
        ("submitit", (), {"budget": "12m"}, "--budget 12m is of one process; give each job a limit"),
        ("submitit", (), {"memory": True}, "--memory measures on this machine"),
    ],
)
def test_options_that_do_not_go_with_the_executor(executor, settings, more, message):
    with pytest.raises(ValueError, match=message):
        executors.check(executor, settings, **{"budget": None, "memory": False} | more)


def test_settings_are_numbers_and_words_and_those_of_slurm_are_for_slurm():
    given = executors.read(("timeout_min=60", "slurm_partition=gpu", "slurm_constraint=a=b"))
    assert given == {"timeout_min": 60, "slurm_partition": "gpu", "slurm_constraint": "a=b"}
    there = executors._parameters(given, 7, is_cluster=True)
    assert there["slurm_array_parallelism"] == 7 and there["slurm_partition"] == "gpu" and there["timeout_min"] == 60
    assert set(executors._parameters(given, 7, is_cluster=False)) == {"timeout_min", "name"}


def test_without_submitit_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install submitit"):
        executors.submit(["a"], [], tmp_path, jobs=1)


TINY = """
preset = "smoke"
options = '''--backbone mlp:width=8 --seen --unseen --no-wrapped --train-per-class 20 --eval-epochs 2 --train-seeds 1
  --device-mode jit --augmentation none --eval-augmentation none --pretrain-augmentation none'''
seeds = 1
[rows]
random = "random"
bad = "--parameterisation factor2 --ipc 30"
"""


@pytest.mark.skipif(submitit is None, reason="submitit is not installed")
def test_submitits_local_executor_does_a_study(tmp_path, monkeypatch, capsys):
    # The jobs are processes, which must find the package that is tested.
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(study.__file__).parents[2]))
    (tmp_path / "tiny.toml").write_text(TINY)
    words = [str(tmp_path / "tiny.toml"), "--run-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]
    # One cell that can be done, and one whose job must tell why it cannot.
    with pytest.raises(ValueError, match=r"1 cell\(s\) failed: .*factor2 takes 120 for 30 stored.*output: "):
        study.run([*words, "--executor", "submitit", "--jobs", "2", "--submit", "slurm_partition=gpu"])
    assert "1 of 2 cells are done" in capsys.readouterr().out
    table = json.loads((tmp_path / "run" / "study.json").read_text())
    assert [cell["row"] for cell in table["cells"]] == ["random"]


def test_a_cell_of_another_study_is_refused(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    words = [str(tmp_path / "tiny.toml"), "--run-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]
    with pytest.raises(ValueError, match=r"tiny has no cell dm-seed0-ffff; options, data or code differ"):
        study.run([*words, "--cell", "dm-seed0-ffff"])
