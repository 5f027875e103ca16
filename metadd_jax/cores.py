"""The cores of one CPU: independent work in threads, because one small operation after another leaves cores idle.

JAX and XLA release Python's lock while they compile and compute, so threads are enough, and every run gives the same
numbers whatever runs beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

_AHEAD = 2  # on two cores a third would only wait; on more, ``run_each`` fills them


def is_alone() -> bool:
    """Tells whether all work is that of one CPU device in one process."""
    return jax.default_backend() == "cpu" and len(jax.devices()) == 1


def ahead(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yields ``function(item)`` of every item, in order; on one CPU two are worked on at a time.

    One compiles while another is computed. Elsewhere, and under a JAX setting that holds in the caller's thread alone
    (such as ``with jax.debug_nans(True)``), it is one after the other.

    Args:
      function: of one item; it must not save anything through Orbax, which fails from two threads at once.
      items: what it is called with.
    """
    yield from _in_threads(function, items, _AHEAD) if is_alone() else map(function, items)


def _in_threads(function: Callable[[Any], Any], items: Sequence[Any], count: int) -> Iterator[Any]:
    pool = ThreadPoolExecutor(count)
    try:
        # What a ``with`` of JAX sets holds in its own thread alone.
        in_order = count < 2 or len(items) < 2 or pool.submit(_settings).result() != _settings()
        yield from map(function, items) if in_order else pool.map(function, items)
    finally:  # an error, or Ctrl-C, must not wait for what has begun
        pool.shutdown(wait=False, cancel_futures=True)


def _settings() -> list[Any]:
    return [getattr(jax.config, name, None) for name in jax.config.values]


def run_each(program: jax.stages.Compiled, arguments: Sequence[tuple], *, memory: int | None) -> list[Any]:
    """Calls a program with each of the given arguments, on as many threads as there are cores and memory for.

    Args:
      program: compiled for all of them.
      arguments: of the calls.
      memory: bytes of the machine, half of which may be taken; None if nobody knows: one call at a time.

    Returns:
      What the calls gave, in order, as NumPy arrays.
    """
    count = _thread_count(program, memory or 0)
    return list(_in_threads(lambda own: jax.device_get(program(*own)), arguments, count))


def _thread_count(program: jax.stages.Compiled, memory: int) -> int:
    """One a core, and no more than fit into half of the memory beside what ``ahead`` has begun."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    plan = program.memory_analysis()
    needed = plan.temp_size_in_bytes + plan.output_size_in_bytes if plan else 0
    fitting = memory // (2 * _AHEAD) // max(1, needed)
    return max(1, min(count, fitting))


def quick_options() -> dict[str, Any] | None:
    """Returns options with which a CPU's programs compile in 0.7 of the time and run as fast; None elsewhere.

    For what is compiled to run once: a whole training. Steps keep XLA's own, whose results are kept to the bit.
    """
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return None
    return {"xla_backend_optimization_level": 1}
