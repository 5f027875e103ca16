"""What every command shares: one-line errors, a bar, the platform's facts."""

from __future__ import annotations

import _thread
import contextlib
import importlib.metadata
import io
import logging
import os
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from metadd_jax.job import errors, history, stopping

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def main(function: Callable[..., None], *, program: str) -> None:
    """Runs a command: an error is one line on stderr and exit status 1; warnings are one line each.

    Ctrl-C is 130; a run that SIGTERM or its time limit ended at a checkpoint is 75, with the command that goes on.

    With ``METADD_TRACEBACK=1`` in the environment an error shows where it comes from.

    Args:
      function: called with the command line's words and ``program``.
      program: how the user calls it, "metadd" or "distill.py".
    """
    # Place and category are for programmers; users get one line.
    warnings.showwarning = lambda message, *place, **options: _warn(str(message))
    logging.basicConfig(level=logging.WARNING, handlers=[_OneLine()])
    sys.unraisablehook = _unraisable
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no text must not end a job at its last line
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        function(sys.argv[1:], program=program)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # 128 + SIGINT, as shells expect; at once, because Orbax's threads would tell of a save that they cannot end
        # (it is whole or absent, as after a kill).
        os._exit(130)
    except stopping.Stopped as stopped:
        # Not with --overwrite: that would start anew.
        again = history.command_line(without=("--overwrite",))
        print(f"\n{stopped}; this goes on: {again}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stopping.STATUS)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # the last place where anything can be caught: whatever it is, it is one line
        if os.environ.get("METADD_TRACEBACK"):
            raise
        print(f"error: {errors.in_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _unraisable(found: Any) -> None:
    """Sends Ctrl-C or SIGTERM once more where Python dropped it: an exception in a finaliser (a bar's) goes nowhere."""
    # A little later, when the finaliser has ended: at once it would be dropped again.
    if issubclass(found.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, _thread.interrupt_main).start()
    elif issubclass(found.exc_type, stopping.Stopped):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
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
    """Opens a tqdm bar with rate and time left; where no terminal is, what prints a line a minute in its place.

    Args:
      total: how many units there are to do.
      description: what is done.
      unit: what one of them is called.
    """
    # Imported here: ``be_silent`` sets what tqdm reads when it is imported.
    from tqdm import tqdm

    if not sys.stderr.isatty():
        return _Lines(total, description, unit)
    return tqdm(total=total, desc=f"{description:<24}", unit=unit, dynamic_ncols=True, smoothing=0.1)


class _Lines:
    """Progress in a log: at most a line a minute. What a bar of tqdm can do, as far as the commands ask it."""

    def __init__(self, total: int, description: str, unit: str) -> None:
        self.n, self._total, self._what, self._unit, self._postfix = 0, total, description.strip(), unit, ""
        self._began = self._said = time.monotonic()
        # Work that an earlier start did came at once, so it tells nothing of the rate.
        self._before: int | None = None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Counts ``n`` more units; a minute after the last line says how far it is."""
        self.n += n
        now = time.monotonic()
        if self._before is None:
            self._before = self.n if now - self._began < 1 else 0
        if now - self._said >= _SILENCE and not os.environ.get("TQDM_DISABLE"):
            self._said = now
            made, gone = self.n - self._before, now - self._began
            left = f", about {_clock((self._total - self.n) * gone / made)} left" if made else ""
            text = f"{self._what}: {self.n} of {self._total} {self._unit}s in {_clock(gone)}{left}"
            print(text + (f", {self._postfix}" if self._postfix else ""), file=sys.stderr, flush=True)

    def set_postfix_str(self, text: str) -> None:
        """Keeps what the next line says at its end."""
        self._postfix = text

    def write(self, text: str) -> None:
        """Prints a line."""
        print(text, flush=True)

    def close(self) -> None:
        """Ends the progress; there is nothing to clear."""


_SILENCE = 60.0  # seconds between two lines of progress


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


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
