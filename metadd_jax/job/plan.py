"""What a job will take, told before any work: FLOPs by formula, memory by component, time from a short calibration.

The formulas stand in docs/scaling.md. Weights are random here: what a step costs does not depend on what they know.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import numpy as np

import metadd_jax as mdd
from metadd_jax import parallel
from metadd_jax.distillers.parameterisation import per_stored
from metadd_jax.job import backbones, recipes
from metadd_jax.job.flops import count as count_flops
from metadd_jax.job.prepare import Job, make, settings, stand_ins, wrapped
from metadd_jax.training import together

# Steps that are timed; the first call, which compiles and warms up, is not among them.
CALIBRATION_STEPS = 3
_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that takes memory, and the option that makes it smaller."""

    name: str
    size: float  # bytes on one device
    knob: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one distillation (bare or under MetaDD) takes.

    Attributes:
      method: name of the set.
      flops: of one step, by formula.
      seconds: of one step, measured.
      parts: what lies on the device.
    """

    method: str
    flops: float
    seconds: float
    parts: tuple[Part, ...]

    @property
    def memory(self) -> float:
        """Bytes on one device, all parts together."""
        return sum(part.size for part in self.parts)


def estimate(job: Job) -> tuple[list[Plan], dict[str, float]]:
    """Measures every distillation of the job; and the hours of its stages.

    Raises:
      ValueError: if it cannot fit, naming the option that makes the largest part smaller.
    """
    raw = dataclasses.replace(job.config.metadd, weighting="raw")  # calibration is no part of a step
    asked = dataclasses.replace(job, config=dataclasses.replace(job.config, metadd=raw))
    job = _unfitted(asked)
    variables = {net.label: _random(net) for net in job.networks}
    base, tx = make(job, job.own.stand_in(job.backbone, variables[job.backbone.label]))
    every = wrapped(job, base, stand_ins(job, variables))
    of_each = [None, *settings(job.config).values()]
    plans = [_measure(job, method, tx, setting) for method, setting in zip(every, of_each, strict=True)]
    refuse_what_cannot_fit(plans)
    return plans, _stages(asked, plans)


def for_memory(job: Job) -> Job:
    """The job, with what of the method's settings the machine's memory decides.

    XLA's plan of a step tells what one takes. On a CPU more memory is of no use: one class fills its cores.
    """

    def scratch(own: mdd.distillers.Method) -> float:
        asked = _unfitted(dataclasses.replace(job, config=dataclasses.replace(job.config, own=own)))
        method, tx = make(asked, own.stand_in(job.backbone, _random(job.backbone)))
        return _compile(asked, method, tx)[0].memory_analysis().temp_size_in_bytes

    limit = None if jax.default_backend() == "cpu" else parallel.memory_limit()
    own = job.config.own.for_memory(scratch, limit, job.dataset.num_classes)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, own=own))


def _unfitted(job: Job) -> Job:
    """The job whose latents start at once: what a step costs does not depend on what they show."""
    return dataclasses.replace(job, parameterisation=getattr(job.parameterisation, "unfitted", job.parameterisation))


def _compile(job: Job, method: mdd.distillers.Distiller, tx: Any) -> tuple[Any, tuple]:
    """A compiled update, and what it is called with."""
    state = mdd.distillers.init_state(jax.random.key(0), method, tx, job.dataset)
    arguments = (state, job.dataset.train, method.frozen)
    return parallel.jit(mdd.distillers.make_update(method, tx)).lower(*arguments).compile(), arguments


def _random(net: mdd.zoo.Architecture) -> Any:
    return net.init(jax.random.key(0))


def _measure_choice(job: Job, method: mdd.distillers.Distiller, tx: Any) -> Plan:
    """A method that trains nothing: its start is the work, which is told from a few forward passes of the backbone."""
    batch, flops = 32, step_flops(job, None)
    variables, images = _random(job.backbone), jax.numpy.zeros((batch, *job.backbone.image_shape))
    forward = parallel.jit(job.backbone.apply)
    jax.block_until_ready(forward(variables, images))
    start = time.perf_counter()
    for _ in range(CALIBRATION_STEPS):
        jax.block_until_ready(forward(variables, images))
    seconds = (time.perf_counter() - start) / CALIBRATION_STEPS * flops / (batch * forward_flops(job.backbone))
    # Of shapes alone: to choose images for a plan would take as long as the job.
    state = jax.eval_shape(lambda: mdd.distillers.init_state(jax.random.key(0), method, tx, job.dataset))
    return Plan(method.name, flops, seconds, _parts(job, method, state, 0.0, wrapped=False))


def _needs(setting: mdd.invariant.InvariantConfig) -> set[str]:
    """What the terms ask for beside what all networks see, "focus" for a look at the plain images, "further"."""
    asked = {need for term in setting.terms.values() for need in term.needs or ()}
    return asked | ({"focus"} if setting.focus else set()) | ({"further"} if setting.further_lr else set())


def _measure(
    job: Job, method: mdd.distillers.Distiller, tx: Any, setting: mdd.invariant.InvariantConfig | None
) -> Plan:
    if not method.trains:
        return _measure_choice(job, method, tx)
    compiled, (state, *rest) = _compile(job, method, tx)
    # JAX returns before the device is done, so every timing waits for its result.
    jax.block_until_ready(compiled(state, *rest))
    start = time.perf_counter()
    for _ in range(CALIBRATION_STEPS):
        state, _ = jax.block_until_ready(compiled(state, *rest))
    seconds = (time.perf_counter() - start) / CALIBRATION_STEPS
    scratch = compiled.memory_analysis().temp_size_in_bytes
    parts = _parts(job, method, state, scratch, wrapped=setting is not None)
    return Plan(method.name, step_flops(job, setting), seconds, parts)


def _parts(
    job: Job, method: mdd.distillers.Distiller, state: Any, scratch: float, *, wrapped: bool
) -> tuple[Part, ...]:
    own = job.config.own
    scratch_knobs = [job.config.option(f"own.{name}") for name in own.scratch_fields]
    scratch_knobs += ["--metadd.subset", "--metadd.micro-batch"] if wrapped else []
    frozen_knobs = [job.config.option(f"own.{name}") for name in own.frozen_fields] or ["--seen"]
    return (
        Part("real images", _size(job.dataset.train), "--stream-per-class"),
        # Once more the set: its gradient is as large (docs/scaling.md).
        Part("set and optimiser", _size(state) + _size(state.synthetic), "--ipc"),
        # Where many are alike, a few of them stood in.
        Part("frozen weights", _size(method.frozen) + own.given_size(job.backbone), " or ".join(frozen_knobs)),
        Part("scratch of a step", scratch, " or ".join(scratch_knobs) or "--ipc"),
    )


def _size(tree: Any) -> float:
    # Without dtype.itemsize of PRNG keys, which are a few words.
    return float(sum(leaf.size * getattr(leaf.dtype, "itemsize", 8) for leaf in jax.tree.leaves(tree)))


@functools.lru_cache
def forward_flops(net: mdd.zoo.Architecture) -> float:
    """FLOPs of the forward pass of one image: its products and convolutions, however they are computed here."""
    variables = jax.eval_shape(net.init, jax.random.key(0))
    return count_flops(net.apply, variables, jax.ShapeDtypeStruct((1, *net.image_shape), np.float32))


def decode_flops(job: Job) -> float:
    """FLOPs of making the set's images once of what is stored; 0 for pixels."""
    if not job.packs:
        return 0.0
    made, stored = job.parameterisation, sum(job.counts) // per_stored(job.parameterisation)
    images = jax.ShapeDtypeStruct((sum(job.counts), *job.dataset.image_shape), np.float32)
    labels = [np.zeros(stored, np.int32)] if getattr(made, "takes_labels", False) else []
    latents = jax.eval_shape(lambda x: made.init(jax.random.key(0), x, *labels), images)
    # By XLA, since the sines of a small SIREN are most of its work, and products alone would leave them out.
    # Of one item, since XLA counts a loop over many of them once; where the latents are not item by item, of all.
    if all(leaf.shape[:1] == (stored,) for leaf in jax.tree.leaves(latents)):
        latents = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), latents)
    else:
        stored = 1
    cost: Any = parallel.jit(made.decode).lower(latents, made.frozen).cost_analysis()
    return stored * float(cost["flops"])


