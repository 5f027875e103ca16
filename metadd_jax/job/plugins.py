"""Python files of the user's that are read before the command line: what they register can be named on it.

# my_networks.py, for --plugin my_networks.py --seen mynet:width=8
import metadd_jax as mdd
mdd.zoo.register("mynet", build)
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Iterable, Sequence

from metadd_jax import files
from metadd_jax.job import errors, parsing


def load(arguments: Sequence[str]) -> None:
    """Runs every file that the words of a command line name by ``--plugin``, in their order.

    Raises:
      ValueError: one line for a file that is missing or fails, with the line of it that does; for two of one name.
    """
    # Before the command line is parsed: what a plugin registers decides which words are known.
    paths = [pathlib.Path(name).expanduser() for name in named(arguments)]
    stems = [path.stem for path in dict.fromkeys(paths)]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise ValueError(f"two plugins are called {twice[0]}.py; rename one, for what they define is known by the name")
    for path in paths:
        _run(path)


def named(arguments: Sequence[str]) -> list[str]:
    """Lists the files that the words of a command line name by ``--plugin``."""
    return parsing.values_of("plugin", arguments)


def facts(names: Iterable[str]) -> list[dict[str, str]]:
    """What a run's ``config.json`` keeps of its plugins: where they lay, and the hash of their text."""
    paths = [pathlib.Path(name).expanduser().resolve() for name in names]
    return [{"file": str(path), "sha256": files.hash_file(path)} for path in paths]


def _run(path: pathlib.Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"--plugin {path}: there is no such Python file; give the path of one that ends in .py")
    # The file's name and not its folder: networks that it defines have the same key in the cache when it is moved.
    name = f"{errors.PLUGIN}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--plugin {path}: Python cannot read it as a module")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as the import system does it: dataclasses and pickles look a module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file does wrong, a script that ends itself too
        # Half a module must not serve a later import.
        del sys.modules[name]
        raise ValueError(f"--plugin {path}{_line_of(error, path)}: {_what(error)}") from error


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    """The last line of the file on the way to the error."""
    if isinstance(error, SyntaxError):
        return f" line {error.lineno}" if error.lineno else ""
    frames, file = traceback.extract_tb(error.__traceback__), str(path.absolute())  # as Python names a module's file
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f" line {lines[-1]}" if lines else ""


def _what(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"
