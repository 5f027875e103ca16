"""A checked job, ready to run: everything that can go wrong is tried before any long work."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metadd_jax as mdd
from metadd_jax import distillers, files, parallel
from metadd_jax.data import sampling
from metadd_jax.distillers import starts
from metadd_jax.distillers.latents import images_for, stored_for
from metadd_jax.distillers.parameterisation import per_stored
from metadd_jax.job import backbones, checks, common, recipes, runfolder, seen_data, starting
from metadd_jax.job.options import DistillConfig
from metadd_jax.job.presets import variant
from metadd_jax.training import views

BASELINES = ("random", "kmeans")
REAL = (*BASELINES, "consensus")
"""Real images that a row may consist of; the last stands only beside sets that start from it, or where it is asked."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A checked job: the configuration, its folder, the data on the device, the networks and what is trained.

    ``found`` keeps what ``stages.found_real`` has found, ``seen_source`` what MetaDD's auxiliaries learn from where it
    is no part of ``dataset``.

    Whoever has prepared it releases its lock when the work is done.
    """

    config: DistillConfig
    directory: pathlib.Path
    dataset: mdd.Dataset
    backbone: mdd.zoo.Architecture
    seen: tuple[mdd.zoo.Architecture, ...]
    unseen: tuple[mdd.zoo.Architecture, ...]
    parameterisation: distillers.Parameterisation = dataclasses.field(default_factory=distillers.pixels)
    seen_source: mdd.Dataset | None = None
    lock: mdd.storage.Lock | None = None
    found: dict[tuple, mdd.SyntheticSet] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def networks(self) -> tuple[mdd.zoo.Architecture, ...]:
        return (self.backbone, *self.seen, *self.unseen)

    @property
    def looked_through(self) -> dict[str, tuple[mdd.zoo.Architecture, int | None]]:
        """MetaDD's auxiliaries by name: the network, and its passes over its data; None for those of the table."""
        if not self.config.learns_apart:
            return {net.label: (net, None) for net in self.seen}
        epochs = self.config.seen_epochs or (self.config.pretrain_epochs,)
        return {f"{net.label}, {number} epochs": (net, number) for net in self.seen for number in epochs}

    @property
    def roles(self) -> dict[str, str]:
        # Unseen, then seen, then the backbone: of a label in several groups the last counts.
        named = {net.label: "unseen" for net in self.unseen}
        named |= {net.label: "seen" for net in (*self.seen, *backbones.members(self.drawn)) if net in self.networks}
        return named | {self.backbone.label: "same"}

    @property
    def drawn(self) -> tuple[backbones.Drawn, ...]:
        """What the method draws its networks from: the backbone or its pool, then those matched beside it."""
        return backbones.draw_from(self.config, self.backbone, self.dataset, self.counts)

    @property
    def teachers(self) -> tuple[mdd.zoo.Architecture, ...]:
        """The networks that label what judged networks see; none where the labels are the sets' or the method's."""
        return tuple(common.networks(recipes.labels(self.config).networks, self.dataset))

    @property
    def own(self) -> distillers.Method:
        """The method's settings, with what the data set decides."""
        return self.config.own.for_data(lambda: recipes.augmentation(self.config, "auto"))

    @property
    def packs(self) -> bool:
        """Whether latents are trained, and exported beside the set."""
        return self.config.parameterisation != "pixels"

    @property
    def counts(self) -> tuple[int, ...]:
        """The images of each class of a distilled set, as networks see it."""
        return _images_per_class(self.config, self.dataset, self.parameterisation)

    @property
    def stored_counts(self) -> tuple[int, ...]:
        """The images of each class that are stored, or whose storage the latents take: ``ipc``."""
        return tuple(stored_for(self.parameterisation, count) for count in self.counts)

    @property
    def real_rows(self) -> tuple[str, ...]:
        """The real images that stand beside the job's sets: what a start has earned is not the method's doing."""
        return REAL if self.config.own.start == "consensus" else BASELINES

    @property
    def real_counts(self) -> tuple[int, ...]:
        """Those of the random and k-means rows, which store as much as a distilled set does.

        A class without so many real images gives all that it has.
        """
        # "error" was raised for ``counts``; beside a method that reads no real image the rows
        # give as many as there are.
        policy = "repeat" if self.config.short_class == "repeat" else "fewer"
        return mdd.data.images_per_class(self.dataset.train, self.stored_counts, short_class=policy)

    @property
    def cache(self) -> pathlib.Path:
        return mdd.data.cache_folder(self.config.cache_dir)


