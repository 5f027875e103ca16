"""Files on the host: whole-or-absent writes, content hashes, and the checks made before long work starts.

What is being written stands beside its place under a hidden name that says who writes it: machine, process and a random
part. So two runs never meet in one name, and what a killed process left is known for what it is and removed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
import tokenize
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

# What another machine or container was writing counts as left behind when nothing was added to it for so long.
_FOREIGN_SECONDS = 24 * 3600
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_LEAST = 1 << 14  # bytes free, below which a disk counts as full: the last pages cannot be used
# .NAME-metadd.MACHINE.PROCESS.START.RANDOM and the suffix of NAME once more, by which some writers choose a format.
_TEMPORARY = re.compile(r"\..*-metadd\.(?P<machine>[0-9a-f]{8})\.(?P<pid>\d+)\.(?P<start>\d+)\.[0-9a-f]{8}(\.[^.]*)?")


@functools.cache
def kernel() -> str:
    """Names the running kernel, the same in all containers on it: by its boot's number, else by the host's name."""
    # Not by the host's name where it can be helped: containers have names of their own, and clones the same one.
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@functools.cache
def _machine() -> str:
    """Where process numbers mean the same as here (8 hex digits): one kernel and one container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{kernel()} {space}".encode()).hexdigest()[:8]


def _start_of(pid: int) -> int:
    """When a process started, in the kernel's ticks (a number is given again to later processes); 0 if unknown."""
    try:
        # Field 22 of proc(5), counted from behind field 2: that is the program's name in parentheses and may hold
        # anything, spaces and parentheses too.
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _runs(pid: int, start: int) -> bool:
    """Whether the process of this machine that started then is still there."""
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it lives, as another user's
    now = _start_of(pid)
    return not (start and now) or start == now


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Names a hidden sibling for this process to write: renaming it gives a whole file.

    Args:
      path: the file or folder in the making.

    Returns:
      A path in the same folder, of a name that is given once.
    """
    pid = os.getpid()
    owner = f"metadd.{_machine()}.{pid}.{_start_of(pid)}.{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}-{owner}{path.suffix}")


def is_temporary(path: pathlib.Path) -> bool:
    """Tells whether ``path`` was named by ``temporary_path``."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_left_behind(path: pathlib.Path) -> bool:
    """Tells whether ``path`` is a temporary one whose process is gone; of another machine: untouched for a day."""
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    if found["machine"] == _machine():
        return not _runs(int(found["pid"]), int(found["start"]))
    try:
        return time.time() - _last_change(path) > _FOREIGN_SECONDS
    except OSError:
        return False  # its writer has just finished


def _last_change(path: pathlib.Path) -> float:
    return max(item.lstat().st_mtime for item in (path, *path.rglob("*")))


def discard(path: pathlib.Path) -> None:
    """Deletes ``path``, a file, a link or a whole folder, if it is there."""
    # Of a link only the link: what it points to is not ours.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_left_behind(folder: pathlib.Path, *, pattern: str = "*") -> None:
    """Deletes what killed processes were writing.

    Args:
      folder: where to look; not in folders inside it.
      pattern: which names were being written, as ``glob`` reads it.
    """
    for path in folder.glob(f".{pattern}-metadd.*"):
        if is_left_behind(path):
            discard(path)


