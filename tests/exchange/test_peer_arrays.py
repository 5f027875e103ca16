"""Named arrays as KIP, FRePo, RCIG and anybody with NumPy or safetensors keeps a set, and TFDS's records."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest
from peer_data import LABELS, MEAN, NAMES, ORDER, RNG, STD, real

from metadd_jax import exchange

IMAGES = RNG.normal(size=(6, 4, 6, 3)).astype(np.float32)
TARGETS = np.eye(3, dtype=np.float32)[LABELS] - np.float32(1 / 3)


def settle(place, **options):
    (peer,) = exchange.load_peer(place)
    return exchange.settle(peer, real(), **options)


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("x_train", "y_train")])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_plain_npz_is_read_in_either_layout(tmp_path, names, layout):
    stored = IMAGES if layout == "NHWC" else IMAGES.transpose(0, 3, 1, 2)
    np.savez(tmp_path / "set.npz", **dict(zip(names, (stored, LABELS), strict=True)))
    synthetic, _ = settle(tmp_path / "set.npz", space="standardised")
    np.testing.assert_array_equal(synthetic.images, IMAGES[ORDER])
    np.testing.assert_array_equal(synthetic.labels, LABELS[ORDER])


def test_eight_bits_are_pixels(tmp_path):
    eight = RNG.integers(0, 256, (6, 4, 6, 3), np.uint8)
    np.savez_compressed(tmp_path / "set.npz", images=eight, labels=LABELS)
    synthetic, _ = settle(tmp_path / "set.npz")
    np.testing.assert_allclose(synthetic.images, ((eight / 255 - MEAN) / STD)[ORDER], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trained", [0.0, 0.1])
def test_regression_targets_of_kip_are_classes_and_that_is_said(tmp_path, trained):
    """One-hot less 1 / K is known by its numbers; trained ones are not, and then somebody has to say."""
    targets = TARGETS + trained * RNG.normal(size=TARGETS.shape).astype(np.float32)
    np.savez(tmp_path / "kip_cifar10.npz", images=IMAGES, labels=targets)
    if trained:
        with pytest.raises(ValueError, match=r"no distributions.*--file-labels logits, or hard"):
            settle(tmp_path / "kip_cifar10.npz", space="standardised")
        synthetic, _ = settle(tmp_path / "kip_cifar10.npz", space="standardised", labels="hard")
    else:
        (peer,) = exchange.load_peer(tmp_path / "kip_cifar10.npz")
        assert "targets of a kernel regression" in peer.notes[0]
        synthetic, _ = exchange.settle(peer, real(), space="standardised")
    assert synthetic.soft_labels is None
    np.testing.assert_array_equal(np.sort(targets.argmax(1)), synthetic.labels)


@pytest.mark.parametrize("place", ["params", "ema_average"])
def test_a_flax_checkpoint_of_frepo_or_rcig_is_read(tmp_path, place):
    """As flax.training.checkpoints leaves it, of a state that has other things too."""
    from flax import serialization

    state = {"step": 3, place: {"x_proto": IMAGES, "y_proto": TARGETS}, "opt_state": {"0": {}}}
    if place == "ema_average":
        state["params"] = {"x_proto": IMAGES * 0, "y_proto": TARGETS * 0}
    (tmp_path / "checkpoint_5").write_bytes(serialization.msgpack_serialize({"params": {}}))
    (tmp_path / "checkpoint_500").write_bytes(serialization.to_bytes(state))
    for file in (tmp_path, tmp_path / "checkpoint_500"):
        synthetic, _ = settle(file, space="standardised")
        np.testing.assert_array_equal(synthetic.images, IMAGES[ORDER])
        np.testing.assert_array_equal(synthetic.labels, LABELS[ORDER])
    with pytest.raises(ValueError, match="whitening is another than MTT's; FRePo's and RCIG's is --space zca_frepo"):
        settle(tmp_path, space="zca")
    with pytest.raises(ValueError, match="no x_proto and y_proto"):
        settle(tmp_path / "checkpoint_5", space="standardised")


def test_frepos_npz_is_read(tmp_path):
    np.savez(tmp_path / "step000500.npz", image=IMAGES, label=TARGETS * 3 + 0.01)
    synthetic, _ = settle(tmp_path / "step000500.npz", space="standardised")
    np.testing.assert_array_equal(synthetic.labels, LABELS[ORDER])


def test_plain_safetensors_are_read(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"images": IMAGES, "labels": LABELS.astype(np.int64)}, tmp_path / "set.safetensors")
    synthetic, _ = settle(tmp_path / "set.safetensors", space="standardised")
    np.testing.assert_array_equal(synthetic.images, IMAGES[ORDER])
    with pytest.raises(ValueError, match="does not say how its numbers were scaled"):
        settle(tmp_path / "set.safetensors")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, "holds images, and not images and labels"),
        ({"images": IMAGES, "labels": LABELS[:4]}, r"images \(6, 4, 6, 3\) and labels \(4,\)"),
        ({"images": IMAGES[..., :2], "labels": LABELS}, "whose channels cannot be found"),
        ({"images": np.array([object()]), "labels": LABELS}, "Python objects"),
        ({"images": IMAGES.astype(np.uint16), "labels": LABELS}, "images uint16"),
        ({"images": IMAGES, "labels": np.array(list("abcabc"))}, "save numbers"),
    ],
)
def test_arrays_that_are_no_set_are_told(tmp_path, arrays, words):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=words) as told:
        exchange.load_peer(tmp_path / "set.npz")
    assert "\n" not in str(told.value)


def test_a_head_that_claims_more_than_is_there_makes_no_room(tmp_path):
    head = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 64, 64, 3)}"
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", head.ljust(127) + b"\n" + bytes(64))
        archive.writestr("labels.npy", b"")
    with pytest.raises(ValueError, match="claims 122880000000 numbers"):
        exchange.load_peer(tmp_path / "set.npz")


@pytest.mark.parametrize("name", ["set.npz", "set.safetensors", "checkpoint_1", "set.tar", "set"])
@pytest.mark.parametrize("content", [b"", b"\x83abc", b"PK\x03\x04" + bytes(30), bytes(600), b"\x80\x05K"])
def test_damaged_bytes_are_refused_in_one_line(tmp_path, name, content):
    if b"PK" in content:
        pytest.importorskip("torch")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as told:
        exchange.load_peer(tmp_path / name)
    assert "\n" not in str(told.value) and name in str(told.value)


@pytest.mark.parametrize("whitened", [False, True])
def test_safetensors_of_ours_say_everything_and_are_exact(tmp_path, whitened):
    numpy = pytest.importorskip("safetensors.numpy")
    data = real(whitened=whitened)
    made, facts = exchange.settle(
        exchange.Peer(source="x", format="npz", images=IMAGES, labels=LABELS),
        data,
        space="zca" if whitened else "standardised",
        learning_rate=0.5,
    )
    made = dataclasses.replace(made, soft_labels=np.eye(3, dtype=np.float32)[made.labels])
    file = tmp_path / "set.safetensors"
    exchange.export_safetensors(file, made, facts)
    np.testing.assert_array_equal(numpy.load_file(file)["images"], made.images)
    length = int.from_bytes(file.read_bytes()[:8], "little")
    assert (
        json.loads(json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]["metadd_jax"])["class_names"] == NAMES
    )
    (peer,) = exchange.load_peer(file)
    again, said = exchange.settle(peer, data)
    for name in ("images", "labels", "soft_labels", "learning_rate"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert exchange.check_belongs(said, data) is None
    with pytest.raises(ValueError, match="exists already"):
        exchange.export_safetensors(file, made, facts)
    exchange.export_safetensors(file, made, facts, overwrite=True)
    numpy.save_file({"mine": IMAGES}, file)
    with pytest.raises(ValueError, match="is not what metadd_jax wrote"):
        exchange.export_safetensors(file, made, facts, overwrite=True)


def test_our_checkpoint_is_what_frepo_and_rcig_restore(tmp_path):
    checkpoints = pytest.importorskip("flax.training.checkpoints")
    made, facts = exchange.settle(
        exchange.Peer(source="x", format="npz", images=IMAGES, labels=LABELS), real(), space="standardised"
    )
    exchange.export_regression(tmp_path / "set", made, facts)
    state = checkpoints.restore_checkpoint(tmp_path / "set", None, prefix="checkpoint_")
    for place in ("params", "ema_average"):
        np.testing.assert_array_equal(state[place]["x_proto"], made.images)
        np.testing.assert_allclose(state[place]["y_proto"], TARGETS[ORDER], atol=1e-7)
    again, _ = settle(tmp_path / "set", space="standardised")
    np.testing.assert_array_equal(again.images, made.images)
    with np.load(tmp_path / "set" / "kip.npz") as content:
        np.testing.assert_array_equal(content["images"], made.images)
    data = real(whitened=True)
    with pytest.raises(ValueError, match="whiten in another way"):
        exchange.export_regression(tmp_path / "x", made, {**exchange.value_space(data), "class_names": NAMES})


def test_tfds_reads_our_records_and_we_read_them_back(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    eight = RNG.integers(0, 256, (6, 4, 6, 3), np.uint8)
    peer = exchange.Peer(source="x", format="npz", images=eight / np.float32(255), labels=LABELS, space="pixels")
    made, facts = exchange.settle(peer, real())
    assert exchange.export_array_record(tmp_path / "set", made, facts) == 0
    source = tfds.builder_from_directory(tmp_path / "set" / "distilled_set" / "1.0.0").as_data_source("train")
    seen = {(example["label"], example["image"].tobytes()) for example in source}
    assert seen == {(int(label), image.tobytes()) for label, image in zip(LABELS, eight, strict=True)}
    (peer,) = exchange.load_peer(tmp_path / "set")
    assert peer.format == "tfds" and peer.said["class_names"] == NAMES
    again, _ = exchange.settle(peer, real())
    np.testing.assert_allclose(np.sort(again.images, axis=0), np.sort(made.images, axis=0), rtol=1e-5, atol=1e-5)
