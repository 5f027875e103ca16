"""kill -9 at twenty random moments of the distillation of every base method: the same bits as undisturbed."""

import json
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import time

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parent))
import kill_child

PATIENCE = 1800  # seconds: a busy machine takes minutes for a run of seconds
KILLS = int(os.environ.get("METADD_KILLS", "20"))
METHODS = [
    "dm",
    "dc",
    "dsa",
    "idc",
    "mtt",
    "tesla, soft labels, raw rate",
    "datm",
    "datm_tesla, hard labels",
    "sre2l",
    "ncfm, another ipc in each class",
    "metadd calibrated, in parts",
]


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported everything and has begun nothing: a start takes a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kill_child"])
    return context


def start(processes, name, folder):
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=kill_child.distil, args=(name, folder, there), daemon=True)
    process.start()
    there.close()
    return process, here


def end(processes, name, folder):
    """The arrays and the log at the end of a run, and the seconds from its first update on."""
    process, begun = start(processes, name, folder)
    assert begun.poll(PATIENCE)
    began = time.monotonic()
    process.join(PATIENCE)
    took = time.monotonic() - began
    assert process.exitcode == 0
    with np.load(folder / "end.npz") as content:
        return [content[each] for each in content.files], lines(folder), took


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kill_until_it_ends(processes, name, folder, draw, pause, most):
    """Starts and kills a run until it has ended or was killed often enough; where it went on from, and the kills."""
    steps, kills = [], 0
    while kills < most:
        process, begun = start(processes, name, folder)
        try:
            if kills % 5 != 4:  # each fifth dies while it starts
                assert begun.poll(PATIENCE)
                steps.append(begun.recv())
            process.join(draw.uniform(0, pause))
        except EOFError:  # it had nothing left to do
            process.join(PATIENCE)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        # Fitted to this machine, fast or busy, so that kills fall into the whole of a run: longer while nothing is
        # saved between two of them, shorter where much is.
        if len(steps) > 1:
            pause *= 1.3 if steps[-1] == steps[-2] else 0.8 if steps[-1] > steps[-2] + 4 else 1
    return steps, kills


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_random_moments_it_ends_in_the_same_bits(processes, tmp_path, name):
    arrays, logged, took = end(processes, name, tmp_path / "whole")
    draw, kills, went_on = random.Random(name), 0, []
    while kills < KILLS:  # one run after the other, each until it ends
        folder = tmp_path / f"killed{len(went_on)}"
        steps, more = kill_until_it_ends(processes, name, folder, draw, took / 2, KILLS - kills)
        kills += more
        went_on.append(steps)
        found, told, _ = end(processes, name, folder)
        assert all(np.array_equal(a, b) for a, b in zip(arrays, found, strict=True))
        assert told == logged
        # Nothing half-written stays: what the last kill left was removed by the last start.
        assert not [path for path in folder.rglob(".*") if "metadd" in path.name]
    if place := os.environ.get("METADD_FUZZ_COUNTS"):
        with open(place, "a") as stream:
            stream.write(json.dumps({"killed": name, "kills": kills, "went on from": went_on}) + "\n")
    # Not all at the start: the runs went on from saves in between.
    assert len({step for steps in went_on for step in steps}) > 2, went_on
