"""One run in a folder at a time: the living are told of by name, the dead are in nobody's way."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from metadd_jax import storage
from metadd_jax.storage import lock as locks

HOLDS = """
    import sys, time
    from metadd_jax.storage import Lock
    lock = Lock(sys.argv[1])
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    code = [sys.executable, "-c", textwrap.dedent(HOLDS), tmp_path / "lock"]
    process = subprocess.Popen(code, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_holder_is_named_and_a_killed_one_is_free_at_once(tmp_path, holder):
    with pytest.raises(
        storage.HeldError, match=rf"another run \(host .*, process {holder.pid}, since 20.* UTC\) is at work here"
    ):
        storage.Lock(tmp_path / "lock")
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").exists()
    with storage.Lock(tmp_path / "lock") as lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_in_another_container_holds_it_too(tmp_path, holder):
    """There process numbers mean nothing: the kernel's lock is what tells."""
    owner = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(owner | {"pid": 1}))
    with pytest.raises(storage.HeldError, match="process 1, "):
        storage.Lock(tmp_path / "lock")


def foreign(path, age):
    owner = {"host": "far", "pid": 7, "since": "2026-01-01 00:00:00 UTC", "kernel": "another"}
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - age,) * 2)


def test_another_machine_holds_it_as_long_as_it_gives_signs_of_life(tmp_path):
    path = tmp_path / "lock"
    foreign(path, 60)
    with pytest.raises(storage.HeldError, match=r"host far, process 7.*sign of life is 6\d s old, after 600 s"):
        storage.Lock(path)
    assert json.loads(path.read_text())["host"] == "far"
    foreign(path, 601)
    storage.Lock(path).release()
    assert list(tmp_path.iterdir()) == []


def test_the_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.01)
    with storage.Lock(tmp_path / "lock") as lock:
        os.utime(lock.path, (0, 0))
        end = time.monotonic() + 20
        while lock.path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_two_in_one_process_exclude_each_other_too(tmp_path):
    with storage.Lock(tmp_path / "lock") as lock:
        with pytest.raises(storage.HeldError):
            storage.Lock(tmp_path / "lock")
        lock.release()
        storage.Lock(tmp_path / "lock").release()


def test_of_many_at_once_each_has_it_alone(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(20):
            with storage.waiting(tmp_path / "lock", seconds=0.0005):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 100
    assert list(tmp_path.iterdir()) == []


def test_who_waits_says_so_once(tmp_path):
    said, lock = [], storage.Lock(tmp_path / "lock")
    threading.Timer(0.05, lock.release).start()
    with storage.waiting(tmp_path / "lock", on_wait=said.append, seconds=0.01):
        pass
    assert len(said) == 1 and f"process {os.getpid()}" in said[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}'])
def test_a_lock_that_nobody_signed_is_free(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with storage.Lock(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_where_nothing_can_be_written_the_system_says_so():
    with pytest.raises(OSError, match="/proc/lock"):
        storage.Lock(pathlib.Path("/proc/lock"))
