"""Auxiliaries that learn from other data than the set: images that nothing else uses, or another data set."""

import dataclasses

import jax
import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax.job import cells, distill, options, prepare, seen_data, stages

SEEN = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return options.DistillConfig(
        train_per_class=20, validation_fraction=0.25, backbone="mlp:width=4", seen=(SEEN,), unseen=(),
        pretrain_epochs=1, pretrain_augmentation="none", cache_dir=str(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(config):
    return prepare.load_data(config)


def test_nothing_said_is_the_jobs_own_data(config, dataset):
    assert seen_data.data_of(config, dataset) is None
    assert seen_data.way(dataset, dataset) is None


def test_unused_images_are_those_of_neither_split(config, dataset):
    unused = seen_data.data_of(dataclasses.replace(config, seen_data="unused"), dataset)
    whole = mdd.data.load("mnist5k")
    held = np.concatenate([np.asarray(split.images) for split in (dataset.train, dataset.validation, unused.train)])
    # 20 + 380 of the 400 of a class, each once: together they are the whole training split.
    assert np.bincount(unused.train.labels).tolist() == [380] * 10
    assert sorted(map(bytes, held)) == sorted(map(bytes, np.asarray(whole.train.images)))
    assert seen_data.way(dataset, unused) is None  # standardised alike
    every = dataclasses.replace(config, seen_data="unused", train_per_class=400)
    with pytest.raises(ValueError, match=r"no image of class 0 \(0\) is left unused; lower --train-per-class"):
        seen_data.data_of(every, prepare.load_data(every))


def test_the_way_to_networks_of_other_data_brings_images_to_their_size_colours_and_constants(dataset, tmp_path):
    """Coloured pictures of half the size, re-derived in float64."""
    rng = np.random.default_rng(0)
    file = tmp_path / "other.npz"
    np.savez(file, images=rng.integers(0, 256, (60, 14, 14, 3), np.uint8), labels=np.arange(60) % 10)
    other = mdd.data.load(str(file))
    raw = np.asarray(dataset.train.images[:4], np.float64)[..., 0] / 255
    standardised = (raw - np.float64(dataset.train.mean[0])) / np.float64(dataset.train.std[0])
    found = np.asarray(seen_data.way(dataset, other)(np.float32(standardised)[..., None]))
    # To half the size without aliasing is a triangle over four pixels, weights 1 3 3 1, away from the border.
    kernel = np.array([1, 3, 3, 1]) / 8
    down = np.stack([(raw[:, 2 * i - 1 : 2 * i + 3] * kernel[None, :, None]).sum(1) for i in range(1, 13)], 1)
    down = np.stack([(down[:, :, 2 * j - 1 : 2 * j + 3] * kernel).sum(2) for j in range(1, 13)], 2)
    expected = (down[..., None] - np.asarray(other.train.mean)) / np.asarray(other.train.std)
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], expected, atol=1e-4)


def test_data_that_cannot_serve_are_refused(config, dataset, tmp_path):
    file = tmp_path / "few.npz"
    grey = np.zeros((20, 28, 28), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None] * 9
    np.savez(file, images=grey, labels=np.arange(20) % 2)
    with pytest.raises(ValueError, match=r"few.npz has 2 classes, and the set has 10"):
        seen_data.data_of(dataclasses.replace(config, seen_data=str(file)), dataset)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--no-wrapped --seen-data unused --train-per-class 5", "--seen-data unused is of MetaDD's auxiliaries"),
        ("--seen-data unused", "needs --train-per-class"),
        ("--seen-data unused --train-per-class 5 --zca", "leave --zca out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        distill.run(["smoke", *words.split()])


class StopError(Exception):
    """Ends a job where the long work would begin."""


def test_a_job_and_a_cell_look_through_networks_of_those_data(config, tmp_path, monkeypatch):
    words = (
        f"smoke --run-dir {tmp_path}/run --cache-dir {config.cache_dir} --train-per-class 10 --backbone mlp:width=8 "
    )
    words += f"--seen {SEEN} --unseen --metadd.pos 0 --metadd.var 0 --metadd.views none --seen-data unused "
    words += "--device-mode jit --augmentation none --eval-augmentation none --pretrain-augmentation none"
    given = []

    def all_methods(job, trained, frozen):
        assert list(job.looked_through) == [f"{SEEN}, 1 epochs"]
        given.append(frozen[f"{SEEN}, 1 epochs"].variables)
        raise StopError

    monkeypatch.setattr(stages, "all_methods", all_methods)
    with pytest.raises(StopError):
        distill.run(words.split())
    read = dataclasses.replace(distill.parsed(words.split(), "test"), distill_seeds=1)
    own = prepare.load_data(read)
    with pytest.raises(StopError):
        cells.run(cells.Cell("row", None, read), tmp_path / "cell", own)
    # By the library, from arrays: the very same training.
    unused = seen_data.data_of(read, own)
    net = mdd.zoo.parse(SEEN, 10, (28, 28, 1))
    alone = mdd.training.pretrain(net, unused, mdd.training.pretraining(1)).variables
    for looking in given:
        jax.tree.map(np.testing.assert_array_equal, looking, alone)
    assert len(given) == 2