@contextlib.contextmanager
def full_disk_as_such(path: str | os.PathLike) -> Iterator[None]:
    """Gives the error of a disk that took no more its place and the system's own words, whoever was writing.

    Python's own tells no file where writing fails, and libraries in other languages have errors of their own.

    Args:
      path: what the block writes.

    Raises:
      OSError: with ``path``, for a disk that is full; whatever else the block raises.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None and error.errno in _OF_A_DISK:
                error.filename = os.fspath(path)
            raise
        if os.strerror(errno.ENOSPC) not in str(error) and not _is_full(pathlib.Path(path)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from error


def _is_full(path: pathlib.Path) -> bool:
    """Whether nothing more can be written beside ``path``."""
    parent = next((one for one in path.absolute().parents if one.is_dir()), None)
    return parent is not None and shutil.disk_usage(parent).free < _LEAST


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a block a file to write that takes the place of ``path`` only when the block ends without an error.

    Args:
      path: the file; its folder is made.

    Yields:
      An empty file beside it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_behind(path.parent, pattern=glob.escape(path.name))
    temporary = temporary_path(path)
    try:
        with full_disk_as_such(path):
            temporary.touch(exist_ok=False)
            yield temporary
            os.chmod(temporary, 0o644)  # some writers make files that only their owner may read
            # One step, also where ``path`` is there: a reader sees the old file or the new one.
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` so that ``path`` holds all of it or what it held before."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` to ``path`` as indented JSON, whole or not at all.

    Args:
      path: the file.
      value: JSON's own kinds, arrays (written as lists) and paths (as text).
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=False, default=_plain) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON; a damaged file is refused by name.

    Raises:
      ValueError: if the file is not valid JSON, or a pipe or a device, of which there may be no end.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file; move it away or restore it")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # RecursionError: nested deeper than Python reads
        raise ValueError(f"{path} is not readable JSON ({error}); move it away or restore it") from error


def plain(value: Any) -> Any:
    """Brings ``value`` to what JSON gives back: dictionaries, lists, numbers and text.

    So a record just made compares equal to the same one read from a file, where a tuple has become a list.
    """
    return json.loads(json.dumps(value, default=_plain))


def hash_arrays(*arrays: Any, text: str = "") -> str:
    """Hashes arrays: SHA-256 (hex) over ``text``, and over type, shape and bytes of each of ``arrays``."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        plain = np.ascontiguousarray(array)
        # Type and shape too: zeros of every type, and [2, 3] and [3, 2], have the same bytes.
        digest.update(f"{plain.dtype.str}{plain.shape}".encode())
        digest.update(plain.tobytes())
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Hashes a JSON ``value``: SHA-256 (hex), whatever the order of its names."""
    return hash_arrays(text=json.dumps(value, sort_keys=True))


def hash_file(path: str | os.PathLike) -> str:
    """Hashes the bytes of the file at ``path``: SHA-256 (hex)."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Bounded(io.BufferedReader):
    """A file that never makes room for more than it holds, whatever length its own content asks for.

    Args:
      path: the file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))
        self._length = os.path.getsize(path)

    def read(self, size: int | None = -1) -> bytes:
        """Reads ``size`` bytes, or as many as are left; all of them where it is negative or None."""
        left = max(self._length - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def for_torch(path: str | os.PathLike) -> Iterator[str | os.PathLike | IO[bytes]]:
    """Gives a block what it may hand to ``torch.load`` in place of ``path``, so that no claim of the file makes room.

    Args:
      path: the file. An archive is given by name, which PyTorch then maps into memory; a file from before its archives
        is read as it says itself, and so as a stream that ends where the file does.
    """
    with _Bounded(path) as held:
        yield path if held.peek(2)[:2] == b"PK" else held


def reason(error: BaseException) -> str:
    """Says in one line of at most 200 characters what a library's error says; of one without words its type."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"


def array_head(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the shape and type that the head of a .npy claims, before anybody makes room for them.

    Args:
      stream: bytes at the start of a .npy; they then stand at its numbers.

    Raises:
      ValueError: if there is no such head.
    """
    version = np.lib.format.read_magic(stream)
    # Version 3.0 is laid out as 2.0, but for names of fields, which no array here has.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except tokenize.TokenError as error:  # NumPy reads a head as Python text
        raise ValueError(f"no head of an array ({error})") from error
    return shape, dtype


def memory() -> int | None:
    """Asks for the bytes of this machine's memory; None where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def require_space(directory: str | os.PathLike, size: float) -> None:
    """Proves that there is room on the disk.

    Args:
      directory: where it is needed; it need not exist yet.
      size: bytes.

    Raises:
      ValueError: with both numbers.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    # Another process may make it, or not have made it yet; each of several must find the same.
    free = shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.is_dir())).free
    if free < size:
        raise ValueError(
            f"{directory} has {free / 1e6:,.1f} MB free and needs about {size / 1e6:,.1f} MB; free some space there or "
            "choose another folder"
        )


def require_writable(directory: str | os.PathLike) -> pathlib.Path:
    """Makes a folder and proves that a file can be written there, before long work begins.

    Args:
      directory: the folder; parents are made too.

    Returns:
      Its absolute path.

    Raises:
      ValueError: if it cannot be made or written to.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_left_behind(directory, pattern="probe")
        probe = temporary_path(directory / "probe")
        try:
            probe.write_bytes(bytes(1 << 16))  # a full disk still makes empty files
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write in {directory} ({error.strerror}); choose another folder") from error
    return directory


def _plain(value: Any) -> Any:
    # By tolist: JAX's arrays, which are not named here, so that this file needs no JAX.
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "tolist"):
        return np.asarray(value).tolist()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
