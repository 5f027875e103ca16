"""Odd sets: every header, number and name in a file is held against what it must be before it is used."""

import io
import json
import zipfile

import numpy as np
import pytest
from example_sets import NAMES, make_set, metadata

from metadd_jax import exchange
from metadd_jax.exchange import checks


@pytest.fixture
def file(tmp_path):
    exchange.export_npz(tmp_path / "synthetic.npz", make_set(), metadata(class_names=["ant", "bee"]))
    return tmp_path / "synthetic.npz"


def assert_refused(file, words):
    with pytest.raises(ValueError, match=words) as refusal:
        exchange.load_npz(file)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("change", [("ant", "bee"), ('"seed": 3', '"seed": 4'), ("0.25", "0.5")])
def test_an_edited_json_is_refused(file, change):
    """The names of two classes exchanged, another seed, another constant: the arrays are as they were."""
    facts = file.with_suffix(".json")
    facts.write_text(facts.read_text().replace(*change, 1))
    assert_refused(file, r"synthetic\.json was changed after it was written")


@pytest.mark.parametrize("text", ["null", "[]", "3", '"text"', "[" * 100_000, '{"sha256": ' + "9" * 5000 + "}", "\x00"])
def test_odd_json_is_refused_in_one_line(file, text):
    file.with_suffix(".json").write_text(text)
    assert_refused(file, r"synthetic\.json (is not readable JSON|was not written by metadd_jax)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": 2}, "class_names of the set are 2; they must be a list"),
        ({"class_names": [1, 2]}, "must be a list of names"),
        ({"class_names": []}, "must be a list of names"),
        ({"class_names": "ab"}, "must be a list of names"),
        ({"mean": [0.5, float("nan"), 0.3]}, r"mean of the set is \[0.5, nan, 0.3\]; it must be finite"),
        ({"mean": None}, r"mean \(\); mean must have one number a channel"),
        ({"mean": {"r": 1}}, "mean of the set is .*; give one number a channel"),
        ({"mean": [10**400, 0, 0]}, "give one number a channel"),
        ({"mean": [1e300, 0, 0]}, "it must be finite"),
        ({"std": [0.2, 0.0, 0.1]}, r"std of the set is \[0.2, 0.0, 0.1\]; it must be finite and above 0"),
        ({"std": [0.2, -0.1, 0.1]}, "above 0"),
        ({"std": ["a", "b", "c"]}, "give one number a channel"),
        ({"value_space": None}, "value_space of the set is None"),
    ],
)
def test_odd_facts_are_refused_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as refusal:
        checks.check_set("the set", make_set(), metadata(**changes))
    assert len(str(refusal.value)) < 300


def test_a_name_of_any_length_is_a_folder(tmp_path):
    pytest.importorskip("PIL")
    names = ["x" * 300, NAMES[1]]
    exchange.export_png_folder(tmp_path / "png", make_set(), metadata(class_names=names))
    assert list(json.loads((tmp_path / "png" / "classes.json").read_text()).values()) == names


def _header(shape, descr="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})
    return stream.getvalue()


def _zip(file, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"images.npy": _header((10**12,))}, "images.npy claims 4000000000128 bytes"),
        ({"images.npy": _header((10**30, 10**30))}, "images.npy claims"),
        ({"images.npy": _header((3,)) + b"\0" * 8}, "images.npy claims 140 bytes"),
        ({"images.npy": _header((1,), "|O") + b"\0" * 8}, "holds Python objects"),
        ({"images": b"text"}, "images is no array"),
        ({"images.npy": b""}, "images.npy is no array"),
        ({}, "it lacks images, labels, mean, std"),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused_before_reading(file, members, words):
    _zip(file, members)
    assert_refused(file, words)


def test_a_bomb_is_refused_before_reading(file):
    content = _header((64 << 20,), "|u1") + bytes(64 << 20)
    _zip(file, {"images.npy": content}, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 100_000
    assert_refused(file, "it lacks|claims 67108992 bytes")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learning_rate": np.float32(value)}, "has the learning rate .*one finite number above 0")
        for value in (0.0, -0.1, np.nan, np.inf)
    ]
    + [
        ({"learning_rate": np.ones(2, np.float32)}, "one finite number"),
        ({"soft_labels": np.eye(2, dtype=np.float32)[[0, 0, 1, 1]] * 20 - 10}, "no probabilities; turn logits"),
        ({"soft_labels": np.full((4, 2), np.nan, np.float32)}, "8 soft labels that are NaN"),
    ],
)
def test_a_set_that_cannot_train_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        checks.check_arrays("the set", make_set(**fields), 2)
