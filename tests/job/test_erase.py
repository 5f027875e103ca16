"""metadd erase: real and distilled sets, going on, and what it refuses."""

import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax import files, keys
from metadd_jax.evaluation import erasing, report
from metadd_jax.job import erase

NETS = ["convnet:width=4,depth=1", "convnet:width=6,depth=1"]


@pytest.fixture
def words(tmp_path):
    return [
        "--networks", *NETS, "--train-per-class", "20", "--pretrain-epochs", "1", "--pretrain-augmentation", "none",
        "--augmentation", "none", "--epochs", "2", "--out", str(tmp_path / "out"),
        "--cache-dir", str(tmp_path / "cache"),
    ]  # fmt: skip


def test_real_images_are_erased_and_a_second_start_measures_nothing_again(words, tmp_path, capsys, monkeypatch):
    erase.run(["random", "--ipc", "2", "--sets", "2", *words])
    first = capsys.readouterr().out
    assert all(f"| {kind} | " in first for kind in erasing.KINDS) and "| meta | " in first.split("Difference")[1]
    found = report.read_rows(tmp_path / "out" / erase.FILE)
    assert {(row["set"], row["distill_seed"], row["network"]) for row in found["rows"]} == {
        (kind, seed, net) for kind in erasing.KINDS for seed in (0, 1) for net in NETS
    }
    monkeypatch.setattr(erase, "measure", None)
    erase.run(["random", "--ipc", "2", "--sets", "2", *words])
    assert capsys.readouterr().out.partition("# Erased")[2] == first.partition("# Erased")[2] != ""
    with pytest.raises(ValueError, match="holds another experiment; choose another --out"):
        erase.run(["random", "--ipc", "3", "--sets", "2", *words])
    # What is edited is neither gone on with nor written over.
    file = tmp_path / "out" / erase.FILE
    file.write_text(file.read_text().replace("meta", "mete", 1))
    with pytest.raises(ValueError, match="was not left so by this command"):
        erase.run(["random", "--ipc", "2", "--sets", "2", *words])


def test_the_sets_of_a_method_are_those_of_its_seeds(words, tmp_path, monkeypatch):
    dataset = mdd.data.load("mnist5k", train_per_class=20)
    facts = {**mdd.exchange.value_space(dataset), "class_names": list(dataset.class_names), "dataset": "mnist5k"}
    facts |= {"train_per_class": 20, "dataset_fingerprint": dataset.fingerprint}
    for seed in (3, 5):
        synthetic = mdd.evaluation.random_real(keys.root(seed, "random"), dataset, 1)
        (tmp_path / "run" / "dm" / f"seed{seed}").mkdir(parents=True)
        file = tmp_path / "run" / "dm" / f"seed{seed}" / "synthetic.npz"
        mdd.exchange.export_npz(file, synthetic, facts | {"seed": seed, "method": "dm"})
    asked = []

    def measure(config, seed, synthetic, looking, data):
        asked.append((seed, len(synthetic.images), data.fingerprint))
        rows = [
            {"set": kind, "distill_seed": seed, "network": net, "role": "seen", "labels": "hard", "accuracies": [value]}
            for kind, value in zip(erasing.KINDS, np.linspace(0.7, 0.1, 7) + 0.01 * seed, strict=True)
            for net in NETS
        ]
        return rows, {net: dict.fromkeys(erasing.AREAS, 0.25) for net in NETS}

    monkeypatch.setattr(erase, "measure", measure)
    erase.run([str(tmp_path / "run" / "dm"), *words])
    assert asked == [(3, 10, dataset.fingerprint), (5, 10, dataset.fingerprint)]
    text = (tmp_path / "out" / "erasing.md").read_text()
    # Kinds fall by 10 points each, in their order: an area is 10 above its own control.
    assert "| meta | +10.0 [+10.0, +10.0] | 0 | -10.0 [-10.0, -10.0] |" in text
    assert "| nothing | 74.0 | 74.0 | **74.0** | 0.000 |" in text and "| random as own | 34.0 |" in text
    files.discard(tmp_path / "out")
    with pytest.raises(ValueError, match=r"sets of several methods; give one: .*/dc .*/dm"):
        (tmp_path / "run" / "dm" / "seed3").rename(tmp_path / "moved")
        (tmp_path / "run" / "dc").mkdir()
        (tmp_path / "moved").rename(tmp_path / "run" / "dc" / "seed3")
        erase.run([str(tmp_path / "run"), *words])


@pytest.mark.parametrize(
    ("nets", "message"),
    [(["lenet"], "names lenet alone"), (["lenet", "mlp:width=8"], "mlp:width=8 has no activation map")],
)
def test_networks_that_cannot_serve_are_refused(words, nets, message):
    with pytest.raises(ValueError, match=message):
        erase.run(["random", *words, "--networks", *nets])
