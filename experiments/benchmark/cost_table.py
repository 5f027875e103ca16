"""The measurements of ``benchmark.py`` as a Markdown table."""

from __future__ import annotations

import itertools
from typing import Any

_OURS = (
    "work",
    "compile s",
    "s (median, min-max)",
    "images/s",
    "GFLOP",
    "GFLOP/s",
    "% of peak",
    "launches",
    "GB moved",
    "temporary MB",
    "MB",
)
_SCAN = ("inside / outside a scan",)
_TORCH = ("PyTorch s (median, min-max)", "PyTorch MB", "PyTorch s / ours")
_TRAININGS, _EPOCHS = 20, 1000  # of a network in a published cross-architecture table
_NOTES = (
    "Every line is a fresh process: one call that is not timed, then the timed ones. Compile time includes tracing.",
    "GFLOP: convolutions and matrix products of a call, an addition and a multiplication each, loops multiplied out; "
    "what is only element-wise is left out, the zeros around an image are not. Peak: the product of two square float32 "
    "matrices in the same process, both at the device's default precision.",
    "images/s: images on their way into the network; a gradient and its gradient count nothing more.",
    "MB: the largest resident memory of the process, or the largest device memory where the device tells it. "
    "Temporary: XLA's plan, which on a CPU misses what convolutions use beside it.",
    "launches: kernels of a call in XLA's optimised program (fusions, products, convolutions, copies), loops "
    "multiplied out. GB moved: what they read and write, if nothing comes from a cache.",
    '"dc" is one matching under a new network, without the inner training; "dc_inner" is the same after the inner '
    'training. "mtt" computes the activations of a student step again on the way back, "mtt_kept" keeps those of all '
    "steps, as PyTorch does in both lines.",
    '"scan:" lines: seconds of a step inside a scan; the ratio is to the very same steps outside, in the same process, '
    "whose memory holds both programs.",
    '"+latents": what "parameterisation" names is trained in place of pixels, as many images as without it.',
    "PyTorch: experiments/benchmark/pytorch/torch_reference.py, written as the field's code is (eager, a Python loop "
    "over classes and seeds, its default threads); it has no MetaDD and no scan.",
    "A name alone is an auxiliary network's part of the invariant loss with the gradient to the images.",
)


def table(results: list[dict[str, Any]]) -> list[str]:
    """The table's lines; FLOPs and bytes are those of one call. Columns that no work fills are left out."""
    scanned = any(r["scan_ratio"] is not None for r in results)
    beside = any(r["torch"] is not None for r in results)
    head = (*_OURS, *(_SCAN if scanned else ()), *(_TORCH if beside else ()))
    rows = [_own_cells(r) + (_scan_cell(r) if scanned else []) + (_torch_cells(r) if beside else []) for r in results]
    filled = [any(cells) for cells in zip(*rows, strict=True)]
    lines = [itertools.compress(cells, filled) for cells in (head, ["---"] * len(head), *rows)]
    first, rule, *others = map(_line, lines)
    return [first, rule.replace(" ", ""), *others]


def judged(config: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    """What a cross-architecture table of the judged networks costs at published scale, after an empty line.

    Args:
      config: the benchmark's settings.
      results: its lines.
    """
    of_networks = [r for r in results if r["work"].startswith("judge:")]
    if not of_networks or config["ways"] != "own":
        return []
    # Test images are as many fewer as epochs are, so that a training and its test grow alike.
    times = _TRAININGS / config["eval_seeds"] * _EPOCHS / config["eval_epochs"]
    sides = {"ours": of_networks}
    if all(r["torch"] for r in of_networks):
        sides["PyTorch"] = [r["torch"] for r in of_networks]
    hours = (
        f"{name} {times * sum(r['median_seconds'] for r in side) / 3600:.2f} hours" for name, side in sides.items()
    )
    return [
        "",
        f"A table of these {len(of_networks)} networks, {_TRAININGS} trainings of each for {_EPOCHS:,} epochs: "
        f"{', '.join(hours)}.",
    ]


def document(facts: dict[str, Any], below: list[str]) -> str:
    """A page with the machine, the settings, the table, the lines ``below`` it and what the columns mean."""
    config, products = facts["config"], [r["matmul_flops_per_second"] for r in facts["results"]]
    settings = ", ".join(f"{name} {value}" for name, value in config.items() if name not in ("works", "out"))
    machine = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("config", "results"))
    torch = next((r["torch"] for r in facts["results"] if r["torch"]), None)
    if torch:
        machine += f", torch {torch['version']} on {torch['device']} with {torch['threads']} threads"
    notes = [f"- {note}" for note in _NOTES]
    if rates := [rate / 1e9 for rate in products if rate]:
        notes.append(f"- Matrix product: {min(rates):.3g} to {max(rates):.3g} GFLOP/s in the processes of this table.")
    return "\n".join(
        ["# Benchmark", "", f"{machine}.", "", f"Settings: {settings}.", "", *table(facts["results"]), *below]
    ) + "\n\n{}\n".format("\n".join(notes))


def _own_cells(r: dict[str, Any]) -> list[str]:
    seconds, giga = r["median_seconds"], f"{r['flops'] / 1e9:.3g}"
    kernels = ["", ""] if r["launches"] is None else [f"{r['launches']}", f"{r['moved_bytes'] / 1e9:.3g}"]
    program = [*kernels, f"{r['temporary_bytes'] / 1e6:.0f}"]
    if seconds is None:  # compiled for a device which is not there
        return [r["work"], f"{r['compile_seconds']:.1f}", "", "", giga, "", "", *program, ""]
    rate = r["flops"] / seconds
    return [
        r["work"],
        f"{r['compile_seconds']:.1f}",
        _spread(r),
        f"{r['images'] / seconds:.3g}",
        giga,
        f"{rate / 1e9:.3g}",
        f"{100 * rate / r['matmul_flops_per_second']:.0f}",
        *program,
        _peak(r),
    ]


def _scan_cell(r: dict[str, Any]) -> list[str]:
    return ["" if r["scan_ratio"] is None else f"{r['scan_ratio']:.2f}"]


def _torch_cells(r: dict[str, Any]) -> list[str]:
    theirs = r["torch"]
    if theirs is None:
        return [""] * len(_TORCH)
    return [_spread(theirs), _peak(theirs), f"{theirs['median_seconds'] / r['median_seconds']:.2f}"]


def _spread(r: dict[str, Any]) -> str:
    return f"{r['median_seconds']:.3g} ({min(r['seconds']):.3g}-{max(r['seconds']):.3g})"


def _peak(r: dict[str, Any]) -> str:
    return f"{(r['peak_device_bytes'] or r['peak_resident_bytes']) / 1e6:.0f}"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
