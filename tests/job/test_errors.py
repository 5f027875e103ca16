"""Any exception ends in one line that says what and what to do; any warning is one line."""

import errno
import logging
import os
import pathlib
import signal
import sys
import time
import warnings
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest

from metadd_jax import files
from metadd_jax.job import command, errors


def script(function, monkeypatch, capsys, **environment):
    """What the scripts' ``main`` says when the work does this: exit status and stderr."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        command.main(lambda arguments, program: function(), program="distill.py")
    return ended.value.code, capsys.readouterr().err


def fill_the_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/networks/x")


def write_where_nothing_can_be_written():
    pathlib.Path("/proc/nowhere").mkdir()


def open_what_is_no_archive():
    file = pathlib.Path(files.__file__)
    with zipfile.ZipFile(file):
        pass


def ask_for_too_much():
    np.zeros(10**15, np.uint8)


def ask_the_device_for_too_much():
    jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros((10**6, 10**7)))())


def recurse(depth=0):
    return recurse(depth + 1)


def open_a_bomb(tmp_path):
    PIL.Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    PIL.Image.open(tmp_path / "bomb.png")


FOREIGN = {
    "no space left": (fill_the_disk, "No space left on device (/cache/networks/x); free some space there"),
    "unwritable": (write_where_nothing_can_be_written, "(/proc/nowhere); check the path"),
    "no archive": (open_what_is_no_archive, "BadZipFile: File is not a zip file ("),
    "memory": (ask_for_too_much, "--plan tells what a job takes"),
    "device memory": (ask_the_device_for_too_much, "the device is out of memory (RESOURCE_EXHAUSTED"),
    "recursion": (recurse, "RecursionError"),
    "attribute": (lambda: np.float32(1).nothing, "AttributeError: 'numpy.float32' object has no attribute 'nothing'"),
    "no message": (lambda: next(iter(())), "StopIteration ("),
    "foreign ValueError": (lambda: np.zeros(0).max(), "ValueError: zero-size array"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_any_exception_is_one_line(name, monkeypatch, capsys):
    function, part = FOREIGN[name]
    code, text = script(function, monkeypatch, capsys)
    assert code == 1 and text.startswith("error: ") and part in text
    assert text.count("\n") == 1 and "Traceback" not in text


def test_what_nobody_foresaw_names_its_place(monkeypatch, capsys, tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        files.hash_file(tmp_path / "nothing")
    assert errors.in_one_line(found.value) == f"No such file or directory ({tmp_path / 'nothing'}); check the path"
    with pytest.raises(TypeError) as found:
        files.hash_file(None)
    assert "TypeError: " in errors.in_one_line(found.value)
    assert "at metadd_jax/files.py:" in errors.in_one_line(found.value)
    assert "METADD_TRACEBACK=1 shows the rest" in errors.in_one_line(found.value)


def test_a_bomb_is_one_line(tmp_path):
    with pytest.raises(PIL.Image.DecompressionBombError) as found:
        open_a_bomb(tmp_path)
    assert errors.in_one_line(found.value).startswith("DecompressionBombError: Image size (200000000 pixels)")


def test_a_long_message_is_cut_and_ours_is_not():
    assert len(errors.in_one_line(RuntimeError("x" * 10_000))) < 800
    try:
        files.require_writable("/proc/nowhere/run")
    except ValueError as error:
        assert errors.in_one_line(error) == str(error)


def test_the_rest_is_shown_on_request(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("METADD_TRACEBACK", "1")
    with pytest.raises(OSError, match="No space left"):
        command.main(lambda arguments, program: fill_the_disk(), program="distill.py")


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a shell; a shell's background job ignores it, and so do the tests in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_finaliser_is_not_lost(ctrl_c, monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(os, "_exit", sys.exit)  # so that this process goes on

    class Bar:
        def __del__(self):
            raise KeyboardInterrupt

    def work():
        bar = Bar()
        del bar
        for _ in range(500):  # a thread's interrupt is heard between two steps of Python, and ends no sleep
            time.sleep(0.01)
        pytest.fail("the work went on")

    code, text = script(work, monkeypatch, capsys)
    assert (code, text) == (130, "\ninterrupted; the same command goes on from the last checkpoint\n")


def test_warnings_are_one_line_above_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def work():
        warnings.warn("3 files\n  were left out", stacklevel=1)
        with command.bar(2, "work", "step"):
            warnings.warn("a second", stacklevel=1)
            logging.getLogger("metadd_jax.anything").warning("logged\n%s", "too")
        sys.exit(0)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, text = script(work, monkeypatch, capsys)
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    assert "warning: 3 files were left out" in lines and "warning: a second" in lines
    assert "warning: logged too" in lines
