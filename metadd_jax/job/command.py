"""What every command shares: one-line errors, a bar, the platform's facts."""

from __future__ import annotations

import _thread
import contextlib
import importlib.metadata
import logging
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from metadd_jax.job import errors

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def main(function: Callable[..., None], *, program: str) -> None:
    """Runs a command: an error is one line on stderr and exit status 1, Ctrl-C is 130; warnings are one line each.

    With ``METADD_TRACEBACK=1`` in the environment an error shows where it comes from.

    Args:
      function: called with the command line's words and ``program``.
      program: how the user calls it, "metadd" or "distill.py".
    """
    # Place and category are for programmers; users get one line.
    warnings.showwarning = lambda message, *place, **options: _warn(str(message))
    logging.basicConfig(level=logging.WARNING, handlers=[_OneLine()])
    sys.unraisablehook = _unraisable
    try:
        function(sys.argv[1:], program=program)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # 128 + SIGINT, as shells expect; at once, because Orbax's threads would tell of a save that they cannot end
        # (it is whole or absent, as after a kill).
        os._exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # the last place where anything can be caught: whatever it is, it is one line
        if os.environ.get("METADD_TRACEBACK"):
            raise
        print(f"error: {errors.in_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _unraisable(found: Any) -> None:
    """Sends Ctrl-C once more where Python dropped it: an exception in a finaliser (a bar's) goes nowhere."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        # A little later, when the finaliser has ended: at once it would be dropped again.
        threading.Timer(0.1, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(found)


class _OneLine(logging.Handler):
    """Shows what is logged as warnings are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage())


def _warn(message: str) -> None:
    """One plain line, above a bar if there is one."""
    text = f"warning: {' '.join(message.split())}"
    # Written through tqdm, or the line would be drawn into the bar.
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


def bar(total: int, description: str, unit: str) -> Any:
    """Opens a tqdm bar with rate and time left.

    Args:
      total: how many units there are to do.
      description: what is done.
      unit: what one of them is called.
    """
    # Imported here: ``be_silent`` sets what tqdm reads when it is imported.
    from tqdm import tqdm

    return tqdm(total=total, desc=f"{description:<24}", unit=unit, dynamic_ncols=True, smoothing=0.1)


@contextlib.contextmanager
def bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function ``(what, done, in all)`` that shows a bar for each ``what`` while it is called."""
    shown: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown[what] = bar(total, what, unit)
        shown[what].update(done - shown[what].n)

    try:
        yield progress
    finally:
        # Also after an error: an open bar would swallow the line that says what happened.
        for each in shown.values():
            each.close()


def own_bar(what: str, unit: str) -> Callable[[int, int], None]:
    """Gives a function ``(done, in all)`` that shows a bar from its first call until all is done, as often as asked."""
    shown: list[Any] = []

    def progress(done: int, total: int) -> None:
        if not shown:
            shown.append(bar(total, what, unit))
        shown[0].update(done - shown[0].n)
        if done == total:
            shown.pop().close()

    return progress


def be_silent() -> None:
    """Prints nothing from here on but errors: what all processes but the first do."""
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which ``bar`` does
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, and the machine."""
    import jax

    import metadd_jax

    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "metadd_jax": metadd_jax.__version__,
        **found,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
