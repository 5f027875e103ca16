"""Folders that are whole or absent, whoever else writes there and whenever a process dies."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

from metadd_jax import files
from metadd_jax.storage import folder


def write(directory, text, **options):
    with folder.whole_folder(directory, **options) as partial:
        (partial / "text").write_text(text)
        folder.seal(partial)


def names(place):
    return sorted(path.name for path in place.iterdir())


def of_another(path, *, machine=None, pid=None, start=None):
    """The hidden name of ``path`` as another machine or process would have it."""
    found = re.fullmatch(r"(\..*-metadd\.)(\w+)\.(\d+)\.(\d+)(\..*)", files.temporary_path(path).name)
    head, *own, tail = found.groups()
    given = [ours if theirs is None else str(theirs) for ours, theirs in zip(own, (machine, pid, start), strict=True)]
    return path.with_name(head + ".".join(given) + tail)


def test_the_first_writer_wins_and_the_second_hears_of_it(tmp_path):
    with pytest.raises(ValueError, match="net exists already"), folder.whole_folder(tmp_path / "net") as partial:
        (partial / "text").write_text("second")
        write(tmp_path / "net", "first")
    assert (tmp_path / "net" / "text").read_text() == "first"
    assert names(tmp_path) == ["net"]


def test_two_replacements_at_once_leave_one_whole(tmp_path):
    write(tmp_path / "net", "old")
    with folder.whole_folder(tmp_path / "net", overwrite=True) as partial:
        (partial / "text").write_text("later")
        folder.seal(partial)
        write(tmp_path / "net", "sooner", overwrite=True)
    assert (tmp_path / "net" / "text").read_text() == "later"
    assert names(tmp_path) == ["net"]


def test_a_replacement_that_fails_between_its_renames_puts_the_old_one_back(tmp_path, monkeypatch):
    """NFS and full quotas refuse the second rename; nothing stood under the name then, and the new one was deleted."""
    write(tmp_path / "net", "old")
    rename = os.rename

    def refuse(source, target):
        if target == tmp_path / "net" and (source / "text").read_text() == "new":
            raise OSError(5, "input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="input/output error"):
        write(tmp_path / "net", "new", overwrite=True)
    assert (tmp_path / "net" / "text").read_text() == "old"
    assert names(tmp_path) == ["net"]


KILLED = """
    import os, pathlib, sys
    from metadd_jax.storage import folder
    rename = os.rename
    def die(source, target):
        if pathlib.Path(target).name == "v1.5":  # the second rename, that of the new one
            os.kill(os.getpid(), 9)
        rename(source, target)
    os.rename = die
    with folder.whole_folder(sys.argv[1], overwrite=True) as partial:
        (partial / "text").write_text("new")
        folder.seal(partial)
"""


def test_killed_between_the_renames_the_old_one_comes_back(tmp_path):
    write(tmp_path / "v1.5", "old")
    code = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "v1.5"]
    assert subprocess.run(code, check=False, timeout=120).returncode == -9
    assert len(names(tmp_path)) == 2 and not (tmp_path / "v1.5").exists()
    folder.tidy(tmp_path)
    assert names(tmp_path) == ["v1.5"]
    assert (tmp_path / "v1.5" / "text").read_text() == "old"


def test_what_others_write_stays_and_what_the_dead_left_goes(tmp_path):
    """A container's process 1 is not this one's, and a number that was given again is not the process that had it."""
    place = tmp_path / "net"
    living = of_another(place, pid=os.getppid(), start=files._start_of(os.getppid()))
    elsewhere, long_ago = (of_another(place, machine=machine, pid=1) for machine in ("0123abcd", "0123abce"))
    dead, recycled = of_another(place, pid=2**22 + 5), of_another(place, pid=os.getppid(), start=1)
    mine, other_name = tmp_path / ".net-metadd.notes", of_another(tmp_path / "net2", pid=2**22 + 5)
    for path in (living, elsewhere, long_ago, dead, recycled, mine, other_name):
        path.mkdir()
    os.utime(long_ago, (0, 0))
    write(place, "new")
    assert names(tmp_path) == sorted(path.name for path in (living, elsewhere, mine, other_name, place))


def test_a_file_that_a_killed_process_was_writing_goes_with_the_next(tmp_path):
    dead, other = of_another(tmp_path / "set.npz", pid=2**22 + 5), tmp_path / ".set.npz.backup"
    for path in (dead, other):
        path.write_text("half")
    files.write_text(tmp_path / "set.npz", "whole")
    assert names(tmp_path) == [".set.npz.backup", "set.npz"]
