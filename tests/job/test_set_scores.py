"""DD-Ranking's scores of a set: which trainings they rest on, and their table."""

import dataclasses

import jax
import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax.job import evaluate, labels, set_scores
from metadd_jax.training import recipes


@pytest.fixture(scope="module")
def dataset():
    return mdd.data.load("mnist5k", train_per_class=20)


@pytest.fixture(scope="module")
def judge(dataset):
    nets = [mdd.zoo.parse("mlp:width=8", dataset.num_classes, dataset.image_shape)]
    recipe = recipes.short_evaluation(2, augmentation="crop")
    return set_scores.Judge(dataset, nets, 2, recipe, "hard", None, None)


@pytest.fixture
def trained(monkeypatch):
    """Records what would be trained and gives each its number, from 0.01 on, in place of accuracies."""
    calls = []

    def train(key, sets, dataset, networks, *, seeds, recipe, draws=None, labels, teacher, guidance, on_network):
        calls.append((recipe, labels, teacher, len(sets), draws))
        for net in networks:
            on_network(net.label)
        return [[mdd.evaluation.Row(net.label, (len(calls) / 100,) * seeds) for net in networks] for _ in sets]

    monkeypatch.setattr(mdd.evaluation, "cross_architecture", train)
    return calls


def measured(judge, synthetic, done):
    accuracies = judge.train([synthetic], on_network=print)
    return set_scores.measure(judge, synthetic, accuracies, [0.9], (1,) * 10, on_network=done.append)


def test_under_hard_labels_each_training_is_done_once(judge, dataset, trained):
    synthetic, done = mdd.evaluation.random_real(jax.random.key(0), dataset, 1), []
    found = measured(judge, synthetic, done)
    bare = recipes.short_evaluation(2)
    assert trained == [
        (judge.recipe, "hard", None, 1, None),
        (judge.recipe, "hard", None, 2, range(2)),
        (bare, "hard", None, 1, None),
        (bare, "hard", None, 2, range(2)),
    ]
    assert {name: values.tolist() for name, values in found.items()} == {
        "synthetic_any": [[0.01] * 2], "synthetic_hard": [[0.01] * 2], "synthetic_augmented": [[0.01] * 2],
        "random_any": [[0.02] * 2], "random_augmented": [[0.02] * 2],
        "synthetic_plain": [[0.03] * 2], "random_plain": [[0.04] * 2],
        "real_hard": [[0.9] * 2],
    }  # fmt: skip
    assert len(done) == set_scores.trainings(judge) == 3


def test_under_a_teacher_the_hard_training_is_plain(judge, dataset, trained):
    synthetic, done = mdd.evaluation.random_real(jax.random.key(0), dataset, 1), []
    mixed = dataclasses.replace(judge.recipe, augmentation="none", mix="cutmix", crop="shift", flip=True)
    taught = judge._replace(teacher="a teacher", recipe=mixed, labels="own")
    found = measured(taught, synthetic, done)
    bare = recipes.short_evaluation(2)
    assert trained[2] == (bare, "hard", None, 1, None) and found["synthetic_hard"].tolist() == [[0.03] * 2]
    assert [call[:3] for call in trained[3:]] == [(bare, "own", "a teacher")] * 2
    assert len(done) == set_scores.trainings(taught) == 4


def test_a_recipe_without_augmentation_gets_the_data_sets_own(judge, dataset, trained):
    synthetic, done = mdd.evaluation.random_real(jax.random.key(0), dataset, 1), []
    found = measured(judge.plain, synthetic, done)
    own = recipes.short_evaluation(2, augmentation=mdd.data.augmentation("mnist5k"))
    assert [call[0] for call in trained] == [recipes.short_evaluation(2)] * 2 + [own] * 2
    assert found["synthetic_augmented"].tolist() == [[0.03] * 2] and found["synthetic_plain"].tolist() == [[0.01] * 2]
    assert len(done) == set_scores.trainings(judge.plain) == 3


