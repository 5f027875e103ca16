"""A study with --agreement: every finished set is looked at, and the page and the numbers have what was found."""

import jax
import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax import files, keys, storage
from metadd_jax.evaluation import report
from metadd_jax.job import agreement, cells, studies, study

TINY = studies.Study(
    name="tiny",
    about="Two sets.",
    preset="smoke",
    options="--backbone mlp:width=4 --seen convnet:width=4,depth=1 convnet:width=6,depth=1 --unseen "
    "convnet:width=5,depth=1 --no-wrapped --train-per-class 4 --pretrain-augmentation none --device-mode jit",
    seeds=2,
    rows={"dm": "", "random": "random", "dm at 0.5": "--image-lr 0.5"},
    references=("dm",),
    agreement=True,
)


def found_by(cell, folder, dataset, *, deadline=None, stop=None):
    """Puts a set of real images in the place of the work, and known accuracies beside it."""
    synthetic = mdd.evaluation.random_real(keys.root(cell.seed + 7 * (cell.row == "dm at 0.5"), "random"), dataset, 1)
    facts = {**mdd.exchange.value_space(dataset), "class_names": list(dataset.class_names), "method": "dm"}
    file = folder / "dm" / f"seed{cell.seed}" / "synthetic.npz"
    file.parent.mkdir(parents=True)
    mdd.exchange.export_npz(file, synthetic, facts)
    nets = {"mlp:width=4": "same", "convnet:width=5,depth=1": "unseen"}
    value = 0.3 + 0.1 * (cell.row == "dm at 0.5") + 0.01 * cell.seed
    said = {"set": "dm", "distill_seed": cell.seed, "accuracies": [value]}
    rows = [{"network": net, "role": role, **said} for net, role in nets.items()]
    said = {"dataset": "mnist5k", "train_per_class": 4, "evaluate_on": "test", "train_seeds": 1, "eval_recipe": "short"}
    result = {
        "cell": cell.decides(dataset), "config": {**said, "eval_epochs": 2, "eval_augmentation": "none"}, "set": "dm",
        "rows": rows, "labels": "hard", "images": 10, "stored_values": 7840, "frozen_values": 0, "distil_seconds": 1.0,
        "with_compilation": False, "wall_seconds": {"distil": 1.0},
        "versions": {"jax": "0", "device": "cpu", "machine": "x"},
    }  # fmt: skip
    report.write_rows(folder / cells.RESULT, result)


def test_every_set_is_looked_at_and_gains_are_correlated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)
    monkeypatch.setattr(cells, "run", found_by)
    monkeypatch.setattr(study.Work, "_draw", lambda self: None)
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)
    study.run(["tiny", "--run-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")])
    text = capsys.readouterr().out
    assert "## Agreement of trained networks" in text and "convnet:width=5,depth=1 |" in text
    told = files.read_json(tmp_path / "run" / "study.json")["agreement"]
    assert list(told["rows"]) == ["dm", "random", "dm at 0.5"] and told["reference"] == "dm"
    # One row over the reference, two seeds, one unseen network with a map: too few points for a correlation.
    assert told["transfer"] is None
    looked = list((tmp_path / "run" / "cells").glob(f"*/{agreement.FILE}"))
    assert len(looked) == 6
    # By the library, from the file: the very same numbers.
    folder = next(folder for folder in (tmp_path / "run" / "cells").iterdir() if folder.name.startswith("random-seed1"))
    synthetic, _ = mdd.exchange.load_npz(folder / "dm" / "seed1" / "synthetic.npz")
    dataset = mdd.data.load("mnist5k", train_per_class=4)
    nets = [mdd.zoo.parse(f"convnet:width={width},depth=1", 10, (28, 28, 1)) for width in (4, 6, 5)]
    trained = [mdd.training.pretrain(net, dataset, mdd.training.pretraining(1)) for net in nets]
    frozen = [mdd.features.freeze(one.net, one.variables, dataset) for one in trained]
    kept = files.read_json(folder / agreement.FILE)
    for net, one in zip(nets, trained, strict=True):
        logits, _ = jax.jit(net.apply)(one.variables, synthetic.images)
        right = np.mean(np.argmax(np.asarray(logits), axis=-1) == synthetic.labels)
        assert kept["known"][net.label] == pytest.approx(right) and told["rows"]["random"]["known"][net.label] <= 1
    for group, facts in ((frozen[:2], kept["seen"]), (frozen, kept["unseen"]["convnet:width=5,depth=1"])):
        for threshold in agreement.THRESHOLDS:
            measured = mdd.evaluation.agreement(synthetic, group, threshold=threshold)
            assert facts[str(threshold)]["chance_corrected"] == pytest.approx(measured["chance_corrected"], abs=1e-5)
            assert facts[str(threshold)]["mean_iou"] == pytest.approx(measured["mean_iou"], abs=1e-5)


def test_another_split_is_another_folder_with_other_seeds(monkeypatch):
    opened = []

    def refuse(study, config):
        opened.append((study.split, config.run_dir, study.words("DM")[1:5]))
        raise ValueError("far enough")

    monkeypatch.setattr(study.Work, "open", refuse)
    for words in (["transfer", "--split", "test"], ["transfer"], ["competitors", "--split", "validation"]):
        with pytest.raises(ValueError, match="far enough"):
            study.run(words)
    chosen = ["--evaluate-on", "validation", "--first-seed", "100"]
    assert [split for split, *_ in opened] == ["test", "validation", "validation"]
    assert [folder for _, folder, _ in opened] == [
        "runs/study_transfer_test",
        None,
        "runs/study_competitors_validation",
    ]
    assert [words == chosen for *_, words in opened] == [False, True, True]
