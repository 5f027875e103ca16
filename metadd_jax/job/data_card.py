"""The data card of a distilled set: what it is, how it was made, how well it trains, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from metadd_jax.job import report_tables

# What their makers say; a set that is not named here has to be asked about. Distilled images derive from the real ones.
LICENCES = {
    "mnist": "CC BY-SA 3.0 (as distributed with Keras and others; the makers' own page names none)",
    "fashion_mnist": "MIT",
    "cifar10": "none named by its makers; the images come from the web",
    "cifar100": "none named by its makers; the images come from the web",
    "svhn": "for non-commercial use only",
    "imagenet": "for non-commercial research and education only (ImageNet's terms of access)",
}
_FAMILIES = {
    "mnist5k": "mnist", "svhn_cropped": "svhn", "cifar100_mtt": "cifar100", "cifar10_frepo": "cifar10",
    "imagenet2012": "imagenet", "tiny_imagenet": "imagenet",
}  # fmt: skip


def licence(dataset: str) -> str:
    """Tells under which licence the real images are, as far as is known here.

    Args:
      dataset: its name.
    """
    family = _FAMILIES.get(dataset, dataset)
    if family not in LICENCES and dataset.startswith(("image", "tiny_imagenet")):
        family = "imagenet"
    return LICENCES.get(family, "not known to metadd_jax; ask whoever made the data")


def card(metadata: Mapping[str, Any], config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a data card as Markdown with a head of YAML, as data hubs read it.

    Args:
      metadata: of the set.
      config: the settings of its run.
      rows: of its accuracies, as in ``results.json``; those of one set.
    """
    dataset, method = str(metadata.get("dataset")), str(metadata.get("method"))
    name = f"{_line(dataset)} distilled by {_line(method)}, {_line(metadata.get('ipc'))} image(s) per class"
    kept = licence(dataset)
    head = {
        "pretty_name": name, "license": "other", "license_name": kept, "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "synthetic", method], "source_datasets": [dataset],
    }  # fmt: skip
    lines = ["---"]
    # JSON is YAML too, and no name can break out of it.
    lines += [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    lines += ["---", "", f"# {name}", ""]
    lines += [
        "A set of synthetic images that was optimised so that a network trained on it alone does about as well as one "
        f"trained on far more real images. {len(metadata['class_names'])} classes: "
        f"{', '.join(map(_line, list(metadata['class_names'])[:20]))}"
        f"{' ...' if len(metadata['class_names']) > 20 else ''}.",
        "",
        "## How it was made",
        "",
        f"- real images: {_line(dataset)}, fingerprint `{_line(metadata.get('dataset_fingerprint'))}`",
        f"- licence of the real images: {kept}",
        f"- method: {_line(method)}, {_line(metadata.get('steps'))} steps from {_line(metadata.get('init'))}, backbone "
        f"{_line(metadata.get('backbone'))}, distillation seed {_line(metadata.get('seed'))}",
        f"- stored as: {_line(metadata.get('parameterisation', 'pixels'))}, "
        f"{_line(metadata.get('stored_values', 'unknown'))} numbers"
        f" + {_line(metadata.get('frozen_values', 0))} shared",
        f"- values: {_line(metadata.get('value_space'))}, mean {_line(metadata.get('mean'))}, std "
        f"{_line(metadata.get('std'))}; every setting in `config.json`, all versions in `bundle.json`",
        "",
        "## How well it trains",
        "",
    ]
    lines += _accuracies(config, rows)
    lines += [
        "",
        "## What not to use it for",
        "",
        "- No estimate of how the real data are distributed: statistics, augmentation by mixing with real images and "
        "tests of fairness on it say nothing about them.",
        "- No test set: its images were made to train networks and are no examples of anything.",
        "- No privacy: distilled images may show parts of real ones.",
        "- Networks, recipes and labels other than those above may give far lower accuracies: measure them "
        "(`metadd evaluate`) before you rely on them.",
    ]
    return "\n".join(lines) + "\n"


def _accuracies(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["It has not been judged yet."]
    table = report_tables.accuracy_table("", rows)
    ((_, cells),) = table.rows
    lines = [
        f"Accuracy in percent on the {_line(config['evaluate_on'])} images, mean of {_line(config['train_seeds'])} "
        f"trainings from scratch, last epoch; recipe {_line(config['eval_recipe'])}, {_line(config['eval_epochs'])} "
        f"epochs, augmentation {_line(config['eval_augmentation'])}, labels {_line(rows[0].get('labels'))}. One set: "
        "there is no interval over distillation seeds; in brackets the lowest and the highest training.",
        "",
        "| network | role | accuracy |",
        "|---|---|---|",
    ]
    for (network, role), cell in zip(table.columns, cells, strict=True):
        if network == "mean":
            continue
        own = [100 * value for row in rows if row["network"] == network for value in row["accuracies"]]
        spread = f" [{min(own):.1f}, {max(own):.1f}]" if cell.value is not None and len(own) > 1 else ""
        lines.append(f"| {_line(network)} | {_line(role)} | {cell.text}{spread} |")
    return lines


def _line(value: Any) -> str:
    """A value as text of one line that is no markup: names come from folders and files."""
    text = " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text) if text else "."
