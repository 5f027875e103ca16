"""evaluate, show, export and pretrain on a distilled set that the test makes."""

import dataclasses
import importlib
import re
import shutil

import jax
import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax.job import common, evaluate, export, presets, pretrain, show


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    patch = pytest.MonkeyPatch()
    patch.setenv("METADD_CACHE", str(folder / "cache"))
    dataset = mdd.data.load("mnist5k")
    synthetic = mdd.evaluation.random_real(jax.random.key(0), dataset, 1)
    metadata = {
        "dataset": "mnist5k",
        "class_names": list(dataset.class_names),
        "value_space": "standardised",
        "mean": np.asarray(dataset.train.mean).tolist(),
        "std": np.asarray(dataset.train.std).tolist(),
        "method": "random",
        "seed": 0,
        "ipc": 1,
    }
    mdd.exchange.export_npz(folder / "synthetic.npz", synthetic, metadata)
    yield folder
    patch.undo()


def test_evaluate_prints_a_row_a_network(made, capsys):
    evaluate.run([str(made), "--networks", "mlp:width=8", "--seeds", "2", "--epochs", "2", "--augmentation", "none"])
    assert "mlp:width=8" in capsys.readouterr().out


def test_evaluate_judges_a_set_under_the_labels_of_a_teacher(made, capsys):
    judge = [str(made), "--networks", "mlp:width=8", "--seeds", "1", "--epochs", "2", "--pretrain-epochs", "1"]
    judge += ["--pretrain-augmentation", "none"]
    evaluate.run([*judge, "--recipe", "sre2l_cifar", "--labels", "teacher:mlp:width=4"])
    assert "recipe 'sre2l_cifar', 2 epochs, " in (out := capsys.readouterr().out)
    assert "labels teacher:mlp:width=4 " in out and "% on the test split" in out
    with pytest.raises(ValueError, match="a set brings no teacher"):
        evaluate.run([*judge, "--labels", "teacher"])


def test_evaluate_guides_by_a_network_that_trains_on_the_set(made, capsys):
    judge = [str(made), "--networks", "mlp:width=8", "--seeds", "1", "--epochs", "2", "--augmentation", "none"]
    evaluate.run([*judge, "--kd", "mlp:width=4"])
    assert "labels hard and a guide (mlp:width=4), 1 trainings" in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown network 'nope'"):
        evaluate.run([*judge, "--kd", "nope"])


def test_pretrain_and_show_share_the_cache(made, capsys):
    nets = ["convnet:width=4,depth=1", "convnet:width=6,depth=1"]
    pretrain.run(["--networks", *nets, "--epochs", "1"])
    show.run([str(made), "--out", str(made / "pictures"), "--networks", *nets, "--epochs", "1"])
    show.run(["mnist5k", "--out", str(made / "real"), "--networks", *nets, "--epochs", "1"])
    assert {file.name for file in (made / "real").iterdir()} == {"real.png", "maps.png"}
    capsys.readouterr()
    pretrain.run(["--networks", nets[0], "--epochs", "1"])
    assert "from the cache" in capsys.readouterr().out
    assert (made / "pictures" / "maps.png").stat().st_size > 1000


def test_show_draws_the_loss_of_a_set_that_lies_in_its_run(made, tmp_path, capsys):
    run = tmp_path / "dm" / "seed0"
    run.mkdir(parents=True)
    for file in made.glob("synthetic.*"):
        shutil.copy(file, run)
    log = mdd.storage.JsonLines(run / "metrics.jsonl")
    for step in (10, 20, 30):
        log.write(step, {"distill/loss": 1 / step})
    show.run([str(run), "--out", str(tmp_path / "pictures")])
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == {"synthetic.png", "loss.png"}
    assert "loss.png" in capsys.readouterr().out


def test_names_are_checked_before_the_size_of_the_images_is_known():
    common.check_names(("vit:patch=7", "mlp"))  # patches of 7 suit the digits, not 32 pixels
    with pytest.raises(ValueError, match="unknown network 'vitt'"):
        common.check_names(("mlp", "vitt"))
    with pytest.raises(ValueError, match="has no option 'patches'"):
        common.check_names(("vit:patches=7",))


