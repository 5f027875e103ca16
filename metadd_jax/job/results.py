"""What a run leaves beside its sets: pictures, agreement of the maps, the head of the table."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import exchange, files, keys, parallel, pictures, ranges
from metadd_jax.evaluation import report
from metadd_jax.job import backbones, command, labels, recipes, report_images, runfolder
from metadd_jax.job.options import DistillConfig
from metadd_jax.job.prepare import REAL, Job, seeds


def agreements(
    job: Job, sets: dict[str, list[mdd.SyntheticSet]], auxiliaries: dict[str, mdd.Auxiliary]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measures what trained networks agree on in every set, seen and unseen ones apart.

    Args:
      job: the job.
      sets: by name, one of each distillation seed.
      auxiliaries: the frozen networks by label.

    Returns:
      By set and role the facts of ``evaluation.agreement``, averaged over distillation seeds. A role of fewer than two
      networks is left out.
    """
    # One kind of map for all sets, also for a variant distilled under another: they are to be compared.
    groups = {
        "seen": [auxiliaries[net.label] for net in job.seen],
        "unseen": [auxiliaries[net.label] for net in job.unseen if net.has_map],
    }
    return {
        name: {
            role: _average([_agreement(job, one, group) for one in sets_of_name])
            for role, group in groups.items()
            # Agreement is between networks: of one alone there is none.
            if len(group) > 1
        }
        for name, sets_of_name in sets.items()
    }


def _agreement(job: Job, synthetic: mdd.SyntheticSet, group: list[mdd.Auxiliary]) -> dict[str, Any]:
    cam = job.config.metadd.cam
    return mdd.evaluation.agreement(synthetic, group, threshold=cam.threshold, config=cam)


def _average(facts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{name: np.mean([fact[name] for fact in facts], axis=0).tolist() for name in facts[0]},
        "chance_corrected_by_seed": [fact["chance_corrected"] for fact in facts],
    }


def draw(job: Job, sets: dict[str, list[mdd.SyntheticSet]], auxiliaries: dict[str, mdd.Auxiliary]) -> None:
    """Draws ``synthetic.png`` and, where there are auxiliaries, ``maps.png`` in the folder of each distilled set.

    Args:
      job: the job.
      sets: by name, one of each distillation seed; the baselines get no pictures.
      auxiliaries: the frozen networks by label.
    """
    for name in [name for name in sets if name not in REAL]:
        for seed, synthetic in zip(seeds(job.config), sets[name], strict=True):
            draw_set(job, job.directory / name / f"seed{seed}", synthetic, [auxiliaries[net.label] for net in job.seen])


def draw_set(job: Job, folder: pathlib.Path, synthetic: mdd.SyntheticSet, seen: list[mdd.Auxiliary]) -> None:
    """Draws the pictures of one set in its ``folder``; one that cannot be drawn is a warning.

    Args:
      job: the job.
      folder: of the set.
      synthetic: the set.
      seen: the frozen networks whose maps are drawn; without any there is no ``maps.png``.
    """
    try:
        _draw_set(job, folder, synthetic, seen)
    except Exception as error:  # whatever it is: a picture costs no result
        warnings.warn(f"no pictures of {folder}: {type(error).__name__}: {error}", stacklevel=2)


