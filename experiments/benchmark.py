"""What a step and each auxiliary network cost: every line is measured in a fresh process.

python experiments/benchmark.py --works resnet34 googlenet vit vgg11 --out benchmark.json
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import command

STEPS = ("dm", "dm+metadd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure compile time, time, FLOPs and memory.

    Attributes:
      works: what to measure: "dm", "dm+metadd" (a distillation step), or a network (its part of the invariant loss
        and the gradient to the images).
      auxiliaries: networks that "dm+metadd" looks through.
      backbone: network that distils.
      image_shape: height, width and channels of the images.
      num_classes: number of classes.
      ipc: synthetic images per class.
      batch_size: real images per class and step.
      class_batch: classes embedded at once.
      checkpoint: whether an auxiliary's forward pass is computed again for the gradient (less memory, more time).
      repeats: timed calls, after one that is not timed.
      cache: a folder for compiled programs, to see what a second start compiles; none by default.
      out: file for the results as JSON.
    """

    works: tuple[str, ...] = (*STEPS, "resnet34", "googlenet", "vit", "vgg11")
    auxiliaries: tuple[str, ...] = ("resnet34", "googlenet", "vit", "vgg11")
    backbone: str = "convnet"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    ipc: int = 1
    batch_size: int = 64
    class_batch: int = 1
    checkpoint: bool = False
    repeats: int = 5
    cache: str | None = None
    out: str | None = None


def run(arguments: list[str]) -> None:
    """Parses the command line, measures each work in its own process, prints the table."""
    config = command.parse(BenchmarkConfig, arguments, program="benchmark.py", description=__doc__)
    if child := os.environ.get("METADD_BENCHMARK_WORK"):
        import measure

        print(json.dumps(measure.measure(child, config)))
        return

    import common

    common.check_names(tuple(work for work in config.works if work not in STEPS))
    common.check_names((config.backbone, *config.auxiliaries))
    results = []
    with command.bar(len(config.works), "benchmark", "work") as progress:
        for work in config.works:
            progress.set_postfix_str(work)
            results.append(_in_a_fresh_process(work, arguments))
            progress.update()
    print("\n".join(table(results)))
    if config.out:
        from metadd_jax import files

        files.write_json(config.out, {"config": dataclasses.asdict(config), **command.versions(), "results": results})


def _in_a_fresh_process(work: str, arguments: list[str]) -> dict[str, Any]:
    # Peak memory belongs to a process and never falls, so each work needs one of its own.
    child = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "METADD_BENCHMARK_WORK": work},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode:
        raise ValueError(f"measuring {work} failed with exit status {child.returncode}; its error stands above")
    return json.loads(child.stdout.splitlines()[-1])


def table(results: list[dict[str, Any]]) -> list[str]:
    """The measurements as a Markdown table; FLOPs and bytes are those of one call."""
    lines = [
        "| work | compile s | call s (median, min-max) | GFLOP | GFLOP/s | forward GFLOP | temporary MB "
        "| peak resident MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        low, high = min(r["seconds"]), max(r["seconds"])
        forward = "" if r["forward_flops"] is None else f"{r['forward_flops'] / 1e9:.3g}"
        lines.append(
            f"| {r['work']} | {r['compile_seconds']:.1f} | {r['median_seconds']:.3g} ({low:.3g}-{high:.3g}) | "
            f"{r['flops'] / 1e9:.3g} | {r['flops'] / r['median_seconds'] / 1e9:.3g} | {forward} | "
            f"{r['temporary_bytes'] / 1e6:.0f} | {r['peak_resident_bytes'] / 1e6:.0f} |"
        )
    return lines


if __name__ == "__main__":
    command.main(run)
