"""What ``benchmark.py`` measures: the names of the works, and the functions that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metadd_jax as mdd
from metadd_jax import parallel
from metadd_jax.invariant import InvariantConfig
from metadd_jax.training import recipes, together, trajectories
from settings import BenchmarkConfig

STEPS = ("dm", "dc", "dc_inner", "mtt", "mtt_kept", "datm", "ncfm", "sre2l")
_WHOLE = ("evaluate", "rded")  # neither steps nor of a network that the name says
_SCAN, _LATENTS = "scan:", "+latents"
# What MetaDD asks of the auxiliaries: all three terms, or what it does by default.
_LOSSES = {"+metadd": {"weighting": "raw", "ai": 1.0, "pos": 1.0, "var": 1.0}, "+ce": {}}
_OF_A_NETWORK = {"train:": "train", "judge:": "judge"}
_EXPERT_EPOCHS = 2


@dataclasses.dataclass(frozen=True)
class Name:
    """A work's name in its parts.

    Attributes:
      kind: one of ``STEPS``, "train", "judge", "evaluate", "rded" or "auxiliary".
      network: of "train", "judge" and "auxiliary", as ``zoo.parse`` reads it.
      size: images per class; of sre2l the images, of "train" the batch.
      loss: the settings of MetaDD around it, or None.
      latents: with latents in place of pixels.
      scanned: also inside a scan.
    """

    kind: str
    network: str
    size: int
    loss: dict[str, Any] | None
    latents: bool
    scanned: bool


@dataclasses.dataclass(frozen=True)
class Work:
    """One work, ready to be compiled.

    Attributes:
      function: ``(state, data, frozen) -> (state, metrics)`` of a step, else any pure function.
      arguments: of the first call.
      is_step: whether each call goes on from the state that the last one gave.
      images: images that pass through a network in one call, on their way in.
      forward: of an auxiliary: its loss alone, without the gradient.
      call: what is timed in place of ``function``: independent runs, which a user's machine may spread over its cores.
    """

    function: Callable
    arguments: tuple
    is_step: bool
    images: int
    forward: Callable | None = None
    call: Callable | None = None


def parse(work: str, config: BenchmarkConfig) -> Name:
    """Reads "dm@10+metadd", "dm+ce", "mtt+latents", "scan:sre2l@100", "train:vgg11@256", "rded" or a network's name.

    Raises:
      ValueError: if the parts do not go together, or the network is unknown.
    """
    scanned, rest = work.startswith(_SCAN), work.removeprefix(_SCAN)
    suffix = next((word for word in _LOSSES if rest.endswith(word)), "")
    loss, rest = _LOSSES.get(suffix), rest.removesuffix(suffix)
    latents, rest = rest.endswith(_LATENTS), rest.removesuffix(_LATENTS)
    rest, marked, digits = rest.partition("@")
    if marked and not (digits.isdecimal() and int(digits) > 0):
        raise ValueError(f"cannot read the size {digits!r} of {work!r}; write a whole number, such as dm@10")
    prefix = next((word for word in _OF_A_NETWORK if rest.startswith(word)), "")
    network = rest.removeprefix(prefix)
    known = network in (*STEPS, *_WHOLE) and not prefix
    kind = network if known else _OF_A_NETWORK.get(prefix, "auxiliary")
    if ((suffix or latents) and kind not in STEPS) or (scanned and kind not in (*STEPS, "train")):
        raise ValueError(
            f"{work!r}: +metadd, +ce and +latents go with {', '.join(STEPS)}, scan: also with train:NETWORK; measure "
            f"{rest!r} alone"
        )
    usual = {"sre2l": config.recover_images, "train": config.train_batch}.get(kind, config.ipc)
    if not known:
        from metadd_jax.job import common

        common.check_names((network,))
    return Name(kind, "" if known else network, int(digits) if marked else usual, loss, latents, scanned)


def build(name: Name, config: BenchmarkConfig) -> Work:
    """The function of a work and what it is called with; the images are noise."""
    makers = {"train": _train, "evaluate": _judge, "judge": _judge, "auxiliary": _auxiliary, "rded": _selection}
    return makers.get(name.kind, _step)(name, config)


def _noise(config: BenchmarkConfig, classes: int, per_class: int) -> mdd.Dataset:
    """Noise of the right shape: what a step costs does not depend on what the images show."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class)
    images = rng.integers(0, 256, (len(labels), *config.image_shape), dtype=np.uint8)
    test = np.repeat(np.arange(classes), config.test_per_class)
    return mdd.data.from_arrays(
        "noise", images, labels, rng.integers(0, 256, (len(test), *config.image_shape), dtype=np.uint8), test
    )