def load_data(config: DistillConfig) -> mdd.Dataset:
    """Loads the real data that the options name."""
    return mdd.data.load(
        config.dataset,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        image_size=config.image_size,
        zca=config.zca,
        train_per_class=config.train_per_class,
        validation_fraction=config.validation_fraction,
        # Of a set larger than the device only the pool of a chunk goes there.
        on_device=not config.stream_per_class,
    )


def open_job(config: DistillConfig, *, dataset: mdd.Dataset | None = None) -> Job:
    """Everything that can go wrong is tried here, before any long work.

    Args:
      config: the options.
      dataset: what ``load_data`` gave for them, where many jobs share it; None loads it.

    Raises:
      ValueError: one line that says what to mend.
    """
    # From the cheapest to the dearest: words, folders, data, networks, and last the shapes of a whole state.
    checks.check_options(config)
    common.check_names((config.backbone, *config.seen, *config.unseen))
    backbones.check(config)
    run_config(config)
    checks.check_settings(config, settings(config))
    directory = files.require_writable(config.run_dir or "runs/mnist5k")
    common.open_cache(config.cache_dir)
    runfolder.inspect(directory, config)
    dataset = dataset or load_data(config)
    parameterisation = distillers.parameterisations.parse(config.parameterisation, dataset)
    if config.own.init is not None and not getattr(parameterisation, "follows_start", True):
        raise ValueError(
            f"--parameterisation {config.parameterisation} draws its latents and looks at no image, so --init "
            f"{config.own.init} would change nothing; leave it out"
        )
    counts = _images_per_class(config, dataset, parameterisation)
    # With --overwrite other data may come: nothing of the old run is gone on with.
    if not config.overwrite:
        checks.check_data(directory, dataset)
    dataset = dataclasses.replace(dataset, start=starting.given(config, dataset, counts))
    mdd.evaluation.split_of(dataset, config.evaluate_on)
    groups = ((config.backbone,), config.seen, config.unseen)
    (backbone,), seen, unseen = (tuple(common.networks(specs, dataset)) for specs in groups)
    source = seen_data.data_of(config, dataset)
    job = Job(config, directory, dataset, backbone, seen, unseen, parameterisation, seen_source=source)
    checks.check_networks(job.networks, job.seen)
    backbones.check_unseen(job.drawn, job.unseen)
    checks.check_networks(job.teachers, ())
    checks.check_subsets(settings(config), sum(counts))
    # Before the folder is taken: the method's refusals come here too.
    state_size = check_made(job)
    if config.plugin:
        trace(job)
    # A plan takes no folder and no lock: it may be asked for while the run is at work.
    if config.plan:
        return job
    _check_space(job, state_size)
    # Only now: a start that fails leaves no trace.
    return dataclasses.replace(job, lock=runfolder.claim(directory, config, dataset))


def _check_space(job: Job, state_size: int) -> None:
    """Refuses a disk on which the job's sets (of ``state_size`` bytes a state) or experts cannot lie.

    Of each set the two latest checkpoints stay, and its export; while one is written there is a third.

    Raises:
      ValueError: naming the folder, what is free there and what is needed.
    """
    config = job.config
    # An estimate from above: what lies there already is not taken off.
    sets = (1 + config.wrapped * (1 + len(config.variants))) * config.distill_seeds
    if any(setting.further_lr for setting in settings(config).values()):
        # Networks that learn from the set are part of its state.
        state_size += 4 * sum(net.num_params() for net, _ in job.looked_through.values())
    files.require_space(job.directory, (3 * sets + 1) * state_size)
    for folder, size in job.own.cached(job.backbone, job.dataset, job.cache):
        if not folder.exists():
            files.require_space(job.cache, size)


