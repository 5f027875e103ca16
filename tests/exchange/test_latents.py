"""Latents on the disk: they come back to the bit, decode to the set beside them, and nothing foreign is read."""

import json

import jax
import numpy as np
import pytest
from example_sets import make_set, metadata

from metadd_jax import exchange
from metadd_jax.distillers import budget, factor

FACTS = {"parameterisation": "factor2", "factor": 2, "stored_values": 2 * 36}


@pytest.fixture
def packed():
    return jax.random.normal(jax.random.key(0), (2, 6, 6, 1))


def test_packed_images_come_back_and_decode_to_the_exported_set_bit_for_bit(tmp_path, packed):
    packing = factor(2)
    made = make_set().replace(images=packing.decode(packed, ()), labels=np.repeat([0, 1], 4).astype(np.int32))
    stored = budget(packing, packed, made.labels)
    facts = metadata() | {"mean": [0.5], "std": [0.2]} | stored
    exchange.export_npz(tmp_path / "synthetic.npz", made.replace(soft_labels=None), facts)
    exchange.export_latents(tmp_path / "latents.npz", packed, facts)
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as plain:
        np.testing.assert_array_equal(plain["latents"], packed)
    latents, read = exchange.load_latents(tmp_path / "latents.npz")
    assert (read["factor"], read["stored_values"], read["stored_values_per_class"]) == (2, 72, 36)
    np.testing.assert_array_equal(packing.decode(latents, ()), exchange.load_npz(tmp_path / "synthetic.npz")[0].images)


def test_nested_latents_come_back(tmp_path):
    latents = {"style": np.ones((3, 2), np.float32), "layers": {"a": np.zeros(3, np.float16), "b": np.float32(2)}}
    exchange.export_latents(tmp_path / "l.npz", latents, FACTS)
    exchange.export_latents(tmp_path / "l.npz", latents, FACTS, overwrite=True)
    again, _ = exchange.load_latents(tmp_path / "l.npz")
    jax.tree.map(np.testing.assert_array_equal, again, latents)
    assert jax.tree.map(lambda leaf: leaf.dtype, again) == jax.tree.map(lambda leaf: leaf.dtype, latents)


def test_damage_and_foreign_files_are_refused_and_stay(tmp_path, packed):
    file = tmp_path / "latents.npz"
    exchange.export_latents(file, packed, FACTS)
    with pytest.raises(ValueError, match=r"latents\.npz exists already; choose another path"):
        exchange.export_latents(file, packed, FACTS)
    facts = json.loads((tmp_path / "latents.json").read_text())
    (tmp_path / "latents.json").write_text(json.dumps(facts | {"factor": 3}))
    with pytest.raises(ValueError, match=r"latents\.json was changed after it was written"):
        exchange.load_latents(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"latents\.npz is not a readable npz"):
        exchange.load_latents(file)
    exchange.export_latents(file, packed, FACTS, overwrite=True)  # a damaged half of ours may be written anew
    exchange.export_npz(tmp_path / "set.npz", make_set(), metadata())
    with pytest.raises(
        ValueError, match=r"set\.npz is no latents of metadd_jax \(it holds images\); give a file written"
    ):
        exchange.load_latents(tmp_path / "set.npz")
    with pytest.raises(ValueError, match=r"set\.npz is not what metadd_jax wrote"):
        exchange.export_latents(tmp_path / "set.npz", packed, FACTS, overwrite=True)
    with pytest.raises(ValueError, match=r"latents\.npz is no set of metadd_jax \(it lacks images, labels"):
        exchange.load_npz(file)


@pytest.mark.parametrize(
    ("latents", "facts", "words"),
    [
        ({"a/b": np.ones(2)}, FACTS, "key 'a/b'; latents are arrays in dicts"),
        ([np.ones(2), np.ones(2)], FACTS, "latents is a list; latents are arrays in dicts, none of them empty"),
        ({"style": {}}, FACTS, "latents/style is a dict"),
        (np.arange(3), FACTS, r"latents is int64\(3,\) or not finite"),
        (np.array([np.nan]), FACTS, "finite float arrays"),
        (np.ones(2), {}, "lacks parameterisation, stored_values; add what distillers.budget gives"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path, latents, facts, words):
    with pytest.raises(ValueError, match=words):
        exchange.export_latents(tmp_path / "l.npz", latents, facts)
    assert not list(tmp_path.iterdir())
