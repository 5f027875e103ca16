"""Weights from files: the round trip, one line for each thing that a file can get wrong, no pickle ever opened."""

import pickle
import zipfile

import jax
import numpy as np
import pytest

from metadd_jax.generators import weights

TREE = {"mapping": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "synthesis": {"b": np.ones(4, np.float32)}}


class Bomb:
    """What a pickle may do: its loading leaves a file behind."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


@pytest.fixture
def library():
    return pytest.importorskip("safetensors.numpy")


def test_weights_come_back_as_they_were(tmp_path, library):
    weights.dump(TREE, tmp_path / "own.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "own.safetensors", TREE), TREE)
    assert set(library.load_file(tmp_path / "own.safetensors")) == {"mapping/w", "synthesis/b"}
    with pytest.raises(ValueError, match=r"own\.safetensors exists already"):
        weights.dump(TREE, tmp_path / "own.safetensors")
    dotted = {"mapping.w": TREE["mapping"]["w"], "synthesis.b": TREE["synthesis"]["b"]}
    library.save_file(dotted, tmp_path / "dotted.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "dotted.safetensors", TREE), TREE)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mapping/w": None}, r"lacks mapping/w \(2, 3\) of decoder$"),
        (
            {"mapping/w": None, "map/w": np.ones(1)},
            r"lacks mapping/w \(2, 3\) of decoder and has map/w, which it has not",
        ),
        ({"synthesis/b": np.ones(5)}, r"has synthesis/b of shape \(5,\), but that of decoder is \(4,\)"),
        ({"extra": np.ones(1)}, "has extra, which decoder has not; give the weights of that generator"),
        ({"synthesis/b": np.full(4, np.nan)}, "has numbers in synthesis/b that are not finite"),
    ],
)
def test_the_first_wrong_array_is_named(tmp_path, library, changes, told):
    held = {"mapping/w": TREE["mapping"]["w"], "synthesis/b": TREE["synthesis"]["b"]} | changes
    library.save_file(
        {key: np.asarray(value) for key, value in held.items() if value is not None}, tmp_path / "a.safetensors"
    )
    with pytest.raises(ValueError, match=told):
        weights.load(tmp_path / "a.safetensors", TREE, name="decoder")


@pytest.mark.parametrize("name", ["net.pkl", "net.pt", "net.pth", "net.ckpt", "net.safetensors"])
def test_a_pickle_is_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"a pickle.*runs its author's code, so none is opened; convert it"):
        weights.load(tmp_path / name, TREE)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_file_of_safetensors_is_refused(tmp_path, library):
    with zipfile.ZipFile(tmp_path / "net.safetensors", "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(ValueError, match=r"is a zip, as PyTorch writes, whatever its name says"):
        weights.load(tmp_path / "net.safetensors", TREE)
    with pytest.raises(ValueError, match=r"cannot tell the kind of .*net\.npz; its name must end in \.safetensors"):
        weights.load(tmp_path / "net.npz", TREE)
    with pytest.raises(ValueError, match="there is no file"):
        weights.load(tmp_path / "none.safetensors", TREE)
    weights.dump(TREE, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match="is no whole file of safetensors"):
        weights.load(tmp_path / "cut.safetensors", TREE)


def test_the_library_is_asked_for_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ValueError, match="needs safetensors; run: pip install safetensors"):
        weights.dump(TREE, tmp_path / "own.safetensors")