def _images_per_class(
    config: DistillConfig, dataset: mdd.Dataset, parameterisation: distillers.Parameterisation
) -> tuple[int, ...]:
    """The images of each class of the set, decoded; real ones are asked for only where the set starts from them.

    Args:
      config: the settings of the job.
      dataset: the real data.
      parameterisation: how many images a stored one gives.

    Raises:
      ValueError: if ``ipc_per_class`` does not name every class, or a class is too small under "error".
    """
    stored = sampling.per_class(config.ipc_per_class or config.ipc, dataset.num_classes)
    wanted, each = tuple(images_for(parameterisation, count) for count in stored), per_stored(parameterisation)
    # A start from noise or from a saved set reads no real image, so a class cannot be too small for it.
    if config.short_class == "error" and not starts.reads_real(config.own.start):
        return wanted
    arrays = dataset.train
    if config.stream_per_class:  # the start comes from a pool
        arrays = dataclasses.replace(arrays, counts=np.minimum(arrays.counts, config.stream_per_class))
    try:
        counts = mdd.data.images_per_class(arrays, wanted, short_class=config.short_class)
    except ValueError as error:
        packed = f" (--parameterisation {config.parameterisation} takes {max(wanted)} for {max(stored)} stored)"
        raise ValueError(f"{error}{packed if wanted != stored else ''}") from error
    if min(counts) < each:
        raise ValueError(
            f"class {int(np.argmin(counts))} has {min(counts)} images, fewer than the {each} of a stored one; leave "
            "--parameterisation out, or set --short-class repeat"
        )
    return tuple(count - count % each for count in counts)  # whole stored images


def make(job: Job, given: Any) -> tuple[distillers.Distiller, optax.GradientTransformation]:
    """Makes the bare method and what updates its set.

    Args:
      job: the job; its parameterisation is put around the method here, MetaDD is not.
      given: what the method's ``prepare`` gave, or its ``stand_in``.
    """
    config, own = job.config, job.own
    method = backbones.make(config, own, job.drawn, job.counts, given)
    tx = own.optimiser(config.image_lr, config.image_momentum, config.steps, job.dataset)
    # Inside MetaDD, which is put around later: its weights are then calibrated on gradients in the latents.
    if job.packs:
        method = distillers.parameterise(method, job.parameterisation)
    return method, distillers.with_rates(tx, job.parameterisation)


def check_made(job: Job) -> int:
    """Makes the method and its first state of shapes alone, so that all of its own refusals come before the long work.

    Returns:
      The bytes of a state, which is what a checkpoint holds.

    Raises:
      ValueError: from the method's checks, its making or its start.
    """
    config, own, backbone, dataset = job.config, job.own, job.backbone, job.dataset
    mode = parallel.choose_mode(config.device_mode)
    devices = parallel.device_count() if mode in ("pmap", "sharded") else 1
    if config.stream_per_class:
        # The start of a streamed run comes from its first pool, so its checks must see no other images.
        pool = mdd.data.stream_pool(dataset.train, config.first_seed, 0, config.stream_per_class)
        dataset = dataclasses.replace(dataset, train=pool)

    def start(variables: Any) -> Any:
        method, tx = make(job, own.stand_in(backbone, variables))
        return distillers.init_state(jax.random.key(config.first_seed), method, tx, dataset)

    with checks.spelled(config):
        own.backbone_variables(backbone)
        drawn: list[Any] = list(job.drawn)  # an architecture where the method draws no networks
        for net in drawn:
            own.check_network(net)
            own.check_devices(net, devices, pmap=mode == "pmap")
        # Shapes alone take neither memory nor time.
        leaves = jax.tree.leaves(jax.eval_shape(start, jax.eval_shape(backbone.init, jax.random.key(0))))
    return sum(leaf.size * getattr(leaf.dtype, "itemsize", 8) for leaf in leaves)  # a key is two words


