"""SIGTERM and a time limit end a run at a checkpoint, with status 75 and the command that goes on; progress in logs."""

import json
import os
import shlex
import signal
import sys
import threading
import time

import pytest
from test_distill_script import TINY_DM, cache, start, wait_for  # noqa: F401  # a fixture too

from metadd_jax.job import command, history, stopping


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)  # the handler runs between two steps of Python


def test_sigterm_ends_at_once_where_no_checkpoint_comes_soon():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.Stopped, match="stopped by SIGTERM"), stopping.listening():
        terminate()
        pytest.fail("the work went on")
    assert signal.getsignal(signal.SIGTERM) == before


def test_while_a_set_is_distilled_it_waits_for_the_chunk_and_the_second_does_not():
    with stopping.listening() as stop:
        watch = stopping.Watch(stop, 20)
        watch.start()
        assert not watch.saves_now()
        watch.lap("dm", 5)
        terminate()
        assert watch.saves_now()
        with pytest.raises(stopping.Stopped, match="stopped by SIGTERM"):
            watch.lap("dm", 10)
        with pytest.raises(stopping.Stopped):
            terminate()


def test_behind_the_last_chunk_of_a_set_nothing_waits():
    with stopping.listening() as stop:
        watch = stopping.Watch(stop, 10)
        watch.start()
        watch.saves_now()
        watch.lap("dm", 10)
        with pytest.raises(stopping.Stopped):
            terminate()


def test_the_time_limit_leaves_room_for_the_longest_chunk(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = stopping.Stop("10s")
    watch = stopping.Watch(stop, 100)
    watch.start()
    asked = []
    for seconds in (3, 2, 2, 2):  # at 7 a chunk of 3 fits, at 9 it does not
        now[0] += seconds
        asked.append(watch.saves_now())
    assert asked == [False, False, False, True] and stop.why == "the time limit of 10s"
    assert not stop.is_over  # it ends before
    now[0] = 10.0
    assert stop.is_over and not stopping.Stop().is_over


def test_where_nothing_asks_the_limit_ends_the_work():
    began = time.monotonic()
    with pytest.raises(stopping.Stopped, match="the time limit of"), stopping.listening(limit="0.3s"):
        while True:
            time.sleep(0.05)
    assert time.monotonic() - began < 5


def test_outside_the_main_thread_nobody_listens():
    found = []
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with stopping.listening() as stop:
            found.append((stop.why, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [("", before)]


def test_the_command_that_goes_on_does_not_start_anew(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/metadd", "distill", "smoke", "--overwrite", "--run-dir", "a b"])
    monkeypatch.setattr(command.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        command.main(lambda words, program: stopping.Stop().raise_now(), program="metadd")
    assert ended.value.code == 75
    assert capsys.readouterr().err == "\nstopped by ; this goes on: metadd distill smoke --run-dir 'a b'\n"
    monkeypatch.setattr(sys, "argv", ["experiments/distill.py", "smoke"])
    assert history.command_line() == "python experiments/distill.py smoke"


def test_a_job_ends_at_a_checkpoint_and_the_line_it_prints_goes_on(cache, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    steps = folder / "dm" / "seed0" / "checkpoints"
    bare = [*TINY_DM, "--no-wrapped", "--seen"]  # what it looks through would be trained first
    process = start([*bare, "--overwrite", "--chunk", "1", "--save-every", "20", "--run-dir", folder], cache)
    wait_for((folder / "dm" / "seed0" / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "Traceback" not in text, text[-2000:]
    (saved,) = [int(path.name.removeprefix("step_")) for path in steps.glob("step_*")]
    assert 0 < saved < 20  # off the grid of checkpoints
    again = shlex.split(text.splitlines()[-1].partition("goes on: ")[2])
    assert text.splitlines()[-1].startswith("stopped by SIGTERM; ") and "--overwrite" not in again
    process = start([*again[2:], "--time-limit", "9h"], cache)
    wait_for(lambda: len(history.read(folder)) > 1, process)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and f"Goes on in {folder}: dm/seed0 from step {saved}\n" in text, text[-2000:]
    first, second = history.read(folder)
    assert first["how"] == "stopped by SIGTERM" and second["how"] == "stopped by SIGTERM"
    assert second["resumed"] == f"dm/seed0 from step {saved}"
    assert not any("%|" in line for line in text.splitlines())  # no bar where no terminal is
    assert json.loads((folder / "config.json").read_text())["config"]["steps"] == 30


def test_progress_without_a_terminal_is_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    with command.bar(200, "dm seed 0", "step") as bar:
        bar.update(100)  # what an earlier start did
        for _ in range(10):
            now[0] += 15
            bar.update(5)
            bar.set_postfix_str(f"loss {now[0]}")
        bar.write("said")
    told = capsys.readouterr()
    assert told.out == "said\n"
    assert told.err.splitlines() == [
        "dm seed 0: 120 of 200 steps in 0:01:00, about 0:04:00 left, loss 45.0",
        "dm seed 0: 140 of 200 steps in 0:02:00, about 0:03:00 left, loss 105.0",
    ]
    monkeypatch.setenv("TQDM_DISABLE", "1")  # another process than the first
    with command.bar(2, "work", "net") as bar:
        now[0] += 100
        bar.update()
    assert capsys.readouterr().err == ""
