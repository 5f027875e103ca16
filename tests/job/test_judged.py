"""``metadd evaluate`` of files of others, and ``metadd export`` to theirs, from the command line."""

import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax import distillers
from metadd_jax.job import evaluate, export, judged

RNG = np.random.default_rng(2)
JUDGE = ["--networks", "mlp:width=4", "--seeds", "1", "--epochs", "1", "--augmentation", "none"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Real data in an npz, its name for --dataset."""
    place = tmp_path_factory.mktemp("real") / "real.npz"
    patch = pytest.MonkeyPatch()
    patch.setenv("METADD_CACHE", str(place.parent / "cache"))
    images = RNG.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(60) % 3
    np.savez(place, images=images, labels=labels, mean=np.full(3, 0.5), std=np.full(3, 0.25))
    yield str(place)
    patch.undo()


def load(file, dataset, **said):
    return judged.load(judged.Source(str(file), **said), dataset=dataset)[:3]


def test_a_file_of_dc_is_judged_set_by_set_or_all_at_once(tmp_path, dataset, capsys):
    torch = pytest.importorskip("torch")
    runs = [torch.randn(3, 3, 8, 8) for _ in range(3)]
    data = [[run, torch.arange(3)] for run in runs]
    torch.save({"data": data, "accs_all_exps": {}}, tmp_path / "res.pt")
    words = [str(tmp_path / "res.pt"), "--dataset", dataset, "--space", "standardised", *JUDGE]
    evaluate.run(words)
    out = capsys.readouterr().out
    assert "res.pt: format dc, 1 of 3 sets, 3 images, standardised as told" in out and "mlp:width=4" in out
    evaluate.run([*words, "--set", "all", "--seeds", "2"])
    out = capsys.readouterr().out
    assert "3 of 3 sets" in out and "±" in out
    for which, run in (("last", 2), ("1", 1)):
        sets, _, _ = load(tmp_path / "res.pt", dataset, space="standardised", which=which)
        np.testing.assert_array_equal(sets[0].images, runs[run].permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"--set 3: .* holds 3 sets; give 0\.\.2, last or all"):
        load(tmp_path / "res.pt", dataset, space="standardised", which="3")


def test_what_a_file_does_not_say_must_be_said(tmp_path, dataset):
    np.savez(tmp_path / "set.npz", images=RNG.normal(size=(3, 8, 8, 3)).astype(np.float32), labels=np.arange(3))
    with pytest.raises(ValueError, match="does not say how its numbers were scaled"):
        load(tmp_path / "set.npz", dataset)
    with pytest.raises(ValueError, match="does not say which data it was made from; name it by --dataset"):
        load(tmp_path / "set.npz", None, space="pixels")
    with pytest.raises(ValueError, match=r"--factor 2: .* which packs nothing"):
        load(tmp_path / "set.npz", dataset, space="pixels", factor=2)
    with pytest.raises(ValueError, match="no file at"):
        load(tmp_path / "nowhere.npz", dataset, space="pixels")


def test_a_whitened_set_is_judged_on_whitened_data(tmp_path, dataset):
    torch = pytest.importorskip("torch")
    torch.save(torch.randn(3, 3, 8, 8), tmp_path / "images_best.pt")
    torch.save(torch.arange(3), tmp_path / "labels_best.pt")
    sets, real, lines = load(tmp_path, dataset, space="zca", learning_rate=0.01)
    assert real.whitening is not None and float(sets[0].learning_rate) == pytest.approx(0.01)
    assert lines[0] == "images_best.pt: format mtt, one set, 3 images, zca as told, learned step size 0.01"


def test_a_packed_set_is_decoded_as_pytorch_decodes_it(tmp_path, dataset):
    torch = pytest.importorskip("torch")
    packed = torch.rand(6, 3, 8, 8)
    torch.save([packed, torch.tensor([0, 0, 1, 1, 2, 2])], tmp_path / "data_1000.pt")
    with pytest.raises(ValueError, match="does not say how many images each of its holds; add --factor 2"):
        load(tmp_path / "data_1000.pt", dataset)
    sets, _, lines = load(tmp_path / "data_1000.pt", dataset, factor=2)
    assert "6 packed images give 24 by factor 2" in lines
    cell = torch.nn.functional.interpolate(packed[2:3, :, :4, 4:], size=8, mode="bilinear")
    np.testing.assert_allclose(sets[0].images[9], (cell[0].permute(1, 2, 0) - 0.5) / 0.25, rtol=1e-4, atol=1e-5)
    assert np.bincount(sets[0].labels).tolist() == [8, 8, 8]


def test_our_own_set_needs_nothing_said_and_takes_nothing(tmp_path, dataset):
    with pytest.raises(ValueError, match="--space is for files of others"):
        load(write(tmp_path, dataset), dataset, space="pixels", format="metadd")


def write(folder, dataset, **fields):
    real = mdd.data.load(dataset)
    images = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
    made = mdd.SyntheticSet(images=images, labels=np.arange(3, dtype=np.int32), **fields)
    facts = {**mdd.exchange.value_space(real), "class_names": list(real.class_names), "dataset": dataset}
    facts |= {"dataset_fingerprint": real.fingerprint}
    mdd.exchange.export_npz(folder / "synthetic.npz", made, facts, overwrite=True)
    return folder


EXACT = ("torch", "mtt", "ddranking", "safetensors", "tensordataset", "frepo")


@pytest.mark.parametrize("format", [*EXACT, "sre2l", "rded", "huggingface", "webdataset", "tfds", "png"])
def test_what_is_exported_is_judged(format, tmp_path, dataset, capsys):
    """The images come back through the peer's format: to the bit, or clipped to eight bits."""
    if format in ("torch", "mtt", "ddranking", "tensordataset"):
        pytest.importorskip("torch")
    if format == "safetensors":
        pytest.importorskip("safetensors")
    write(tmp_path, dataset)
    out = tmp_path / f"out{'.safetensors' if format == 'safetensors' else '.pt' if 'tor' in format else ''}"
    out = tmp_path / "out.pt" if format in ("torch", "tensordataset") else out
    export.run([str(tmp_path), "--out", str(out), "--format", format])
    assert ("8 bits clipped" in capsys.readouterr().out) == (format not in EXACT)
    said = {"space": "standardised"} if format in ("tensordataset", "frepo") else {}
    sets, _, _ = load(out, dataset, **said)
    original = mdd.exchange.load_npz(tmp_path / "synthetic.npz")[0]
    if format in EXACT:
        np.testing.assert_array_equal(sets[0].images, original.images)
    else:
        wanted = np.clip(np.asarray(original.images) * 0.25 + 0.5, 0, 1)
        error = np.abs(np.asarray(sets[0].images) * 0.25 + 0.5 - wanted)
        assert error.max() <= 0.5 / 255 + 1e-6 or (format in ("sre2l", "rded") and error.mean() < 0.05)
    assert sets[0].labels.tolist() == [0, 1, 2]


def test_a_packed_set_of_ours_is_judged_packed_and_decoded(tmp_path, dataset):
    pytest.importorskip("torch")
    real = mdd.data.load(dataset)
    stored = RNG.uniform(-2, 2, size=(3, 8, 8, 3)).astype(np.float32)
    packing = distillers.factor(2, pad=distillers.packing.grey(real))
    images = np.asarray(packing.decode(stored, ()))
    made = mdd.SyntheticSet(images=images, labels=np.repeat(np.arange(3), 4).astype(np.int32))
    facts = {**mdd.exchange.value_space(real), "class_names": list(real.class_names), "dataset": dataset}
    mdd.exchange.export_npz(tmp_path / "synthetic.npz", made, facts)
    mdd.exchange.export_latents(
        tmp_path / "latents.npz", stored, facts | dict(distillers.budget(packing, stored, made.labels))
    )
    export.run([str(tmp_path), "--out", str(tmp_path / "idc"), "--format", "idc"])
    packed, _, _ = load(tmp_path / "idc", dataset)
    np.testing.assert_allclose(packed[0].images, images, rtol=1e-4, atol=1e-4)
    decoded, _, _ = load(tmp_path / "idc" / "decoded.pt", dataset)
    np.testing.assert_allclose(np.sort(decoded[0].images, axis=0), np.sort(images, axis=0), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_frepo_is_judged_on_data_whitened_as_theirs(tmp_path):
    from flax import serialization

    images = RNG.integers(0, 256, (90, 4, 4, 3)).astype(np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=np.arange(90) % 3, mean=np.full(3, 0.5), std=np.full(3, 0.2))
    held = {"x_proto": RNG.normal(size=(3, 4, 4, 3)).astype(np.float32), "y_proto": np.eye(3) - 1 / 3}
    (tmp_path / "checkpoint_7").write_bytes(serialization.msgpack_serialize({"params": held}))
    sets, real, lines = load(tmp_path / "checkpoint_7", str(tmp_path / "real.npz"), space="zca_frepo")
    np.testing.assert_array_equal(sets[0].images, held["x_proto"])
    plain = mdd.data.load(str(tmp_path / "real.npz"))
    np.testing.assert_array_equal(real.test.images, mdd.data.whiten(plain, kind="frepo").test.images)
    assert any("targets of a kernel regression" in line for line in lines)


def test_a_peers_set_becomes_one_of_ours_that_says_everything(tmp_path, dataset, capsys):
    torch = pytest.importorskip("torch")
    runs = [torch.randn(3, 3, 8, 8) for _ in range(2)]
    torch.save({"data": [[run, torch.tensor([2, 0, 1])] for run in runs], "accs_all_exps": {}}, tmp_path / "res.pt")
    told = [str(tmp_path / "res.pt"), "--dataset", dataset, "--space", "standardised"]
    export.run([*told, "--set", "0", "--out", str(tmp_path / "set.npz")])
    assert "format dc, 1 of 2 sets" in capsys.readouterr().out
    sets, _, lines = load(tmp_path / "set.npz", None)  # the data, too, it names itself
    np.testing.assert_array_equal(sets[0].images, runs[0][[1, 2, 0]].permute(0, 2, 3, 1))
    assert lines == [] and sets[0].labels.tolist() == [0, 1, 2]
    export.run([str(tmp_path / "set.npz"), "--out", str(tmp_path / "again.pt"), "--format", "torch"])
    with pytest.raises(ValueError, match="--set all: one set is written at a time"):
        export.run([*told, "--set", "all", "--out", str(tmp_path / "all.npz")])
    with pytest.raises(ValueError, match="--space is for files of others"):
        export.run([str(tmp_path / "set.npz"), "--space", "pixels", "--out", str(tmp_path / "x.npz")])
    with pytest.raises(ValueError, match="--dataset is for files of others"):
        export.run([str(tmp_path / "set.npz"), "--dataset", dataset, "--out", str(tmp_path / "x.npz")])