def _network(spec: str, classes: int, config: BenchmarkConfig) -> mdd.zoo.Architecture:
    return mdd.zoo.parse(spec, classes, config.image_shape)


def _variables(net: mdd.zoo.Architecture, seed: int = 0) -> Any:
    return parallel.jit(net.init)(jax.random.key(seed))


def _frozen(spec: str, classes: int, config: BenchmarkConfig) -> mdd.Auxiliary:
    net = _network(spec, classes, config)
    map_eps = dict.fromkeys(mdd.features.map_kinds(net), jnp.float32(1e-3))
    return mdd.Auxiliary(variables=_variables(net), map_eps=map_eps, net=net)


def _auxiliary(name: Name, config: BenchmarkConfig) -> Work:
    """One network's share: its cross-entropy and its map's squared norm, with the gradient to the images."""
    arrays = _noise(config, config.num_classes, name.size).train
    images, labels = mdd.data.random_per_class(jax.random.key(0), arrays, name.size)

    def value(images: jax.Array, auxiliary: mdd.Auxiliary) -> jax.Array:
        maps, logits, _ = mdd.features.observe(auxiliary, images, labels)
        return mdd.invariant.cross_entropy(logits[None], labels).mean() + jnp.square(maps).mean()

    kept = jax.checkpoint(value) if config.checkpoint else value
    arguments = (images, _frozen(name.network, config.num_classes, config))
    return Work(jax.value_and_grad(kept), arguments, False, len(images), value)


def _step(name: Name, config: BenchmarkConfig) -> Work:
    classes, ipc = (name.size, 1) if name.kind == "sre2l" else (config.num_classes, name.size)
    data = _noise(config, classes, ipc if name.kind == "sre2l" else max(config.batch_size, ipc))
    makers = {"dm": _matching, "dc": _matching, "dc_inner": _matching, "ncfm": _matching, "sre2l": _recovery}
    method, tx, images = makers.get(name.kind, _trajectory)(name.kind, ipc, data, config)
    if name.latents:
        made: Any = mdd.distillers.parameterisations.parse(config.parameterisation, data)
        made = getattr(made, "unfitted", made)  # what a step costs does not depend on what it shows
        method, tx = mdd.distillers.parameterise(method, made), mdd.distillers.with_rates(tx, made)
    if name.loss is not None:
        auxiliaries = [_frozen(spec, classes, config) for spec in config.auxiliaries]
        settings = {name: getattr(config, name) for name in ("checkpoint", "subset", "micro_batch")}
        if config.ways != "own":  # strengths are no part of a step, and this CPU would measure them in a GPU's ways
            settings["weighting"] = "raw"
        loss = InvariantConfig(**{**name.loss, **settings})
        method = mdd.distillers.metadd(method, auxiliaries, config=loss)
    state = mdd.distillers.init_state(jax.random.key(0), method, tx, data)
    if name.kind == "dc_inner":
        state = state.replace(step=jnp.ones((), jnp.int32))  # step 0 draws a network and trains none
    arguments = (state, mdd.data.to_device(data.train), method.frozen)
    return Work(mdd.distillers.make_update(method, tx), arguments, True, images)


def _matching(kind: str, ipc: int, data: mdd.Dataset, config: BenchmarkConfig) -> tuple:
    settings = {"ipc": ipc, "batch_size": config.batch_size, "class_batch": config.class_batch}
    net, images = _network(config.backbone, data.num_classes, config), data.num_classes * (config.batch_size + ipc)
    if kind == "dm":
        method = mdd.distillers.dm(net, augmentation=config.augmentation, **settings)
        return method, optax.sgd(1.0, momentum=0.5), images
    if kind == "ncfm":
        pool = jnp.stack([trajectories.flatten(_variables(net, seed)["params"]) for seed in range(2)])[None]
        own = mdd.distillers.NCFM(batch_size=config.batch_size, class_batch=config.class_batch)
        # The set passes twice: its embeddings, and the logits that calibrate it.
        images += data.num_classes * ipc
        return mdd.distillers.ncfm(net, pool, ipc=ipc, settings=own), own.optimiser(0.001, 0.5, 1, data), images
    # A new network at every step, or one that is trained before every step and never new.
    outer = 1 if kind == "dc" else np.iinfo(np.int32).max
    method = mdd.distillers.dc(net, outer=outer, inner=config.inner_epochs, **settings)
    images += config.inner_epochs * data.num_classes * ipc if kind == "dc_inner" else 0
    return method, optax.sgd(0.1, momentum=0.5), images


