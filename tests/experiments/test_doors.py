"""The scripts are doors: short, and what they say and do is the package's."""

import logging
import pathlib
import re
import runpy
import sys
import warnings

import pytest

from metadd_jax import cli

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
DOORS = sorted(path for path in FOLDER.glob("*.py"))


def test_every_command_has_a_door_and_the_folder_stays_small():
    assert {path.stem for path in DOORS} == {*cli.COMMANDS, "benchmark"}
    lengths = [len(path.read_text().splitlines()) for path in DOORS]
    assert len(DOORS) <= 10 and max(lengths) <= 60 and sum(lengths) <= 600


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.stem)
def test_help_names_the_script_as_it_was_called(path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers[:])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.startswith(f"usage: {path.name} ")
    assert f"metadd {path.stem}" not in text and f"python experiments/{path.name}" in text


def test_the_programs_behind_the_benchmark_import_no_door():
    doors = "|".join(path.stem for path in DOORS)
    for path in (FOLDER / "benchmark").rglob("*.py"):
        assert not re.findall(rf"^\s*(?:import|from) (?:{doors})\b", path.read_text(), flags=re.MULTILINE)