def step_flops(job: Job, setting: mdd.invariant.InvariantConfig | None) -> float:
    """Counts the FLOPs of one update, by the method's formula and, under MetaDD, that of docs/scaling.md for its terms.

    Args:
      job: the job.
      setting: of the invariant loss around the method (one of ``settings``), or None for the method alone.
    """
    counts = job.counts

    def passed(net: mdd.zoo.Architecture) -> float:
        return sum(times * forward_flops(one) for one, times in job.config.own.passes(net))

    own = job.config.own.flops(backbones.forward_flops(job.drawn, passed), counts)
    own += job.config.own.extra_flops(job.backbone, counts)
    # 4: the images are decoded, decoded again on the way back, and a backward pass counts as two. MetaDD's terms do the
    # same with images of their own.
    own += 4 * (2 if setting else 1) * decode_flops(job)
    if setting is None:
        return own
    needs = _needs(setting)
    seen = min(setting.subset or sum(counts), sum(counts))
    # 3 for cross-entropy and map, 1 for the map's second order (docs/scaling.md).
    looking = [net for net, _ in job.looked_through.values()]
    share = (setting.drawn or len(looking)) / max(len(looking), 1)
    # Untrained twins look as the networks do; for a focus all pass the plain images first; trained further, they learn.
    passes = 4 * (1 + ("untrained" in needs)) * seen * share + ("focus" in needs) * sum(counts)
    passes += 3 * seen * ("further" in needs)
    return own + passes * sum(map(forward_flops, looking))


