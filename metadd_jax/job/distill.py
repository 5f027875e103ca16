"""The main job: distil a data set with a base method and with MetaDD, judge both across architectures.

    metadd distill [PRESET] [--option value ...]

Without arguments it distils the embedded digits. Started again in the same folder it goes on where it stopped.
Several processes distil together if each is told so (--num-processes); the first prints and writes.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from metadd_jax import distillers, files, parallel, ranges
from metadd_jax.evaluation import report, scores
from metadd_jax.job import (
    checks,
    command,
    effects,
    history,
    options,
    parsing,
    plan,
    plugins,
    prepare,
    presets,
    results,
    stages,
    stopping,
)
from metadd_jax.job import report as report_file


def run(arguments: list[str], *, program: str = "metadd distill") -> None:
    """Parses the command line, does the job (or tells its plan, or what an earlier start found), prints the table.

    Args:
      arguments: the words of the command line, a preset's name first where there is one.
      program: what the user typed before ``arguments``, for ``--help`` and errors.
    """
    config = _parsed(arguments, program)
    checks.check_options(config)
    # Before anything asks JAX for its devices.
    parallel.initialize(
        coordinator=config.coordinator, num_processes=config.num_processes, process_id=config.process_id
    )
    # One voice: every process would print the same lines.
    if not parallel.is_main():
        command.be_silent()
    with stopping.listening(limit=config.time_limit) as stop:
        prepared = prepare.open_job(config)
        try:
            job = plan.for_memory(prepared)
            if config.plan:
                print("\n".join(plan.lines(job, *plan.estimate(job))))
            else:
                _work(job, stop)
        # Also after Ctrl-C: the next start must find the folder free.
        finally:
            if prepared.lock:
                prepared.lock.release()


def _work(job: prepare.Job, stop: stopping.Stop) -> None:
    """Does the job, keeps its diary and leaves its page: on the first process, which writes for all."""
    resumed = history.resumed(job.directory)
    if resumed and not (job.directory / "results.json").is_file():  # a finished run says so itself
        print(f"Goes on in {job.directory}: {resumed}")
    if parallel.is_main():
        with history.kept(job.directory, resumed=resumed):
            _go_on(job, stop)
        report_file.leave(job.directory)
    else:
        _go_on(job, stop)
    parallel.barrier("the page is written")


def _go_on(job: prepare.Job, stop: stopping.Stop) -> None:
    """Does what is not done yet, and prints the results."""
    found = report.read(job.directory)
    missing = [] if found is None else results.unwritten(job, found)
    # A hash in the file tells: edited or cut results are not shown as measured.
    if found is None and (job.directory / "results.json").exists():
        print("results.json is not what was written; the sets are judged anew")
    if missing:
        print(f"{', '.join(map(str, missing))}: missing or damaged; made anew")
    if found is None or missing:
        print(_do(job, stop, found))
        print(f"Sets, pictures and results lie in {job.directory}")
    else:
        print(results.show(job, found))
        print(f"{job.directory} is finished; --overwrite starts anew, another --run-dir keeps both")


def _do(job: prepare.Job, stop: stopping.Stop, found: dict[str, Any] | None = None) -> str:
    """Pre-trains, distils, draws, judges, writes; the results as Markdown, or "" on all processes but the first.

    Args:
      job: the job.
      stop: who asks for an early end.
      found: the results of an earlier start, where only files of the sets are to be made anew.
    """
    config, markdown = job.config, ""
    trained = stages.pretrain_all(job)
    # Before the long work, as every other training on the real images.
    teachers = stages.label_teachers(job, trained)
    auxiliaries = stages.freeze_all(job, trained)
    job = stages.prepare_latents(job)
    watch = stopping.Watch(stop, config.steps)
    looking = stages.looking_of(job, auxiliaries)
    distilled = stages.distil_all(job, *stages.all_methods(job, trained, auxiliaries), watch, looking=looking)
    if parallel.is_main():
        results.draw(job, distilled, auxiliaries)
    if found is not None:
        parallel.barrier("the files are written")
        return results.show(job, found)
    sets = {**stages.baselines(job, names=job.real_rows, looking=looking), **distilled}
    rows = stages.judge(job, sets, teachers)
    if parallel.is_main():
        base, *ours = distilled
        # What a paired difference is taken of: MetaDD over its base, and the base over random real images.
        pairs = [(base, name) for name in ours] + [("random", base)]
        seeds, learned = prepare.seeds(config), results.labels_of(job, rows, sets, teachers)
        found = {
            "notes": [
                *results.notes(job),
                "",
                learned["note"],
                *effects.conditions(job.directory, distilled, seeds, job.dataset),
            ],
            "evaluated_on": config.evaluate_on,
            "labels": learned,
            "rows": rows,
            "repeats": report.repeats(sets, seeds),
            "comparisons": [report.compare(rows, *pair) for pair in pairs],
            "gains": scores.gains(rows) if learned["rule"] == "hard" else {},
            "agreement": results.agreements(job, sets, auxiliaries),
            "pulls": effects.pulls(job.directory, distilled, seeds),
            "seconds": watch.medians(),
            "whole_data": {label: network.accuracy for label, network in trained.items()},
            "versions": files.read_json(job.directory / "config.json")["versions"],
        }
        markdown = report.write(job.directory, found)
    parallel.barrier("the results are written")
    return markdown


def _layout(method: str) -> parsing.Layout:
    """The options of ``method``, those of others to be refused, and the order of ``--help``."""
    group = distillers.get(method).group
    owners: dict[str, list[str]] = {}
    for other in distillers.names():
        record = distillers.get(other)
        for option in parsing.option_names(type(record)):
            # With and without the group: the user may write either.
            for spelling in (option, f"{record.group}.{option}"):
                owners.setdefault(spelling, []).append(other)
    foreign = {
        spelling: f"{ranges.listed(names)}, and the method is {method}"
        for spelling, names in owners.items()
        if method not in names
    }
    data, sets, *others = options.GROUPS.items()
    titles = {
        f"{method} (--{group}.NAME, or --NAME alone)": ("own",),
        "MetaDD's loss (the rest by --help-all)": ("metadd",),
    }
    return parsing.Layout(
        prefixes={"metadd": "metadd", "own": group},
        short="own",
        foreign=foreign,
        groups=dict([data, sets, *titles.items(), *others]),
        first=options.FIRST
        | {f"own.{name}" for name in ranges.field_names(type(distillers.get(method)))} - options.LATER,
    )


def _parsed(arguments: list[str], program: str) -> options.DistillConfig:
    plugins.load(arguments)  # a method that one of them registers can be named
    return parsed(arguments, program)


def parsed(arguments: list[str], program: str) -> options.DistillConfig:
    """Reads the words of a command line, a preset's name first where there is one.

    Args:
      arguments: the words; what their ``--plugin`` registers has been loaded.
      program: what the user typed before them, for ``--help`` and errors.

    Raises:
      ValueError: one line for what cannot be read.
    """
    name, arguments = _split(arguments)
    preset = presets.preset(name)
    said = parsing.value_of("method", arguments)
    method = preset.method if said is None else said
    ranges.require("--method", method, ranges.Named(distillers.names))
    preset = preset.with_method(method)
    known = presets.listing(method=None if "--help-all" in arguments else method)
    try:
        config = parsing.parse(
            options.DistillConfig,
            arguments,
            default=preset,
            program=f"{program} [PRESET]",
            description=f"{__doc__}\nPresets:\n{known}\n\nThe defaults below are those of {name!r}.",
            layout=_layout(preset.method),
        )
    except ValueError as error:
        stray = str(error).removeprefix("Unrecognized options: ").partition(";")[0].split(", ")
        near = difflib.get_close_matches(stray[-1], presets.PRESETS, n=1)
        # Only a stray word can be a preset in the wrong place; every other error speaks for itself.
        if not str(error).startswith("Unrecognized") or not near:
            raise
        raise ValueError(f"{error}; a preset stands first: {program} {near[0]} --option value") from error
    return config if config.run_dir is not None else dataclasses.replace(config, run_dir=f"runs/{name}")


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The preset's name, which stands first or, after the value of an option, last; and the rest."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if len(arguments) > 2 and arguments[-1] in presets.PRESETS and not arguments[-2].startswith("--"):
        return arguments[-1], arguments[:-1]
    return "mnist5k", arguments
