"""The host loop: chunks of compiled steps, metrics, checkpoints, resume.

Checkpoints stand on an absolute grid of chunks, so a run that was killed and started again executes the same compiled
chunks from the same states as one that was not, and ends in the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import keys, parallel, storage
from metadd_jax.data import sampling
from metadd_jax.distillers.condition import examine, refuse_meaningless
from metadd_jax.distillers.contract import Distiller, init_state, make_update
from metadd_jax.distillers.pulling import pulls
from metadd_jax.ranges import OneOf, Whole, check
from metadd_jax.structs import Dataset, DistillState, ImageArrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long and how a distillation runs.

    Attributes:
      steps: updates in all.
      chunk: updates per dispatch; the grid of metrics and checkpoints.
      save_every: a checkpoint after this many updates (rounded up to the grid) and at the end.
      device_mode: "auto", "jit", "pmap" or "sharded" (see ``parallel``).
      stream_per_class: images of each class in the fresh random pool that is sent to the device for each chunk, for
        sets larger than the device; None keeps all training images there.
    """

    steps: Annotated[int, Whole(1)]
    chunk: Annotated[int, Whole(1)] = 25
    save_every: Annotated[int, Whole(1)] = 100
    device_mode: Annotated[str, OneOf(parallel.MODES)] = "auto"
    stream_per_class: Annotated[int | None, Whole(1)] = None

    def __post_init__(self) -> None:
        check(self)


class NotFiniteError(ValueError):
    """A loss became NaN or infinite; the message says which, when, and where the last good state is."""


def compile_chunks(
    method: Distiller, tx: optax.GradientTransformation, config: RunConfig
) -> Callable[[int], Callable[..., tuple[DistillState, dict]]]:
    """Prepares compiled chunks; share them between the seeds of one method, so that only the first one compiles.

    Args:
      method: what is run.
      tx: what updates the set.
      config: of it only ``device_mode``.

    Returns:
      ``chunk_of(length)``, the run of that many steps, compiled when a length is first asked for.
    """
    compiled: dict[int, Any] = {}

    def chunk_of(length: int) -> Callable[..., tuple[DistillState, dict]]:
        if length not in compiled:
            compiled[length] = parallel.compile_steps(
                lambda axis_name: make_update(method, tx, axis_name=axis_name),
                steps=length,
                mode=config.device_mode,
            )
        return compiled[length]

    return chunk_of


def distil(
    seed: int,
    method: Distiller,
    tx: optax.GradientTransformation,
    dataset: Dataset,
    config: RunConfig,
    *,
    directory: str | pathlib.Path | None = None,
    chunk_of: Callable[[int], Callable] | None = None,
    on_chunk: Callable[[int, dict[str, float]], None] | None = None,
    saves_now: Callable[[], bool] | None = None,
) -> DistillState:
    """Distils one set, going on from ``directory/checkpoints`` if a run was interrupted there.

    Where several processes distil together, all of them call this with the same arguments and one shared
    ``directory``; the first writes the metrics, and ``on_chunk`` is called on each.

    Args:
      seed: decides everything random in this run; 0 to 2^32 - 1.
      method: what is run.
      tx: what updates the set.
      dataset: the real data; on the host where ``config.stream_per_class`` sends it in pools.
      config: how long and how.
      directory: where ``checkpoints/`` and ``metrics.jsonl`` go; None keeps nothing.
      chunk_of: from ``compile_chunks``, to share compiled steps between seeds.
      on_chunk: called with the steps done and the chunk's mean metrics (for a progress bar), after its checkpoint.
      saves_now: asked behind each chunk: whether to save a checkpoint there too, as before an end that comes early. All
        processes must answer alike.

    Warns where the set or its metrics look wrong at the end (see ``condition.Condition.warnings``).

    Returns:
      The last state, on the first device of this process.

    Raises:
      NotFiniteError: if a metric or the state stops being finite: the last good checkpoint stays, and none is made of
        what is not.
      MeaninglessError: if nothing can come of the set any more (see ``condition.refuse_meaningless``), likewise.
      ValueError: if a checkpoint is damaged or belongs to another run, or if processes start from different things.
    """
    chunk_of = chunk_of or compile_chunks(method, tx, config)
    place = functools.partial(parallel.replicate, mode=config.device_mode)
    # The whole set may not fit on the device, so even the initial images come from a pool.
    first = dataclasses.replace(dataset, train=_pool(dataset.train, seed, 0, config))
    state = init_state(keys.root(seed, "distil"), method, tx, first)
    checkpoints = None if directory is None else storage.Checkpointer(pathlib.Path(directory) / "checkpoints")
    log: storage.JsonLines | storage.NoMetrics = storage.NoMetrics()
    if directory is not None and parallel.is_main():
        log = storage.JsonLines(pathlib.Path(directory) / "metrics.jsonl")
    done = 0 if checkpoints is None else checkpoints.latest() or 0
    parallel.require_agreement((state, method.frozen), text=f"{dataset.fingerprint} {done}")
    if checkpoints is not None and done:
        state = checkpoints.restore(done, state)
    state, frozen = place(state), place(method.frozen)
    arrays = dataset.train if config.stream_per_class else place(dataset.train)
    _require_finite(state, done, checkpoints)
    log.truncate_after(done or -1)  # what a run that never saved wrote at its start is written again
    _say_lost_lines(log, done)
    if on_chunk and done:
        on_chunk(done, {})
    if not done and (facts := _pulls(seed, method, state, dataset.train, config)):
        log.write(0, facts)
    lines: list[dict[str, float]] = []
    for start, length, data in _chunks(done, seed, arrays, config):
        state, metrics = chunk_of(length)(state, data, frozen)
        done = start + length
        means = _finite_means(jax.device_get(metrics), start, checkpoints)
        _require_finite(state, done, checkpoints)
        synthetic, is_last = method.synthetic(parallel.local(state)), done == config.steps
        # A set that is chosen and not trained has no gradient to die.
        norm = means["gradient_norm"] if method.trains else np.inf
        refuse_meaningless(
            synthetic, dataset, norm, done=done, is_last=is_last, taken=means.get("kept", 1.0),
            kept=_kept(checkpoints),
        )  # fmt: skip
        facts = {f"distill/{name}": value for name, value in means.items()}
        if done == config.steps:
            facts |= _pulls(seed, method, state, dataset.train, config)
        log.write(done, facts)
        lines.append(facts)
        wanted = saves_now is not None and saves_now()
        if checkpoints is not None and (is_last or wanted or _crosses(start, done, config.save_every)):
            checkpoints.save(done, state)
        if on_chunk:
            on_chunk(done, means)
    state = parallel.local(state)
    lines = log.read() if isinstance(log, storage.JsonLines) else lines
    found = examine(method.synthetic(state), dataset, lines)
    for text in found.warnings() if found else []:
        warnings.warn(f"{method.name}, seed {seed}: {text}", stacklevel=2)
    return state


