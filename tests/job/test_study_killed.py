"""Studies in processes of their own: killed at ten moments, two at once, two folders brought together."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
KILLS = int(os.environ.get("METADD_KILLS", "10"))  # as in tests/trust/test_killed.py
TINY = """
preset = "smoke"
options = '''--backbone mlp:width=8 --seen convnet:width=4,depth=1 convnet:width=6,depth=1 --unseen --eval-epochs 2
  --device-mode jit --train-per-class 20'''
seeds = 2
references = ["dm"]
[rows]
random = "random"
dm = "--no-wrapped"
packed = "--no-wrapped --parameterisation factor2"
metadd = "--metadd.views none"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(TINY)
    return folder


def start(place, name, *words):
    return subprocess.Popen(
        [sys.executable, ROOT / "experiments" / "study.py", place / "tiny.toml", "--run-dir", place / name, *words],
        env={**os.environ, "METADD_CACHE": str(place / "cache"), "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process):
    text = process.communicate(timeout=550)[0]
    assert process.returncode == 0, text[-3000:]
    return text


def files_in(folder):
    # By os.walk, which passes over folders that go away while it looks.
    return sum(len(names) for _, _, names in os.walk(folder))


def numbers(place, name):
    """Every accuracy of the table, and each set's bytes; times and the place of the folder differ."""
    table = json.loads((place / name / "study.json").read_text())
    assert table["done"] == table["cells_in_all"] == 8
    found = {(cell["row"], cell["seed"]): cell["accuracies"] for cell in table["cells"]}
    sets = {
        file.relative_to(place / name): file.read_bytes() for file in (place / name).glob("cells/*/*/*/synthetic.npz")
    }
    assert len(found) == len(sets) == 8
    return found, sets, [one["comparisons"] for one in table["tables"].values()]


@pytest.fixture(scope="module")
def unbroken(place):
    ended(start(place, "unbroken"))
    return numbers(place, "unbroken")


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_in_the_same_table(place, unbroken):
    kills, seen = 0, 0
    while kills < KILLS:
        process = start(place, "killed")
        end = time.monotonic() + 240
        # Each start gets a few files further than the last: the kills fall into every stage of several cells.
        while process.poll() is None and time.monotonic() < end:
            if files_in(place / "killed") > seen + max(1, 30 // KILLS) * (kills % 4):
                break
            time.sleep(0.003)
        seen = files_in(place / "killed")
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 0.8 * KILLS
    print(f"a study survived {kills} kills")
    ended(start(place, "killed"))
    assert numbers(place, "killed") == unbroken


@pytest.mark.slow
def test_two_processes_share_the_cells_and_the_table_is_whole(place, unbroken):
    one, other = start(place, "shared"), start(place, "shared")
    texts = ended(one), ended(other)
    worked = [sum(line.startswith("[") for line in text.splitlines()) for text in texts]
    assert sum(worked) == 8 and min(worked) > 0, worked
    assert numbers(place, "shared") == unbroken


@pytest.mark.slow
def test_two_folders_merge_to_the_same_table(place, unbroken):
    ended(start(place, "left", "--only", "random", "dm"))
    ended(start(place, "right", "--only", "metadd", "packed", "dm"))
    text = ended(start(place, "left", "--merge", place / "right"))
    assert "Every cell is done" in text and not [line for line in text.splitlines() if line.startswith("[")]
    assert numbers(place, "left") == unbroken
