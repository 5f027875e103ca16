"""Measure a table: distil and judge the sets of a study, each once, in any order and from any number of processes.

    metadd study competitors --data-dir ~/tensorflow_datasets --budget 30m
    metadd study my_study.toml --plan

Started again it goes on where it stopped. Several processes may work in one folder; folders from several machines
are brought together by --merge.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
import time
import warnings
from typing import Annotated, Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import exchange, files, pictures, storage
from metadd_jax.evaluation import report
from metadd_jax.job import (
    cells,
    checks,
    common,
    history,
    memory,
    parsing,
    plugins,
    prepare,
    stopping,
    studies,
    study_plan,
    study_plots,
    study_table,
)
from metadd_jax.job import report as report_file
from metadd_jax.job.cells import Cell
from metadd_jax.job.errors import in_one_line
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import Whole

MEMORY = "memory.json"  # in a cell's folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Measure the table of a study.

    Attributes:
      name: a study of the list above, one of a plugin, or a .toml file (docs/studies.md).
      run_dir: the study's folder (default: runs/study_NAME), shared by all processes.
      seeds: distillation seeds, which is how many sets of each row (default: the study's own number).
      only: rows to work on; the table shows all that is there.
      budget: how long to work, "90s", "12m" or "2h": cells that fit are done, one seed of every row before the second.
      time_limit: as budget, but with exit status 75 where cells are left, for a queue that starts the command again.
      plan: list the cells, what is done and the hours that are left; work on none.
      memory: measure the peak resident memory of each row's distilling too, in a fresh process of two chunks (Linux).
      merge: folders of the same study whose finished cells are taken over (repeatable).
      options: further options of metadd distill for every row: --options="--steps 20 --eval-epochs 10".
      data_dir: where prepared TFDS data lies.
      cache_dir: where decoded images and trained networks are kept (default: ~/.cache/metadd_jax).
      plugin: a Python file of yours that is read first: the studies, methods, networks, terms and data sets that it
        registers can be named (repeatable).
    """

    name: Annotated[str, Mark.POSITIONAL]
    run_dir: str | None = None
    seeds: Annotated[int | None, Whole(1)] = None
    only: tuple[str, ...] = ()
    budget: str | None = None
    time_limit: str | None = None
    plan: bool = False
    memory: bool = False
    merge: Annotated[tuple[str, ...], Mark.REPEATED] = ()
    options: str = ""
    data_dir: str | None = None
    cache_dir: str | None = None
    plugin: Annotated[tuple[str, ...], Mark.REPEATED] = ()


