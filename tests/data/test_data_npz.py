"""A user's .npz: what is read of it, what is said of the rest, and claims that are refused before they cost."""

import io
import os
import zipfile

import numpy as np
import pytest

from metadd_jax import data

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
LABELS = np.repeat([0, 1, 2], 4)


def save(path, **arrays):
    np.savez(path, **({"images": IMAGES, "labels": LABELS} | arrays))
    return str(path)


def load(name):
    return data.load(name, progress=False, on_device=False)


def test_class_names_and_constants_are_read(tmp_path):
    constants = {"mean": np.full(3, 0.5), "std": np.array([0.2, 0.3, 0.4])}
    dataset = load(save(tmp_path / "a.npz", class_names=np.array(["ant", "bee", "cow"]), **constants))
    assert dataset.class_names == ("ant", "bee", "cow")
    np.testing.assert_allclose(dataset.train.std, constants["std"], rtol=1e-6)
    given = data.load(save(tmp_path / "b.npz", **constants), mean=[0, 0, 0], std=[1, 1, 1], on_device=False)
    np.testing.assert_array_equal(given.train.std, 1)


def test_a_flat_channel_has_a_way_out(tmp_path):
    blue = IMAGES.copy()
    blue[..., 2] = 0
    with pytest.raises(ValueError, match=r"channel 2 is the same .* pass mean and std: as arrays of the \.npz"):
        load(save(tmp_path / "a.npz", images=blue))
    assert load(save(tmp_path / "a.npz", images=blue, mean=np.zeros(3), std=np.ones(3))).num_classes == 3


def test_arrays_that_are_not_used_are_said_and_need_not_be_readable(tmp_path):
    name = save(tmp_path / "a.npz", x_test=np.array([None], object))
    with pytest.warns(UserWarning, match=r"a\.npz: 1 arrays are not used: x_test; used are images, labels"):
        assert load(name).num_classes == 3


def test_capital_letters_are_a_suffix_too(tmp_path):
    save(tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert load(str(tmp_path / "A.NPZ")).num_classes == 3


def test_float_pixels_may_be_a_rounding_above_one_and_no_more(tmp_path):
    unit = (IMAGES / 255).astype(np.float32)
    unit[0, 0, 0, 0] = np.float32(1.0000001)
    assert load(save(tmp_path / "a.npz", images=unit)).train.images[0, 0, 0, 0] == 255
    unit[0, 0, 0, 0] = 1.00001
    with pytest.raises(ValueError, match=r"to 1\.00001001, outside \[0, 1\]"):
        load(save(tmp_path / "a.npz", images=unit))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"shape \(0, 4, 4, 3\); give at least one"),
        ({"images": np.float32(3)}, r"training images have shape \(\)"),
        ({"images": IMAGES[::4], "labels": LABELS[::4]}, "no test_images, and one image a class is too few"),
        ({"class_names": np.array(["a", "b", "c"], object)}, "class_names of .* are Python objects"),
        ({"class_names": np.arange(3)}, r"class_names of .* are int64 of shape \(3,\); save a list of texts"),
        ({"class_names": np.array(["a", "b" * 300, "c"])}, "the name of class 1 has 300 characters and reads 'b{40}'"),
        ({"class_names": np.array(["a", "b\nc", "d"])}, r"class 1 has 3 characters and reads 'b\\nc'"),
        ({"mean": np.zeros(3)}, "but not std"),
        ({"labels": np.array([("a", 1)] * 12, "U1,i4")}, "training labels are"),
    ],
)
def test_unfit_arrays_are_refused_in_one_line(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(save(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(caught.value)


def member(shape, content=b"", dtype="'|u1'"):
    """The bytes of a .npy whose head says what we like."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": eval(dtype), "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def pack(path, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return str(path)


WHOLE = {
    "images": member(IMAGES.shape, IMAGES.tobytes()),
    "labels": member(LABELS.shape, LABELS.astype("u1").tobytes()),
}


def test_bytes_packed_here_read_as_numpys_own(tmp_path):
    assert load(pack(tmp_path / "a.npz", **WHOLE)).fingerprint == load(save(tmp_path / "b.npz")).fingerprint


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"images": member((10**6, 1000, 1000, 1), b"few")},
            "images of .* claims 1000000000000 numbers of uint8 but holds",
        ),
        ({"labels": b"no array at all"}, "no readable .npz of plain arrays"),
        ({"labels": b""}, "no readable .npz of plain arrays"),
        ({"labels": member((12,), LABELS.astype("u1").tobytes()).replace(b"'descr'", b"'other'")}, "no readable .npz"),
        ({"labels": b"\x93NUMPY\x01\x00\xf4\x01" + b"(" * 500}, "no readable .npz"),
    ],
)
def test_odd_members_are_refused_in_one_line(tmp_path, members, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(pack(tmp_path / "a.npz", **WHOLE | members))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """300 MB of zeros in 0.3 MB."""
    name = tmp_path / "a.npz"
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w") as stream:
            stream.write(member((300, 1000, 1000, 1)))
            for _ in range(300):
                stream.write(bytes(10**6))
        archive.writestr("labels.npy", WHOLE["labels"])
    monkeypatch.setattr(np.lib.format, "read_array", None)
    with pytest.raises(ValueError, match=r"images of .* unpacks to 0\.3 GB from 0\.3 MB, which no pictures do"):
        load(str(name))


def test_a_single_array_or_another_file_says_what_to_give(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    with pytest.raises(ValueError, match=r"x\.npy is a file, but no \.npz"):
        load(str(tmp_path / "x.npy"))
    os.rename(tmp_path / "x.npy", tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"is a single array; save images and labels together by np\.savez"):
        load(str(tmp_path / "x.npz"))
