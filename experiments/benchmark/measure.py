"""The measurement of one work of ``benchmark.py``, in the process that runs it."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

import elsewhere
import launches
import works
from metadd_jax import parallel, storage
from metadd_jax.job import flops
from settings import BenchmarkConfig

_PEAK_TRIES = 5


def measure(work: str, config: BenchmarkConfig) -> dict[str, Any]:
    """Compile time, times of repeated calls, FLOPs, memory of one work.

    Returns:
      compile_seconds (tracing and lowering included), seconds (one a repeat; of "scan:" the chunk's by its steps),
      median_seconds, images (of a call), flops (of a call, see ``flops.count``), xla_flops (by XLA, which counts a
      loop's body once), forward_flops (of an auxiliary's forward pass alone, else None), matmul_flops_per_second (of
      a square product), temporary_bytes (XLA's plan; on a CPU it misses what convolutions use beside it),
      peak_resident_bytes (of the process), peak_device_bytes (None on a CPU), scan_ratio (time inside a scan by time
      outside; None but for "scan:"), launches and moved_bytes (kernels of a call, and the bytes that they read and
      write, see ``launches``; of "scan:" of a step). For a device that is not there (``config.ways``) what has to run
      is None, and there are no seconds.
    """
    if config.cache:
        storage.cache_compilations(config.cache)
    device = elsewhere.DEVICES.get(config.ways)
    if device:
        jax.default_backend = lambda: device.backend  # this process measures one work and ends
    name = works.parse(work, config)
    built = works.build(name, config)
    if device:
        return {"work": work, **_elsewhere(name, built, config)}
    found = (_inside_a_scan if name.scanned else _alone)(name, built, config)
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    return {
        "work": work,
        **found,
        "median_seconds": statistics.median(found["seconds"]),
        "images": built.images,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_device_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        # What follows the peaks is not in them.
        "flops": flops.count(built.function, *built.arguments),
        "forward_flops": None if built.forward is None else flops.count(built.forward, *built.arguments),
        "matmul_flops_per_second": _matmul_peak(config.peak_side),
    }


def _alone(name: works.Name, built: works.Work, config: BenchmarkConfig) -> dict[str, Any]:
    compiled, compile_seconds = _compile(parallel.jit(built.function), built.arguments)
    call = _Caller(built.call or compiled, built)
    call()
    return {
        "compile_seconds": compile_seconds,
        "seconds": [call() for _ in range(config.repeats)],
        "scan_ratio": None,
        **_program(compiled),
    }


def _inside_a_scan(name: works.Name, built: works.Work, config: BenchmarkConfig) -> dict[str, Any]:
    """The very same steps one by one and in chunks, by turns."""
    chunk, steps = works.build(name, config), config.chunk  # its state is donated, so it has one of its own
    compiled, compile_seconds = _compile(
        parallel.compile_steps(lambda _: chunk.function, steps=steps, mode="jit"), chunk.arguments
    )
    inside, outside = (
        _Caller(compiled, chunk),
        _Caller(_compile(parallel.jit(built.function), built.arguments)[0], built),
    )
    pairs = [(inside(), sum(outside() for _ in range(steps))) for _ in range(config.repeats + 1)][1:]
    return {
        "compile_seconds": compile_seconds,
        "seconds": [within / steps for within, _ in pairs],
        "scan_ratio": statistics.median(within / without for within, without in pairs),
        **_program(compiled, steps=steps),
    }


def _elsewhere(name: works.Name, built: works.Work, config: BenchmarkConfig) -> dict[str, Any]:
    """What can be said of a program that is compiled for a device which is not there."""
    steps = config.chunk if name.scanned else 1
    if name.scanned:
        function: Any = parallel.compile_steps(lambda _: built.function, steps=steps, mode="jit")
    else:
        function = parallel.jit(built.function)
    compiled, compile_seconds = _compile(function, elsewhere.place(built.arguments, config.ways))
    ran = ("median_seconds", "matmul_flops_per_second", "peak_resident_bytes", "peak_device_bytes", "scan_ratio")
    return {
        **dict.fromkeys(ran),
        "compile_seconds": compile_seconds,
        "seconds": [],
        "images": built.images,
        "flops": flops.count(built.function, *built.arguments),
        "forward_flops": None,
        **_program(compiled, steps=steps),
        **({} if elsewhere.DEVICES[config.ways].is_counted else {"launches": None, "moved_bytes": None}),
    }


def _program(compiled: Any, *, steps: int = 1) -> dict[str, Any]:
    """What XLA says of a compiled program of so many steps."""
    costs, kernels = compiled.cost_analysis(), launches.kernels(compiled.as_text())
    return {
        "xla_flops": float(costs["flops"]) if costs else None,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "launches": round(sum(kernel.times for kernel in kernels) / steps),
        "moved_bytes": round(sum(kernel.times * kernel.moved for kernel in kernels) / steps),
    }


class _Caller:
    """Calls a compiled work and returns the seconds; a step goes on from the state that it left."""

    def __init__(self, compiled: Callable, work: works.Work) -> None:
        self._compiled, self._is_step = compiled, work.is_step
        self._first, *self._rest = work.arguments

    def __call__(self) -> float:
        start = time.perf_counter()
        out = jax.block_until_ready(self._compiled(self._first, *self._rest))
        seconds = time.perf_counter() - start
        if self._is_step:
            self._first = out[0]
        return seconds


def _compile(function: Any, arguments: tuple) -> tuple[Any, float]:
    # What made them (a calibration through four networks, say) is still being computed, on the cores that compile.
    jax.block_until_ready(arguments)
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def _matmul_peak(side: int) -> float:
    """FLOP/s of the product of two [side, side] float32 matrices at JAX's default precision, the best of several."""
    matrix = jax.random.normal(jax.random.key(0), (side, side))
    product = parallel.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(matrix, matrix))
    seconds = []
    for _ in range(_PEAK_TRIES):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)
