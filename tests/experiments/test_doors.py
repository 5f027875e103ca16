"""The scripts are doors: short, and what they say and do is the package's."""

import pathlib
import re
import subprocess
import sys

import pytest

from metadd_jax import cli

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
DOORS = sorted(path for path in FOLDER.glob("*.py"))


def test_every_command_has_a_door_and_the_folder_stays_small():
    assert {path.stem for path in DOORS} == {*cli.COMMANDS, "benchmark"}
    lengths = [len(path.read_text().splitlines()) for path in DOORS]
    assert len(DOORS) <= 10 and max(lengths) <= 60 and sum(lengths) <= 600


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.stem)
def test_help_names_the_script_as_it_was_called(path):
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {path.name} ")
    assert f"metadd {path.stem}" not in done.stdout
    assert f"python experiments/{path.name}" in re.sub(r"\s+", " ", done.stdout)


def test_the_programs_behind_the_benchmark_import_no_door():
    doors = "|".join(path.stem for path in DOORS)
    for path in (FOLDER / "benchmark").rglob("*.py"):
        assert not re.findall(rf"^\s*(?:import|from) (?:{doors})\b", path.read_text(), flags=re.MULTILINE)
