"""One cell of a study: one set, distilled from one seed and judged, in a folder named by all that decides it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
import time
from typing import Any

import metadd_jax as mdd
from metadd_jax import distillers, exchange, files, provenance, storage
from metadd_jax.evaluation import report
from metadd_jax.job import command, effects, options, plan, prepare, recipes, results, runfolder, stages, stopping
from metadd_jax.job.options import DistillConfig

RESULT = "cell.json"  # in a cell's folder, its last file: a cell that has it is done
TIMES = "seconds.jsonl"
# Code that decides a cell's numbers, beside its method's: what these modules import, and the job's own use of them.
_DECIDES = ("metadd_jax.distillers.run", "metadd_jax.evaluation.judging", "metadd_jax.evaluation.baselines")
_JOB = ("job/backbones.py", "job/labels.py", "job/prepare.py", "job/recipes.py", "job/stages.py")
# They read, write and refuse; no number comes from them.
_DECIDES_NOTHING = ("exchange/", "storage/", "files.py", "provenance.py", "ranges.py", "registries.py")


class OutOfTimeError(Exception):
    """The budget is used up; the set goes on from its last checkpoint at the next start."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One set to distil and judge.

    Attributes:
      row: its row in the study.
      real: of ``prepare.REAL`` for real images; None for a distilled set, the last that the options would make.
      config: the options of the main job, for one seed.
    """

    row: str
    real: str | None
    config: DistillConfig

    @property
    def seed(self) -> int:
        return self.config.first_seed

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What the user said: the options that decide a number, where they are not the defaults."""
        # Without the defaults, so that an option that is new in this version does not make every cell another one.
        config, usual = (
            self.config,
            DistillConfig(method=self.config.method, own=options.settings_of(self.config.method)),
        )
        said = runfolder.plain(dataclasses.replace(config, run_dir=None))
        plain = _differences(said, runfolder.plain(usual) | {name: said[name] for name in runfolder.FREE})
        if config.plugin:
            plain["plugin"] = [one["sha256"] for one in plain["plugin"]]  # wherever the file lies
        return {"real": self.real, "method": config.method, "seed": self.seed} | plain

    def decides(self, dataset: mdd.Dataset) -> dict[str, Any]:
        """Gathers all that decides the cell's numbers but the machine, which ``cell.json`` names.

        Args:
          dataset: the real data.

        Returns:
          "settings", "data" (its fingerprint) and "code" (sources, versions, JAX's switches), as JSON.
        """
        config = self.config
        latents = distillers.parameterisations.parse(config.parameterisation, dataset)
        modules = [*_DECIDES, type(config.own).__module__, type(latents).__module__]
        modules += ["metadd_jax.distillers.meta"] if config.wrapped else []
        modules += ["metadd_jax.distillers.several"] if config.matched else []
        reached = provenance.reached(*sorted({name for name in modules if name.startswith("metadd_jax.")}))
        places = [place for place in reached if not place.startswith(_DECIDES_NOTHING)]
        # Of those cells alone whose auxiliaries learn from other data.
        places += ["job/seen_data.py"] if config.seen_data else []
        code = {"sources": provenance.sources(*places, *_JOB), **provenance.settings()}
        return {
            "settings": self.settings,
            "data": dataset.fingerprint,
            "code": code | {"versions": provenance.machine()["versions"]},
        }

    def folder(self, cells: pathlib.Path, dataset: mdd.Dataset) -> pathlib.Path:
        """The cell's folder in that of all cells."""
        key = files.hash_json(self.decides(dataset))[:16]
        return cells / f"{self.real or self.config.method}-seed{self.seed}-{key}"


