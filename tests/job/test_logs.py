"""--log-to: what takes the metrics beside metrics.jsonl, from start to start, and what is missing is told first."""

import importlib.util
import types

import pytest

from metadd_jax import storage
from metadd_jax.job import checks, logs
from metadd_jax.job.options import DistillConfig


class Board:
    """Keeps what it is told."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def write(self, step, metrics):
        self.calls.append((self.name, step, metrics))

    def truncate_after(self, step):
        self.calls.append((self.name, "cut", step))

    def close(self):
        self.calls.append((self.name, "close"))


@pytest.fixture
def calls(monkeypatch):
    calls = []

    def board(directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "events.out.tfevents.1").write_text("x")
        return Board(calls, "board")

    def sent(directory, *, name, key, settings):
        calls.append((name, key, settings))
        return Board(calls, "sent")

    monkeypatch.setattr(storage, "TensorBoard", board)
    monkeypatch.setattr(storage, "WeightsAndBiases", sent)
    return calls


def test_every_chunk_is_told_and_a_start_that_goes_on_hides_what_it_does_again(calls, tmp_path):
    folder = tmp_path / "run" / "dm" / "seed0"
    with pytest.raises(KeyboardInterrupt), logs.opened(("tensorboard", "wandb"), folder, settings={"steps": 9}) as log:
        log(2, {"loss": 1.0})
        raise KeyboardInterrupt
    key = (folder / logs.ID).read_text().strip()
    assert calls == [
        ("run/dm/seed0", key, {"steps": 9}),
        ("board", 2, {"distill/loss": 1.0}), ("sent", 2, {"distill/loss": 1.0}), ("board", "close"), ("sent", "close"),
    ]  # fmt: skip
    calls.clear()
    with logs.opened(("tensorboard",), folder, settings={}) as log:  # from a checkpoint
        log(4, {})
        log(6, {"loss": 0.5})
    assert calls == [("board", "cut", 4), ("board", 6, {"distill/loss": 0.5}), ("board", "close")]
    calls.clear()
    with logs.opened(("tensorboard", "wandb"), folder, settings={}) as log:  # killed before the first checkpoint
        log(2, {"loss": 1.0})
    assert calls[1:3] == [("board", "cut", 0), ("sent", "cut", 0)] and calls[0][1] == key
    (folder / "notes.txt").write_text("mine")
    logs.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_nothing_is_opened_that_nobody_asked_for(calls, tmp_path, monkeypatch):
    with logs.opened((), tmp_path, settings={}) as log:
        log(1, {"loss": 1.0})
    monkeypatch.setattr(logs.parallel, "is_main", lambda: False)
    with logs.opened(("wandb",), tmp_path, settings={}) as log:
        log(1, {"loss": 1.0})
    assert calls == [] and not list(tmp_path.iterdir())


def test_what_is_not_installed_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(logs.importlib, "util", types.SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(ValueError, match="--log-to wandb needs wandb; run: pip install wandb"):
        checks.check_options(DistillConfig(log_to=("wandb",)))
    monkeypatch.setattr(logs.importlib, "util", importlib.util)
    with pytest.raises(ValueError, match="log-to"):
        checks.check_options(DistillConfig(log_to=("paper",)))
