"""What the fuzz tests share: damage to files, and a watch over what a reader does with them.

A reader may take a file or refuse it. It must do so in one line of its own words that name the file, within bounds of
time and memory, without writing anything that stays, and without running anything that the file names.
"""

import atexit
import collections
import contextlib
import functools
import json
import os
import pathlib
import resource
import signal
import stat
import sys
import tempfile
import tracemalloc

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from metadd_jax.job import errors

EXAMPLES = int(os.environ.get("METADD_FUZZ", "0"))
"""Cases of each reader in place of the default; docs/trust.md has the counts of a deep run."""
COUNTS: collections.Counter = collections.Counter()
SECONDS = 20  # of one reading; the slowest takes a few hundredths
MEGABYTES = 64  # that a reading may allocate beyond what a file of a few kilobytes needs
LETTERS = 1200  # of one line: some name two paths

# What no reader may do, whatever a file says: these names are those of Python's own audit events.
_FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.putenv",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "pty.spawn",
    "shutil.",
    "socket.connect",
    "socket.bind",
    "ctypes.dlopen",
    "builtins.input",
    "webbrowser.open",
    "code.__new__",
)
_watching: list["Watch"] = []


def cases(default):
    """Settings of a fuzz test: ``default`` cases, always the same ones, or METADD_FUZZ fresh ones."""
    return settings(
        max_examples=EXAMPLES or default,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # a shrunk case is shorter, and takes minutes
        suppress_health_check=list(HealthCheck),
    )


class Watch:
    """Notes what a reading does against the rules; ``scratch`` is the one folder in which it may write and remove."""

    def __init__(self, scratch):
        self.scratch, self.broken = str(scratch), []

    def see(self, event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            )
            if writes and not self._is_scratch(path):
                self.broken.append(f"opened {path!r} to write")
        elif event.startswith(_FORBIDDEN) and not any(map(self._is_scratch, arguments)):
            self.broken.append(f"{event} {arguments!r}"[:300])

    def _is_scratch(self, path):
        if isinstance(path, int):  # of a descriptor that was opened before, and judged then
            return True
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith((self.scratch, os.devnull))


def _audit(event, arguments):
    if _watching and not event.startswith(("import", "object.", "sys._getframe")):
        _watching[-1].see(event, arguments)


sys.addaudithook(_audit)  # stays for the process, and does nothing while nobody watches


def listing(folder):
    """Name, size and time of everything below a folder, and what links point to."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        facts = path.lstat()
        kept = (facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else ()
        found[str(path)] = (facts.st_mode, *kept, os.readlink(path) if path.is_symlink() else "")
    return found


def read(reader, function, place, *, root, megabytes=MEGABYTES, says=(), also=()):
    """Lets a reader have a file, and holds what it does against the rules.

    Args:
      reader: its name, under which the case is counted.
      function: the reader.
      place: the file or folder.
      root: the folder around it, where nothing may change.
      megabytes: that it may allocate.
      says: words of which one must stand in a refusal, beside the names of ``place`` and ``root``.
      also: types of errors that are in order beside ValueError and OSError.

    Returns:
      What the reader returned, or the error it raised, which was in order.
    """
    before = listing(root)
    scratch = _scratch()
    result = _watched(function, place, scratch, megabytes)
    assert not os.listdir(scratch), f"left {os.listdir(scratch)}"
    assert listing(root) == before, "changed what lay there"
    refused = isinstance(result, Exception)
    COUNTS[reader, "refused" if refused else "taken"] += 1
    if refused:
        require_line(result, names=(str(root), pathlib.Path(place).name, *says), also=also)
    return result


@functools.cache
def _scratch():
    """One folder for temporary files, empty after every reading."""
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    return made.name


def _watched(function, place, scratch, megabytes):
    watch = Watch(scratch)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    usual, tempfile.tempdir = tempfile.tempdir, scratch
    handler = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, 3 * SECONDS)  # of the clock: a machine may be busy
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    _watching.append(watch)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    try:
        result = function(place)
    except Exception as error:  # judged below
        result = error
    finally:
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
        _watching.pop()
        peak = (tracemalloc.get_traced_memory()[1] - held) / 1e6
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        tempfile.tempdir = usual
    # What C libraries allocate is not seen by Python: the largest size of the process tells.
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1e3
    said = f" ({type(result).__name__}: {result})"[:400]
    assert not watch.broken, f"{watch.broken}{said}"
    assert seconds < SECONDS, f"took {seconds:.1f} s{said}"
    assert peak < megabytes and grown < 4 * megabytes, f"took {peak:.0f} MB, {grown:.0f} MB resident{said}"
    return result


def _late(*_):
    raise AssertionError("no end of reading in sight")


def require_line(error, *, names, also=()):
    """Holds a refusal against the rule: one line of our own words, printable, not too long, naming what it is about."""
    line = errors.in_one_line(error)
    chain = f"{type(error).__name__}: {error!s:.500} -> {line!s:.500}"
    assert isinstance(error, (ValueError, OSError, *also)), chain
    # What nobody foresaw is told with the way to its traceback.
    assert "METADD_TRACEBACK" not in line, chain
    assert line.isprintable() and len(line) <= LETTERS, chain
    assert any(" ".join(name.split()) in line or repr(name)[1:-1] in line for name in names), chain


@contextlib.contextmanager
def counted():
    """Traces what a module's readers allocate; appends their counts to the file of METADD_FUZZ_COUNTS, if set."""
    COUNTS.clear()
    # Once for a module, and not for each reading: Python 3.11 dies where a reader's thread still frees memory while the
    # tracing of it stops (python/cpython#128679).
    tracemalloc.start(1)
    yield
    tracemalloc.stop()
    if place := os.environ.get("METADD_FUZZ_COUNTS"):
        with open(place, "a") as stream:
            for (reader, how), number in sorted(COUNTS.items()):
                stream.write(json.dumps({"reader": reader, "how": how, "cases": number}) + "\n")


