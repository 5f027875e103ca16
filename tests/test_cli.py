"""The console command: it lists its sub-commands, calls the one that is named, and says what it does not know."""

import importlib
import subprocess
import sys

import pytest

from metadd_jax import cli


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_without_a_sub_command_it_lists_them(words, capsys):
    cli.run(words)
    text = capsys.readouterr().out
    assert text.startswith("usage: metadd COMMAND")
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)


def test_the_words_behind_a_sub_command_are_its_own(monkeypatch, capsys):
    for name in cli.COMMANDS:
        called = []
        module = importlib.import_module(f"metadd_jax.job.{name}")
        monkeypatch.setattr(
            module, "run", lambda arguments, program, called=called: called.append((arguments, program))
        )
        cli.run([name, "--steps", "3"])
        assert called == [(["--steps", "3"], f"metadd {name}")]


def test_a_typo_is_one_line_and_names_the_nearest():
    done = subprocess.run(
        [sys.executable, "-m", "metadd_jax.cli", "distil"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: unknown command 'distil' (did you mean 'distill'?); use distill, pretrain")
    assert done.stderr.count("\n") == 1