def test_export_to_npz_and_png(made, capsys):
    export.run([str(made), "--out", str(made / "copy.npz")])
    np.testing.assert_array_equal(np.load(made / "copy.npz")["images"], np.load(made / "synthetic.npz")["images"])
    export.run([str(made), "--out", str(made / "folder"), "--format", "png"])
    assert "clipped 0.0 %" in capsys.readouterr().out
    assert len(list((made / "folder").rglob("*.png"))) == 10
    with pytest.raises(ValueError, match=r"copy\.pt is the name of another format; add --format torch"):
        export.run([str(made), "--out", str(made / "copy.pt")])
    with pytest.raises(ValueError, match=r"copy\.npz"):
        export.run([str(made), "--out", str(made / "copy.npz")])


def test_export_to_the_folders_of_mtt_and_idc(made):
    torch = pytest.importorskip("torch")
    export.run([str(made), "--out", str(made / "tensors"), "--format", "mtt"])
    assert torch.load(made / "tensors" / "images_best.pt").shape[0] == 10
    with pytest.raises(ValueError, match=r"latents\.npz is missing, so the set is not packed; distil with --param"):
        export.run([str(made), "--out", str(made / "packed"), "--format", "idc"])
    held, facts = mdd.exchange.load_npz(made / "synthetic.npz")
    images = np.asarray(held.images)
    # The ten images as ten cells of ten stored ones: factor 1.
    budget = mdd.distillers.budget(mdd.distillers.factor(1), images, held.labels)
    mdd.exchange.export_latents(made / "latents.npz", images, facts | budget)
    export.run([str(made), "--out", str(made / "packed"), "--format", "idc"])
    packed, labels = torch.load(made / "packed" / "data.pt")
    assert packed.shape[0] == 10 and labels.tolist() == list(range(10))


def test_a_wrong_path_is_refused(made):
    with pytest.raises(ValueError, match="nowhere"):
        evaluate.run([str(made / "nowhere.npz"), "--networks", "mlp"])


@pytest.fixture
def bars(tmp_path):
    """Three classes of one's own, as an .npz and as a folder of pictures: a bright row at the height of the class."""
    image = pytest.importorskip("PIL.Image")
    labels = np.repeat(np.arange(3), 8)
    images = np.random.default_rng(0).integers(0, 80, (24, 16, 16, 1)).astype(np.uint8)
    for number, label in enumerate(labels):
        images[number, 5 * label : 5 * label + 4] += 150
    np.savez(tmp_path / "bars.npz", images=images, labels=labels)
    for split in ("train", "test"):
        for number, label in enumerate(labels):
            folder = tmp_path / "bars" / split / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.fromarray(images[number, ..., 0]).save(folder / f"{number}.png")
    return tmp_path


def test_show_draws_data_of_ones_own(bars, monkeypatch, capsys):
    """What it holds makes a folder a data set, not its name: one called mnist5k does not hide the digits."""
    (bars / "mnist5k").mkdir()
    monkeypatch.chdir(bars)
    for what in ("bars", "bars.npz", "mnist5k"):
        show.run([what, "--out", f"pictures of {what}"])
        assert (bars / f"pictures of {what}" / "real.png").exists()
    with pytest.raises(ValueError, match=r"no file at .*nowhere\.npz"):
        show.run(["nowhere.npz", "--out", "nothing"])


def test_pretrain_brings_pictures_to_a_size(bars, made, capsys):
    pretrain.run(["--dataset", str(bars / "bars"), "--image-size", "8", "--networks", "mlp:width=4", "--epochs", "1"])
    assert "mlp:width=4" in capsys.readouterr().out


