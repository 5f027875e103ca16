"""A small run and a small study as they lie on the disk, made without any training."""

import json

import numpy as np

from metadd_jax import exchange, files, storage, structs
from metadd_jax.evaluation import report, scores
from metadd_jax.job import history, options, report_images, runfolder, studies, study_table

NETWORKS = {"convnet": "same", "lenet": "seen", "vgg11": "seen", "mlp": "unseen"}
CLASSES = ["zero", "a <b>\"bold\"</b> & 'odd' name", "</script><script>alert(1)</script>"]


def rows(names, seeds, *, rng):
    return [
        {"set": name, "distill_seed": seed, "network": net, "role": role, "labels": "hard",
         "accuracies": rng.uniform(0.2, 0.8, 2).tolist()}
        for name in names
        for seed in range(seeds)
        for net, role in NETWORKS.items()
    ]  # fmt: skip


def write_set(folder, *, rng, maps=True, side=8, channels=1):
    images = rng.normal(0, 1, (6, side, side, channels)).astype(np.float32)
    synthetic = structs.SyntheticSet(images, np.repeat(np.arange(3, dtype=np.int32), 2))
    facts = {"mean": [0.5] * channels, "std": [0.25] * channels, "class_names": CLASSES, "value_space": "standardised"}
    facts |= {"stored_values": 384, "frozen_values": 0, "dataset": "mnist5k", "method": "dm", "seed": 0}
    folder.mkdir(parents=True, exist_ok=True)
    exchange.export_npz(folder / "synthetic.npz", synthetic, facts)
    if maps:
        stack = rng.uniform(0, 1, (2, 3, side, side))
        report_images.write_maps(folder, np.array([0, 2, 4]), stack, ["lenet", "vgg<11>"])
    log = storage.JsonLines(folder / "metrics.jsonl")
    for step in range(5, 55, 5):
        log.write(step, {"distill/loss": 100 / step, "distill/gradient_norm": np.nan if step == 25 else step / 10})
    return images


def run(folder, *, names=("dm", "dm+metadd"), seeds=2, finished=True):
    """A run's folder; without results if it is not ``finished``."""
    rng = np.random.default_rng(0)
    config = options.DistillConfig(run_dir=str(folder), distill_seeds=seeds)
    for name in names:
        for seed in range(seeds):
            write_set(folder / name / f"seed{seed}", rng=rng)
    (folder / "config.json").write_text(
        json.dumps({"format": 3, "config": runfolder.plain(config), "versions": {"jax": "0.0", "device": "<none>"}})
    )
    if finished:
        every = rows(["random", *names], seeds, rng=rng)
        facts = {"meta_ratio": 0.1, "chance_corrected": 0.2, "mean_iou": 0.3, "high_area": [0.1, 0.2]}
        pulls = {time: {"ai": {"norm": 0.5, "cosine": 0.1}} for time in ("start", "end")}
        report.write(
            folder,
            {
                "notes": ["The <protocol> & its seeds."], "rows": every, "repeats": {}, "whole_data": {"lenet": 0.9},
                "comparisons": [report.compare(every, names[0], names[-1])], "evaluated_on": "test",
                "agreement": {names[0]: {"seen": facts}}, "pulls": {names[-1]: pulls}, "seconds": {names[0]: 0.25},
                "gains": scores.gains(every),
            },
        )  # fmt: skip
        with history.kept(folder, resumed="dm/seed0 from step 25"):
            pass
    return folder


def study(folder):
    """A study's folder of two rows and two seeds, of which one cell's set is there."""
    rng = np.random.default_rng(1)
    made = studies.Study(
        name="tiny", about="What <it> asks.", rows={"DM": "--no-wrapped", "<i>": ""}, references=("DM",)
    )
    config = runfolder.plain(options.DistillConfig())
    found = []
    for row in made.rows:
        for seed in range(2):
            name = f"dm-seed{seed}-{len(found)}"
            write_set(folder / "cells" / name / "dm" / f"seed{seed}", rng=rng, maps=False)
            result = {
                "rows": rows(["dm"], 1, rng=rng), "set": "dm", "labels": "hard", "images": 6, "stored_values": 384,
                "frozen_values": 0, "distil_seconds": 1.5, "with_compilation": False, "config": config, "folder": name,
                "wall_seconds": {"prepare": 1.0, "distil": 2.0, "judge": 3.0},
                "versions": {"jax": "0", "device": "cpu", "machine": "m"},
            }  # fmt: skip
            found.append((row, seed, result))
    files.write_json(folder / "study.json", study_table.summary(made, found, cells=4))
    return folder
