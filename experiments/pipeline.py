"""The main job in pieces: check, pretrain, distil, judge, report. ``distill.py`` strings them together."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from typing import Any

import checks
import command
import common
import effects
import jax
import methods
import numpy as np
import optax
import runfolder
from options import DistillConfig
from presets import variant

import metadd_jax as mdd
from metadd_jax import exchange, files, keys, parallel, pictures
from metadd_jax.distillers.run import compile_chunks
from metadd_jax.evaluation import report

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


def prepare(config: DistillConfig) -> Job:
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
    checks.check_space(job, state_size)
    # Only now: a start that fails leaves no trace.
    return dataclasses.replace(job, lock=runfolder.claim(directory, config, dataset))


def run_config(config: DistillConfig) -> mdd.distillers.RunConfig:
    """The part of the settings that the host loop wants."""
    names = [field.name for field in dataclasses.fields(mdd.distillers.RunConfig)]
    return mdd.distillers.RunConfig(**{name: getattr(config, name) for name in names})


def pretrain_all(job: Job) -> dict[str, mdd.training.Trained]:
    """Trains every network of the table on the real images (or takes it from the cache); sre2l's teacher is one."""
    config, networks = job.config, list(job.networks)
    every = []
    if config.method == "sre2l":
        every = [methods.squeeze(config, job.backbone, job.dataset, job.cache)]
        networks.remove(job.backbone)
    recipe = methods.pretraining_recipe(config)
    every += common.pretrain(networks, job.dataset, recipe, job.cache, split=config.evaluate_on)
    return {trained.net.label: trained for trained in every}


def all_methods(
    job: Job, trained: dict[str, mdd.training.Trained], auxiliaries: dict[str, mdd.Auxiliary]
) -> tuple[list[mdd.distillers.Distiller], optax.GradientTransformation]:
    """The bare base method, the same one under MetaDD, and under each variant of its loss; and their optimiser."""
    config = job.config
    given = trained[job.backbone.label]
    if config.method in methods.TRAJECTORIES:
        given = methods.experts(config, job.backbone, job.dataset, job.cache)
    base, tx = methods.make(config, job.backbone, job.dataset, given)
    return wrapped(job, base, auxiliaries), tx


def wrapped(
    job: Job, base: mdd.distillers.Distiller, auxiliaries: dict[str, mdd.Auxiliary]
) -> list[mdd.distillers.Distiller]:
    """``base``, the same under MetaDD and under each variant."""
    config = job.config
    seen, reference = [auxiliaries[net.label] for net in job.seen], auxiliaries[job.backbone.label]
    every = [base]
    for name, setting in settings(config).items():
        invariant = dataclasses.replace(setting, views=methods.augmentation(config, setting.views))
        method = mdd.distillers.metadd(base, seen, reference=reference, config=invariant)
        every.append(method._replace(name=method.name + name))
    return every


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


def distil_all(
    job: Job, every: list[mdd.distillers.Distiller], tx: optax.GradientTransformation, watch: effects.Stopwatch
) -> dict[str, list[mdd.SyntheticSet]]:
    """Distils ``distill_seeds`` sets with each method, going on where an earlier start was stopped."""
    config = job.config
    sets: dict[str, list[mdd.SyntheticSet]] = {}
    for method in every:
        chunk_of = compile_chunks(method, tx, run_config(config))
        sets[method.name] = []
        for seed in seeds(config):
            folder = job.directory / method.name / f"seed{seed}"
            with command.bar(config.steps, f"{method.name} seed {seed}", "step") as progress:
                watch.start()

                def on_chunk(
                    done: int, metrics: dict[str, float], progress: Any = progress, name: str = method.name
                ) -> None:
                    watch.lap(name, done)
                    progress.update(done - progress.n)
                    if metrics:
                        progress.set_postfix_str(f"loss {metrics['loss']:.4g}")

                state = mdd.distillers.distil(
                    seed, method, tx, job.dataset, run_config(config), directory=folder, chunk_of=chunk_of,
                    on_chunk=on_chunk,
                )  # fmt: skip
            synthetic = jax.device_get(method.synthetic(state))
            if parallel.is_main():
                mdd.exchange.export_npz(
                    folder / "synthetic.npz", synthetic, metadata(job, method.name, seed), overwrite=True
                )
            sets[method.name].append(synthetic)
    return sets


def metadata(job: Job, method: str, seed: int) -> dict[str, Any]:
    """What a reader of an exported set must know."""
    return {
        "dataset": job.config.dataset,
        **{name: getattr(job.config, name) for name in ("image_size", "train_per_class", "validation_fraction")},
        "dataset_fingerprint": job.dataset.fingerprint,
        "class_names": list(job.dataset.class_names),
        **exchange.value_space(job.dataset),
        "method": method,
        "backbone": job.backbone.label,
        "ipc": job.counts[0] if len(set(job.counts)) == 1 else list(job.counts),
        "seed": seed,
        "steps": job.config.steps,
    }


def baselines(job: Job) -> dict[str, list[mdd.SyntheticSet]]:
    """Real images as sets of the same size: random ones, and those nearest the k-means centres of each class."""
    counts, repeat = job.real_counts, job.config.short_class == "repeat"
    return {
        "random": [
            mdd.evaluation.random_real(keys.root(seed, "random"), job.dataset, counts, repeat=repeat)
            for seed in seeds(job.config)
        ],
        "kmeans": [mdd.evaluation.kmeans_real(seed, job.dataset, counts, repeat=repeat) for seed in seeds(job.config)],
    }


