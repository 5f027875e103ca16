"""The works of ``benchmark.py`` and the measurement of one of them, in the process that runs it."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark import STEPS, BenchmarkConfig

import metadd_jax as mdd
from metadd_jax import parallel
from metadd_jax.invariant import InvariantConfig


def measure(work: str, config: BenchmarkConfig) -> dict[str, Any]:
    """Compile time, times of repeated calls, FLOPs, memory of one work.

    Returns:
      compile_seconds (tracing and lowering included), seconds (one a repeat), median_seconds, flops (of a call, by
      XLA's count), forward_flops (of the forward pass alone; None for a step), temporary_bytes (XLA's plan; on a
      CPU it misses what convolutions use beside it), peak_resident_bytes (of the process).
    """
    if config.cache:
        parallel.cache_compilations(config.cache)
    data = _images(config)
    function, arguments, forward = (_step if work in STEPS else _auxiliary)(work, data, config)
    start = time.perf_counter()
    compiled = parallel.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(config.repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "work": work,
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "flops": _flops(compiled),
        "forward_flops": None if forward is None else _flops(parallel.jit(forward).lower(*arguments).compile()),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "peak_resident_bytes": peak,
    }


def _flops(compiled: Any) -> float:
    return float(compiled.cost_analysis()["flops"])


def _images(config: BenchmarkConfig) -> mdd.Dataset:
    """Noise of the right shape: what a step costs does not depend on what the images show."""
    rng = np.random.default_rng(0)
    per_class = max(config.batch_size, config.ipc)
    labels = np.repeat(np.arange(config.num_classes), per_class)
    images = rng.integers(0, 256, (len(labels), *config.image_shape), dtype=np.uint8)
    return mdd.data.from_arrays("noise", images, labels, images[::per_class], labels[::per_class])


def _network(spec: str, config: BenchmarkConfig) -> mdd.zoo.Architecture:
    return mdd.zoo.parse(spec, config.num_classes, config.image_shape)


def _frozen(spec: str, config: BenchmarkConfig) -> mdd.Auxiliary:
    net = _network(spec, config)
    return mdd.Auxiliary(variables=parallel.jit(net.init)(jax.random.key(0)), map_eps=jnp.float32(1e-3), net=net)


def _auxiliary(work: str, data: mdd.Dataset, config: BenchmarkConfig) -> tuple[Any, tuple, Any]:
    """One network's share: its cross-entropy and its map's squared norm, with the gradient to the images."""
    images, labels = mdd.data.random_per_class(jax.random.key(0), data.arrays, config.ipc)

    def value(images: jax.Array, auxiliary: mdd.Auxiliary) -> jax.Array:
        maps, logits = mdd.features.observe(auxiliary, images, labels)
        return mdd.invariant.cross_entropy(logits[None], labels).mean() + jnp.square(maps).mean()

    kept = jax.checkpoint(value) if config.checkpoint else value
    return jax.value_and_grad(kept), (images, _frozen(work, config)), value


def _step(work: str, data: mdd.Dataset, config: BenchmarkConfig) -> tuple[Any, tuple, None]:
    method = mdd.distillers.dm(
        _network(config.backbone, config), ipc=config.ipc, batch_size=config.batch_size, class_batch=config.class_batch
    )
    if work == "dm+metadd":
        auxiliaries = [_frozen(spec, config) for spec in config.auxiliaries]
        loss = InvariantConfig(checkpoint=config.checkpoint, weighting="raw")
        method = mdd.distillers.metadd(method, auxiliaries, config=loss)
    tx = optax.sgd(1.0, momentum=0.5)
    state = mdd.distillers.init_state(jax.random.key(0), method, tx, data)
    return mdd.distillers.make_update(method, tx), (state, mdd.data.to_device(data.arrays), method.frozen), None
