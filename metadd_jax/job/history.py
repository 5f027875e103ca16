"""What was started when in a run's folder, from where it went on, and how it ended: ``history.jsonl``, a line each."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from metadd_jax import storage
from metadd_jax.job import errors

FILE = "history.jsonl"


@dataclasses.dataclass
class End:
    """How a start ended, in words; whoever knows better than "finished" says so."""

    how: str = "finished"


@contextlib.contextmanager
def kept(directory: pathlib.Path, *, resumed: str = "") -> Iterator[End]:
    """Writes a line when the block begins and another when it ends, however it ends; a kill leaves the first alone.

    Args:
      directory: the folder of the run or study.
      resumed: of ``resumed``, "" for a new start.

    Yields:
      How it ends, where it ends without an error.
    """
    began = time.monotonic()
    number = _number()
    _append(directory, {"event": "start", "start": number, "command": command_line(), "resumed": resumed})
    end = End()
    try:
        yield end
    except KeyboardInterrupt:
        end.how = "interrupted by Ctrl-C"
        raise
    except Exception as error:
        end.how = f"error: {errors.in_one_line(error)}"
        raise
    except BaseException as error:
        end.how = str(error) or type(error).__name__
        raise
    finally:
        _append(
            directory, {"event": "end", "start": number, "how": end.how, "seconds": round(time.monotonic() - began, 1)}
        )


def command_line(*, without: tuple[str, ...] = ()) -> str:
    """Gives the command as the user typed it, to be pasted into a shell.

    Args:
      without: words to leave out, such as "--overwrite".
    """
    program = pathlib.Path(sys.argv[0])
    words = ["python", str(program)] if program.suffix == ".py" else [program.name]
    return shlex.join([*words, *(word for word in sys.argv[1:] if word not in without)])


def resumed(directory: pathlib.Path) -> str:
    """Says in a few words what an earlier start left to go on from; "" where there is nothing.

    Args:
      directory: the run's folder.
    """
    latest = {}
    for place in sorted(directory.glob("*/seed*/checkpoints")):
        step = storage.Checkpointer(place).latest()
        if step is not None:
            latest[place.parent] = step
    # A set is exported when its last step is done.
    done = [folder for folder in latest if (folder / "synthetic.npz").is_file()]
    parts = [f"{len(done)} distilled set(s)"] if done else []
    parts += [f"{_name(folder)} from step {step}" for folder, step in latest.items() if folder not in done]
    return ", ".join(parts)


def read(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the starts of a run, oldest first; lines that cannot be read are left out.

    Args:
      directory: the folder of the run or study.

    Returns:
      For each start ``time`` (ISO 8601, UTC), ``command``, ``resumed``, and ``how`` and ``seconds`` where it has ended.
    """
    starts: dict[Any, dict[str, Any]] = {}
    try:
        lines = (directory / FILE).read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            found = json.loads(line)
            if found["event"] == "start":
                starts[str(found["start"])] = found
            else:
                starts[str(found["start"])] |= {name: found[name] for name in ("how", "seconds")}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return list(starts.values())


def _number() -> str:
    """Names this start: host and process, and when; several may work in one study."""
    return f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"


def _name(folder: pathlib.Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _append(directory: pathlib.Path, facts: dict[str, Any]) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    # One write call of one whole line, so that several processes may write into one file.
    with contextlib.suppress(OSError), open(directory / FILE, "a") as stream:  # a diary costs no result
        stream.write(json.dumps({"time": now, **facts}) + "\n")