def judge(job: Job, sets: dict[str, list[mdd.SyntheticSet]], teacher: mdd.Auxiliary) -> list[dict[str, Any]]:
    """Accuracy rows of every set under every network; the recipes of sre2l take their labels from ``teacher``."""
    config = job.config
    every = [
        (name, seed, synthetic)
        for name, group in sets.items()
        for seed, synthetic in zip(seeds(config), group, strict=True)
    ]
    with command.bar(len(job.networks), "judge", "net") as progress:
        tables = mdd.evaluation.cross_architecture(
            keys.root(0, "judge"),
            [synthetic for _, _, synthetic in every],
            job.dataset,
            job.networks,
            seeds=config.train_seeds,
            recipe=methods.evaluation_recipe(config),
            draws=[seed for _, seed, _ in every],
            split=config.evaluate_on,
            teacher=teacher if methods.relabels(config) else None,
            at_once=config.at_once,
            on_network=lambda label: progress.update(),
        )
    return [
        row
        for (name, seed, _), table in zip(every, tables, strict=True)
        for row in report.rows_of(name, seed, table, job.roles)
    ]


def agreements(
    job: Job, sets: dict[str, list[mdd.SyntheticSet]], auxiliaries: dict[str, mdd.Auxiliary]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Meta ratios of every set under seen and unseen networks, averaged over distillation seeds.

    Maps are those of ``--metadd.cam`` for all sets, a variant's with other maps too: they are to be compared.
    """
    groups = {
        "seen": [auxiliaries[net.label] for net in job.seen],
        "unseen": [auxiliaries[net.label] for net in job.unseen if net.has_map],
    }
    return {
        name: {
            role: _average([mdd.evaluation.agreement(one, group, config=job.config.metadd.cam) for one in sets_of_name])
            for role, group in groups.items()
            if len(group) > 1
        }
        for name, sets_of_name in sets.items()
    }


def _average(facts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{name: np.mean([fact[name] for fact in facts], axis=0).tolist() for name in facts[0]},
        "chance_corrected_by_seed": [fact["chance_corrected"] for fact in facts],
    }


def draw(job: Job, sets: dict[str, list[mdd.SyntheticSet]], auxiliaries: dict[str, mdd.Auxiliary]) -> None:
    """``synthetic.png`` and (where there are auxiliaries) ``maps.png`` in the folder of each distilled set."""
    for name in [name for name in sets if name not in BASELINES]:
        for seed, synthetic in zip(seeds(job.config), sets[name], strict=True):
            folder = job.directory / name / f"seed{seed}"
            try:
                _draw_set(job, folder, synthetic, [auxiliaries[net.label] for net in job.seen])
            except Exception as error:  # whatever it is: a picture costs no result
                warnings.warn(f"no pictures of {folder}: {type(error).__name__}: {error}", stacklevel=1)


def _draw_set(job: Job, folder: pathlib.Path, synthetic: mdd.SyntheticSet, seen: list[mdd.Auxiliary]) -> None:
    names = job.dataset.class_names
    pixels = exchange.to_pixels(synthetic.images, exchange.value_space(job.dataset))
    pictures.grid(folder / "synthetic.png", pixels, synthetic.labels, class_names=names)
    if not seen:
        return
    first = np.unique(synthetic.labels, return_index=True)[1]  # one image of each class
    labels, shown = synthetic.labels[first], [net.name for net in job.seen]
    stack = mdd.evaluation.map_stack(synthetic.images[first], labels, seen, config=job.config.metadd.cam)
    pictures.maps(folder / "maps.png", pixels[first], labels, stack, network_names=shown, class_names=names)


def unwritten(job: Job, results: dict[str, Any]) -> list[pathlib.Path]:
    """The files of the sets behind ``results`` that are missing or damaged."""
    sets = {row["set"]: None for row in results["rows"] if row["set"] not in BASELINES}
    return runfolder.unwritten(job.directory, sets, seeds(job.config), maps=bool(job.seen))


def show(job: Job, results: dict[str, Any]) -> str:
    """The results as Markdown; ``results.md`` is written anew where it is not that."""
    text, file = report.markdown(results), job.directory / "results.md"
    if parallel.is_main() and not (file.is_file() and file.read_bytes() == text.encode()):
        files.write_text(file, text)
    return text


def notes(job: Job) -> list[str]:
    """Protocol, seeds and machine, for the head of the results."""
    config, facts = job.config, command.versions()
    limit = f" (at most {config.train_per_class} training images a class)" if config.train_per_class else ""
    numbers = ", ".join(map(str, seeds(config)))
    real = f", of {methods.describe_counts(job.real_counts)}" if job.real_counts != job.counts else ""
    return [
        f"{config.dataset}{limit}, {methods.describe_counts(job.counts)}, accuracy on {config.evaluate_on} in percent, "
        f"mean ± standard deviation over the distillation seeds {numbers} (random and k-means rows: as many "
        f"draws{real}) of the mean of {config.train_seeds} trainings each; last epoch, no choice on the test split.",
        "",
        f"{methods.describe(config)}, backbone {job.backbone.label}. Judged by the recipe {config.eval_recipe!r}, "
        f"{config.eval_epochs} epochs, {methods.describe_evaluation(config)}. jax {facts['jax']}, {facts['device']}, "
        f"{facts['machine']}. Agreement and maps.png, of every set alike: {config.metadd.cam.describe()}.",
    ]


if __name__ == "__main__":
    raise SystemExit("pipeline.py is no script; run distill.py")
