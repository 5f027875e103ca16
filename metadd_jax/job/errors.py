"""Any exception as one line that says what is wrong and what to do about it."""

from __future__ import annotations

import errno
import pathlib
import sys
import traceback

# The package, and the scripts of a checkout beside it.
_OWN = (pathlib.Path(__file__).parents[1], pathlib.Path(__file__).parents[2] / "experiments")
PLUGIN = "metadd_plugin_"  # what the modules of --plugin are called, before the file's name
_MOST = 600  # characters of a foreign message: some hold a whole program
_MENDS = {
    errno.ENOSPC: "free some space there, or choose other folders by --run-dir and --cache-dir",
    errno.EDQUOT: "free some space there, or choose other folders by --run-dir and --cache-dir",
    errno.EROFS: "choose another folder",
    errno.EACCES: "mend its permissions or choose another",
    errno.EPERM: "mend its permissions or choose another",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_MEMORY = (
    "lower --class-batch, --micro-batch, --batch-size or --at-once, or use fewer or smaller images; --plan tells what "
    "a job takes"
)


def in_one_line(error: BaseException) -> str:
    """Says what happened and how to mend it, in one line that can be printed anywhere.

    A ``ValueError`` of the package or the scripts speaks for itself. An error of the operating system or of memory
    gets its mend here. Anything else nobody foresaw: its type and its place are named.

    Args:
      error: as it was caught, with its traceback: whose line raised it decides whether its text is ours.
    """
    # Names out of files that travel are in it: a terminal would obey what a name tells it to do.
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in _told(error))


def _told(error: BaseException) -> str:
    # One line, whatever the message: logs and terminals are read line by line.
    text = " ".join(str(error).split())
    # A ValueError of a library would name an argument of its own, which the user never wrote.
    if isinstance(error, ValueError) and _raised_here(error):
        return text
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({' '.join(str(error.filename).split())})" if error.filename is not None else ""
        return f"{error.strerror or text}{where}; {_MENDS.get(error.errno, _more(error))}"
    if isinstance(error, MemoryError):
        return f"out of memory{f' ({_cut(text)})' if text else ''}; {_MEMORY}"
    # JAX has no type for it: XLA's status in the message is all that tells it.
    if _is_device_memory(error):
        return f"the device is out of memory ({_cut(text)}); {_MEMORY}"
    return f"{type(error).__name__}{f': {_cut(text)}' if text else ''} ({_more(error)})"


def _raised_here(error: BaseException) -> bool:
    """Whether a line of ours raised it, and not one of a library that we called with what it cannot take."""
    frames = traceback.extract_tb(error.__traceback__)
    # The innermost frame: who raised it and not who called.
    return not frames or _is_own(frames[-1].filename)


def _is_own(file: str) -> bool:
    return any(pathlib.Path(file).is_relative_to(folder) for folder in _OWN)


def _more(error: BaseException) -> str:
    """Where in our code or in a plugin of the user's it happened, and how to see the rest."""
    plugins = {getattr(module, "__file__", "") for name, module in sys.modules.items() if name.startswith(PLUGIN)}
    every = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in every if _is_own(frame.filename) or frame.filename in plugins]
    place = ""
    if frames:
        file = pathlib.Path(frames[-1].filename)
        place = f"at {file.parent.name}/{file.name}:{frames[-1].lineno}; "
    return f"{place}METADD_TRACEBACK=1 shows the rest"


def _is_device_memory(error: BaseException) -> bool:
    jax = sys.modules.get("jax")  # without it there is no such error
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _cut(text: str) -> str:
    # XLA's messages hold whole programs.
    return text if len(text) <= _MOST else f"{text[:_MOST]} ..."