def judge_flops(job: Job) -> float:
    """Counts the FLOPs of judging one set: of all trainings on it, and of the networks that teach in them."""
    config = job.config
    images = sum(job.stored_counts if config.eval_same_compute else job.counts)
    # A training step is a forward pass and a backward pass, which counts as two.
    trained = 3 * sum(forward_flops(net) for net in job.networks)
    # Beside each judged network its guide passes, forwards alone; the guide itself trains as the backbone's row.
    guides = forward_flops(job.backbone) * (len(job.networks) - 1) if config.eval_kd else 0.0
    # Who labels sees every batch that a judged network sees, and passes it once.
    labelling = sum(forward_flops(net) for net in _label_teachers(job)) * len(job.networks)
    return config.train_seeds * config.eval_epochs * images * (trained + guides + labelling)


def _stages(job: Job, plans: list[Plan]) -> dict[str, float]:
    """Hours of each stage; training is estimated from the rate at which the slowest measured step computes."""
    config = job.config
    # The slowest, so that the estimate errs to the long side.
    rate = min(entry.flops / entry.seconds for entry in plans)
    real, images = len(job.dataset.train.images), sum(job.counts)
    sets = (len(job.real_rows) + len(plans)) * config.distill_seeds
    # A training step is a forward pass and a backward pass, which counts as two.
    trained = 3 * sum(forward_flops(net) for net in {net.label: net for net in (*job.networks, *job.teachers)}.values())
    stages = {
        "pretrain": config.pretrain_epochs * real * trained / rate,
        "distil": sum(entry.seconds for entry in plans) * config.steps * config.distill_seeds,
        "judge": sets * judge_flops(job) / rate,
    }
    prepared = config.own.prepare_flops(forward_flops(job.backbone), real)
    of_latents = getattr(job.parameterisation, "prepare_flops", None)
    if of_latents is not None:
        prepared |= of_latents(decode_flops(job) / images, real, images, len(plans) * config.distill_seeds)
    if further := [net for net, _ in config.own.passes(job.backbone)[1:]]:
        epochs = recipes.backbone(config).epochs
        prepared = prepared | {"committee": epochs * real * 3 * sum(map(forward_flops, further))}
    looking = [net for net, _ in job.looked_through.values()]
    if config.looks and (
        apart := sum((epochs or 0) * forward_flops(net) for net, epochs in job.looked_through.values())
    ):
        prepared = prepared | {"auxiliaries": 3 * real * apart}
    if config.own.start == "consensus":  # every network looks once at every real image, for each seed
        prepared = prepared | {"consensus": config.distill_seeds * real * sum(map(forward_flops, looking))}
    # For each way to make maps and once for embeddings; a map's derivative passes the head alone.
    passes: set[Any] = {setting.cam for setting in settings(config).values() if "real_maps" in _needs(setting)}
    passes |= {None} if any("real" in _needs(setting) for setting in settings(config).values()) else set()
    if passes:
        prepared = prepared | {"real side": len(passes) * real * sum(map(forward_flops, looking))}
    stages |= {name: flops / rate for name, flops in prepared.items()}
    return {name: seconds / 3600 for name, seconds in stages.items()}


