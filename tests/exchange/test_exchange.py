"""Files for the rest of the world: what goes out comes back, and nothing damaged comes in."""

import json
import pathlib
import sys
import time

import jax
import numpy as np
import pytest
from example_sets import MEAN, NAMES, STD, make_set, metadata

from metadd_jax import exchange
from metadd_jax.exchange import pytorch


def assert_equal_sets(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "synthetic.npz"


def test_numpy_alone_opens_the_file(file):
    synthetic = make_set(learning_rate=np.float32(0.02), soft_labels=np.full((4, 2), 0.5, np.float32))
    exchange.export_npz(file, synthetic, metadata(method="dm", ipc=2))
    with np.load(file, allow_pickle=False) as content:
        arrays = dict(content)
    assert {name: (str(array.dtype), array.shape) for name, array in arrays.items()} == {
        "images": ("float32", (4, 5, 6, 3)),
        "labels": ("int64", (4,)),
        "mean": ("float32", (3,)),
        "std": ("float32", (3,)),
        "soft_labels": ("float32", (4, 2)),
        "learning_rate": ("float32", ()),
    }
    np.testing.assert_array_equal(arrays["images"], synthetic.images)
    facts = json.loads(file.with_suffix(".json").read_text())
    assert (facts["layout"], facts["value_space"], facts["method"], facts["ipc"]) == (
        "NHWC",
        "standardised",
        "dm",
        2,
    )
    assert facts["class_names"] == NAMES and set(facts["versions"]) == {"python", "jax", "flax", "numpy"}


@pytest.mark.parametrize("fields", [{}, {"soft_labels": np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]}])
def test_the_set_comes_back(file, fields):
    exchange.export_npz(file, make_set(**fields), metadata())
    synthetic, facts = exchange.load_npz(file)
    assert_equal_sets(synthetic, make_set(**fields))
    assert synthetic.labels.dtype == np.int32
    assert facts.items() >= metadata().items()


def test_the_same_set_gives_the_same_bytes(tmp_path, monkeypatch):
    exchange.export_npz(tmp_path / "one.npz", make_set(), metadata())
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    exchange.export_npz(tmp_path / "two.npz", make_set(), metadata())
    for suffix in (".npz", ".json"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_nothing_is_overwritten_unasked(file):
    exchange.export_npz(file, make_set(), metadata(seed=1))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"synthetic\.npz exists already; choose another path"):
        exchange.export_npz(file, make_set(), metadata(seed=2))
    assert file.read_bytes() == before and exchange.load_npz(file)[1]["seed"] == 1
    exchange.export_npz(file, make_set(), metadata(seed=2), overwrite=True)
    assert exchange.load_npz(file)[1]["seed"] == 2


@pytest.mark.parametrize(
    ("synthetic", "facts", "words"),
    [
        (make_set(), {"mean": MEAN, "std": STD}, "lacks class_names, value_space"),
        (
            make_set().replace(labels=np.array([0, 0, 1, 2])),
            metadata(),
            r"labels 0 to 2 but 2 class names.* 0\.\.1",
        ),
        (
            make_set().replace(images=make_set().images * np.nan),
            metadata(),
            "360 pixels that are NaN or infinite",
        ),
        (make_set().replace(labels=np.zeros(3, np.int32)), metadata(), r"4 images and labels int32\(3,\)"),
        (make_set(), metadata(std=[1.0]), r"3 channels and std \(1,\)"),
        (make_set(soft_labels=np.ones((4, 3))), metadata(), r"soft labels \(4, 3\); they must be \(4, 2\)"),
    ],
)
def test_an_unfit_set_is_not_written(file, synthetic, facts, words):
    with pytest.raises(ValueError, match=words):
        exchange.export_npz(file, synthetic, facts)
    assert not list(file.parent.iterdir())


def _cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _change(file):
    """Changes a pixel and repairs the zip, as another program would."""
    arrays = dict(np.load(file))
    arrays["images"][0, 0, 0, 0] += 1
    np.savez(file, **arrays)


def _write_foreign(file):
    np.savez(file, x=np.zeros(3))


def _write_pickle(file):
    np.savez(file, images=np.array([{}], object))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, r"synthetic\.npz is not a readable npz"),
        (_change, r"does not hold the arrays that synthetic\.json describes"),
        (_write_foreign, "it lacks images, labels, mean, std"),
        (_write_pickle, "is not a readable npz"),
        (pathlib.Path.unlink, r"no file at .*synthetic\.npz"),
        (lambda file: file.with_suffix(".json").unlink(), r"synthetic\.json is missing beside"),
        (
            lambda file: file.with_suffix(".json").write_text("{}"),
            r"synthetic\.json was not written by metadd_jax",
        ),
        (lambda file: file.with_suffix(".json").write_text("{"), r"synthetic\.json is not readable JSON"),
    ],
)
def test_a_damaged_file_is_refused_by_name(file, damage, words):
    exchange.export_npz(file, make_set(), metadata())
    damage(file)
    with pytest.raises(ValueError, match=words):
        exchange.load_npz(file)