def wrapped(
    job: Job, base: mdd.distillers.Distiller, auxiliaries: dict[str, mdd.Auxiliary]
) -> list[mdd.distillers.Distiller]:
    """Lists ``base``, the same under MetaDD and under each variant.

    Args:
      job: the job.
      base: the bare method.
      auxiliaries: the frozen networks by name: those of ``Job.looked_through``, and the backbone, the reference.
    """
    config = job.config
    reference = auxiliaries[job.backbone.label]
    # One base for all: the bare set and those under MetaDD draw the same keys and batches, so they are matched pairs.
    every = [base]
    equipped: dict[tuple, list[mdd.Auxiliary]] = {}
    for name, setting in settings(config).items():
        invariant = dataclasses.replace(
            setting,
            views=recipes.augmentation(config, setting.views),
            schedule_steps=setting.schedule_steps or config.steps,
        )
        # Controls may compare with all real images, which pass the networks here: once, and only if one asks.
        needs = frozenset(need for term in invariant.terms.values() for need in term.needs or ())
        asked = (needs, invariant.cam if "real_maps" in needs else None)
        if asked not in equipped:
            seen = [auxiliaries[name] for name in job.looked_through]
            equipped[asked] = mdd.invariant.equip(seen, job.dataset, invariant.terms.values(), cam=invariant.cam)
        method = mdd.distillers.metadd(base, equipped[asked], reference=reference, config=invariant)
        every.append(method._replace(name=method.name + name))
    return every


def stand_ins(job: Job, variables: dict[str, Any]) -> dict[str, mdd.Auxiliary]:
    """The job's networks and auxiliaries, by name, as if trained and frozen; ``variables`` are any, by label."""
    found = {
        net.label: mdd.Auxiliary(
            variables=variables[net.label],
            map_eps=dict.fromkeys(mdd.features.map_kinds(net), jnp.float32(1e-3)),
            net=net,
        )
        for net in job.networks
    }
    found |= {name: found[net.label] for name, (net, _) in job.looked_through.items()}
    for setting in settings(job.config).values():
        terms = setting.terms.values()
        found |= {name: mdd.invariant.stand_in(found[name], terms, cam=setting.cam) for name in job.looked_through}
    return found


def trace(job: Job) -> None:
    """Follows every update of the job, and what its trainings see, on shapes alone: no number is computed.

    A method, a term or an augmentation of the user's that fails, or gives another shape than it must, would otherwise
    be found out after the networks are trained.

    Raises:
      ValueError: from the package's checks of such code; else whatever that code raises.
    """
    key = jax.random.key(0)
    images = jax.ShapeDtypeStruct((2, *job.dataset.image_shape), np.float32)
    for recipe in (recipes.pretraining(job.config), recipes.evaluation(job.config)):
        view = views.augmentation(recipe.augmentation)
        jax.eval_shape(lambda x, view=view: view(key, key, x, None), images)

    def updates(variables: dict[str, Any]) -> list[Any]:
        base, tx = make(job, job.own.stand_in(job.backbone, variables[job.backbone.label]))
        after = []
        for method in wrapped(job, base, stand_ins(job, variables)):
            state = distillers.init_state(key, method, tx, job.dataset)
            after.append(distillers.make_update(method, tx)(state, job.dataset.train, method.frozen))
        return after

    jax.eval_shape(updates, {net.label: jax.eval_shape(net.init, key) for net in job.networks})


def run_config(config: DistillConfig) -> mdd.distillers.RunConfig:
    """The part of the settings that the host loop wants."""
    names = [field.name for field in dataclasses.fields(mdd.distillers.RunConfig)]
    return mdd.distillers.RunConfig(**{name: getattr(config, name) for name in names})


def settings(config: DistillConfig) -> dict[str, mdd.invariant.InvariantConfig]:
    """The settings of the invariant loss to run, by what follows "+metadd" in a set's name.

    Raises:
      ValueError: for a variant that cannot be read.
    """
    if not config.wrapped:
        if config.variants:
            raise ValueError("--variants are settings of MetaDD, which --no-wrapped leaves out; drop one of the two")
        return {}
    made = {"": config.metadd}
    for text in config.variants:
        setting = variant(config.metadd, text)
        # Two of one setting would cost twice and, by one name, write into one folder.
        if same := [name for name, held in made.items() if held == setting]:
            of = f"--variants {same[0][1:]}" if same[0] else "MetaDD without a variant"
            raise ValueError(f"--variants {text} is the same setting as {of}; leave one out")
        made[f",{text}"] = setting
    return made


def seeds(config: DistillConfig) -> range:
    """The distillation seeds."""
    return range(config.first_seed, config.first_seed + config.distill_seeds)
