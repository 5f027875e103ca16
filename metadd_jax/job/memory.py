"""The resident memory and the time that distilling takes, measured in a process of its own.

XLA's plan of a step misses what convolutions use beside it on a CPU, and the peak of a process that has done other work
before is that work's; so a fresh process distils a few chunks of one cell and reads the kernel's counters.
Its clock is read too: the chunks of a cell share the machine with whatever ran while the study was made.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

import metadd_jax as mdd
from metadd_jax import keys, parallel
from metadd_jax.distillers.run import compile_chunks
from metadd_jax.job import cells, common, distill, plan, plugins, prepare, stages

_STATUS, _RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
_MARK = "memory of a cell: "  # before the answer among what else a process prints
_TIMED = 3  # chunks: the median of three is not moved by one that something else held up


def measure(words: Sequence[str], seed: int) -> dict[str, Any]:
    """Distils a few chunks in a fresh process and gives their memory and time.

    Args:
      words: the options of ``metadd distill``, a preset's name first, as for ``distill.parsed``.
      seed: distillation seed.

    Returns:
      "peak_mib": the most that was resident while chunks after the first ran, data, networks and programs included;
      "idle_mib": what was resident before it; "seconds_a_step": median over the chunks after the first, which
      compiles. On an accelerator "device_mib" too, its allocator's peak.

    Raises:
      ValueError: if the process failed, with its last line.
    """
    call = [sys.executable, "-m", "metadd_jax.job.memory", str(seed), *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return dict(json.loads(line.removeprefix(_MARK)))
    said = (done.stderr or done.stdout).strip().splitlines()
    raise ValueError(f"the process that measures memory failed (status {done.returncode}): {said[-1] if said else ''}")


def can_measure() -> bool:
    """Whether this system's kernel tells a peak that can be set back (Linux)."""
    return _RESET.exists()


def _main(arguments: list[str]) -> None:
    seed, words = int(arguments[0]), arguments[1:]
    plugins.load(words)
    config = distill.parsed(words, "metadd study")
    common.open_cache(config.cache_dir)
    with tempfile.TemporaryDirectory() as folder:
        own = dataclasses.replace(config, distill_seeds=1, first_seed=config.first_seed + seed, run_dir=folder)
        job = plan.for_memory(prepare.open_job(own))
        every, tx = stages.all_methods(stages.prepare_latents(job), *cells.networks_of(job))
        print(_MARK + json.dumps(_measure(job, every[-1], tx)))
        if job.lock:
            job.lock.release()


def _measure(job: prepare.Job, method: mdd.distillers.Distiller, tx: Any) -> dict[str, float]:
    config = prepare.run_config(job.config)
    state = mdd.distillers.init_state(keys.root(job.config.first_seed, "distil"), method, tx, job.dataset)
    chunk = min(config.chunk, config.steps)
    steps = compile_chunks(method, tx, config)(chunk)
    arrays, frozen = job.dataset.train, method.frozen
    state, frozen, arrays = (parallel.replicate(tree, mode=config.device_mode) for tree in (state, frozen, arrays))
    # The first chunk compiles, which takes memory of its own that no later one takes.
    state, _ = jax.block_until_ready(steps(state, arrays, frozen))
    if sys.platform == "linux":
        # What the compiler gave back is kept by the allocator, and would count as resident.
        ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5")  # sets the peak back to what is resident now
    idle = _mib("VmRSS")
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(steps(state, arrays, frozen))
        seconds.append(time.perf_counter() - began)
    found = {
        "peak_mib": _mib("VmHWM"),
        "idle_mib": idle,
        "seconds_a_step": statistics.median(seconds) / chunk,
    }
    device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return found | ({"device_mib": device / 2**20} if device else {})


def _mib(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    if found is None:
        raise ValueError(f"{_STATUS} tells no {name}; measure without --memory")
    return int(found[1]) / 1024


if __name__ == "__main__":
    _main(sys.argv[1:])
