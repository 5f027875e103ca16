"""Compiled programs: found again wherever the folder lies, made again where they were damaged."""

import json
import subprocess
import sys
import textwrap
import zlib

import pytest

from metadd_jax import storage

COUNTING = """
import collections, sys
import jax, jax.numpy as jnp
from metadd_jax import parallel, storage
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
storage.cache_compilations(sys.argv[1])
print(float(parallel.jit(lambda x: jnp.sin(x) @ x)(jnp.arange(3.0))))
print(counts["cache_hits"], counts["cache_misses"])
"""


def test_a_second_start_compiles_nothing(tmp_path):
    def start():
        printed = subprocess.run(
            [sys.executable, "-c", COUNTING, tmp_path / "compiled"], capture_output=True, text=True, check=True
        )
        value, counts = printed.stdout.splitlines()
        return value, [int(count) for count in counts.split()]

    (value, (hits, misses)), (again, (hits_again, misses_again)) = start(), start()
    assert value == again
    assert hits == 0 and misses > 0
    assert hits_again == misses and misses_again == 0


COMPILES = """
    import sys, jax, jax.numpy as jnp
    from metadd_jax import parallel, storage
    storage.cache_compilations(sys.argv[1])
    for power in range(2, 6):
        print(parallel.jit(lambda x, power=power: (x**power).sum())(jnp.arange(3.0)))
"""


def compiled_in(folder):
    """What a process prints that keeps its programs there, and the programs then."""
    code = [sys.executable, "-c", textwrap.dedent(COMPILES), folder]
    done = subprocess.run(code, check=True, timeout=120, capture_output=True, text=True)
    return done.stdout + done.stderr, {path.name: path.read_bytes() for path in folder.glob("*-cache")}


def test_kept_programs_survive_a_move_and_damaged_ones_are_made_again(tmp_path):
    printed, programs = compiled_in(tmp_path / "here")
    assert printed.split() == ["5.0", "9.0", "17.0", "33.0"] and len(programs) >= 4
    there = (tmp_path / "here").rename(tmp_path / "there")
    cut, flipped, empty, *_ = sorted(programs)
    (there / cut).write_bytes(programs[cut][:-20])
    (there / flipped).write_bytes(programs[flipped][:-1] + bytes([programs[flipped][-1] ^ 1]))
    (there / empty).write_bytes(b"")
    (there / "checked.json").write_text("{")
    again, kept = compiled_in(there)
    assert again == printed  # and no warning
    assert set(kept) == set(programs)  # none was compiled under another key
    whole = sorted(set(programs) - {cut, flipped, empty})
    assert [kept[name] for name in whole] == [programs[name] for name in whole]
    assert all(zlib.decompress(program) for program in kept.values())
    assert set(json.loads((there / "checked.json").read_text())) == set(whole)


def test_a_folder_for_programs_that_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="cannot write in /proc/compiled"):
        storage.cache_compilations("/proc/compiled")
