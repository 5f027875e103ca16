"""One process at a time in a folder: a lock that says who holds it, and that no killed process holds.

Two things prove that the holder lives. The kernel's own lock (``flock``) falls with the process: in every container of
one kernel, and over NFS where that keeps locks. Where it does not, the holder is of another machine, and the file's
time, which a thread renews, tells. So what a killed run held is free at once on its machine, after ten minutes on
others.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from metadd_jax import files

if sys.platform != "win32":
    import fcntl

LOCK = ".metadd.lock"  # what the name of a lock's file ends in
RENEW_SECONDS = 60
# Ten renewals: a network file system may be away, or its cache of times behind, for some minutes.
STALE_SECONDS = 600
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class HeldError(ValueError):
    """Another process holds the lock; the message says which, and since when."""


class Lock:
    """The right to write in one place, held until ``release`` or until the process ends in whatever way.

    Args:
      path: the lock's file, beside or in what it guards; it exists while someone holds it.

    Raises:
      HeldError: if another process holds it.
      OSError: if the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path).expanduser().absolute()
        descriptor = _open(self.path)
        stop = threading.Event()
        try:
            _refuse_foreign(self.path, descriptor)
            with files.full_disk_as_such(self.path):
                _write(descriptor)
        except HeldError:
            os.close(descriptor)
            raise
        except OSError:
            os.unlink(self.path)  # no room for the signature
            os.close(descriptor)
            raise
        threading.Thread(target=_renew, args=(descriptor, stop), daemon=True).start()
        # Also at the end of a process that never released it.
        self._end = weakref.finalize(self, _release, self.path, descriptor, stop)

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        self._end()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextlib.contextmanager
def waiting(
    path: str | os.PathLike, *, on_wait: Callable[[str], None] | None = None, seconds: float = 2.0
) -> Iterator[Lock]:
    """Holds the lock of ``path`` in the block, after whoever holds it now.

    Args:
      path: the lock's file (see ``Lock``).
      on_wait: called once with the holder's description if it has to wait.
      seconds: between two tries.

    Yields:
      The lock, which is released when the block ends.
    """
    while True:
        try:
            lock = Lock(path)
            break
        except HeldError as error:
            if on_wait is not None:
                on_wait(str(error))
                on_wait = None
            time.sleep(seconds)
    with lock:
        yield lock


def remove_free(folder: pathlib.Path) -> None:
    """Removes the lock files whose holders are dead.

    Args:
      folder: where to look; not in folders inside it.
    """
    for path in folder.glob(f".*{LOCK}"):
        # To take it is the one sure way to learn that nobody holds it.
        with contextlib.suppress(HeldError):
            Lock(path).release()


def _open(path: pathlib.Path) -> int:
    """The file under the kernel's lock, still the one of that name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                held = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
                text = _describe(_read(descriptor))
                os.close(descriptor)
                raise (HeldError(text) if held else error) from error
        # Its last holder may have removed it between our two calls.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def _refuse_foreign(path: pathlib.Path, descriptor: int) -> None:
    """Refuses what a process of another machine holds, whose kernel's lock is not seen here."""
    owner = _read(descriptor)
    # On one kernel flock has decided already, also between containers: the file is left over from a dead holder.
    if not owner or (owner["kernel"] == files.kernel() and sys.platform != "win32"):
        return
    silent = _clock(path) - os.fstat(descriptor).st_mtime
    if silent < STALE_SECONDS:
        raise HeldError(
            f"{_describe(owner)}; its last sign of life is {max(silent, 0):.0f} s old, after {STALE_SECONDS} s it "
            "counts as dead"
        )


def _clock(path: pathlib.Path) -> float:
    """The present time of the file system of ``path``, whose clock may differ from this machine's."""
    probe = files.temporary_path(path)
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _read(descriptor: int) -> dict[str, Any]:
    """Who holds it; {} where nobody has signed (a holder that is about to, or one that the disk had no room for)."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return {name: owner[name] for name in ("host", "pid", "since", "kernel")}
    except (ValueError, KeyError, TypeError):
        return {}


def _write(descriptor: int) -> None:
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "kernel": files.kernel()}
    # In place: a new file of this name would be another one than that under the kernel's lock.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another run is at work here"
    return f"another run (host {owner['host']}, process {owner['pid']}, since {owner['since']}) is at work here"


def _renew(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):  # a server that is away for a while
            os.utime(descriptor)


def _release(path: pathlib.Path, descriptor: int, stop: threading.Event) -> None:
    stop.set()
    with contextlib.suppress(OSError):
        # Whoever took it from us (after long silence) keeps it.
        if os.path.samestat(os.stat(path), os.fstat(descriptor)) and _read(descriptor).get("pid") == os.getpid():
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.close(descriptor)
