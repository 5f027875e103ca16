"""Cells of a study as jobs of a cluster: submitit hands them to SLURM, or to processes of this machine.

Each job is ``metadd study ... --cell NAME``: a process of its own that claims its cell as every other process does, so
a job that is started again or twice does nothing twice.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

EXECUTORS = ("here", "submitit")
_SLURM = "slurm_"


def check(executor: str, settings: Sequence[str], *, budget: str | None, memory: bool) -> None:
    """Refuses options that do not go with the executor.

    Args:
      executor: of ``EXECUTORS``.
      settings: of the jobs, "NAME=VALUE".
      budget: of ``metadd study``.
      memory: whether memory is to be measured.

    Raises:
      ValueError: naming the option.
    """
    if executor == "here":
        if settings:
            raise ValueError(f"--submit {settings[0]} is of --executor submitit; name it, or leave --submit out")
        return
    read(settings)
    if budget is not None:
        raise ValueError(f"--budget {budget} is of one process; give each job a limit by --submit timeout_min=60")
    if memory:
        raise ValueError("--memory measures on this machine; run it without --executor when the cells are done")


def read(settings: Sequence[str]) -> dict[str, int | str]:
    """Reads "NAME=VALUE" as submitit's ``update_parameters`` takes them: whole numbers as such, all else as text.

    Raises:
      ValueError: for one that has no "=", or the name of nothing.
    """
    found: dict[str, int | str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier() and value):
            raise ValueError(f"cannot read --submit {text}; write NAME=VALUE, such as slurm_partition=gpu")
        found[name] = int(value) if value.isdigit() else value
    return found


def submit(
    cells: Sequence[str], arguments: Sequence[str], folder: pathlib.Path, *, jobs: int, settings: Sequence[str] = ()
) -> dict[str, str]:
    """Makes a job of each cell, and waits for all of them.

    Args:
      cells: names of the cells' folders.
      arguments: the words of ``metadd study`` that opened the study.
      folder: for submitit's scripts and the jobs' output.
      jobs: most that run at once.
      settings: see ``read``.

    Returns:
      What went wrong, by cell.

    Raises:
      ValueError: if submitit is not installed, or refuses a setting.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--executor submitit needs the package submitit; run: pip install submitit") from error
    executor = submitit.AutoExecutor(folder=folder)
    is_cluster = executor.cluster == "slurm"
    try:
        executor.update_parameters(**_parameters(read(settings), jobs, is_cluster=is_cluster))
    except (NameError, TypeError, ValueError, AssertionError) as error:  # what it raises differs by setting
        raise ValueError(f"submitit refuses --submit {' '.join(settings)}: {' '.join(str(error).split())}") from error

    def command(cell: str) -> Any:
        words = [sys.executable, "-m", "metadd_jax.cli", "study", *arguments, "--executor", "here", "--cell", cell]
        return submitit.helpers.CommandFunction(words, verbose=False)

    failed: dict[str, str] = {}
    # SLURM holds an array of jobs to the number at once by itself; processes here are counted.
    size = len(cells) if is_cluster else jobs
    for start in range(0, len(cells), size):
        part = cells[start : start + size]
        with executor.batch():
            running = [executor.submit(command(cell)) for cell in part]
        for cell, job in zip(part, running, strict=True):
            print(f"job {job.job_id}: {cell}", flush=True)
        for cell, job in zip(part, running, strict=True):
            died = job.exception()
            if died is not None:
                failed[cell] = _told(str(died), job)
                print(f"job {job.job_id}: {failed[cell]}", flush=True)
    return failed


def _parameters(given: dict[str, int | str], jobs: int, *, is_cluster: bool) -> dict[str, Any]:
    """What submitit is told: ours, then the user's; what is of SLURM plays no part where there is none."""
    usual: dict[str, Any] = {"timeout_min": 24 * 60, "name": "metadd_study"}
    if is_cluster:
        usual["slurm_array_parallelism"] = jobs
    return usual | {name: value for name, value in given.items() if is_cluster or not name.startswith(_SLURM)}


def _told(error: str, job: Any) -> str:
    """One line of what a job died of: that of the command where it told one."""
    said = re.findall(r"^.*?\berror: (.*)$", error, flags=re.MULTILINE)
    line = said[-1].strip() if said else " ".join(error.split())[-300:]
    return f"{line} (output: {job.paths.stderr})"
