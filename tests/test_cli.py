"""The console command: it lists its sub-commands, calls the one that is named, and says what it does not know."""

import importlib
import logging
import sys
import warnings

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


def test_a_typo_is_one_line_and_names_the_nearest(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metadd", "distil"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers[:])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 1 and said.out == ""
    assert said.err.startswith("error: unknown command 'distil' (did you mean 'distill'?); use distill, pretrain")
    assert said.err.count("\n") == 1
