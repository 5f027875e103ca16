"""The data card of a distilled set: ``README.md`` as Hugging Face reads it, a head in YAML and a text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from metadd_jax import structs

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))


def data_card(synthetic: structs.SyntheticSet, metadata: Mapping[str, Any], clipped: float) -> str:
    """Writes the card of a set that is stored as pictures in ``train/CLASS/``.

    Args:
      synthetic: the set.
      metadata: of the set (see ``checks.check_set``); ``method``, ``dataset``, ``ipc``, ``seed`` where it has them.
      clipped: the share (0..1) of pixel values that its pictures cut off.

    Returns:
      Markdown that begins with YAML. Whatever a set says of itself is quoted, so that no name can change the head.
    """
    count, data = len(synthetic.images), str(metadata.get("dataset", "unnamed data"))
    method = str(metadata.get("method", "an unnamed method"))
    size = next((name for limit, name in _SIZES if count < limit), "100K<n<1M")
    height, width, channels = synthetic.images.shape[1:]
    # JSON's text is YAML's too.
    head = [
        "---",
        "license: unknown",
        f"pretty_name: {json.dumps(f'{data} distilled by {method}')}",
        "task_categories:",
        "- image-classification",
        "tags:",
        "- dataset-distillation",
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: train/**/*.png",
        "---",
    ]
    facts = {
        "images": f"{count} of {height} x {width} x {channels}",
        "classes": ", ".join(_inline(name) for name in metadata["class_names"]),
        **{
            name: _inline(metadata[name])
            for name in ("method", "dataset", "ipc", "seed", "steps", "metadd_jax")
            if name in metadata
        },
        "value space when distilled": _inline(metadata["value_space"]),
        "mean of the real pixels": _numbers(metadata["mean"]),
        "standard deviation of the real pixels": _numbers(metadata["std"]),
        "labels": "classes" if synthetic.soft_labels is None else "classes here; the set has soft labels beside them",
        "pixel values that 8 bits cut off": f"{100 * clipped:.1f} %",
    }
    text = [
        f"# {_inline(data)}, distilled",
        "",
        "A distilled set: few synthetic images on which a network learns about what it would learn from all real ones.",
        "",
        "| what | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "Standardise a pixel x in [0, 1] as (x - mean) / std. The pictures are 8-bit and the set was not: judge these "
        "pictures anew, and do not quote the accuracy of the set that they were made from.",
        "",
        "Not for use: as a sample of the real images (they are not drawn from them), to hide what the real images show "
        "(they may leak), or to compare methods under another training than the one that is stated with a number.",
        "",
        "The licence of the real images may reach to images that were made from them; whoever publishes this folder "
        "names it in the head.",
    ]
    return "\n".join([*head, "", *text]) + "\n"


def _inline(value: Any) -> str:
    """One line that is no table's border and no heading's end."""
    return " ".join(str(value).split()).replace("|", "/")[:200]


def _numbers(values: Any) -> str:
    return ", ".join(f"{float(value):.4f}" for value in np.asarray(values))
