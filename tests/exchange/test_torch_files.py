"""Files as the peers' programs write them, and ours as their programs read them."""

import pathlib
import re

import numpy as np
import pytest
from example_sets import MEAN, NAMES, STD, make_set, metadata

from metadd_jax import exchange, structs
from metadd_jax.exchange import pytorch

torch = pytest.importorskip("torch")
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "files.md"
CONSTANTS = {"mean": MEAN, "std": STD, "class_names": NAMES}


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(4, 3, 5, 6)).astype(np.float32)


class _NumPy1:
    """Pickles a number as NumPy 1 did: the same function, called numpy.core.multiarray.scalar."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return scalar_of_numpy_1, self.value.__reduce__()[1]


def scalar_of_numpy_1(*arguments):
    return np.float64(0).__reduce__()[0](*arguments)


def _save_as_dc(file, images, number):
    """What DC's main.py keeps: sets of every run, and accuracies per network as NumPy's numbers."""
    labels = torch.tensor([0, 0, 1, 1])
    data = [[torch.tensor(images) * 0, labels], [torch.tensor(images), labels]]
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [number(0.25), number(0.5)]}}, file)


@pytest.mark.parametrize("number", [np.float64, np.float32, np.int64, float])
def test_a_result_file_of_dc_is_read(tmp_path, images, number):
    _save_as_dc(tmp_path / "res.pt", images, number)
    synthetic, _ = exchange.load_torch(tmp_path / "res.pt", **CONSTANTS)
    np.testing.assert_array_equal(synthetic.images, np.moveaxis(images, 1, -1))
    np.testing.assert_array_equal(synthetic.labels, [0, 0, 1, 1])


def test_a_result_file_of_numpy_1_is_read(tmp_path, images, monkeypatch):
    """The name that NumPy 1 gave the function stands in the file, whatever NumPy reads it."""
    monkeypatch.setattr(scalar_of_numpy_1, "__module__", "numpy.core.multiarray")
    monkeypatch.setattr(scalar_of_numpy_1, "__qualname__", "scalar")
    monkeypatch.setattr(scalar_of_numpy_1, "__name__", "scalar")
    import sys
    import types

    old = types.ModuleType("numpy.core.multiarray")
    old.scalar = scalar_of_numpy_1
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numpy.core.multiarray", old)
        _save_as_dc(tmp_path / "res.pt", images, lambda value: _NumPy1(np.float64(value)))
    assert b"numpy.core.multiarray\nscalar" in (tmp_path / "res.pt").read_bytes()
    synthetic, _ = exchange.load_torch(tmp_path / "res.pt", **CONSTANTS)
    np.testing.assert_array_equal(synthetic.images, np.moveaxis(images, 1, -1))


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"data": [Harmful()]}, tmp_path / "res.pt")
    with pytest.raises(ValueError, match=r"res\.pt holds more than tensors and numbers"):
        exchange.load_torch(tmp_path / "res.pt", **CONSTANTS)


def test_tensors_that_require_a_gradient_or_are_of_half_precision_are_read(tmp_path, images):
    half = torch.tensor(images).to(torch.bfloat16)
    for name, tensor in {"gradient": torch.tensor(images, requires_grad=True), "half": half}.items():
        torch.save(tensor, tmp_path / f"images_{name}.pt")
        torch.save(torch.tensor([0, 0, 1, 1]), tmp_path / f"labels_{name}.pt")
        synthetic, _ = exchange.load_torch(tmp_path / f"images_{name}.pt", **CONSTANTS)
        np.testing.assert_array_equal(synthetic.images, tensor.detach().float().permute(0, 2, 3, 1))


def test_soft_labels_and_the_learning_rate_come_back(tmp_path):
    soft = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [1, 0]], np.float32)
    wanted = make_set(soft_labels=soft, learning_rate=np.float32(0.02))
    exchange.export_torch(tmp_path / "res.pt", wanted, metadata())
    got, _ = exchange.load_torch(tmp_path / "res.pt", **CONSTANTS)
    for name in ("images", "labels", "soft_labels", "learning_rate"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


def test_soft_labels_are_sorted_with_their_images(images):
    soft = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [1, 0]])
    synthetic = pytorch.from_channels_first("x", images, np.array([1, 0, 1, 0]), soft_labels=soft)
    np.testing.assert_allclose(synthetic.soft_labels, soft[[1, 3, 0, 2]])
    np.testing.assert_array_equal(synthetic.images[0], np.moveaxis(images[1], 0, -1))


@pytest.mark.parametrize("labels", [[0, 0, 1, 2**32], [0, 0, 1, 0.5], [0, 0, 1, np.nan]])
def test_labels_are_never_cut_to_fit(images, labels):
    with pytest.raises(ValueError, match="no whole numbers"):
        pytorch.from_channels_first("x", images, np.array(labels))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_dc_does_with_a_tensor_works(tmp_path, channels):
    """DC flattens images by ``view``, which looks at strides, and a copy of them is what it loads."""
    images = np.ascontiguousarray(make_set().images[..., :channels])
    synthetic = structs.SyntheticSet(images, make_set().labels)
    facts = metadata(mean=MEAN[:channels], std=STD[:channels])
    exchange.export_torch(tmp_path / "res.pt", synthetic, facts)
    images = torch.load(tmp_path / "res.pt", weights_only=True)["data"][-1][0]
    assert images.stride() == (channels * 30, 30, 6, 1)
    assert images.view(2, 2, channels, 5, 6)[1, 0].equal(images[2])
    assert images.permute(1, 0, 2, 3).reshape(channels, -1).view(channels, 4, 30).shape == (channels, 4, 30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": NAMES[::-1]}, r"says class_names \['a cat', 'dog/hound'\], but"),
        ({"mean": [0.1, 0.2, 0.3]}, r"says mean \[0\.5, 0\.4, 0\.3\], but"),
        ({"std": [0.1]}, "says std"),
    ],
)
def test_what_our_file_says_of_itself_must_agree(tmp_path, changes, words):
    exchange.export_torch(tmp_path / "res.pt", make_set(), metadata())
    with pytest.raises(ValueError, match=words):
        exchange.load_torch(tmp_path / "res.pt", **CONSTANTS | changes)


def test_the_example_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = pathlib.Path("runs/mnist5k/dm/seed0")
    home.mkdir(parents=True)
    made = make_set()
    exchange.export_npz(home / "synthetic.npz", made, metadata())
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    found = {}
    exec(compile(code, DOCS.name, "exec"), found)
    np.testing.assert_array_equal(found["peers"].images, made.images)
    np.testing.assert_allclose(found["pixels"], made.images * np.array(STD) + np.array(MEAN), rtol=1e-6)
