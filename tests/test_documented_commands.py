"""Every command that the README and the docs show is one that its program takes, as far as its first look at data."""

import importlib
import pathlib
import re
import shlex
import tomllib
import types

import pytest

from metadd_jax import cli, parallel
from metadd_jax.job import checks, common, parsing, prepare, studies

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python experiments/|\bmetadd )(\w+)(?:\.py)?(?![\w/])((?:[^`\n\\]|\\\n)*)")
SHELL = re.compile(r"^(while |done|status=|\[ \$\? |scontrol |srun )")  # around commands that are held elsewhere


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
                    yield page.name, program, ["smoke" if word == "PRESET" else word for word in words]


def lines():
    """(page, line) of every line of every block in ``sh``, without comments."""
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield page.name, words


FOUND, LINES = list(commands()), list(lines())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_reader_finds_them():
    assert {program for _, program, _ in FOUND} >= {"distill", "evaluate", "show", "prepare_tiny_imagenet", "benchmark"}
    assert ("methods.md", "distill", ["--method", "dsa", "--image-lr", "0.1", "--steps", "500"]) in FOUND
    assert len(FOUND) > 80
    assert len(LINES) > 80


@pytest.mark.parametrize(("page", "program", "words"), FOUND, ids=lambda value: value if isinstance(value, str) else "")
def test_it_is_taken(page, program, words, monkeypatch, tmp_path):
    """Options, ranges, presets, networks and what does not go together: all that is told before data is read."""
    if "--plugin" in words:
        pytest.skip("what it names is the plugin's: tests/test_extend.py tries that")

    class Read(Exception):
        pass

    parse = parsing.parse

    def parsed(*args, **options):
        config = parse(*args, **options)
        # A place holder, or a file of the reader's own.
        open_ended = any(re.fullmatch(r"[A-Z]+|.*\.toml", word) for word in words)
        if program in ("distill", "study") and not open_ended:
            return config  # they go on by themselves to where they open their data
        if program in ("pretrain", "evaluate", "erase") and not open_ended:
            common.require_names(config.networks or ())
        raise Read

    def opened(config, **_):
        checks.check_settings(config, prepare.settings(config))
        common.require_names([*config.seen, *config.unseen, config.backbone])
        raise Read

    def work(study, config):
        studies.configs(study, shlex.split(config.options))
        raise Read

    monkeypatch.chdir(tmp_path)
    pathlib.Path("FILE").touch()  # a set to start from must be there
    monkeypatch.setattr(parsing, "parse", parsed)
    monkeypatch.setattr(prepare, "open_job", opened)
    monkeypatch.setattr(parallel, "initialize", lambda **_: None)
    name = "costs" if program == "benchmark" else f"metadd_jax.job.{program}"
    module: types.ModuleType = importlib.import_module(name)
    if program == "study":
        monkeypatch.setattr(module.Work, "open", work)
    with pytest.raises(Read):
        module.run(words)


@pytest.mark.parametrize(("page", "words"), LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_line_of_a_block_is_one_that_works(page, words):
    """What is no command of ours: its files are there, its extras are in the project's file, or it is the shell's."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    for part in " ".join(words).split(" && "):
        match part.split():
            case ["metadd", *_]:
                pass  # held above
            case ["python", script, *_] if script.startswith("experiments/"):
                assert (ROOT / script).is_file(), f"{page}: {script} is not there"
            case ["pytest", *rest]:
                # Behind "slow" and the like stand words, and no files, of an expression.
                for place in (word for word in rest if word.startswith("tests")):
                    assert (ROOT / place).exists(), f"{page}: {place} is not there"
            case ["pip", "install", *rest]:
                for file in (word for word in rest if word.endswith(".txt")):
                    assert (ROOT / file).is_file(), f"{page}: {file} is not there"
                for extras in re.findall(r"metadd_jax[^\[\s]*\[([\w,]+)\]", part):
                    assert set(extras.split(",")) <= set(EXTRAS), part
            case ["mkdocs", "serve" | "build", *_] | ["ruff", *_] | ["mypy"] | ["pre-commit", *_]:
                pass
            case [".ci/run"]:
                assert (ROOT / ".ci" / "run").is_file()
            case _:
                assert part.startswith("python -c ") or SHELL.match(part), f"{page}: what holds {part!r}?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_that_a_page_names_is_there(page):
    for script in re.findall(r"python (experiments/[\w/]+\.py)", page.read_text()):
        assert (ROOT / script).is_file(), script
