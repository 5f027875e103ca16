"""The options of ``metadd study``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from metadd_jax.data.splits import SPLITS
from metadd_jax.job import executors
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import OneOf, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Measure the table of a study.

    Attributes:
      name: a study of the list above, one of a plugin, or a .toml file (docs/studies.md).
      run_dir: the study's folder (default: runs/study_NAME, on another split than the study's own
        runs/study_NAME_SPLIT), shared by all processes.
      seeds: distillation seeds, which is how many sets of each row (default: the study's own number).
      only: rows to work on; the table shows all that is there.
      budget: how long to work, "90s", "12m" or "2h": cells that fit are done, one seed of every row before the second.
      time_limit: as budget, but with exit status 75 where cells are left, for a queue that starts the command again.
      plan: list the cells, what is done and the hours that are left; work on none.
      memory: measure the peak resident memory and the seconds of each row's distilling too, in a fresh process of a
        few chunks (Linux).
      agreement: measure too what trained networks agree on in every finished set, and whether a gain there goes with a
        gain in accuracy (some studies do by themselves).
      split: judge on "test" or "validation" images (default: as the study says); seeds begin at 100 on the latter.
      executor: "here", or "submitit": every cell is a job of SLURM or, where there is none, a process on this machine.
      jobs: how many cells at once with --executor submitit.
      submit: settings of submitit for each job, "slurm_partition=gpu", "timeout_min=60" (repeatable).
      cell: work on the cell of this folder alone, as the jobs do.
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
    agreement: bool = False
    split: Annotated[str | None, OneOf(SPLITS)] = None
    executor: Annotated[str, OneOf(executors.EXECUTORS)] = "here"
    jobs: Annotated[int, Whole(1)] = 4
    submit: Annotated[tuple[str, ...], Mark.REPEATED] = ()
    cell: str | None = None
    merge: Annotated[tuple[str, ...], Mark.REPEATED] = ()
    options: str = ""
    data_dir: str | None = None
    cache_dir: str | None = None
    plugin: Annotated[tuple[str, ...], Mark.REPEATED] = ()
