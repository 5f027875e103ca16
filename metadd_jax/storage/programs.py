"""Compiled programs in a folder of JAX's own, kept whole."""

from __future__ import annotations

import os
import pathlib
import zlib

import jax

from metadd_jax import files

_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how its frames begin; JAX packs so where the library is installed


def cache_compilations(folder: str | os.PathLike) -> None:
    """Keeps compiled programs in a folder, so that the next process compiles nothing that this one compiled.

    The folder may be moved or copied. Damaged programs are removed and compiled anew.

    Args:
      folder: the folder, of JAX's own files alone; made where it is absent.

    Raises:
      ValueError: if the folder cannot be made or written to.
    """
    folder = files.require_writable(folder)
    _remove_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # XLA's own caches put the folder's path into the key of every program: moved, none would be found.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    # JAX's own limits, a second of compiling and a least size, would leave out the small programs, which are many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_damaged(folder: pathlib.Path) -> None:
    """Deletes the programs that cannot be unpacked: JAX warns of each at every start and never writes it again.

    A killed process leaves a part of one. Those found whole are listed, so that the next start unpacks only new ones.
    """
    listing = folder / "checked.json"
    before = _read_listing(listing)
    whole = {}
    for path in folder.glob("*-cache"):
        try:
            facts = path.stat()
            # As the listing holds it: JSON gives a list back, and nanoseconds fit an integer of Python's.
            seen = [facts.st_size, facts.st_mtime_ns]
            if before.get(path.name) == seen or _unpacks(path.read_bytes()):
                whole[path.name] = seen
            else:
                path.unlink()
        except FileNotFoundError:  # another process found it first
            continue
    if whole != before:
        files.write_json(listing, whole)


def _read_listing(listing: pathlib.Path) -> dict[str, list[int]]:
    try:
        found = files.read_json(listing)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unpacks(packed: bytes) -> bool:
    """Whether JAX can unpack a program: its checksum is right, or it is packed in a way that is not known here."""
    if packed.startswith(_ZSTANDARD):
        return True
    try:
        zlib.decompress(packed)
    except zlib.error:
        return False
    return True
