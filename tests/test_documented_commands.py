"""Every command that the README and the docs show is one that its program reads."""

import importlib
import pathlib
import re
import shlex
import types

import pytest

from metadd_jax import cli
from metadd_jax.job import parsing

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python experiments/|\bmetadd )(\w+)(?:\.py)?((?:[^`\n\\]|\\\n)*)")


def commands():
    """(page, program, words) of every command in code, without its comment."""
    for page in PAGES:
        text = page.read_text()
        code = re.findall(r"```.*?```|`[^`]*`|(?:^ {4,}\S.*\n)+", text, flags=re.DOTALL | re.MULTILINE)
        for block in code:
            # Inline code may be broken over lines as prose is; a block's lines end where they end.
            whole = block if block.startswith("```") or block.startswith(" ") else block.replace("\n", " ")
            for program, rest in COMMAND.findall(whole):
                words = shlex.split(rest.replace("\\\n", " "), comments=True)
                words = words[: next((i for i, word in enumerate(words) if word in ("&&", "|", ">", "...")), None)]
                if program in (*cli.COMMANDS, "benchmark"):
                    yield page.name, program, words


FOUND = list(commands())


def test_the_reader_finds_them():
    assert {program for _, program, _ in FOUND} >= {"distill", "evaluate", "show", "prepare_tiny_imagenet", "benchmark"}
    assert ("methods.md", "distill", ["--method", "dsa", "--image-lr", "0.1", "--steps", "500"]) in FOUND
    assert len(FOUND) > 15


@pytest.mark.parametrize(("page", "program", "words"), FOUND, ids=lambda value: value if isinstance(value, str) else "")
def test_it_is_read(page, program, words, monkeypatch):
    """As far as the options: what they say of data and networks other tests try."""
    if any(re.fullmatch(r"[A-Z]+", word) for word in words):
        pytest.skip("a place holder stands in it")
    if "--plugin" in words:
        pytest.skip("what it names is the plugin's: tests/test_extend.py tries that")

    class Read(Exception):
        pass

    def parse(*args, **options):
        original(*args, **options)
        raise Read

    original = parsing.parse
    monkeypatch.setattr(parsing, "parse", parse)
    name = "costs" if program == "benchmark" else f"metadd_jax.job.{program}"
    module: types.ModuleType = importlib.import_module(name)
    with pytest.raises(Read):
        module.run(words)
