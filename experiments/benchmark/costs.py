"""What the steps, trainings and evaluations cost, and the same beside PyTorch: every line is a fresh process.

python experiments/benchmark.py --torch --out benchmark.json

A work is NAME or NAME@SIZE, e.g. dm@10 or train:vgg11@256; "+metadd" wraps a step, "scan:" measures it inside a scan.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import cost_table
import sweep
from metadd_jax.job import command, parsing
from settings import BenchmarkConfig

_CHILD = "METADD_BENCHMARK_WORK"


def run(arguments: list[str], *, program: str = "benchmark.py") -> None:
    """Parses the command line, measures each work in its own process, prints the table."""
    config = parsing.parse(BenchmarkConfig, arguments, program=program, description=__doc__)
    if child := os.environ.get(_CHILD):
        import measure

        task = json.loads(child)
        print(json.dumps(measure.measure(task["work"], dataclasses.replace(config, **task["settings"]))))
        return

    import elsewhere
    import works
    from metadd_jax.job import common

    points = sweep.points(config)
    settings = [dataclasses.replace(config, **point.settings) for point in points]
    names = [works.parse(point.work, own) for point, own in zip(points, settings, strict=True)]
    common.check_names((config.backbone, config.teacher, *config.auxiliaries))
    if config.torch:
        _require_torch(config)
    if config.ways != "own":
        elsewhere.prepare(config.ways)
        if config.torch or config.sweep:
            raise ValueError(
                f"--ways {config.ways} runs nothing, so it has no times for --torch or --sweep; leave those out"
            )
    if config.out:
        _refuse_foreign(pathlib.Path(config.out))
    results = []
    with command.bar(len(names), "benchmark", "work") as progress:
        for point, own, name in zip(points, settings, names, strict=True):
            progress.set_postfix_str(point.line)
            # One right after the other: a machine's speed changes over an hour.
            task = json.dumps({"work": point.work, "settings": point.settings})
            ours = _in_a_fresh_process([sys.executable, __file__, *arguments], point.work, {_CHILD: task})
            theirs = _torch(name, point.work, own) if config.torch else None
            results.append({**ours, "work": point.line, "torch": theirs})
            progress.update()
            if config.out:  # after every work, for a later one may need more memory than there is
                _write(config, results)
    print("\n".join([*cost_table.table(results), *_below(config, results)]))


def _below(config: BenchmarkConfig, results: list[dict[str, Any]]) -> list[str]:
    """What stands under the table: the lines of a sweep, and the hours of a published table of the judged networks."""
    return [*sweep.lines(config, results), *cost_table.judged(dataclasses.asdict(config), results)]


def _refuse_foreign(out: pathlib.Path) -> None:
    """Only an earlier measurement is replaced, and its table beside it."""
    from metadd_jax.exchange import checks

    if out.suffix == ".md":
        raise ValueError(f"--out {out} is the file of the results as JSON; name it {out.with_suffix('.json').name}")
    checks.refuse_existing(out, out.with_suffix(".md"), overwrite=True, is_ours=_is_ours)


def _is_ours(path: pathlib.Path) -> bool:
    if path.suffix == ".md":
        return path.read_bytes().startswith(b"# Benchmark\n")
    from metadd_jax import files

    try:
        facts = files.read_json(path)
    except ValueError:
        return False
    return isinstance(facts, dict) and {"config", "results"} <= facts.keys()


def _write(config: BenchmarkConfig, results: list[dict[str, Any]]) -> None:
    from metadd_jax import files

    facts = {"config": dataclasses.asdict(config), **command.versions(), "results": results}
    files.write_json(config.out, facts)
    files.write_text(pathlib.Path(config.out).with_suffix(".md"), cost_table.document(facts, _below(config, results)))


def _in_a_fresh_process(program: list[str], work: str, environment: dict[str, str]) -> dict[str, Any] | None:
    # Peak memory belongs to a process and never falls, so each work needs one of its own.
    child = subprocess.run(program, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        raise ValueError(f"measuring {work} failed with exit status {child.returncode}; its error stands above")
    return json.loads(child.stdout.splitlines()[-1])


def _torch(name: Any, work: str, config: BenchmarkConfig) -> dict[str, Any] | None:
    """The same work by PyTorch; None where it has none: MetaDD, an auxiliary's map, a scan."""
    if name.loss is not None or name.latents or name.scanned or name.kind == "auxiliary":
        return None
    settings = {**dataclasses.asdict(config), **dataclasses.asdict(name)}
    program = pathlib.Path(__file__).parent / "pytorch" / "torch_reference.py"
    return _in_a_fresh_process([_torch_python(config), str(program), json.dumps(settings)], f"{work} in PyTorch", {})


def _torch_python(config: BenchmarkConfig) -> str:
    return config.torch_python or sys.executable


def _require_torch(config: BenchmarkConfig) -> None:
    python = _torch_python(config)
    try:
        found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise ValueError(
            f"--torch needs PyTorch, which {python} has not; run: pip install torch, or give an interpreter that has "
            "it by --torch-python"
        )


if __name__ == "__main__":
    command.main(run, program="benchmark.py")