# Damage. Positions are shares of the length, so that a case shrinks to a small one and fits any file.
_SHARE = st.floats(0, 1, allow_nan=False)
_EXTREMES = (b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", (2**40).to_bytes(8, "little"), b"\x7f" * 4)
WORDS = (
    b"../../../canary",
    b"/tmp/canary",
    b"a\nb",
    b"\x1b[31m",
    b"",
    b"9" * 30,
    b"(4000000000, 1000)",
    b"-1",
    b"|O",
    b"<f8",
    b"<U9",
    b"<M8[s]",
    b"|V5",
    b"nan",
    b"Infinity",
    b"null",
    b"[",
    b"{",
    b"\xc3\x28",
    b"True",
    b"1e400",
    b"(0,)",
    b"<c16",
)
_STEP = st.one_of(
    st.tuples(st.just("cut"), _SHARE),
    st.tuples(st.just("flip"), _SHARE, st.integers(0, 7)),
    st.tuples(
        st.just("write"), _SHARE, st.one_of(st.sampled_from(_EXTREMES + WORDS), st.binary(min_size=1, max_size=9))
    ),
    st.tuples(st.just("insert"), _SHARE, st.one_of(st.sampled_from(_EXTREMES + WORDS), st.binary(max_size=40))),
    st.tuples(st.just("drop"), _SHARE, st.integers(1, 200)),
    st.tuples(st.just("repeat"), _SHARE, st.integers(1, 200)),
    st.tuples(st.just("word"), st.integers(0, 40), st.sampled_from(WORDS)),
)
DAMAGE = st.lists(_STEP, min_size=1, max_size=4)
"""A few steps of damage, for ``damaged``."""
_TOKENS = (
    b"<f4",
    b"<i8",
    b"shape",
    b"descr",
    b"(",
    b")",
    b",",
    b"images",
    b"labels",
    b'"',
    b":",
    b"0",
    b"1",
    b"3",
    b"4",
    b"6",
)


def damaged(content, steps):
    """Does the damage of ``DAMAGE`` to bytes."""
    for kind, where, *rest in steps:
        if kind == "word":  # one of the words of a header becomes another
            token = _TOKENS[where % len(_TOKENS)]
            content = content.replace(token, rest[0], 1)
            continue
        at = min(int(where * (len(content) + 1)), len(content))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << rest[0])]) + content[at + 1 :]
        elif kind == "write":
            content = content[:at] + rest[0] + content[at + len(rest[0]) :]
        elif kind == "insert":
            content = content[:at] + rest[0] + content[at:]
        elif kind == "drop":
            content = content[:at] + content[at + rest[0] :]
        elif kind == "repeat":
            content = content[: at + rest[0]] + content[at:]
    return content


# All but NUL and the halves of pairs, by number: on a fresh machine Hypothesis takes half a minute to sort Unicode.
_LETTERS = st.one_of(st.integers(1, 0x7F), st.integers(0x80, 0xD7FF), st.integers(0xE000, 0x10FFFF)).map(chr)
NAMES = st.one_of(
    st.sampled_from(
        [
            "../../canary",
            "/tmp/canary",
            "a\nb.npy",
            "images.npy",
            "labels.npy",
            "images",
            "",
            ".",
            "..",
            "\x1b[2J",
            "a" * 300,
            "train/../../x.png",
            "con",
            "a/b",
            "\u202e.png",
            "images.npy.npy",
            "é.npy",
            "\ud800".encode("utf-8", "replace").decode(),
        ]
    ),
    st.lists(_LETTERS, max_size=12).map("".join),
)
"""Names of members of an archive: paths that lead out, line breaks, letters of a terminal's own."""

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 7),
    st.sampled_from([2**31, 2**63, 10**30, -1, 0]),
    st.sampled_from([0.5, -1.0, 1e308, float("nan"), float("inf")]),
    NAMES,
    st.sampled_from(["standardised", "zca", "test", "dm", "hard", "own", "convnet", "../../canary"]),
)
JSON = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=5,
)
"""Any value of JSON, with what hurts more often than chance would have it."""
EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["set", "drop", "add"]), JSON), min_size=1, max_size=3
)


def edited(value, edits):
    """A copy of a JSON value in which a few places hold something else, are gone, or have one more."""
    value = json.loads(json.dumps(value))
    for number, kind, new in edits:
        places = list(_places(value, []))
        way = places[number % len(places)]
        if not way:
            value = new if kind == "set" else value
            continue
        holder = value
        for step in way[:-1]:
            holder = holder[step]
        if kind == "set":
            holder[way[-1]] = new
        elif kind == "drop":
            del holder[way[-1]]
        elif isinstance(holder, list):
            holder.insert(way[-1], new)
        else:
            holder["added"] = new
    return value


BOTH = st.one_of(DAMAGE, EDITS)
"""Either, for ``changed``."""


def changed(whole, change):
    """JSON's text, damaged as bytes or as a value."""
    if isinstance(change[0][0], str):
        return damaged(whole, change)
    return json.dumps(edited(json.loads(whole), change)).encode()


def _places(value, way):
    yield way
    if isinstance(value, dict):
        for name in value:
            yield from _places(value[name], [*way, name])
    elif isinstance(value, list):
        for number in range(len(value)):
            yield from _places(value[number], [*way, number])