def test_a_set_is_judged_on_its_own_classes_alone(bars, made, capsys):
    dataset = mdd.data.load(str(bars / "bars"))
    synthetic = mdd.evaluation.random_real(jax.random.key(0), dataset, 1)
    facts = {
        "dataset": str(bars / "bars"),
        "dataset_fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        **mdd.exchange.value_space(dataset),
    }
    file = bars / "runs" / "dm" / "seed0" / "synthetic.npz"
    mdd.exchange.export_npz(file, synthetic, facts)
    judge = ["--networks", "mlp:width=4", "--epochs", "1", "--seeds", "1", "--augmentation", "none"]
    evaluate.run([str(file), *judge])
    for split in ("train", "test"):
        (bars / "bars" / split / "a").rename(bars / "bars" / split / "z")
    with pytest.raises(ValueError, match=r"the set's classes are a, b, c, but .* has b, c, z"):
        evaluate.run([str(file), *judge])
    with pytest.raises(ValueError, match=r"runs is a run's folder with 1 sets; give one: .*dm/seed0"):
        evaluate.run([str(bars / "runs"), *judge])
    del facts["dataset"]
    mdd.exchange.export_npz(file, synthetic, facts, overwrite=True)
    with pytest.raises(ValueError, match="does not say which data it was made from"):
        evaluate.run([str(file), *judge])


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        (evaluate, ["nowhere", "--seeds", "0"], "--seeds=0 must be a whole number, at least 1"),
        (evaluate, ["nowhere", "--epochs", "0"], "--epochs=0 must be"),
        (evaluate, ["nowhere", "--augmentation", "flipp"], "flipp"),
        (evaluate, ["nowhere", "--networks"], "no network to train"),
        (pretrain, ["--networks"], "no network to train"),
        (pretrain, ["--epochs", "-1"], "--epochs=-1 must be"),
        (pretrain, ["--seed", "-1"], "--seed=-1 must be"),
        (pretrain, ["--image-size", "-1"], "--image-size=-1 must be"),
        (show, ["mnist5k", "--epochs", "0"], "--epochs=0 must be"),
        (show, ["mnist5k", "--train-per-class", "-2"], "--train-per-class=-2 must be"),
        (show, ["mnist5k", "--augmentation", "flipp"], "flipp"),
    ],
)
def test_options_are_checked_before_anything_is_read(script, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        script.run(arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("none", [0, None])
def test_a_set_that_was_exported_while_0_said_all_is_read_as_one_of_today(none):
    dataset = mdd.data.load("mnist5k")
    facts = {"dataset": "mnist5k", "class_names": list(dataset.class_names), **mdd.exchange.value_space(dataset)}
    facts |= {"image_size": none, "train_per_class": none, "validation_fraction": 0.0}
    assert common.real_data(facts).fingerprint == dataset.fingerprint
    with pytest.raises(ValueError, match="train_per_class of the set is 'all', not a number"):
        common.real_data(facts | {"train_per_class": "all"})


def test_every_preset_names_networks_that_exist():
    for config in presets.PRESETS.values():
        shape = (28, 28, 1) if config.dataset == "mnist5k" else (32, 32, 3)
        nets = [mdd.zoo.parse(spec, 10, shape) for spec in (config.backbone, *config.seen, *config.unseen)]
        assert len({net.label for net in nets}) == len(nets)
        assert all(net.has_map for net in nets[1 : 1 + len(config.seen)])


@pytest.mark.parametrize("script", ["distill", "pretrain", "evaluate", "show", "export"])
def test_help_explains_the_options(script, capsys, monkeypatch):
    module = importlib.import_module(f"metadd_jax.job.{script}")
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        module.run(["--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    kind = (
        next(kind for name, kind in vars(module).items() if name.endswith("Config"))
        if script != "distill"
        else presets.DistillConfig
    )
    for field in dataclasses.fields(kind):
        if field.name == "own":
            assert "--dm.batch-size" in text
            continue
        if field.name == "file":  # positional
            assert " FILE " in text
            continue
        assert re.search(rf"--(\[no-\])?{field.name.replace('_', '-')}\b|--{field.name}\.", text), field.name
