"""The long work of a job, stage by stage: pre-train, distil, baselines, judge. ``distill`` strings them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax

import metadd_jax as mdd
from metadd_jax import exchange, features, keys, parallel
from metadd_jax.distillers.run import compile_chunks
from metadd_jax.distillers.starts import FOUND
from metadd_jax.evaluation import report
from metadd_jax.job import backbones, command, common, effects, labels, logs, recipes, results, seen_data
from metadd_jax.job.prepare import BASELINES, Job, make, run_config, seeds, wrapped


def pretrain_all(job: Job, *, unseen: bool = True) -> dict[str, mdd.training.Trained]:
    """Trains every network on the real images or takes it from the cache; the backbone as its method says.

    Args:
      job: the job.
      unseen: whether those that no distillation looks through are trained too, for the row of the whole data.

    Returns:
      The trained networks by label.
    """
    config, every = job.config, []
    # Auxiliaries with a training of their own are trained apart (``freeze_all``).
    networks = list(job.networks if unseen else (job.backbone, *(() if config.learns_apart else job.seen)))
    usual, own = recipes.pretraining(config), recipes.backbone(config)
    variables = config.own.backbone_variables(job.backbone)
    # Weights from a file are measured and not trained. Under a recipe of the method's own (SRe2L's squeeze) the
    # backbone trains apart from the networks that it is compared with.
    if variables is not None:
        every = [mdd.training.measure(job.backbone, variables, job.dataset, split=config.evaluate_on)]
    elif own != usual:
        every = common.pretrain(
            [job.backbone], job.dataset, own, job.cache, split=config.evaluate_on, description="squeeze"
        )
    networks = networks[len(every) :]  # the backbone is the first
    every += common.pretrain(networks, job.dataset, usual, job.cache, split=config.evaluate_on)
    return {trained.net.label: trained for trained in every}


def freeze_all(job: Job, trained: dict[str, mdd.training.Trained]) -> dict[str, mdd.Auxiliary]:
    """Freezes the trained networks, and trains and freezes the auxiliaries that have epochs or data of their own.

    Args:
      job: the job.
      trained: the networks trained on the real data, by label.

    Returns:
      The frozen networks by label, and the auxiliaries by the names of ``Job.looked_through``.
    """
    config = job.config
    frozen: dict[str, mdd.Auxiliary] = {}
    source = job.seen_source or job.dataset
    # Of the source's own images; where these are the job's, the networks are the job's too.
    nets = job.seen if source is job.dataset else common.networks(config.seen, source)
    # Accuracy is told where it was learned; other data have no validation images of the job's.
    split = config.evaluate_on if source is job.dataset else "test"
    for number in dict.fromkeys(epochs for _, epochs in job.looked_through.values()) if config.looks else ():
        if number is None:
            continue
        variables: list[Any] = [net.init(keys.root(0, "pretrain")) for net in nets if not number]
        if number:
            recipe, about = recipes.pretraining(config, epochs=number), f"auxiliaries, {number} epochs"
            made = common.pretrain(nets, source, recipe, job.cache, split=split, description=about)
            variables = [one.variables for one in made]
        names = [name for name, (_, epochs) in job.looked_through.items() if epochs == number]
        frozen |= {
            name: features.freeze(net, weights, job.dataset, preprocess=seen_data.way(job.dataset, source))
            for name, net, weights in zip(names, nets, variables, strict=True)
        }
    return {label: features.freeze(one.net, one.variables, job.dataset) for label, one in trained.items()} | frozen


def prepare_latents(job: Job) -> Job:
    """The job whose parameterisation is prepared, where that takes long work, such as the training of a generator."""
    made: Any = job.parameterisation
    if hasattr(made, "prepare"):
        with command.bars("image") as progress:
            made = made.prepare(job.dataset, job.cache, progress=progress)
        if parallel.is_main():
            results.draw_generator(job.directory, job.dataset, made)
    if hasattr(made, "on_fit"):
        made = dataclasses.replace(made, on_fit=command.own_bar("start of the latents", "step"))
    return dataclasses.replace(job, parameterisation=made)


def label_teachers(job: Job, trained: dict[str, mdd.training.Trained]) -> list[mdd.training.Trained]:
    """Lists the trained networks that label what judged networks see; none where the labels are the sets' own.

    Args:
      job: the job.
      trained: the networks trained on the real data, by label. The backbone may have a training of its own (a squeeze):
        a teacher of that name is trained as all other networks are, so that it is the same one beside every method.
    """
    if recipes.labels(job.config).rule != "teacher":
        return []
    if not job.teachers:
        return [trained[job.backbone.label]]
    usual = recipes.pretraining(job.config)
    known = {label: one for label, one in trained.items() if one.recipe == usual}
    new = [net for net in job.teachers if net.label not in known]
    made = common.pretrain(new, job.dataset, usual, job.cache, split=job.config.evaluate_on, description="teachers")
    known |= {one.net.label: one for one in made}
    return [known[net.label] for net in job.teachers]


def all_methods(
    job: Job, trained: dict[str, mdd.training.Trained], auxiliaries: dict[str, mdd.Auxiliary]
) -> tuple[list[mdd.distillers.Distiller], optax.GradientTransformation]:
    """Makes the bare base method, the same one under MetaDD and under each variant of its loss, and their optimiser.

    Args:
      job: the job.
      trained: the networks trained on the real data, by label; among them the backbone.
      auxiliaries: the frozen ones (``freeze_all``).
    """
    backbone = trained[job.backbone.label]
    with command.bars("net") as progress:
        given = job.own.prepare(job.backbone, job.dataset, backbone, job.cache, progress=progress)
    base, tx = make(job, given)
    return wrapped(job, base, auxiliaries), tx


def distil_all(
    job: Job,
    every: list[mdd.distillers.Distiller],
    tx: optax.GradientTransformation,
    watch: effects.Stopwatch,
    *,
    looking: Sequence[mdd.Auxiliary] = (),
) -> dict[str, list[mdd.SyntheticSet]]:
    """Distils ``distill_seeds`` sets with each method, going on where an earlier start was stopped.

    Args:
      job: the job.
      every: the methods.
      tx: what updates their sets.
      watch: takes the seconds of their steps.
      looking: the auxiliaries (``looking_of``), from whose consensus sets may start.

    Returns:
      By the method's name the sets, one of each distillation seed, on the host.
    """
    config = job.config
    sets: dict[str, list[mdd.SyntheticSet]] = {}
    for method in every:
        # Compiled once for all seeds of a method.
        chunk_of = compile_chunks(method, tx, run_config(config))
        sets[method.name] = []
        for seed in seeds(config):
            folder = job.directory / method.name / f"seed{seed}"
            start = start_of(job, seed, looking=looking)
            shown = {"set": method.name, "seed": seed, "dataset": config.dataset, "steps": config.steps}
            with (
                logs.opened(config.log_to, folder, settings=shown) as log,
                command.bar(config.steps, f"{method.name} seed {seed}", "step") as progress,
            ):
                watch.start()

                def on_chunk(
                    done: int,
                    metrics: dict[str, float],
                    progress: Any = progress,
                    log: Any = log,
                    name: str = method.name,
                ) -> None:
                    log(done, metrics)  # before the watch, which may end the run
                    watch.lap(name, done)
                    progress.update(done - progress.n)
                    if metrics:
                        progress.set_postfix_str(f"loss {metrics['loss']:.4g}")

                started = method if start is None else mdd.distillers.start_from(method, start)
                state = mdd.distillers.distil(
                    seed, started, tx, job.dataset, run_config(config), directory=folder, chunk_of=chunk_of,
                    on_chunk=on_chunk, saves_now=watch.saves_now,
                )  # fmt: skip
            synthetic = jax.device_get(method.synthetic(state))
            if parallel.is_main():
                # What is stored counts: a fair comparison is one of equal storage, and the metadata say what it was.
                latents = state.synthetic["latents"] if job.packs else synthetic.images
                facts = metadata(job, method.name, seed)
                facts |= mdd.distillers.budget(job.parameterisation, latents, synthetic.labels)
                if job.packs:
                    exchange.export_latents(folder / "latents.npz", jax.device_get(latents), facts, overwrite=True)
                exchange.export_npz(folder / "synthetic.npz", synthetic, facts, overwrite=True)
            sets[method.name].append(synthetic)
    return sets


def export_real(job: Job, name: str, seed: int, synthetic: mdd.SyntheticSet) -> None:
    """Writes a set of real images as a distilled one is: ``synthetic.npz`` in the folder of its name and seed.

    Args:
      job: the job.
      name: of ``REAL``.
      seed: its distillation seed.
      synthetic: the set.
    """
    facts = metadata(job, name, seed)
    facts |= mdd.distillers.budget(mdd.distillers.pixels(), synthetic.images, synthetic.labels)
    exchange.export_npz(job.directory / name / f"seed{seed}" / "synthetic.npz", synthetic, facts, overwrite=True)


def metadata(job: Job, method: str, seed: int) -> dict[str, Any]:
    """Gathers what a reader of an exported set must know.

    Args:
      job: the job.
      method: the name of the set.
      seed: its distillation seed.
    """
    return {
        "dataset": job.config.dataset,
        **{name: getattr(job.config, name) for name in ("image_size", "train_per_class", "validation_fraction")},
        "dataset_fingerprint": job.dataset.fingerprint,
        "class_names": list(job.dataset.class_names),
        # CIFAR-100's constants differ by program: an exported set that did not name its own could not be read.
        **exchange.value_space(job.dataset),
        "method": method,
        "init": job.config.own.start,
        "backbone": job.backbone.label,
        **backbones.facts(job.drawn, job.config),
        # Both counts: what is stored is what a budget is compared with, and a network trains on what is decoded.
        "ipc": job.stored_counts[0] if len(set(job.stored_counts)) == 1 else list(job.stored_counts),
        "images_per_class": job.counts[0] if len(set(job.counts)) == 1 else list(job.counts),
        "seed": seed,
        "steps": job.config.steps,
        # What its run judged it under; whether it holds soft labels of its own, its arrays say.
        "eval_labels": labels.words(recipes.labels(job.config), job.backbone.label),
    }


def looking_of(job: Job, auxiliaries: dict[str, mdd.Auxiliary]) -> tuple[mdd.Auxiliary, ...]:
    """The auxiliaries that look at the images, out of all frozen networks (``freeze_all``)."""
    return tuple(auxiliaries[name] for name in job.looked_through) if job.config.looks else ()


def baselines(
    job: Job, *, names: Sequence[str] = BASELINES, looking: Sequence[mdd.Auxiliary] = ()
) -> dict[str, list[mdd.SyntheticSet]]:
    """Real images as sets of the same size: random ones, and those found among them.

    Args:
      job: the job.
      names: which of ``REAL``.
      looking: the auxiliaries (``looking_of``), for "consensus".
    """
    # Real images match many a distilled set on foreign networks (DC-BENCH), so every table has rows of them.
    counts, repeat = job.real_counts, job.config.short_class == "repeat"

    def draw(name: str, seed: int) -> mdd.SyntheticSet:
        if name == "random":
            return mdd.evaluation.random_real(keys.root(seed, "random"), job.dataset, counts, repeat=repeat)
        return found_real(job, name, seed, counts, looking=looking)

    return {name: [draw(name, seed) for seed in seeds(job.config)] for name in names}


def found_real(
    job: Job, name: str, seed: int, counts: tuple[int, ...], *, looking: Sequence[mdd.Auxiliary] = ()
) -> mdd.SyntheticSet:
    """Gives the real images of k-means or of the consensus, as many as ``counts`` [K] say; found once."""
    if (name, seed, counts) not in job.found:
        repeat = job.config.short_class == "repeat"
        job.found[name, seed, counts] = (
            mdd.evaluation.kmeans_real(seed, job.dataset, counts, repeat=repeat)
            if name == "kmeans"
            else mdd.evaluation.consensus_real(seed, job.dataset, counts, looking, repeat=repeat)
        )
    return job.found[name, seed, counts]


def start_of(job: Job, seed: int, *, looking: Sequence[mdd.Auxiliary] = ()) -> Any:
    """Gives the images [N, H, W, C] that the sets of a seed start from; None where the method draws them itself."""
    if job.config.own.start in FOUND:
        # At equal numbers the very images of the row: what a set has over that row is the method's doing.
        return found_real(job, job.config.own.start, seed, job.counts, looking=looking).images
    return job.dataset.start


def judge(
    job: Job, sets: dict[str, list[mdd.SyntheticSet]], teachers: Sequence[mdd.training.Trained]
) -> list[dict[str, Any]]:
    """Trains every network on every set and gives the rows of accuracies, all under the same rule of labels.

    Args:
      job: the job.
      sets: by name, one of each distillation seed.
      teachers: of ``label_teachers``.
    """
    config, chosen = job.config, recipes.labels(job.config)
    teacher = labels.join(chosen, teachers)
    told = labels.told(chosen, teacher, sets)
    if config.eval_kd:
        told += f", and a guide's ({job.backbone.label})"
    every = [
        (name, seed, synthetic)
        for name, group in sets.items()
        for seed, synthetic in zip(seeds(config), group, strict=True)
    ]
    # Sets of one size train together; real rows that store as much as a packed set are smaller than its decoded images.
    sizes = list(dict.fromkeys(len(synthetic.images) for _, _, synthetic in every))
    rows = []
    with command.bar(len(job.networks) * len(sizes), "judge", "net") as progress:
        for size in sizes:
            alike = [entry for entry in every if len(entry[2].images) == size]
            tables = mdd.evaluation.cross_architecture(
                # One key for every set, so that differences between sets are paired.
                keys.root(0, "judge"),
                [synthetic for _, _, synthetic in alike],
                job.dataset,
                job.networks,
                seeds=config.train_seeds,
                recipe=recipes.evaluation(config, per_stored=max(1, size // sum(job.stored_counts))),
                draws=[seed for _, seed, _ in alike],
                split=config.evaluate_on,
                labels="hard" if chosen.rule == "hard" else "own",
                teacher=teacher,
                guidance=mdd.training.Guidance(job.backbone) if config.eval_kd else None,
                at_once=config.at_once,
                on_network=lambda label: progress.update(),
            )
            for (name, seed, _), table in zip(alike, tables, strict=True):
                rows += report.rows_of(name, seed, table, job.roles, labels=told)
    return rows