def _label_teachers(job: Job) -> tuple[mdd.zoo.Architecture, ...]:
    own = (job.backbone,) if recipes.labels(job.config).rule == "teacher" else ()
    return job.teachers or own


def refuse_what_cannot_fit(plans: list[Plan]) -> None:
    """Raises ValueError for the first that needs more memory than a device has, naming what makes it smaller."""
    limit = parallel.memory_limit()
    for entry in plans:
        if limit and entry.memory > limit:
            largest = max(entry.parts, key=lambda part: part.size)
            raise ValueError(
                f"{entry.method} needs about {entry.memory / _MB:,.0f} MB on a device of {limit / _MB:,.0f} MB; the "
                f"largest part is {largest.name} with {largest.size / _MB:,.0f} MB: change {largest.knob}"
            )


def lines(job: Job, plans: list[Plan], stages: dict[str, float]) -> list[str]:
    """Writes the plan as text, a Markdown table first.

    Args:
      job: the job.
      plans: of each distillation, the bare one first.
      stages: hours of each stage.
    """
    head = [part.name for part in plans[0].parts]
    rows = [f"| set | GFLOP a step | s a step | GFLOP/s | {' MB | '.join(head)} MB | MB in all |"]
    rows.append("|---" * (5 + len(head)) + "|")
    for entry in plans:
        sizes = " | ".join(f"{part.size / _MB:,.0f}" for part in entry.parts)
        rate = entry.flops / entry.seconds / 1e9
        rows.append(
            f"| {entry.method} | {entry.flops / 1e9:.3g} | {entry.seconds:.3g} | {rate:.3g} | {sizes} | "
            f"{entry.memory / _MB:,.0f} |"
        )
    hours = ", ".join(f"{name} {_clock(value)}" for name, value in stages.items())
    note = "Compilation is not counted; what lies in the cache is not trained again."
    total = _clock(sum(stages.values()))
    told = [f"About {total} in all (hours:minutes): {hours}. {note}", *_order_of_trainings(job)]
    return [*rows, "", *told, f"Run folder: {job.directory}"]


def _order_of_trainings(job: Job) -> list[str]:
    """Which judged networks an accelerator trains from all seeds at once; nothing of a CPU, which has its cores."""
    if jax.default_backend() == "cpu":
        return []
    batch = min(recipes.evaluation(job.config).batch_size, sum(job.counts))
    order: dict[bool, list[str]] = {True: [], False: []}
    for net in job.networks:
        order[together.at_once(net, batch)].append(net.label)
    at_once = ", ".join(order[True]) or "none"
    return [
        f"Judged networks that train from up to {job.config.at_once} seeds at once: {at_once}; one after the other, "
        f"because their patches would take longer than starting their kernels: {', '.join(order[False]) or 'none'}."
    ]


def _clock(hours: float) -> str:
    # Up: a stage of seconds is shown as a minute and not as none.
    minutes = math.ceil(60 * hours)
    return f"{minutes // 60}:{minutes % 60:02d}"