def _chunks(done: int, seed: int, arrays: ImageArrays, config: RunConfig) -> Iterator[tuple[int, int, ImageArrays]]:
    """(first step, length, data) of the chunks still to do; a larger ``steps`` may go on from a finished run."""
    for start in range(done, config.steps, config.chunk):
        length = min(config.chunk, config.steps - start)
        yield start, length, _pool(arrays, seed, start // config.chunk, config)


def _pool(arrays: ImageArrays, seed: int, number: int, config: RunConfig) -> ImageArrays:
    """The training images of one chunk: all of them, or those that are streamed to the device for it."""
    if not config.stream_per_class:
        return arrays
    return sampling.stream_pool(arrays, seed, number, config.stream_per_class)


def _pulls(seed: int, method: Distiller, state: DistillState, arrays: ImageArrays, config: RunConfig) -> dict:
    if method.terms is None or not parallel.is_main():
        return {}
    # On one device, whatever the steps run on; a set that is streamed gives its first pool.
    synthetic, aux = parallel.local((state.synthetic, state.aux))
    state = dataclasses.replace(state, synthetic=synthetic, aux=aux)
    facts = pulls(keys.root(seed, "report"), method, state, _pool(arrays, seed, 0, config))
    return {f"report/{name}": float(value) for name, value in facts.items()}


def _require_finite(state: DistillState, done: int, checkpoints: storage.Checkpointer | None) -> None:
    """Refuses a state that is not finite: images can break while every metric of the steps before is a number."""
    parts = {"synthetic": state.synthetic, "optimiser": state.opt_state, "aux": state.aux}
    named = jax.tree_util.tree_leaves_with_path(parallel.local(parts))
    floats = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in named
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    bad = [name for name, finite in jax.device_get(_finite(floats)).items() if not finite]
    if bad and not done:
        raise NotFiniteError(f"{bad[0]} is not finite at the start; look at the images and settings it is made of")
    if bad:
        raise NotFiniteError(
            f"{bad[0]} is not finite after step {done}{_kept(checkpoints)}; lower the image learning rate"
        )


_finite = parallel.jit(lambda leaves: {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()})


def _kept(checkpoints: storage.Checkpointer | None) -> str:
    if checkpoints is None or checkpoints.latest() is None:
        return ""
    return f"; the last good state is kept in {checkpoints.directory}"


def _say_lost_lines(log: storage.JsonLines | storage.NoMetrics, done: int) -> None:
    """Says where a metrics file is shorter than the run; the set does not depend on it."""
    if isinstance(log, storage.NoMetrics):
        return
    last = max((line["step"] for line in log.read()), default=0)
    if last < done:
        logging.getLogger(__name__).warning(
            "%s was cut: it ends at step %d, the checkpoint is of step %d; the metrics between are lost, no more",
            log.path, last, done,
        )  # fmt: skip


def _crosses(start: int, done: int, every: int) -> bool:
    return start // every != done // every


def _finite_means(
    metrics: dict[str, np.ndarray], start: int, checkpoints: storage.Checkpointer | None
) -> dict[str, float]:
    for name in sorted(metrics, key=lambda name: name == "loss"):  # the term that broke before the sum that it broke
        bad = np.flatnonzero(~np.isfinite(metrics[name]))
        if bad.size:
            raise NotFiniteError(
                f"{name} is {metrics[name][bad[0]]} at step {start + int(bad[0])}{_kept(checkpoints)}; lower the image "
                "learning rate or the weight of that term"
            )
    return {name: float(np.mean(values)) for name, values in metrics.items()}