def test_png_folders_hold_the_pixels(tmp_path):
    image = pytest.importorskip("PIL.Image")
    unit = np.linspace(0, 1, 4 * 5 * 6 * 3).reshape(4, 5, 6, 3)
    unit[0, 0, 0, 0], unit[3, 4, 5, 2] = -0.001, 1.5  # The first is lost in rounding, the second is cut off.
    synthetic = make_set().replace(images=((unit - MEAN) / STD).astype(np.float32))
    clipped = exchange.export_png_folder(tmp_path / "png", synthetic, metadata())
    assert clipped == pytest.approx(1 / 360)
    found = sorted(path.relative_to(tmp_path / "png").as_posix() for path in (tmp_path / "png").rglob("*.png"))
    assert found == [f"{name}/{n:04d}.png" for name in ("00000_a_cat", "00001_dog_hound") for n in (0, 1)]
    assert json.loads((tmp_path / "png" / "classes.json").read_text()) == {
        "00000_a_cat": "a cat",
        "00001_dog_hound": "dog/hound",
    }
    pixels = np.stack([np.asarray(image.open(tmp_path / "png" / name)) for name in found])
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels / 255, np.clip(unit, 0, 1), atol=0.5001 / 255)


def test_png_folders_are_not_mixed_with_other_files(tmp_path):
    pytest.importorskip("PIL")
    synthetic = make_set().replace(images=make_set().images[..., :1])
    grey = metadata(mean=[0.5], std=[0.2])
    (tmp_path / "png").mkdir()
    exchange.export_png_folder(tmp_path / "png", synthetic, grey)
    with pytest.raises(ValueError, match="png exists already"):
        exchange.export_png_folder(tmp_path / "png", synthetic, grey)
    exchange.export_png_folder(tmp_path / "png", synthetic, grey, overwrite=True)
    assert len(list((tmp_path / "png").rglob("*.png"))) == 4
    with pytest.raises(ValueError, match="value_space of the set is 'unit'; it must be standardised or zca"):
        exchange.export_png_folder(tmp_path / "unit", synthetic, grey | {"value_space": "unit"})
    with pytest.raises(ValueError, match="value space 'unit' has no pixels"):
        exchange.to_pixels(synthetic.images, grey | {"value_space": "unit"})


def test_the_dc_file_comes_back_and_has_the_peers_layout(tmp_path):
    torch = pytest.importorskip("torch")
    synthetic = make_set()
    exchange.export_torch(tmp_path / "res.pt", synthetic, metadata())
    images, labels = torch.load(tmp_path / "res.pt", weights_only=True)["data"][-1]
    assert tuple(images.shape) == (4, 3, 5, 6) and labels.dtype == torch.int64
    assert images[1, 2, 3, 4].item() == synthetic.images[1, 3, 4, 2]
    loaded, facts = exchange.load_torch(tmp_path / "res.pt", mean=MEAN, std=STD, class_names=NAMES)
    assert_equal_sets(loaded, synthetic)
    assert facts["value_space"] == "standardised"
    with pytest.raises(ValueError, match=r"res\.pt exists already"):
        exchange.export_torch(tmp_path / "res.pt", synthetic, metadata())


def test_pairs_of_bare_tensors_are_read_and_damage_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(1).normal(size=(2, 3, 5, 6)).astype(np.float32)
    torch.save(torch.tensor(images), tmp_path / "images_best.pt")
    torch.save(torch.tensor([1, 0]), tmp_path / "labels_best.pt")
    constants = {"mean": MEAN, "std": STD, "class_names": NAMES}
    synthetic, _ = exchange.load_torch(tmp_path / "images_best.pt", **constants)
    np.testing.assert_array_equal(synthetic.images[0], np.moveaxis(images[1], 0, -1))
    _cut(tmp_path / "labels_best.pt")
    with pytest.raises(ValueError, match=r"labels_best\.pt is not a readable PyTorch file"):
        exchange.load_torch(tmp_path / "images_best.pt", **constants)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt has no data list of \[images, labels\]"):
        exchange.load_torch(tmp_path / "net.pt", **constants)


def test_channels_first_arrays_are_turned_and_sorted_by_class():
    images = np.arange(3 * 2 * 4 * 5, dtype=np.float64).reshape(3, 2, 4, 5)
    soft = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    synthetic = pytorch.from_channels_first("x", images, soft)
    np.testing.assert_array_equal(synthetic.labels, [0, 1, 1])
    np.testing.assert_allclose(synthetic.soft_labels, soft[[1, 0, 2]])
    assert synthetic.images[0, 3, 4, 1] == images[1, 1, 3, 4]
    for labels, words in [(np.array([[1.0, -1.0]] * 3), "no probabilities"), (np.zeros(2), r"labels \(2,\)")]:
        with pytest.raises(ValueError, match=words):
            pytorch.from_channels_first("x", images, labels)


def test_torch_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="PyTorch files need torch; run: pip install torch"):
        exchange.export_torch(tmp_path / "res.pt", make_set(), metadata())
