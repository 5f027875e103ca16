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
from typing import Annotated, Any

import command
import cost_table
import sweep

from metadd_jax.ranges import Whole

_AUXILIARIES = ("resnet34", "googlenet", "vit", "vgg11")
_TRAINED = ("mlp", "lenet", "alexnet", "vgg11", "resnet18", "resnet18_bn", "resnet34", "resnet50", "googlenet", "vit")
_STEPS = ("dm@1", "dm@10", "dm@50", "dc@10", "dc_inner@10", "mtt@10", "sre2l@100")
_WRAPPED = ("dm@1", "dm@10", "dc@10", "mtt@10", "sre2l@100")
_SCANNED = ("dm@10", "dc@10", "mtt@10", "sre2l@100", "train:convnet@100")
EVERYTHING = (
    *_STEPS,
    "mtt_kept@10",
    *(f"{work}+metadd" for work in _WRAPPED),
    *(f"scan:{work}" for work in _SCANNED),
    "evaluate@10",
    *(f"train:convnet@{size}" for size in (100, 256)),
    *(f"train:{network}@100" for network in (*_TRAINED, "swin_t")),
    *_AUXILIARIES,
)
_CHILD = "METADD_BENCHMARK_WORK"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure compile time, time, FLOPs and memory.

    Attributes:
      works: what to measure: a step of "dm", "dc" (one matching under a new network), "dc_inner" (the same after the
        inner training on the set), "mtt", "mtt_kept" (the activations of all student steps kept, not computed again) or
        "sre2l", at SIZE images per class (sre2l: images, all of different classes); "train:NETWORK", a training step
        at batch SIZE; "evaluate", networks trained from several seeds at once and tested; or NETWORK, an auxiliary's
        part of the invariant loss and the gradient to the images.
      auxiliaries: networks that "+metadd" looks through.
      backbone: network that distils and is judged.
      teacher: network of sre2l.
      image_shape: height, width and channels of the images.
      num_classes: number of classes (not of sre2l).
      ipc: images per class where a work does not say.
      batch_size: real images per class and step (dm, dc).
      class_batch: classes matched at once.
      augmentation: DSA tokens joined by "_", or "none" (dm, mtt, evaluate).
      inner_epochs: epochs of the inner training; published for 10 images per class: 50.
      syn_steps: student steps of mtt.
      recover_images: images of sre2l where a work does not say.
      train_batch: batch of "train:" where a work does not say.
      eval_epochs: passes over the set in an evaluation; published are 301 or 1001.
      eval_seeds: networks of an evaluation.
      test_per_class: test images per class of an evaluation, fewer than published for its fewer epochs.
      subset: synthetic images that the invariant loss looks at per step; 0 for all.
      micro_batch: synthetic images that pass an auxiliary at once; 0 for all.
      checkpoint: whether an auxiliary's forward pass is computed again for the gradient (less memory, more time).
      chunk: steps in a scan.
      repeats: timed calls, after one that is not timed.
      peak_side: side of the square matrices whose product gives the machine's peak.
      sweep: FIELD=N,N,...: every work at each of these values of a setting above ("ipc", "num_classes", ...; for
        "auxiliaries" the first N of them), and a straight line through the costs.
      cache: a folder for compiled programs, to see what a second start compiles; none by default.
      torch: the same works as a PyTorch program beside ours, and the ratio.
      torch_python: interpreter that has PyTorch; none takes this one.
      torch_device: where PyTorch computes, "cpu" or "cuda".
      out: file for the results as JSON; the table goes beside it as Markdown.
    """

    works: tuple[str, ...] = EVERYTHING
    auxiliaries: tuple[str, ...] = _AUXILIARIES
    backbone: str = "convnet"
    teacher: str = "resnet18_bn"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: Annotated[int, Whole(1)] = 10
    ipc: Annotated[int, Whole(1)] = 10
    batch_size: Annotated[int, Whole(1)] = 256
    class_batch: Annotated[int, Whole(1)] = 1
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    inner_epochs: Annotated[int, Whole(1)] = 50
    syn_steps: Annotated[int, Whole(1)] = 30
    recover_images: Annotated[int, Whole(1)] = 100
    train_batch: Annotated[int, Whole(1)] = 100
    eval_epochs: Annotated[int, Whole(1)] = 20
    eval_seeds: Annotated[int, Whole(1)] = 5
    test_per_class: Annotated[int, Whole(1)] = 20
    subset: Annotated[int, Whole(0)] = 0
    micro_batch: Annotated[int, Whole(0)] = 0
    checkpoint: bool = False
    chunk: Annotated[int, Whole(1)] = 3
    repeats: Annotated[int, Whole(1)] = 5
    peak_side: Annotated[int, Whole(1)] = 2048
    sweep: str | None = None
    cache: str | None = None
    torch: bool = False
    torch_python: str | None = None
    torch_device: str = "cpu"
    out: str | None = None


def run(arguments: list[str]) -> None:
    """Parses the command line, measures each work in its own process, prints the table."""
    config = command.parse(BenchmarkConfig, arguments, program="benchmark.py", description=__doc__)
    if child := os.environ.get(_CHILD):
        import measure

        task = json.loads(child)
        print(json.dumps(measure.measure(task["work"], dataclasses.replace(config, **task["settings"]))))
        return

    import common
    import works

    from metadd_jax import ranges

    ranges.check(config, spell=common.option)
    points = sweep.points(config)
    settings = [dataclasses.replace(config, **point.settings) for point in points]
    names = [works.parse(point.work, own) for point, own in zip(points, settings, strict=True)]
    common.check_names((config.backbone, config.teacher, *config.auxiliaries))
    if config.torch:
        _require_torch(config)
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
    print("\n".join([*cost_table.table(results), *sweep.lines(config, results)]))


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
    files.write_text(
        pathlib.Path(config.out).with_suffix(".md"), cost_table.document(facts, sweep.lines(config, results))
    )


def _in_a_fresh_process(program: list[str], work: str, environment: dict[str, str]) -> dict[str, Any] | None:
    # Peak memory belongs to a process and never falls, so each work needs one of its own.
    child = subprocess.run(program, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        raise ValueError(f"measuring {work} failed with exit status {child.returncode}; its error stands above")
    return json.loads(child.stdout.splitlines()[-1])


def _torch(name: Any, work: str, config: BenchmarkConfig) -> dict[str, Any] | None:
    """The same work by PyTorch; None where it has none: MetaDD, an auxiliary's map, a scan."""
    if name.wrapped or name.scanned or name.kind == "auxiliary":
        return None
    settings = {**dataclasses.asdict(config), **dataclasses.asdict(name)}
    program = pathlib.Path(__file__).with_name("torch_reference.py")
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
    command.main(run)
