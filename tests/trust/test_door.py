"""The command ``metadd`` and files that nobody should trust: one line on stderr, exit status 1, nothing written."""

import os
import pathlib
import pickle
import sys
import warnings
import zipfile

import hostile
import numpy as np
import pytest

from metadd_jax import cli
from metadd_jax.job import command


class Canary:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def folder_of(place, name, content):
    (place / "set" / "ant").mkdir(parents=True)
    (place / "set" / "ant" / name).write_bytes(content)
    return place / "set"


def bomb(place):
    with zipfile.ZipFile(place / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("images", "labels"):
            archive.writestr(f"{name}.npy", np.lib.format.magic(1, 0) + bytes(30_000_000))
    return place / "bomb.npz"


def made(place, name, content=b""):
    (place / name).write_bytes(content)
    return place / name


def pipe(place, name):
    os.mkfifo(place / name)
    return place / name


def link(place, name, target):
    (place / name).symlink_to(target)
    return place / name


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n%%BeginProlog\nshowpage\n"
PLACES = {
    "nothing": lambda place: place / "nothing.npz",
    "an empty npz": lambda place: made(place, "a.npz"),
    "an empty file": lambda place: made(place, "a"),
    "a bomb": bomb,
    "a pickle": lambda place: made(place, "a.npz", pickle.dumps(Canary(place / "canary"))),
    "a pickle called a picture": lambda place: folder_of(place, "a.png", pickle.dumps(Canary(place / "canary"))),
    "a program for Ghostscript": lambda place: folder_of(place, "a.png", EPS),
    "a pipe": lambda place: pipe(place, "a"),
    "a pipe called npz": lambda place: pipe(place, "a.npz"),
    "a pipe called tar": lambda place: pipe(folder_of(place, "x.txt", b""), "a.tar").parent,
    "a device": lambda place: pathlib.Path("/dev/zero"),
    "a link in itself": lambda place: link(place, "a.npz", place / "a.npz"),
    "a link to a secret": lambda place: link(place, "a.npz", "/etc/passwd"),
    "a name that commands the terminal": lambda place: made(place, "a\x1b[2J\nb.npz"),
    "a name that is no text": lambda place: made(place, os.fsdecode(b"caf\xe9.npz")),
    "a folder of nothing": lambda place: place,
    "a checkpoint of nothing": lambda place: made(place, "checkpoint_1", b"\x81\xa1a\xdd\xff\xff\xff\xff").parent,
    "TOML": lambda place: made(place, "a.toml", b"rows = 3"),
    "a pipe called TOML": lambda place: pipe(place, "a.toml"),
    "JSON": lambda place: made(place, "config.json", b"[" * 100_000).parent,
}
COMMANDS = {
    "evaluate": lambda place: ["evaluate", place, "--dataset", "mnist5k", "--networks", "mlp:width=4"],
    "evaluate ours": lambda place: ["evaluate", place],
    "export": lambda place: ["export", place, "--out", "never.npz"],
    "show": lambda place: ["show", place],
    "report": lambda place: ["report", place],
    "study": lambda place: ["study", place, "--plan"],
}


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_one_line_and_nothing_is_written(name, what, tmp_path, monkeypatch, capsys):
    if name == "study" and "TOML" not in what:
        pytest.skip("the name of a study is a word or a .toml")
    if name == "report" and what == "JSON":
        pytest.skip("its page tells what could not be read")
    (tmp_path / "here").mkdir()
    place = PLACES[what](tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["metadd", *map(str, COMMANDS[name](place))])
    before = hostile.listing(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main(cli.run, program="metadd")
    text = capsys.readouterr().err
    assert ended.value.code == 1 and text.startswith("error: ") and text.count("\n") == 1, text
    assert text[:-1].isprintable() and "Traceback" not in text and "METADD_TRACEBACK" not in text
    assert hostile.listing(tmp_path) == before
