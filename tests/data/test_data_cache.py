"""The content of files as a key: every byte of small sets, size, time and spread blocks of large ones."""

import hashlib
import os

import numpy as np
import pytest

from metadd_jax import provenance
from metadd_jax.data import cache


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / name for name in ("a", "b")]
    for path in found:
        path.write_bytes(bytes(5000))
        os.utime(path, ns=(1, 1))
    return found


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # as cp -p leaves it


def test_every_byte_of_a_small_set_counts_and_times_do_not(tmp_path, paths):
    first = cache.content(tmp_path, paths)
    os.utime(paths[0], ns=(9, 9))
    assert cache.content(tmp_path, paths) == first
    flip(paths[1], 3333)
    assert cache.content(tmp_path, paths) != first
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    lines = "".join(f"{path.name}\0{digest}\n" for path, digest in zip(paths, digests, strict=True))
    assert cache.content(tmp_path, paths) == hashlib.sha256(lines.encode()).hexdigest()


def test_of_a_large_set_size_time_and_blocks_count(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(cache, "_WHOLE", 9999)
    monkeypatch.setattr(cache, "_BLOCKS", 4)  # at 0 and 2500 of each file
    monkeypatch.setattr(cache, "_BLOCK", 10)
    first = cache.content(tmp_path, paths)
    flip(paths[1], 2505)
    assert cache.content(tmp_path, paths) != first
    flip(paths[1], 2505)
    flip(paths[1], 3333)
    assert cache.content(tmp_path, paths) == first  # as docs/caches.md warns
    os.utime(paths[1], ns=(2, 2))
    assert cache.content(tmp_path, paths) != first


def test_a_new_reader_decodes_anew(tmp_path, monkeypatch):
    asked = []
    raw = cache.RawSet(*[np.arange(2)] * 4, np.array(["a", "b"]))
    for sources in ("one", "one", "two"):
        monkeypatch.setattr(provenance, "sources", lambda *places, now=sources: now)
        cache.cached(tmp_path, "own", {}, lambda now=sources: asked.append(now) or raw)
    assert asked == ["one", "two"]
