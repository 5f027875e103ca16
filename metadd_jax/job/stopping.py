"""The end of a long run before it is done: a time limit or SIGTERM, at a checkpoint, with exit status 75.

75 is EX_TEMPFAIL of sysexits.h, "try again": a queue (SLURM's ``--requeue``) or a loop around the command tells it from
an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import numpy as np

from metadd_jax import parallel
from metadd_jax.job import effects

STATUS = 75


class Stopped(BaseException):
    """A run that was asked to end; the same command goes on. No ``Exception``: nothing may take it for a failure."""


def seconds_of(text: str, *, option: str) -> float:
    """Reads a time such as "90s", "12m" or "1.5h".

    Args:
      text: the time.
      option: whose value it is, for the error.

    Raises:
      ValueError: if it is none above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise ValueError(f'{option} {text} is no time above 0; write it like "90s", "12m" or "2h"')
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


class Stop:
    """Whether a run is asked to end, and whether it may do so at once.

    Attributes:
      waits: a checkpoint comes soon, and the end waits for it; else the end comes at once, since what is under way is
        made again by the next start in any case.
      why: what asked, in words; "" as long as nothing has.
    """

    def __init__(self, limit: str | None = None) -> None:
        self.waits, self.why = False, ""
        self._limit = limit
        self._deadline = None if limit is None else time.monotonic() + seconds_of(limit, option="--time-limit")

    @property
    def is_over(self) -> bool:
        """Whether the time limit has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def is_due(self, *, ahead: float = 0.0) -> bool:
        """Tells whether to end now.

        Args:
          ahead: seconds that the work up to the next question will take: what would end after the limit is not begun.
        """
        if not self.why and self._deadline is not None and time.monotonic() + ahead > self._deadline:
            self.why = f"the time limit of {self._limit}"
        return bool(self.why)

    def raise_now(self) -> None:
        """Raises Stopped, saying why."""
        raise Stopped(f"stopped by {self.why}")

    def take_signal(self, number: int, frame: FrameType | None) -> None:
        """Takes SIGTERM: the first waits for a checkpoint where one comes soon, the second never does."""
        again = bool(self.why)
        if not self.is_due():
            self.why = signal.Signals(number).name
        if again or not self.waits:
            self.raise_now()


@contextlib.contextmanager
def listening(*, limit: str | None = None) -> Iterator[Stop]:
    """Takes SIGTERM, and watches a time limit, while the block runs.

    Args:
      limit: of the whole block, "11h"; None for none.

    Raises:
      Stopped: inside the block, in the main thread.
      ValueError: if ``limit`` is no time.
    """
    stop = Stop(limit)
    # Elsewhere (a notebook's worker) Python lets nobody listen; whoever runs it there ends it there.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.take_signal)
    # One road for both: where no checkpoint comes soon, the limit ends the run as the signal does.
    alarm = None
    if limit is not None:
        seconds = seconds_of(limit, option="--time-limit")
        alarm = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        alarm.start()
    try:
        yield stop
    finally:
        if alarm is not None:
            alarm.cancel()
        # None: what was not set from Python (jax.distributed listens in C++) cannot be put back from here.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class Watch(effects.Stopwatch):
    """A stopwatch that ends the run behind a checkpoint when it is asked to.

    Args:
      stop: who asks.
      steps: of a set.
    """

    def __init__(self, stop: Stop, steps: int) -> None:
        super().__init__()
        self._stop, self._steps = stop, steps
        self._longest, self._asked, self._due = 0.0, time.monotonic(), False

    def start(self) -> None:
        """Begins a set: from here on the end waits for the next chunk."""
        super().start()
        self._stop.waits, self._asked = True, time.monotonic()

    def saves_now(self) -> bool:
        """Tells whether the run ends behind this chunk, so that it must be saved; the first process decides for all."""
        now = time.monotonic()
        self._longest, self._asked = max(self._longest, now - self._asked), now
        self._due = bool(parallel.from_main(np.int32(self._stop.is_due(ahead=self._longest))))
        return self._due

    def lap(self, method: str, done: int) -> float | None:
        """Takes the time after a chunk, as ``Stopwatch.lap``.

        Raises:
          Stopped: if ``saves_now`` said so.
        """
        seconds = super().lap(method, done)
        if self._due:
            self._stop.why = self._stop.why or "the first process"
            self._stop.raise_now()
        self._stop.waits = done < self._steps
        return seconds
