"""The work on a study in its folder: which cells there are, which are done, and doing the others."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
import time
import warnings
from typing import Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import exchange, files, pictures, storage
from metadd_jax.evaluation import report
from metadd_jax.job import (
    agreement,
    cells,
    checks,
    common,
    executors,
    history,
    memory,
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
from metadd_jax.job.study_options import StudyConfig

MEMORY = "memory.json"  # in a cell's folder


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
      agreed: what trained networks agree on in the sets, where that was measured.
    """

    study: studies.Study
    folder: pathlib.Path
    cells: list[tuple[Cell, pathlib.Path]]
    data: dict[str, mdd.Dataset]
    only: tuple[str, ...]
    words: dict[str, list[str]]
    known: dict[pathlib.Path, dict[str, Any]] = dataclasses.field(default_factory=dict)
    failed: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)
    agreed: dict[str, Any] | None = None

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
        if (
            folder not in self.known
            and (found := report.read_rows(folder / cells.RESULT))
            and _is_name(found.get("set"))
        ):
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
            try:
                with _lock(folder):
                    if self.result(folder) is None:  # another process may have just done it
                        self._do(cell, folder, deadline, stop)
            except storage.HeldError as error:
                held[folder] = str(error)
            except cells.OutOfTimeError:
                break
            except Exception as error:  # one cell that cannot be costs the others nothing
                failed[folder] = in_one_line(error)
                print(f"{cell.row}, seed {cell.seed}: {failed[folder]}")
        return self.left(held)

    def submit(self, config: StudyConfig, arguments: list[str]) -> list[str]:
        """Makes a job of each cell that is left, and waits for them.

        Args:
          config: says which jobs.
          arguments: the words of the command line.

        Returns:
          What is left and why, in lines.
        """
        names = {folder.name: folder for _, folder in self.wanted()}
        failed = executors.submit(
            list(names), arguments, self.folder / "jobs", jobs=config.jobs, settings=config.submit
        )
        self.failed |= {names[name]: error for name, error in failed.items()}
        return self.left({})

    def do_one(self, name: str, stop: stopping.Stop | None = None) -> None:
        """Does the cell whose folder is called ``name``, unless it is done or another process is at it.

        Raises:
          ValueError: if the study has no such cell; whatever the cell raises.
        """
        cell, folder = next((pair for pair in self.cells if pair[1].name == name), (None, None))
        if cell is None or folder is None:
            raise ValueError(
                f"{self.study.name} has no cell {name}; options, data or code differ from those that named it"
            )
        try:
            with _lock(folder):
                if self.result(folder) is None:
                    self._do(cell, folder, None, stop)
        except storage.HeldError as error:
            print(f"{cell.row}, seed {cell.seed}: {error}")

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

    def left(self, held: dict[pathlib.Path, str]) -> list[str]:
        """Lists the cells that are left, in lines.

        Args:
          held: what is known of those that other processes are at.
        """
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

    def measure_agreement(self, deadline: float | None) -> list[str]:
        """Looks at every finished set through the networks of the row that others are compared with.

        Args:
          deadline: the ``time.monotonic()`` after which no further set is looked at.

        Returns:
          What went wrong, in lines.
        """
        reference = next(iter((*self.study.references, *self.study.against.values())), None)
        if reference is None:
            return ["--agreement: the study names no row that others are compared with; give it references"]
        try:
            by = agreement.lookers(next(cell for cell, _ in self.cells if cell.row == reference), self.data[reference])
        except ValueError as error:
            return [f"--agreement: {error}"]
        found = []
        for cell, folder in self.cells:
            result = self.result(folder)
            if result is None or self.data[cell.row].fingerprint != self.data[reference].fingerprint:
                continue
            if deadline is not None and time.monotonic() > deadline:
                return ["--agreement: out of time; the same command goes on"]
            file = folder / result["set"] / f"seed{cell.seed}" / "synthetic.npz"
            found.append((cell.row, cell.seed, result, agreement.look(by, folder, file)))
        self.agreed = agreement.summary(reference, found) if found else None
        return []

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
            with _lock(folder):
                # Without checkpoints, which nobody goes on from; the result last, for it says that all is there.
                shutil.copytree(theirs, folder, dirs_exist_ok=True, ignore=_left_out)
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
            text = study_table.markdown(table)
            if self.agreed:
                table["agreement"] = self.agreed
                text += "\n".join(["", *agreement.lines(self.agreed), ""])
            table["plots"] = study_plots.gathered(table, found)
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


def _is_name(text: Any) -> bool:
    """Whether a text out of a file that travels is the name of a folder, and no path that leads out of one."""
    return isinstance(text, str) and text not in ("", ".", "..") and "/" not in text and "\0" not in text


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What is not taken over of another's cell: checkpoints, hidden files, and links, which may lead anywhere."""
    places = {name: pathlib.Path(folder, name) for name in names}
    return {
        name
        for name, place in places.items()
        if name in ("checkpoints", cells.RESULT)
        or name.startswith(".")
        or place.is_symlink()
        or not (place.is_file() or place.is_dir())
    }


def _lock(folder: pathlib.Path) -> storage.Lock:
    """The lock of a cell, beside its folder, which may not be there yet."""
    return storage.Lock(folder.parent / f".{folder.name}{storage.LOCK}")


def _clock(seconds: float) -> str:
    minutes = -(-int(seconds) // 60)
    return f"{minutes // 60}:{minutes % 60:02d} hours"
