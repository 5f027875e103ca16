"""Measure a table: distil and judge the sets of a study, each once, in any order and from any number of processes.

    metadd study competitors --data-dir ~/tensorflow_datasets --budget 30m
    metadd study my_study.toml --plan

Started again it goes on where it stopped. Several processes may work in one folder; folders from several machines
are brought together by --merge.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time

from metadd_jax.job import executors, history, parsing, plugins, stopping, studies
from metadd_jax.job.study_options import StudyConfig
from metadd_jax.job.study_work import Work


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
    if config.split not in (None, study.split):
        folder = config.run_dir or f"runs/study_{study.name}_{config.split}"
        study, config = dataclasses.replace(study, split=config.split), dataclasses.replace(config, run_dir=folder)
    if config.cell is None:  # a job has the words of the command that submitted it
        limit = config.budget or config.time_limit
        executors.check(config.executor, config.submit, budget=limit, memory=config.memory)
    for row in config.only:
        study.require_row(row)
    work = Work.open(study, config)
    if config.cell is not None:
        with stopping.listening() as stop:
            work.do_one(config.cell, stop)
        return
    for merged in config.merge:
        work.take_over(pathlib.Path(merged).expanduser())
    if config.plan:
        print("\n".join(work.plan_lines()))
        return
    deadline = time.monotonic() + min(limits) if limits else None
    left = _work(work, config, arguments, deadline)
    print(work.write_table())
    print("\n".join(left))
    print(f"Sets and table lie in {work.folder}")
    if work.failed:
        raise ValueError(f"{len(work.failed)} cell(s) failed: {next(iter(work.failed.values()))}")
    if config.time_limit and work.wanted():
        raise stopping.Stopped(f"stopped by the time limit of {config.time_limit}")


def _work(work: Work, config: StudyConfig, arguments: list[str], deadline: float | None) -> list[str]:
    """Does what is left, or submits it, and keeps the study's diary; what is left then and why, in lines."""
    resumed = work.resumed()
    if resumed:
        print(f"Goes on in {work.folder}: {resumed}")
    left: list[str] = []
    with stopping.listening(limit=config.time_limit) as stop, history.kept(work.folder, resumed=resumed) as end:
        try:
            left += work.do(deadline, stop) if config.executor == "here" else work.submit(config, arguments)
            if config.memory:
                left += work.measure_memory(deadline)
            if config.agreement or work.study.agreement:
                left += work.measure_agreement(deadline)
        except stopping.Stopped:
            # A signal leaves no time for the table, which the next start writes.
            if not stop.is_over:
                raise
        if wanted := len(work.wanted()):
            end.how = f"{wanted} of {len(work.cells)} cells are left"
    return left