def test_random_images_are_as_many_as_the_set_stores(dataset):
    packed = mdd.evaluation.random_real(jax.random.key(0), dataset, 4)
    assert set_scores.stored(packed, {"ipc": 1}, dataset) == (1,) * 10
    assert set_scores.stored(packed, {"ipc": [1, 2] * 5}, dataset) == (1, 2) * 5
    for unfit in ({}, {"ipc": "1"}, {"ipc": True}, {"ipc": [1, 2]}, {"ipc": 0}):
        assert set_scores.stored(packed, unfit, dataset) == (4,) * 10


def test_the_table_in_numbers():
    """The vectors of the reference: alpha .086 and -.213, beta .335 and 0; exp(33.5) / (e - 1/e) = 1.506e14."""
    found = {
        "real_hard": [[0.848], [0.848]], "synthetic_hard": [[0.65], [0.286]], "synthetic_any": [[0.65], [0.286]],
        "random_any": [[0.28], [0.15]], "synthetic_augmented": [[0.65], [0.286]], "random_augmented": [[0.28], [0.15]],
        "synthetic_plain": [[0.55], [0.1]], "random_plain": [[0.25], [0.236]],
    }  # fmt: skip
    found = {name: np.array(values) for name, values in found.items()}
    lines = set_scores.lines(["mlp", "lenet"], found, (10,) * 10)
    assert "random: 10 real images of each class" in lines[0]
    assert lines[4] == "| mlp | 84.8 | 65.0 | 65.0 | 28.0 | 0.3072 | 2311 | 55.0 | 25.0 | 0.4382 | 1.506e+14 |"
    assert lines[5] == "| lenet | 84.8 | 28.6 | 28.6 | 15.0 | 0.1873 | -0.1565 | 10.0 | 23.6 | 0.2689 | 0.2689 |"
    assert lines[6].startswith("| mean | . | . | . | . | 0.2472 |") and len(lines) == 7
    found["random_any"] = np.array([[np.nan], [0.15]])
    lines = set_scores.lines(["mlp", "lenet"], found, (1, 2))
    assert lines[4].startswith("| mlp | diverged (1 accuracies) |") and len(lines) == 6
    assert "random: 1 to 2 real images" in lines[0] and {line.count("|") for line in lines[2:]} == {12}


def test_several_sets_and_soft_labels_that_the_set_alone_has_are_refused(dataset):
    synthetic = mdd.evaluation.random_real(jax.random.key(0), dataset, 1)
    set_scores.require_fit(labels.read("own"), [synthetic])
    soft = dataclasses.replace(synthetic, soft_labels=np.full((10, 10), 0.1, np.float32))
    set_scores.require_fit(labels.read("hard"), [soft])
    with pytest.raises(ValueError, match="say --labels hard or --labels teacher:NET"):
        set_scores.require_fit(labels.read("own"), [soft])
    with pytest.raises(ValueError, match="and the file holds 2; choose one by --set 0"):
        set_scores.require_fit(labels.read("hard"), [soft, soft])


def test_the_command_tells_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METADD_CACHE", str(tmp_path / "cache"))
    dataset = mdd.data.load("mnist5k", train_per_class=20)
    facts = {"dataset": "mnist5k", "class_names": list(dataset.class_names), **mdd.exchange.value_space(dataset)}
    synthetic = mdd.evaluation.random_real(jax.random.key(0), dataset, 1)
    mdd.exchange.export_npz(tmp_path / "synthetic.npz", synthetic, facts | {"ipc": 1, "train_per_class": 20})
    judge = ["--networks", "mlp:width=8", "--seeds", "1", "--epochs", "2", "--pretrain-epochs", "1"]
    judge += ["--augmentation", "crop", "--pretrain-augmentation", "none"]
    evaluate.run([str(tmp_path), *judge, "--scores"])
    text = capsys.readouterr().out
    head, row = (line for line in text.splitlines() if line.startswith(("| network", "| mlp")))
    numbers = [cell.split("±")[0] for cell in row.split("|")[2:-1]]
    real, hard, own, random = (float(cell) / 100 for cell in numbers[:4])
    # The score rests on unrounded accuracies: within what rounding to a tenth of a percent leaves.
    alpha = own - (real + random) / 2
    assert hard == own and float(numbers[4]) == pytest.approx(
        (np.exp(alpha) - np.exp(-1)) / (np.e - np.exp(-1)), abs=3e-3
    )
    assert "1 runs of one score each" in text and head.count("|") == row.count("|")
