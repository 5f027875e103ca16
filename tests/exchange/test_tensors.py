"""Folders of bare tensors: what MTT's, DATM's and IDC's programs read, and what comes back from them."""

import example_sets
import numpy as np
import pytest

from metadd_jax import distillers, exchange, structs

torch = pytest.importorskip("torch")
CONSTANTS = {"mean": example_sets.MEAN, "std": example_sets.STD}


def test_soft_labels_go_out_as_logits_and_come_back(tmp_path):
    logits = np.array([[2.0, 0.5], [1, 1], [-1, 3], [0, 40]], np.float32)
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    made = example_sets.make_set(soft_labels=soft, learning_rate=np.float32(0.02))
    exchange.export_tensors(tmp_path / "set", made, example_sets.metadata())
    images, labels, rate = (torch.load(tmp_path / "set" / f"{name}_best.pt") for name in ("images", "labels", "lr"))
    np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), made.images)
    assert float(rate) == pytest.approx(0.02)
    # A softmax of what is stored is the label; of a number an image that it does not see nothing is known.
    np.testing.assert_allclose(torch.softmax(labels, dim=1), soft, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.diff(labels, axis=1), np.diff(logits, axis=1), rtol=1e-4)
    file = tmp_path / "set" / "images_best.pt"
    again, _ = exchange.load_torch(file, **CONSTANTS, class_names=example_sets.NAMES, logits=True)
    order = np.argsort(soft.argmax(axis=1), kind="stable")
    np.testing.assert_allclose(again.soft_labels, soft[order], rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"no probabilities; turn logits into softmax"):
        exchange.load_torch(file, **CONSTANTS, class_names=example_sets.NAMES)


def test_hard_labels_are_classes(tmp_path):
    exchange.export_tensors(tmp_path / "set", example_sets.make_set(), example_sets.metadata())
    labels = torch.load(tmp_path / "set" / "labels_best.pt")
    assert labels.tolist() == [0, 0, 1, 1] and labels.dtype == torch.int64
    assert not (tmp_path / "set" / "lr_best.pt").exists()
    with pytest.raises(ValueError, match="exists already"):
        exchange.export_tensors(tmp_path / "set", example_sets.make_set(), example_sets.metadata())
    (tmp_path / "set" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        exchange.export_tensors(tmp_path / "set", example_sets.make_set(), example_sets.metadata(), overwrite=True)


def test_a_packed_set_goes_out_in_pixels_and_comes_back(tmp_path):
    stored = np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype(np.float32)
    images = distillers.factor(2).decode(stored, ())
    made = structs.SyntheticSet(images=images, labels=np.repeat([0, 1], [8, 4]).astype(np.int32))
    exchange.export_packed(tmp_path / "set", stored, made, example_sets.metadata())
    packed, targets = torch.load(tmp_path / "set" / "data.pt")
    assert targets.tolist() == [0, 0, 1]
    np.testing.assert_allclose(
        packed.numpy().transpose(0, 2, 3, 1), stored * example_sets.STD + example_sets.MEAN, rtol=1e-5, atol=1e-6
    )
    decoded, targets = torch.load(tmp_path / "set" / "decoded.pt")
    assert targets.tolist() == [0] * 8 + [1] * 4
    # As IDC decodes data.pt, by PyTorch's own layers: all images' cell 0, then all cells 1.
    cells = [packed[:2, :, rows : rows + 2, columns : columns + 2] for rows in (0, 2) for columns in (0, 2)]
    theirs = torch.nn.functional.interpolate(torch.cat(cells), size=4, mode="bilinear")
    np.testing.assert_allclose(decoded[:8], theirs, rtol=1e-4, atol=1e-5)
    back, labels = exchange.load_packed(tmp_path / "set" / "data.pt", **CONSTANTS)
    np.testing.assert_allclose(back, stored, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("stored", "changes", "words"),
    [
        (np.zeros((3, 5, 6, 3), np.float32), {}, r"packed images \(3, 5, 6, 3\) do not give"),
        (np.zeros((2, 4, 6, 3), np.float32), {}, r"packed images \(2, 4, 6, 3\) do not give"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, stored, changes, words):
    with pytest.raises(ValueError, match=words):
        exchange.export_packed(tmp_path / "set", stored, example_sets.make_set(), example_sets.metadata(**changes))
    torch.save(torch.zeros(3), tmp_path / "data.pt")
    with pytest.raises(ValueError, match="no list of images and labels"):
        exchange.load_packed(tmp_path / "data.pt", **CONSTANTS)
