"""A checked job, ready to run: everything that can go wrong is tried before any long work."""

from __future__ import annotations

import dataclasses
import pathlib

import metadd_jax as mdd
from metadd_jax import files
from metadd_jax.job import checks, common, methods, runfolder
from metadd_jax.job.options import DistillConfig
from metadd_jax.job.presets import variant

BASELINES = ("random", "kmeans")


@dataclasses.dataclass(frozen=True)
class Job:
    """A checked job: the configuration, its folder, the data on the device, the networks and what trains.

    Whoever has prepared it releases its lock when the work is done.
    """

    config: DistillConfig
    directory: pathlib.Path
    dataset: mdd.Dataset
    backbone: mdd.zoo.Architecture
    seen: tuple[mdd.zoo.Architecture, ...]
    unseen: tuple[mdd.zoo.Architecture, ...]
    lock: mdd.storage.Lock | None = None

    @property
    def networks(self) -> tuple[mdd.zoo.Architecture, ...]:
        return (self.backbone, *self.seen, *self.unseen)

    @property
    def roles(self) -> dict[str, str]:
        named = {net.label: "unseen" for net in self.unseen} | {net.label: "seen" for net in self.seen}
        return named | {self.backbone.label: "same"}

    @property
    def counts(self) -> tuple[int, ...]:
        """The images of each class of a distilled set."""
        return methods.images_per_class(self.config, self.dataset)

    @property
    def real_counts(self) -> tuple[int, ...]:
        """Those of the random and k-means rows: a class without so many real images gives all that it has."""
        policy = "repeat" if self.config.short_class == "repeat" else "fewer"
        return mdd.data.images_per_class(self.dataset.train, self.counts, short_class=policy)

    @property
    def cache(self) -> pathlib.Path:
        return mdd.data.cache_folder(self.config.cache_dir)


def open_job(config: DistillConfig) -> Job:
    """Everything that can go wrong is tried here, before any long work.

    Raises:
      ValueError: one line that says what to mend.
    """
    checks.check_options(config)
    common.check_names((config.backbone, *config.seen, *config.unseen))
    run_config(config)
    checks.check_settings(config, settings(config))
    directory = files.require_writable(config.run_dir or "runs/mnist5k")
    common.open_cache(config.cache_dir)
    runfolder.inspect(directory, config)
    dataset = mdd.data.load(
        config.dataset,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        image_size=config.image_size,
        zca=config.zca,
        train_per_class=config.train_per_class,
        validation_fraction=config.validation_fraction,
        on_device=not config.stream_per_class,
    )
    counts = methods.images_per_class(config, dataset)
    if not config.overwrite:
        checks.check_data(directory, dataset)
    mdd.evaluation.split_of(dataset, config.evaluate_on)
    groups = ((config.backbone,), config.seen, config.unseen)
    (backbone,), seen, unseen = (tuple(common.networks(specs, dataset)) for specs in groups)
    job = Job(config, directory, dataset, backbone, seen, unseen)
    methods.check_backbone(config, job.backbone)
    checks.check_networks(job.networks, job.seen)
    checks.check_subsets(settings(config), sum(counts))
    state_size = methods.check_made(config, job.backbone, dataset)
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
    sets = (1 + config.wrapped * (1 + len(config.variants))) * config.distill_seeds
    files.require_space(job.directory, (3 * sets + 1) * state_size)
    if config.method in methods.TRAJECTORIES:
        folder = methods.experts_folder(config, job.backbone, job.dataset, job.cache)
        if not folder.exists():
            files.require_space(job.cache, methods.experts_size(config, job.backbone))


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
    return {"": config.metadd} | {f",{text}": variant(config.metadd, text) for text in config.variants}


def seeds(config: DistillConfig) -> range:
    """The distillation seeds."""
    return range(config.first_seed, config.first_seed + config.distill_seeds)