def run(arguments: list[str], *, program: str = "metadd study") -> None:
    """Parses the command line, does what is left of the study (or tells its plan), prints the table.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    plugins.load(arguments)
    description = f"{__doc__}\nStudies:\n{studies.listing()}"
    config = parsing.parse(StudyConfig, arguments, program=program, description=description)
    times = {"--budget": config.budget, "--time-limit": config.time_limit}
    limits = [stopping.seconds_of(text, option=option) for option, text in times.items() if text]
    study = studies.get(config.name)
    for row in config.only:
        study.require_row(row)
    work = Work.open(study, config)
    for folder in config.merge:
        work.take_over(pathlib.Path(folder).expanduser())
    if config.plan:
        print("\n".join(work.plan_lines()))
        return
    deadline = time.monotonic() + min(limits) if limits else None
    resumed = work.resumed()
    if resumed:
        print(f"Goes on in {work.folder}: {resumed}")
    # The limit is the deadline: cells that do not fit are not begun. SIGTERM ends the one in work.
    with stopping.listening() as stop, history.kept(work.folder, resumed=resumed):
        left = work.do(deadline, stop)
        if config.memory:
            left += work.measure_memory(deadline)
    print(work.write_table())
    print("\n".join(left))
    print(f"Sets and table lie in {work.folder}")
    if work.failed:
        raise ValueError(f"{len(work.failed)} cell(s) failed: {next(iter(work.failed.values()))}")
    if config.time_limit and work.wanted():
        raise stopping.Stopped(f"stopped by the time limit of {config.time_limit}")


@dataclasses.dataclass
class Work:
    """A study in its folder: the cells in the order of their worth, and where each lies.

    Attributes:
      study: what is measured.
      folder: of the study.
      cells: every cell and its folder; every row's first seed, then every row's second.
      data: the real data of each row.
      only: rows to work on; all if there are none.
      words: of each row, for the main job's command line.
      known: what was read of finished cells.
      failed: what went wrong with cells that were tried.
    """

    study: studies.Study
    folder: pathlib.Path
    cells: list[tuple[Cell, pathlib.Path]]
    data: dict[str, mdd.Dataset]
    only: tuple[str, ...]
    words: dict[str, list[str]]
    known: dict[pathlib.Path, dict[str, Any]] = dataclasses.field(default_factory=dict)
    failed: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, study: studies.Study, config: StudyConfig) -> Work:
        """Reads the options of every row and the data, and finds the folder of each cell.

        Raises:
          ValueError: one line for what cannot be, before any work.
        """
        places = {"data-dir": config.data_dir, "cache-dir": config.cache_dir}
        words = [f"--{name}={value}" for name, value in places.items() if value is not None]
        words += [f"--plugin={file}" for file in config.plugin]
        words = [*shlex.split(config.options), *words]
        configs = studies.configs(study, words)
        for row, of_row in configs.items():
            try:
                checks.check_options(of_row)
                common.check_names((of_row.backbone, *of_row.seen, *of_row.unseen))
            except ValueError as error:
                raise ValueError(f"row {row!r} of the study {study.name}: {error}") from error
        folder = files.require_writable(config.run_dir or f"runs/study_{study.name}")
        common.open_cache(config.cache_dir)
        data = _load(configs)
        (folder / "cells").mkdir(exist_ok=True)
        storage.lock.remove_free(folder / "cells")
        every = [
            Cell(row, study.real(row), dataclasses.replace(of_row, first_seed=of_row.first_seed + seed))
            for seed in range(config.seeds or study.seeds)
            for row, of_row in configs.items()
        ]
        placed = [(cell, cell.folder(folder / "cells", data[cell.row])) for cell in every]
        _refuse_twins(study, placed)
        whole = {row: [*study.words(row), *words] for row in study.rows}
        return cls(study, folder, placed, data, config.only, whole)

    def wanted(self) -> list[tuple[Cell, pathlib.Path]]:
        """The cells to work on that are not done."""
        return [
            (cell, folder)
            for cell, folder in self.cells
            if (not self.only or cell.row in self.only) and self.result(folder) is None
        ]

    def result(self, folder: pathlib.Path) -> dict[str, Any] | None:
        """What a finished cell found; None if it is not done or its file is damaged."""
        # Read once: a cell that is done stays as it is, and every estimate asks for all of them.
        if folder not in self.known and (found := report.read_rows(folder / cells.RESULT)):
            self.known[folder] = found
        if folder in self.known and (folder / MEMORY).exists():
            self.known[folder]["memory"] = files.read_json(folder / MEMORY)
        return self.known.get(folder)

    def do(self, deadline: float | None, stop: stopping.Stop | None = None) -> list[str]:
        """Does the cells that are left and fit before ``deadline`` (``time.monotonic()``), until ``stop`` asks to end.

        Returns:
          What is left and why, in lines.
        """
        failed = self.failed
        held: dict[pathlib.Path, str] = {}
        while True:
            todo = [(cell, folder) for cell, folder in self.wanted() if folder not in failed and folder not in held]
            cell, folder = next((pair for pair in todo if self._fits(pair[0], deadline)), (None, None))
            if cell is None or folder is None:
                break
            lock = folder.parent / f".{folder.name}{storage.LOCK}"
            try:
                with storage.Lock(lock):
                    if self.result(folder) is None:  # another process may have just done it
                        self._do(cell, folder, deadline, stop)
            except storage.HeldError as error:
                held[folder] = str(error)
            except cells.OutOfTimeError:
                break
            except Exception as error:  # one cell that cannot be costs the others nothing
                failed[folder] = in_one_line(error)
                print(f"{cell.row}, seed {cell.seed}: {failed[folder]}")
        return self._left(held)

    def _do(self, cell: Cell, folder: pathlib.Path, deadline: float | None, stop: stopping.Stop | None) -> None:
        number, done = len(self.cells), sum(self.result(place) is not None for _, place in self.cells)
        print(f"[{done + 1}/{number}] {cell.row}, seed {cell.seed}", flush=True)
        cells.run(cell, folder, self.data[cell.row], deadline=deadline, stop=stop)

    def measure_memory(self, deadline: float | None) -> list[str]:
        """Measures the memory of each row's distilling where that is not done; returns what went wrong, in lines."""
        if not memory.can_measure():
            return ["--memory: this system tells no peak that can be set back; the column stays empty"]
        lines: list[str] = []
        for cell, folder in self.cells:
            # Of the first seed: what another seed's set takes is the same.
            first = folder == next(place for other, place in self.cells if other.row == cell.row)
            asked = not self.only or cell.row in self.only
            if not (first and asked) or cell.real or self.result(folder) is None or (folder / MEMORY).exists():
                continue
            if deadline is not None and time.monotonic() > deadline:
                return [*lines, "--memory: out of time; the same command goes on"]
            print(f"memory: {cell.row}", flush=True)
            try:
                files.write_json(folder / MEMORY, memory.measure(self.words[cell.row], 0))
            except ValueError as error:
                lines.append(f"{cell.row}: {error}")
        return lines

    def _left(self, held: dict[pathlib.Path, str]) -> list[str]:
        lines = []
        for cell, folder in self.wanted():
            why = self.failed.get(folder) or held.get(folder)
            lines.append(f"- {cell.row}, seed {cell.seed}{f': {why}' if why else ''}")
        seconds = study_plan.by_row(list(self.study.rows), self.times)
        hours = f", about {_clock(sum(seconds[cell.row] for cell, _ in self.wanted()))}" if seconds else ""
        head = f"{len(lines)} of {len(self.cells)} cells are left{hours}; the same command goes on:"
        return [head, *lines] if lines else ["Every cell is done."]

    @property
    def times(self) -> dict[str, list[float]]:
        """Seconds of the cells that are done, by row."""
        found: dict[str, list[float]] = {}
        for cell, folder in self.cells:
            if result := self.result(folder):
                found.setdefault(cell.row, []).append(sum(result["wall_seconds"].values()))
        return found

    def _fits(self, cell: Cell, deadline: float | None) -> bool:
        if deadline is None:
            return True
        left, needed = deadline - time.monotonic(), study_plan.by_row(list(self.study.rows), self.times).get(cell.row)
        return left > 0 and (needed is None or needed <= left)

    def resumed(self) -> str:
        """Says what earlier starts left, "" where there is nothing."""
        done = sum(self.result(folder) is not None for _, folder in self.cells)
        begun = [text for _, folder in self.wanted() if (text := history.resumed(folder))]
        return ", ".join([f"{done} of {len(self.cells)} cells"] * bool(done) + begun)

    def plan_lines(self) -> list[str]:
        """The cells of each row, done and left, and their hours."""
        first = {cell.row: cell for cell, _ in reversed(self.cells)}
        measured, seconds = self.times, study_plan.estimate(first, self.data, self.times)
        lines = ["| row | seeds done | seeds left | minutes a cell |", "|---|---|---|---|"]
        for row in self.study.rows:
            own = [(cell, self.result(folder)) for cell, folder in self.cells if cell.row == row]
            done, left = ([str(cell.seed) for cell, found in own if (found is None) is left] for left in (False, True))
            took = f"{'' if row in measured else '~ '}{seconds[row] / 60:.1f}"
            lines.append(f"| {row} | {' '.join(done) or '.'} | {' '.join(left) or '.'} | {took} |")
        wanted = self.wanted()
        hours = _clock(sum(seconds[cell.row] for cell, _ in wanted))
        return [
            *lines,
            "",
            f"{len(wanted)} of {len(self.cells)} cells are left, about {hours}. "
            "~: by FLOPs, without compilation and what the cache lacks; the others as measured.",
            f"Folder: {self.folder}",
        ]

    def take_over(self, other: pathlib.Path) -> None:
        """Copies the finished cells of another folder of this study.

        Raises:
          ValueError: if there is no folder of a study.
        """
        if not (other / "cells").is_dir():
            raise ValueError(f"{other} is no study's folder: it has no cells/; check --merge")
        for _, folder in self.cells:
            theirs = other / "cells" / folder.name
            if self.result(folder) is not None or report.read_rows(theirs / cells.RESULT) is None:
                continue
            with storage.Lock(folder.parent / f".{folder.name}{storage.LOCK}"):
                # Without checkpoints, which nobody goes on from; the result last, for it says that all is there.
                shutil.copytree(
                    theirs, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", ".*", cells.RESULT)
                )
                files.write_text(folder / cells.RESULT, (theirs / cells.RESULT).read_text())

    def write_table(self) -> str:
        """Writes ``study.json``, ``study.md`` and pictures of all cells that are done; returns the Markdown."""
        # Under a lock and read inside it: of two processes the last to write has seen every cell.
        with storage.lock.waiting(self.folder / f".table{storage.LOCK}"):
            found = [
                (cell.row, cell.seed, {**result, "folder": folder.name})
                for cell, folder in self.cells
                if (result := self.result(folder))
            ]
            table = study_table.summary(self.study, found, cells=len(self.cells))
            table["plots"] = study_plots.gathered(table, found)
            text = study_table.markdown(table)
            files.write_json(self.folder / "study.json", table)
            files.write_text(self.folder / "study.md", text)
            try:
                self._draw()
                study_plots.draw(self.folder / "study_plots.png", table["plots"])
            except (OSError, ValueError) as error:  # a picture costs no result
                warnings.warn(f"no picture of the study: {error}", stacklevel=1)
            report_file.leave(self.folder)
        return text

    def _draw(self) -> None:
        """Draws ``study.png``: the first image of each class of each row's first set."""
        rows: dict[str, np.ndarray] = {}
        for cell, folder in self.cells:
            if (found := self.result(folder)) and cell.row not in rows:
                synthetic, facts = exchange.load_npz(folder / found["set"] / f"seed{cell.seed}" / "synthetic.npz")
                first = np.unique(synthetic.labels, return_index=True)[1]
                rows[cell.row] = exchange.to_pixels(np.asarray(synthetic.images)[first], facts)
        shapes = {images.shape[1:] for images in rows.values()}
        if len(shapes) != 1:  # rows of other data have pictures of their own
            return
        labels = np.repeat(np.arange(len(rows)), [len(images) for images in rows.values()])
        images = np.concatenate(list(rows.values()))
        pictures.grid(self.folder / "study.png", images, labels, class_names=list(rows))


def _load(configs: dict[str, Any]) -> dict[str, mdd.Dataset]:
    """The data of each row; rows of the same data share them."""
    names = ("dataset", "data_dir", "cache_dir", "image_size", "zca", "train_per_class", "validation_fraction")
    loaded: dict[tuple, mdd.Dataset] = {}
    found = {}
    for row, config in configs.items():
        key = (*(getattr(config, name) for name in names), bool(config.stream_per_class))
        if key not in loaded:
            loaded[key] = prepare.load_data(config)
        found[row] = loaded[key]
    return found


def _refuse_twins(study: studies.Study, placed: list[tuple[Cell, pathlib.Path]]) -> None:
    rows: dict[pathlib.Path, str] = {}
    for cell, folder in placed:
        if folder in rows:
            raise ValueError(
                f"the rows {rows[folder]!r} and {cell.row!r} of {study.name} have the same options; drop one"
            )
        rows[folder] = cell.row


def _clock(seconds: float) -> str:
    minutes = -(-int(seconds) // 60)
    return f"{minutes // 60}:{minutes % 60:02d} hours"
