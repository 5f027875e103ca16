"""The console command ``metadd``: one sub-command for each thing to do.

metadd distill smoke --run-dir runs/smoke
metadd show runs/smoke/dm/seed0
"""

from __future__ import annotations

import importlib

from metadd_jax import ranges
from metadd_jax.job import command

# Each is a module of ``job`` with a function ``run(arguments, program=...)``.
COMMANDS = {
    "distill": "distil a data set with a base method and with MetaDD, judge both across architectures",
    "pretrain": "train networks on the whole real training split and keep them in the cache",
    "evaluate": "train networks from scratch on a distilled set and print their accuracy",
    "show": "draw a distilled set and what networks see in it",
    "erase": "train on images without what all networks see, or one alone",
    "study": "measure a table: sets of many methods, each distilled and judged once",
    "report": "write a page of a run, a study or several: tables, curves, images, history, cost",
    "export": "hand a distilled set on: NumPy, pictures, the files of the peers' programs, archives of loaders",
    "prepare_tiny_imagenet": "prepare Tiny-ImageNet from its original download",
}


def main() -> None:
    """Runs ``metadd`` with the words of the command line; an error is one line."""
    command.main(run, program="metadd")


def run(arguments: list[str], *, program: str = "metadd") -> None:
    """Calls the sub-command that the first word names with the other words; without one it lists them.

    Args:
      arguments: the words of the command line.
      program: what the user typed before them.

    Raises:
      ValueError: for a sub-command that does not exist; whatever a sub-command raises.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_listing(program))
        return
    name, *rest = arguments
    if name not in COMMANDS:
        hint = ranges.nearest(name, COMMANDS)
        raise ValueError(f"unknown command {name!r}{hint}; use {', '.join(COMMANDS)}")
    # A module is imported when it is wanted: ``metadd --help`` needs none of them.
    importlib.import_module(f"metadd_jax.job.{name}").run(rest, program=f"{program} {name}")


def _listing(program: str) -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [f"usage: {program} COMMAND ...", "", *lines, "", f"{program} COMMAND --help explains its options."]
    )


if __name__ == "__main__":
    main()