def _differences(said: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in said.items():
        if isinstance(value, dict) and isinstance(usual.get(name), dict):
            if inner := _differences(value, usual[name]):
                found[name] = inner
        elif name not in usual or value != usual[name]:
            found[name] = value
    return found


class _Watch(stopping.Watch):
    """Keeps the times of a set beside it, for the next start too, and stops at the end of the budget."""

    def __init__(self, folder: pathlib.Path, deadline: float | None, stop: stopping.Stop, steps: int) -> None:
        super().__init__(stop, steps)
        self._log, self._deadline = storage.JsonLines(folder / TIMES), deadline
        # A start that goes on says so before its first chunk, so the first that can be timed is the one that compiles.
        self._compiles = any(folder.glob("*/seed*/checkpoints/step_*"))

    def lap(self, method: str, done: int) -> float | None:
        seconds = super().lap(method, done)
        if seconds is not None and not self._compiles:
            self._log.write(done, {"seconds": seconds})
        self._compiles &= seconds is None
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTimeError
        return seconds

    def median(self) -> float | None:
        """Seconds a step over all chunks of all starts but each start's first."""
        laps = [line["seconds"] for line in self._log.read()]
        return statistics.median(laps) if laps else None


def run(
    cell: Cell,
    folder: pathlib.Path,
    dataset: mdd.Dataset,
    *,
    deadline: float | None = None,
    stop: stopping.Stop | None = None,
) -> dict[str, Any]:
    """Distils and judges a cell, going on where an earlier start was stopped, and writes ``cell.json``.

    Args:
      cell: what to do.
      folder: of the cell; the folder of a run of the main job.
      dataset: the real data of its options.
      deadline: the ``time.monotonic()`` after which the distilling stops at the end of a chunk.
      stop: who asks the whole study to end, or None.

    Returns:
      What ``cell.json`` holds.

    Raises:
      OutOfTimeError: after the deadline.
      ValueError: as the main job.
    """
    began = time.perf_counter()
    # A checkpoint at every chunk: a budget that ends may then lose one chunk's work, no more.
    config = dataclasses.replace(cell.config, run_dir=str(folder), save_every=cell.config.chunk)
    prepared = prepare.open_job(config, dataset=dataset)
    try:
        job = plan.for_memory(prepared)
        watch = _Watch(folder, deadline, stop or stopping.Stop(), config.steps)
        networks = networks_of(job) if _wants_networks(cell, job) else ({}, {})
        teachers = stages.label_teachers(job, networks[0])
        ready = time.perf_counter()
        sets = _distil(job, cell, networks, watch)
        distilled = time.perf_counter()
        ((name, (synthetic,)),) = sets.items()
        results.draw_set(job, folder / name / f"seed{cell.seed}", synthetic, [])
        rows = stages.judge(job, sets, teachers)
        stored = exchange.load_npz(folder / name / f"seed{cell.seed}" / "synthetic.npz")[1]
        a_step = watch.median()
        found = {
            "cell": cell.decides(dataset),
            "config": runfolder.plain(cell.config),
            "set": name,
            "rows": rows,
            "labels": rows[0]["labels"],  # rows are compared under equal labels only
            "images": len(synthetic.images),
            "stored_values": stored["stored_values"],
            "frozen_values": stored["frozen_values"],
            # Of one chunk no time is without compilation.
            "distil_seconds": None if cell.real else a_step * config.steps if a_step else distilled - ready,
            "with_compilation": not cell.real and a_step is None,
            "wall_seconds": {
                "prepare": ready - began,
                "distil": distilled - ready,
                "judge": time.perf_counter() - distilled,
            },
            "versions": command.versions(),
        }
        report.write_rows(folder / RESULT, found)
        return found
    # Also after Ctrl-C: the next start must find the folder free.
    finally:
        if prepared.lock:
            prepared.lock.release()


def _distil(
    job: prepare.Job, cell: Cell, networks: tuple[dict, dict], watch: effects.Stopwatch
) -> dict[str, list[mdd.SyntheticSet]]:
    looking = stages.looking_of(job, networks[1]) if networks[1] else ()
    if cell.real:
        sets = stages.baselines(job, names=[cell.real], looking=looking)
        stages.export_real(job, cell.real, cell.seed, sets[cell.real][0])
        return sets
    job = stages.prepare_latents(job)
    every, tx = stages.all_methods(job, *networks)
    return stages.distil_all(job, every[-1:], tx, watch, looking=looking)


def _wants_networks(cell: Cell, job: prepare.Job) -> bool:
    """Whether the networks of the distillation are wanted: real images need them to be chosen or labelled by."""
    own_teacher = recipes.labels(job.config).rule == "teacher" and not job.teachers
    return cell.real in (None, "consensus") or own_teacher


def networks_of(job: prepare.Job) -> tuple[dict[str, mdd.training.Trained], dict[str, mdd.Auxiliary]]:
    """The networks that distil and are looked through, trained, and the same ones frozen; by label."""
    config = job.config
    recipe = (recipes.pretraining(config), recipes.backbone(config), config.evaluate_on)
    weights = tuple(getattr(config.own, name) for name in config.own.file_fields)
    apart = (config.seen_epochs, config.seen_data, config.data_dir) if config.looks else ()
    key = (job.dataset.fingerprint, job.backbone, job.seen, apart, *recipe, *weights, job.cache)
    # Kept: the cells of a study share them, and to freeze one passes real images through it.
    if key not in _MADE:
        trained = stages.pretrain_all(job, unseen=False)
        _MADE[key] = trained, stages.freeze_all(job, trained)
    return _MADE[key]


_MADE: dict[tuple, tuple[dict[str, mdd.training.Trained], dict[str, mdd.Auxiliary]]] = {}
