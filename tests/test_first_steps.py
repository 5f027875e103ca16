"""docs/start.md: what a newcomer types runs as it stands, from the first command to the last."""

import pathlib
import re
import shlex

import pytest

from metadd_jax import cli

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "start.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().split("\n")]


def test_the_page_installs_distils_looks_judges_and_hands_on():
    assert LINES[0] == "pip install -r requirements.txt"
    commands = [line.split()[1] for line in LINES[1:]]
    assert commands == ["distill", "show", "report", "evaluate", "export", "evaluate", "export", "distill"]
    assert LINES[-1] == "metadd distill"  # the default run: README.md has its table


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METADD_CACHE", str(tmp_path / "cache"))
    said = {}
    for line in LINES[1:-1]:
        cli.run(shlex.split(line)[1:])
        said[line] = capsys.readouterr().out
    left = {"runs/first/report.html", "runs/first/results.md", "pictures/synthetic.png", "first.zip", "exported"}
    assert [name for name in left if not (tmp_path / name).exists()] == []
    again = said["metadd evaluate first.zip"]
    assert "Versions: the same." in again
    assert "Every accuracy is the same to the bit." in again
