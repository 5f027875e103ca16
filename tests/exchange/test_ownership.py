"""Only what the package wrote is ever replaced, by every writer: a user's file or folder stays to the byte."""

import json

import numpy as np
import pytest
from example_sets import make_set, metadata

from metadd_jax import exchange, storage
from metadd_jax.storage import folder


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_folder_of_the_user_is_not_replaced_by_pictures(tmp_path):
    theirs = tmp_path / "out"
    (theirs / "deep").mkdir(parents=True)
    (theirs / "thesis.txt").write_text("three years of work")
    before = contents(theirs)
    with pytest.raises(ValueError, match=r"out is not what metadd_jax wrote \(it holds thesis\.txt"):
        exchange.export_png_folder(theirs, make_set(), metadata(), overwrite=True)
    assert contents(theirs) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def _add_a_file(ours):
    (ours / "00000_a_cat" / "notes.txt").write_text("mine")


def _retouch(ours):
    (ours / "00000_a_cat" / "0000.png").write_bytes(b"retouched by hand")


def _take_another_sealed_folder(ours):
    for path in (ours / "classes.json", ours / "manifest.json"):
        path.unlink()
    folder.seal(ours)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_add_a_file, r"it holds 00000_a_cat/notes\.txt"),
        (_retouch, r"0000\.png has 17 bytes"),
        (_take_another_sealed_folder, r"no classes\.json"),
        (lambda ours: (ours / "manifest.json").unlink(), r"and no manifest\.json"),
        (lambda ours: (ours / "manifest.json").write_text("[]"), "not a readable manifest"),
    ],
)
def test_pictures_of_ours_with_anything_of_the_users_stay(tmp_path, change, words):
    exchange.export_png_folder(tmp_path / "png", make_set(), metadata())
    change(tmp_path / "png")
    before = contents(tmp_path / "png")
    with pytest.raises(ValueError, match=words):
        exchange.export_png_folder(tmp_path / "png", make_set(), metadata(), overwrite=True)
    assert contents(tmp_path / "png") == before


def test_a_file_where_a_folder_is_to_stand_is_not_replaced(tmp_path):
    (tmp_path / "png").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("png", "link"):
        with pytest.raises(ValueError, match=f"{name} is not what metadd_jax wrote"):
            storage.save(tmp_path / name, make_set(), {}, overwrite=True)
    assert (tmp_path / "png").read_text() == "mine" and (tmp_path / "link").is_symlink()


def test_a_checkpoint_replaces_a_checkpoint_alone(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for _ in range(2):
        storage.save(ours, make_set(), {}, overwrite=True)
    (ours / "tree.json").write_text("damaged")  # a damaged one may be written anew
    storage.save(ours, make_set(), {}, overwrite=True)
    theirs.mkdir()
    storage.save(theirs, make_set(), {}, overwrite=True)  # nothing is lost with an empty folder
    (theirs / "data.csv").write_text("1,2")
    for save in (storage.save, lambda *args, **kwargs: storage.save_tree(*args[:2], **kwargs)):
        with pytest.raises(ValueError, match=r"it holds data\.csv"):
            save(theirs, make_set(), {}, overwrite=True)
    assert (theirs / "data.csv").read_text() == "1,2"


def test_an_npz_of_the_user_is_not_replaced(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 5, 6, 3), np.uint8), labels=np.zeros(4, np.int64))
    (tmp_path / "notes.json").write_text(json.dumps({"mean": 1}))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:300])
    fields = {"images": np.float32, "labels": np.int64, "mean": np.float32, "std": np.float32}
    np.savez(tmp_path / "floats.npz", **{name: np.zeros(3, dtype) for name, dtype in fields.items()})
    (tmp_path / "list.json").write_text("milk, bread")
    (tmp_path / "folder.npz").mkdir()
    before = contents(tmp_path)
    for name in ("data", "floats", "notes", "list", "cut", "folder"):
        with pytest.raises(ValueError, match=rf"{name}\.\w+ is not what metadd_jax wrote"):
            exchange.export_npz(tmp_path / f"{name}.npz", make_set(), metadata(), overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("left", ["both", "json", "npz", "half an npz", "half a json"])
def test_what_a_killed_export_left_is_written_anew(tmp_path, left):
    file = tmp_path / "synthetic.npz"
    exchange.export_npz(file, make_set(), metadata())
    if left == "json":
        file.unlink()
    elif left == "npz":
        file.with_suffix(".json").unlink()
    elif left == "half an npz":
        file.write_bytes(file.read_bytes()[:700])
    elif left == "half a json":
        file.with_suffix(".json").write_text(file.with_suffix(".json").read_text()[:100])
    exchange.export_npz(file, make_set(), metadata(seed=5), overwrite=True)
    assert exchange.load_npz(file)[1]["seed"] == 5


def test_a_pt_file_of_the_user_is_not_replaced(tmp_path):
    torch = pytest.importorskip("torch")
    exchange.export_torch(tmp_path / "ours.pt", make_set(), metadata())
    exchange.export_torch(tmp_path / "ours.pt", make_set(), metadata(), overwrite=True)
    torch.save({"data": [[torch.zeros(1)]], "accs_all_exps": {}}, tmp_path / "peers.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "network.pt")
    (tmp_path / "text.pt").write_text("mine")
    before = contents(tmp_path)
    for name in ("peers", "network", "text"):
        with pytest.raises(ValueError, match=rf"{name}\.pt is not what metadd_jax wrote"):
            exchange.export_torch(tmp_path / f"{name}.pt", make_set(), metadata(), overwrite=True)
    assert contents(tmp_path) == before


def test_sets_are_told_from_real_data_of_the_same_fields(tmp_path):
    exchange.export_npz(tmp_path / "set.npz", make_set(), metadata())
    arrays = dict(np.load(tmp_path / "set.npz"))
    np.savez(tmp_path / "data.npz", **arrays)
    np.savez(tmp_path / "pictures.npz", images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.arange(2))
    told = {file.stem for file in tmp_path.glob("*.npz") if exchange.is_set_file(file)}
    assert told == {"set"} and not exchange.is_set_file(tmp_path / "nowhere.npz")