def _trajectory(kind: str, ipc: int, data: mdd.Dataset, config: BenchmarkConfig) -> tuple:
    net = _network(config.backbone, data.num_classes, config)
    # The snapshots of one expert: random weights, since only their number and size cost.
    snapshots = [trajectories.flatten(_variables(net, seed)["params"]) for seed in range(_EXPERT_EPOCHS + 1)]
    record = mdd.distillers.DATM if kind == "datm" else mdd.distillers.MTT
    own = record(
        syn_steps=config.syn_steps,
        expert_epochs=_EXPERT_EPOCHS,
        max_start_epoch=1,
        augmentation=config.augmentation,
        checkpoint=kind == "mtt",
    )
    make = mdd.distillers.datm if kind == "datm" else mdd.distillers.mtt
    method = make(net, jnp.stack(snapshots)[None], ipc=ipc, settings=own)
    return method, own.optimiser(100.0, 0.5, 1, data), config.syn_steps * data.num_classes * ipc


def _recovery(kind: str, ipc: int, data: mdd.Dataset, config: BenchmarkConfig) -> tuple:
    net = _network(config.teacher, data.num_classes, config)
    method = mdd.distillers.sre2l(net, _variables(net), ipc=ipc, crop=False, flip=False, roll=(0, 4))
    tx = mdd.distillers.recover_optimiser(0.25, 1000, data.train.mean, data.train.std)
    return method, tx, data.num_classes * ipc


def _selection(name: Name, config: BenchmarkConfig) -> Work:
    """RDED's whole set: the crops of ``batch_size`` real images of each class under the teacher, the best kept."""
    data = _noise(config, config.num_classes, config.batch_size)
    net = _network(config.teacher, config.num_classes, config)
    settings = mdd.distillers.RDED(candidates=config.batch_size)

    def choose(key: jax.Array, variables: Any) -> jax.Array:
        method = mdd.distillers.rded(net, variables, ipc=name.size, settings=settings)
        return method.init(key, data)[0]["images"]

    looked = data.num_classes * config.batch_size * settings.crops
    return Work(choose, (jax.random.key(0), _variables(net)), False, looked)


def _train(name: Name, config: BenchmarkConfig) -> Work:
    """One step of the DC family's training of a network."""
    net = _network(name.network, config.num_classes, config)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((name.size, *config.image_shape), dtype=np.float32))
    labels = jnp.asarray(rng.integers(0, config.num_classes, name.size, dtype=np.int32))
    recipe = recipes.Recipe(epochs=1, batch_size=name.size)

    def update(variables: Any, data: tuple, key: jax.Array) -> tuple[Any, dict]:
        return mdd.training.fit(key, net, *data, recipe, shared_key=key, variables=variables), {}

    return Work(update, (_variables(net), (images, labels), jax.random.key(0)), True, name.size)


def _judge(name: Name, config: BenchmarkConfig) -> Work:
    """Accuracies of one network trained from several seeds, as in ``evaluation.cross_architecture``."""
    net = _network(name.network or config.backbone, config.num_classes, config)
    data = _noise(config, config.num_classes, name.size)
    images, labels = mdd.data.random_per_class(jax.random.key(0), data.train, name.size)
    recipe = recipes.dc_evaluation(config.eval_epochs - 1, augmentation=config.augmentation)
    at_once = together.at_once(net, len(images))

    def accuracy(seed: jax.Array, key: jax.Array, images: jax.Array, labels: jax.Array, test: Any) -> jax.Array:
        own = jax.random.fold_in(key, seed)
        variables = mdd.training.fit(own, net, images, labels, recipe, shared_key=key)
        right, total = mdd.training.count_correct(net, variables, test)
        return right / total

    def accuracies(seeds: jax.Array, *shared: Any) -> jax.Array:
        return parallel.each(lambda seed: accuracy(seed, *shared), seeds, at_once=at_once)

    arguments = (jnp.arange(config.eval_seeds), jax.random.key(0), images, labels, mdd.data.to_device(data.test))
    seen = config.eval_seeds * (config.eval_epochs * len(images) + len(data.test.labels))
    return Work(accuracies, arguments, False, seen, call=parallel.spread(accuracy, at_once=at_once))
