"""kill -9 at twenty random moments of the distillation of every base method: the same bits as undisturbed."""

import json
import multiprocessing
import os
import pathlib
import random
import signal
import sys

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
    process, begun = start(processes, name, folder)
    process.join(PATIENCE)
    assert process.exitcode == 0
    with np.load(folder / "end.npz") as content:
        return [content[each] for each in content.files], lines(folder), begun


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_random_moments_it_ends_in_the_same_bits(processes, tmp_path, name):
    arrays, logged, _ = end(processes, name, tmp_path / "whole")
    draw, kills, steps = random.Random(name), 0, []
    # The share of a run that passes between two kills, so that all of them fall into it.
    while kills < KILLS:
        process, begun = start(processes, name, tmp_path / "killed")
        if kills % 5 != 4:  # each fifth dies while it starts
            try:
                assert begun.poll(PATIENCE)
                steps.append(begun.recv())
            except EOFError:  # it had ended
                break
            process.join(draw.uniform(0, 0.8))
        else:
            process.join(draw.uniform(0, 3))
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    found, told, _ = end(processes, name, tmp_path / "killed")
    if place := os.environ.get("METADD_FUZZ_COUNTS"):
        with open(place, "a") as stream:
            stream.write(json.dumps({"killed": name, "kills": kills, "went on from": steps}) + "\n")
    assert kills >= min(KILLS, 10), f"only {kills} kills fell into the run"
    assert len(set(steps)) > 2, steps
    assert all(np.array_equal(a, b) for a, b in zip(arrays, found, strict=True))
    assert told == logged
    # Nothing half-written stays: what the last kill left was removed by the last start.
    assert not [path for path in (tmp_path / "killed").rglob(".*") if "metadd" in path.name]
