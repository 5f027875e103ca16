"""Expert trajectories: what is stored is what ``fit`` passes through, whole, resumable, and refused when it is not."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from metadd_jax import data, files, keys, storage, training, zoo
from metadd_jax.training import experts as making
from metadd_jax.training import trajectories
from metadd_jax.training.trajectories import flatten, unflatten

SHAPE, EPOCHS, EXPERTS = (8, 8, 1), 3, 5
NET = zoo.parse("convnet:width=4,depth=1", 3, SHAPE)
RECIPE = dataclasses.replace(
    training.expert_training(EPOCHS, augmentation="flip_crop"), batch_size=8, learning_rate=0.05
)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 3
    images = (rng.integers(0, 120, (20, *SHAPE)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return data.from_arrays("tiny", images, labels, images[:5], labels[:5])


def train(folder, dataset, **settings):
    return training.train_experts(
        folder, settings.pop("net", NET), dataset, settings.pop("recipe", RECIPE),
        **{"experts": EXPERTS, "seed": 7, "at_once": 2} | settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """Five experts in shards of 2, 2 and 1."""
    folder = tmp_path_factory.mktemp("experts") / "convnet"
    done = []
    train(folder, dataset, on_shard=done.append)
    assert done == [2, 4, 5]
    return folder


@pytest.fixture(scope="module")
def experts(folder, dataset):
    return training.load_experts(folder, NET, dataset)


def copy(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_an_expert_is_what_fit_passes_through(experts, dataset):
    """Snapshot t is the network that ``fit`` returns after t epochs; the first is the initialisation."""
    key, arrays = keys.root(7, "experts"), dataset.train
    own = jax.random.fold_in(key, 3)
    snapshots = experts.read(3, EPOCHS + 1)
    assert snapshots.shape == (EPOCHS + 1, NET.num_params()) and snapshots.dtype == np.float32
    start = NET.init(keys.named(own, "weights"))["params"]
    np.testing.assert_array_equal(snapshots[0], flatten(start))
    for epochs in (1, EPOCHS):
        recipe = dataclasses.replace(RECIPE, epochs=epochs)
        alone = training.fit(
            own, NET, arrays.images, arrays.labels, recipe, shared_key=key, mean=arrays.mean, std=arrays.std
        )
        np.testing.assert_allclose(snapshots[epochs], flatten(alone["params"]), rtol=1e-3, atol=1e-5)
    assert np.abs(snapshots[1:] - snapshots[:-1]).max(axis=1).min() > 1e-3
    assert not np.allclose(snapshots, experts.read(2, EPOCHS + 1))


def test_vectors_and_parameters_are_two_views_of_one_thing():
    params = NET.init(jax.random.key(1))["params"]
    vector = flatten(params)
    assert vector.shape == (NET.num_params(),)
    jax.tree.map(np.testing.assert_array_equal, unflatten(NET, vector), params)


def test_recipe_of_the_experts():
    assert dataclasses.asdict(training.expert_training(50, augmentation="flip")) == {
        **dataclasses.asdict(training.Recipe(epochs=50)),
        "learning_rate": 0.01, "momentum": 0.0, "weight_decay": 0.0, "augmentation": "flip",
    }  # fmt: skip


def test_the_manifest_names_what_was_asked_for(folder, dataset):
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = {"label": NET.label, "network": repr(NET), "parameters": NET.num_params(), "seed": 7, "experts": 5}
    assert manifest.items() >= facts.items()
    assert manifest["dataset_fingerprint"] == dataset.fingerprint
    assert manifest["recipe"] == json.loads(json.dumps(dataclasses.asdict(RECIPE)))  # tuples are lists there
    shapes = {name: (entry["shape"], entry["dtype"]) for name, entry in manifest["files"].items()}
    size = NET.num_params()
    assert shapes == {f"shard_0000{i}.npy": ([n, EPOCHS + 1, size], "float32") for i, n in enumerate((2, 2, 1))}
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *sorted(shapes)]
    assert not folder.with_name("convnet.unfinished").exists()


def test_they_are_mapped_and_put_on_the_device_in_part(experts):
    assert len(experts) == EXPERTS and experts.epochs == EPOCHS
    assert all(isinstance(array, np.memmap) for shard in experts.shards for array in shard)
    some = training.device_experts(experts, experts=3, snapshots=2)
    np.testing.assert_array_equal(some, np.stack([experts.read(i, 4)[:2] for i in range(3)]))
    assert isinstance(some, jax.Array)
    assert training.device_experts(experts).shape == (EXPERTS, EPOCHS + 1, NET.num_params())
    with pytest.raises(ValueError, match=r"experts=6 and snapshots=0, but .* holds 5 experts of 4 snapshots"):
        training.device_experts(experts, experts=6)


def test_the_same_request_is_answered_from_the_folder(folder, dataset, monkeypatch):
    monkeypatch.setattr(making, "fit", None)  # training again would fail
    assert len(train(folder, dataset)) == EXPERTS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 8}, "seed is 7 there and 8 here"),
        ({"experts": 6}, "experts is 5 there and 6 here"),
        ({"half": True}, "half is False there and True here"),
        ({"recipe": dataclasses.replace(RECIPE, epochs=4)}, "recipe is .*'epochs': 3.* there"),
        ({"net": zoo.parse("convnet:width=5,depth=1", 3, SHAPE)}, "label is .*width=4.* there and .*width=5"),
    ],
)
def test_another_request_is_refused(folder, dataset, settings, words):
    with pytest.raises(ValueError, match=f"convnet holds other experts: {words}"):
        train(folder, dataset, **settings)


def test_other_data_and_bad_numbers_are_refused(folder, dataset, tmp_path):
    changed = dataclasses.replace(dataset, fingerprint="0" * 64)
    with pytest.raises(ValueError, match="holds other experts: dataset_fingerprint is"):
        training.load_experts(folder, NET, changed)
    with pytest.raises(ValueError, match="experts=0 must be"):
        train(tmp_path / "x", dataset, experts=0)
    with pytest.raises(ValueError, match=r"convnet_bn.* has batch norm"):
        train(tmp_path / "x", dataset, net=zoo.parse("convnet_bn:width=4,depth=1", 3, SHAPE))
    hot = dataclasses.replace(RECIPE, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"expert 0 does not stay finite; lower the learning rate 1e\+30"):
        train(tmp_path / "x", dataset, recipe=hot)
    assert not (tmp_path / "x").exists()


def test_damage_is_named_and_left(folder, dataset, tmp_path):
    broken = copy(folder, tmp_path / "broken")
    content = bytearray((broken / "shard_00001.npy").read_bytes())
    content[-1] ^= 1
    (broken / "shard_00001.npy").write_bytes(content)
    for request in (lambda: training.load_experts(broken, NET, dataset), lambda: train(broken, dataset)):
        with pytest.raises(ValueError, match=r"shard_00001\.npy is not what was written.*left as it is"):
            request()
    assert (broken / "shard_00001.npy").read_bytes() == content
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        train(foreign, dataset)
    (tmp_path / "own.unfinished").mkdir()
    (tmp_path / "own.unfinished" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"own\.unfinished/notes\.txt was not written by metadd_jax"):
        train(tmp_path / "own", dataset)


def test_an_interrupted_training_goes_on(folder, dataset, tmp_path, monkeypatch):
    """Killed in the second shard: the first is kept; a shard damaged meanwhile is made again; the bits are the same."""
    half_way = copy(folder, tmp_path / "again.unfinished")
    files.temporary_path(half_way / "shard_00001.npy").write_bytes(b"cut off")
    (half_way / "shard_00001.npy").write_bytes(b"cut off")
    (half_way / "shard_00002.npy").unlink()
    trained, trainer = [], making._trainer

    def counting(*arguments):
        train = trainer(*arguments)
        return lambda first, last: trained.append((first, last)) or train(first, last)

    monkeypatch.setattr(making, "_trainer", counting)
    with pytest.raises(ValueError, match=r"again\.unfinished holds other experts: seed is 7 there and 9 here"):
        train(tmp_path / "again", dataset, seed=9)
    again = train(tmp_path / "again", dataset)
    assert trained == [(2, 4), (4, 5)]
    assert not half_way.exists()
    for name in ("shard_00000.npy", "shard_00001.npy", "shard_00002.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert again.read(4, 1).shape == (1, NET.num_params())


def test_killed_before_its_first_file_it_starts_all_the_same(dataset, tmp_path, monkeypatch):
    unfinished = tmp_path / "first.unfinished"
    unfinished.mkdir()
    files.temporary_path(unfinished / "manifest.json").write_text("{")
    train(tmp_path / "first", dataset, experts=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["manifest.json", "shard_00000.npy"]


def test_a_second_run_waits_for_the_experts_of_the_first(folder, dataset, tmp_path, monkeypatch, caplog):
    """Both worked in one folder, and the slower one died with a traceback when it was renamed."""
    place = tmp_path / "shared"
    lock = storage.Lock(tmp_path / ".shared.metadd.lock")

    def finish(seconds):
        copy(folder, place)
        lock.release()

    monkeypatch.setattr(storage.lock.time, "sleep", finish)
    monkeypatch.setattr(making, "fit", None)  # training again would fail
    assert len(train(place, dataset)) == EXPERTS
    (record,) = caplog.records
    assert "shared: another run (host" in record.getMessage() and record.getMessage().endswith("; waiting for it")
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_half_precision_stays_within_its_bound(experts, dataset, tmp_path):
    half = train(tmp_path / "half", dataset, half=True)
    assert [str(array.dtype) for array in half.shards[0]] == ["float32", "float16"]
    for expert in range(EXPERTS):
        exact, stored = experts.read(expert, EPOCHS + 1), half.read(expert, EPOCHS + 1)
        np.testing.assert_array_equal(stored[0], exact[0])
        for epoch in range(EPOCHS):
            bound = 2.0**-11 * np.abs(exact[epoch + 1] - stored[epoch]) + 2.0**-25 + 2.0**-23 * np.abs(exact[epoch + 1])
            assert (np.abs(stored[epoch + 1] - exact[epoch + 1]) <= bound).all()
        moved = np.linalg.norm(exact[-1] - exact[0])
        assert 0 < np.linalg.norm(stored[-1] - exact[-1]) < 1e-3 * moved


def test_rounding_does_not_add_up():
    """200 epochs of steps that float16 rounds: the last snapshot is as exact as the first."""
    steps = np.random.default_rng(3).normal(0, 1e-3, (1, 201, 500))
    snapshots = np.cumsum(steps, axis=1).astype(np.float32)
    stored = trajectories._decode([array[0] for array in trajectories.encode(snapshots, True)], 201)
    error = np.abs(stored - snapshots[0]).max(axis=1)
    assert error[1:].max() < 3 * error[1:11].max() < 1e-5
