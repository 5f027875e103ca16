"""Files that are whole or absent, hashes, and the containers as pytrees."""

import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import files, structs


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "deep" / "notes.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["notes.txt"]


def test_the_new_content_appears_only_at_the_end(tmp_path):
    path = tmp_path / "a.npz"
    with files.atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".npz"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_round_trip_with_arrays_and_paths(tmp_path):
    value = {
        "a": np.arange(3),
        "b": np.float32(0.5),
        "c": jnp.ones(2),
        "d": pathlib.PurePosixPath("/x"),
        "e": None,
    }
    files.write_json(tmp_path / "x.json", value)
    plain = {"a": [0, 1, 2], "b": 0.5, "c": [1.0, 1.0], "d": "/x", "e": None}
    assert files.read_json(tmp_path / "x.json") == plain == json.loads((tmp_path / "x.json").read_text())
    with pytest.raises(TypeError, match="cannot write set as JSON"):
        files.write_json(tmp_path / "x.json", {"bad": {1}})
    assert files.read_json(tmp_path / "x.json") == plain


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe\x00"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.json is not readable JSON .*; move it away or restore it"):
        files.read_json(path)
    assert path.read_bytes() == content


def test_hashes_see_bytes_shape_type_order_and_text():
    a = np.arange(6, dtype=np.int32)
    different = [
        files.hash_arrays(a),
        files.hash_arrays(a.astype(np.int64)),
        files.hash_arrays(a.view(np.uint32)),
        files.hash_arrays(a.reshape(2, 3)),
        files.hash_arrays(a[::-1]),
        files.hash_arrays(a, a),
        files.hash_arrays(a, text="x"),
        files.hash_arrays(a[:3], a[3:]),
        files.hash_arrays(a[3:], a[:3]),
    ]
    assert len(set(different)) == len(different)
    assert files.hash_arrays(np.asfortranarray(a.reshape(2, 3))) == files.hash_arrays(a.reshape(2, 3))
    assert files.hash_arrays(jnp.asarray(a)) == files.hash_arrays(a)


def test_hash_of_a_file(tmp_path):
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "f").write_bytes(content)
    assert files.hash_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    assert files.require_writable(tmp_path / "new" / "run") == tmp_path / "new" / "run"
    assert list((tmp_path / "new" / "run").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write in .*file.*; choose another folder"):
        files.require_writable(tmp_path / "file" / "run")


def test_image_arrays_keep_their_static_field_and_sets_their_gaps():
    arrays = structs.ImageArrays(*(np.zeros(2) for _ in range(6)), max_count=7)
    assert len(jax.tree.leaves(arrays)) == 6
    assert jax.tree.map(lambda leaf: leaf + 1, arrays).max_count == 7
    synthetic = structs.SyntheticSet(images=np.zeros(2), labels=np.zeros(2))
    assert len(jax.tree.leaves(synthetic)) == 2 and jax.tree.map(lambda x: x, synthetic).soft_labels is None


def test_a_dataset_tells_its_shape():
    arrays = structs.ImageArrays(np.zeros((4, 8, 6, 3)), *(np.zeros(2) for _ in range(5)), max_count=2)
    dataset = structs.Dataset("x", arrays, arrays, None, ("cat", "dog"), "")
    assert (dataset.num_classes, dataset.image_shape) == (2, (8, 6, 3))


def test_the_room_for_a_folder_that_is_not_made_yet(tmp_path):
    files.require_space(tmp_path / "one" / "two", 1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"two has [\d,.]+ MB free and needs about 1,000,000,000,000.0 MB"):
        files.require_space(tmp_path / "one" / "two", 1e18)