def _draw_set(job: Job, folder: pathlib.Path, synthetic: mdd.SyntheticSet, seen: list[mdd.Auxiliary]) -> None:
    names = job.dataset.class_names
    pixels = exchange.to_pixels(synthetic.images, exchange.value_space(job.dataset))
    pictures.grid(folder / "synthetic.png", pixels, synthetic.labels, class_names=names)
    if (folder / "latents.npz").exists() and _shows_packed(job):  # real images store none
        stored = exchange.to_pixels(exchange.load_latents(folder / "latents.npz")[0], exchange.value_space(job.dataset))
        # Class-major, and no stored image holds two classes: every k-th label is that of a stored one.
        labels = synthetic.labels[:: len(synthetic.labels) // len(stored)]
        pictures.grid(folder / "packed.png", stored, labels, class_names=names)
    if not seen:
        return
    # The page is for the eye: all images of a set would not fit on it.
    first = np.unique(synthetic.labels, return_index=True)[1]  # one image of each class
    labels, shown = synthetic.labels[first], [net.name for net in job.seen]
    stack = mdd.evaluation.map_stack(seen, synthetic.images[first], labels, config=job.config.metadd.cam)
    pictures.maps(folder / "maps.png", pixels[first], labels, stack, network_names=shown, class_names=names)
    # By labels, which differ where two networks of one family are looked through.
    report_images.write_maps(folder, first, stack, [net.label for net in job.seen])


def draw_generator(directory: pathlib.Path, dataset: mdd.Dataset, parameterisation: Any) -> None:
    """Draws ``samples.png`` of a generator that was trained for the run; of any other, and of whitened data, nothing.

    Each row is a class: three training images, the same three as the generator shows them, four new images.

    Args:
      directory: the run's folder.
      dataset: what it was trained on.
      parameterisation: with ``trained``, what its training gave, where there was one.
    """
    trained = getattr(parameterisation, "trained", None)
    if trained is None or dataset.whitening is not None:
        return
    file = directory / "samples.png"
    try:
        _draw_samples(file, dataset, trained)
    except Exception as error:  # whatever it is: a picture costs no result
        warnings.warn(f"no {file}: {type(error).__name__}: {error}", stacklevel=1)


def _draw_samples(file: pathlib.Path, dataset: mdd.Dataset, trained: mdd.generators.TrainedGenerator) -> None:
    images, labels = mdd.generators.samples(keys.root(0, "generator"), trained, dataset)
    pixels = exchange.to_pixels(images, exchange.value_space(dataset))
    pictures.grid(file, pixels, labels, class_names=dataset.class_names)


def _shows_packed(job: Job) -> bool:
    """Whether there is a picture of what is stored; of a whitened set none, for whitening mixes all its pixels."""
    return getattr(job.parameterisation, "stores_images", False) and job.dataset.whitening is None


def unwritten(job: Job, results: dict[str, Any]) -> list[pathlib.Path]:
    """Lists the files of the sets behind the ``results`` of ``job`` that are missing or damaged."""
    sets = {row["set"]: None for row in results["rows"] if row["set"] not in REAL}
    pictures = ["synthetic.png"] + ["packed.png"] * _shows_packed(job) + ["maps.png"] * bool(job.seen)
    return runfolder.unwritten(job.directory, sets, seeds(job.config), latents=job.packs, pictures=pictures)


def show(job: Job, results: dict[str, Any]) -> str:
    """Gives the ``results`` of ``job`` as Markdown; ``results.md`` is written anew where it is not that."""
    # results.json is what counts; its picture for the eye may have been lost or edited.
    text, file = report.markdown(results), job.directory / "results.md"
    if parallel.is_main() and not (file.is_file() and file.read_bytes() == text.encode()):
        files.write_text(file, text)
    return text


def _describe_counts(counts: tuple[int, ...]) -> str:
    """The images of each class in a few words."""
    if len(set(counts)) == 1:
        return f"{counts[0]} image(s) per class"
    return f"{min(counts)} to {max(counts)} images per class ({sum(counts)} in all)"


def labels_of(
    job: Job, rows: Sequence[Mapping[str, Any]], sets: Mapping[str, Sequence[mdd.SyntheticSet]],
    teachers: Sequence[mdd.training.Trained],
) -> dict[str, Any]:  # fmt: skip
    """What judged networks learned from: the rule of all rows, a sentence on it, and the teachers.

    Args:
      job: the job.
      rows: of ``stages.judge``.
      sets: what was judged, by name.
      teachers: who labelled; none where the labels are the sets' own.
    """
    rule, shares = rows[0]["labels"], recipes.labels(job.config).weights or (1.0,)
    named = [{"network": one.net.label, "accuracy": one.accuracy} for one in teachers]
    weighted = [{**facts, "weight": share} for facts, share in zip(named, shares, strict=False)]
    return {"rule": rule, "note": labels.note(rule, sets), "teachers": weighted}


def _describe_start(start: str) -> str:
    words = {
        "random": "random real images",
        "noise": "noise",
        "kmeans": "the k-means images of the same seed",
        "consensus": "the consensus images of the same seed",
    }
    return words.get(start, f"the images of {start}")


def _describe_seen(config: DistillConfig) -> str:
    if not config.wrapped or not config.learns_apart:
        return ""
    epochs = config.seen_epochs or (config.pretrain_epochs,)
    source = f" over {config.seen_data} data" if config.seen_data else ""
    return f"MetaDD looked through the seen networks after {ranges.listed([*map(str, epochs)])} epochs{source}. "


def notes(job: Job) -> list[str]:
    """Protocol, seeds and machine, for the head of the results."""
    config, facts = job.config, command.versions()
    limit = f" (at most {config.train_per_class} training images a class)" if config.train_per_class else ""
    numbers = ", ".join(map(str, seeds(config)))
    real = f", of {_describe_counts(job.real_counts)}" if job.real_counts != job.counts else ""
    images = _describe_counts(job.counts)
    if job.packs:
        images += f" in {sum(job.stored_counts)} stored ones ({config.parameterisation})"
    return [
        f"{config.dataset}{limit}, {images}, accuracy on {config.evaluate_on} in percent, "
        f"mean ± standard deviation over the distillation seeds {numbers} (random and k-means rows: as many "
        f"draws{real}) of the mean of {config.train_seeds} trainings each; last epoch, no choice on the test split.",
        "",
        f"{config.method}: {config.steps} steps, {config.own.describe()}, from {_describe_start(config.own.start)}, "
        f"backbone {job.backbone.label}{backbones.describe(job.drawn, config)}. {_describe_seen(config)}"
        f"Judged by the recipe {config.eval_recipe!r}, "
        f"{config.eval_epochs} epochs, {recipes.describe_evaluation(config)}. jax {facts['jax']}, {facts['device']}, "
        f"{facts['machine']}. Agreement and maps.png, of every set alike: {config.metadd.cam.describe()}.",
    ]
