"""Fuzz of the readers of arrays: npz (ours, a peer's, real data), latents, safetensors, Flax checkpoints, weights."""

import io
import json
import pickle
import warnings
import zipfile

import hostile
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzz_sets import FACTS, IMAGES, LABELS, NAMES, RNG, SOFT, fit, judged, made
from hypothesis import example, given
from hypothesis import strategies as st

from metadd_jax import data, exchange
from metadd_jax.data import npz
from metadd_jax.exchange import pairs
from metadd_jax.generators import weights


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


def packed(members, compression=zipfile.ZIP_STORED):
    """A zip archive of (name, content) pairs, whatever they are called and however often."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            # By hand: ``writestr`` would refuse or mend some names.
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, compression
            archive.writestr(info, content)
    return stream.getvalue()


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def head(shape, descr="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})
    return stream.getvalue()


def saved(array, *, allow_pickle=False):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


class Canary:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def harmful(folder):
    """Contents of an array's member that must not be believed."""
    objects = np.array([Canary(folder / "canary")], dtype=object)
    return [
        saved(objects, allow_pickle=True),
        pickle.dumps(Canary(folder / "canary")),
        head((10**12,)),
        head((10**9, 10**9)),
        head((2**62, 4)),
        head((-1, 4, 6, 3)),
        head((6, 4, 6, 3), "|O"),
        head((6, 4, 6, 3)) + b"\0" * 8,
        head((), "|V0"),
        head((10**6,) * 40),
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        saved(np.full((6, 4, 6, 3), np.nan, np.float32)),
        saved(np.full((6, 4, 6, 3), np.inf)),
        saved(np.zeros((0, 4, 6, 3), np.float32)),
        saved(np.zeros(6)),
        saved(np.array(["a\nb"] * 6)),
        saved(np.zeros((6, 4, 6, 3), np.complex64)),
        saved(np.zeros((6, 4, 6, 3), bool)),
        saved(np.full((6,), 2**40)),
        saved(np.array(-1)),
        saved(np.zeros(6, "M8[s]")),
        saved(np.zeros(6, "<U7")),
        saved(np.zeros((6, 3), np.float16)),
        saved(np.zeros(6, [("a", "<f4"), ("b", "<i8")])),
    ]


MEMBERS = st.tuples(
    st.lists(st.tuples(st.integers(0, 9), hostile.DAMAGE), max_size=2),  # members whose content is damaged
    st.lists(st.tuples(st.integers(0, 9), hostile.NAMES), max_size=1),  # members that are called otherwise
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=2),  # members that hold something harmful
    st.lists(st.integers(0, 9), max_size=1),  # members that are there twice
    st.lists(st.integers(0, 9), max_size=1),  # members that are not there
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
)


def rebuilt(content, change, folder):
    """An archive with right checksums whose members are not what they were: damage that gets behind the checksums."""
    damage, names, harm, twice, without, compression = change
    members, bad = members_of(content), harmful(folder)
    for number, steps in damage:
        name, held = members[number % len(members)]
        members[number % len(members)] = (name, hostile.damaged(held, steps))
    for number, which in harm:
        members[number % len(members)] = (members[number % len(members)][0], bad[which % len(bad)])
    for number, name in names:
        members[number % len(members)] = (name, members[number % len(members)][1])
    for number in twice:
        members.append(members[number % len(members)])
    for number in without:
        del members[number % len(members)]
    return packed(members, compression)


def zipped(function):
    """Both kinds of damage to an archive: to its bytes, and to its members behind right checksums."""
    return given(st.one_of(hostile.DAMAGE, MEMBERS))(function)


def harm(content, change, folder):
    return rebuilt(content, change, folder) if isinstance(change, tuple) else hostile.damaged(content, change)


def test_a_set_of_ours_is_read_as_it_was_or_refused(place):
    file = place / "ours" / "synthetic.npz"
    exchange.export_npz(file, made(soft_labels=jnp.asarray(SOFT)), FACTS)
    whole, facts = file.read_bytes(), file.with_suffix(".json").read_bytes()

    @zipped
    @hostile.cases(40)
    def of_arrays(change):
        file.write_bytes(harm(whole, change, place))
        found = hostile.read("npz of ours: arrays", exchange.load_npz, file, root=place)
        if not isinstance(found, Exception):
            np.testing.assert_array_equal(found[0].images, IMAGES)
            np.testing.assert_array_equal(found[0].labels, LABELS)
            np.testing.assert_array_equal(found[0].soft_labels, SOFT)

    @given(hostile.BOTH)
    @hostile.cases(40)
    def of_facts(change):
        if isinstance(change[0][0], str):
            content = hostile.damaged(facts, change)
        else:
            told = hostile.edited(json.loads(facts), change)
            if isinstance(told, dict):  # signed anew: the reader must not lean on the hash
                told["json_sha256"] = pairs._hash_facts({n: v for n, v in told.items() if n != "json_sha256"})
            content = json.dumps(told).encode()
        file.with_suffix(".json").write_bytes(content)
        found = hostile.read("npz of ours: facts", exchange.load_npz, file, root=place)
        if not isinstance(found, Exception):
            np.testing.assert_array_equal(found[0].images, IMAGES)
            assert all(isinstance(name, str) for name in found[1]["class_names"])

    of_arrays()
    file.write_bytes(whole)
    of_facts()


def test_a_peers_npz_is_fit_or_refused(place, real):
    np.savez(place / "whole.npz", images=IMAGES, labels=LABELS)
    whole, file = (place / "whole.npz").read_bytes(), place / "peer.npz"

    @zipped
    @hostile.cases(40)
    def fuzz(change):
        file.write_bytes(harm(whole, change, place))
        found = hostile.read("npz of a peer", judged(real), file, root=place)
        fit(found)

    fuzz()
    assert not (place / "canary").exists()


def test_a_users_data_is_fit_or_refused(place):
    pixels = RNG.integers(0, 256, (9, 4, 6, 3), np.uint8)
    held = {"images": pixels, "labels": np.arange(9) % 3, "class_names": np.array(NAMES)}
    np.savez(place / "data_whole.npz", **held, mean=np.array(FACTS["mean"]), std=np.array(FACTS["std"]))
    whole, file = (place / "data_whole.npz").read_bytes(), place / "data.npz"

    def load(file):
        found = npz.read(file)
        arrays = dict(zip(("train_images", "train_labels", "test_images", "test_labels"), found.raw[:4], strict=True))
        named = {} if found.raw.class_names is None else {"class_names": found.raw.class_names.tolist()}
        constants = {"mean": found.mean, "std": found.std} if found.mean is not None else {}
        return data.from_arrays("mine", *arrays.values(), **named, **constants)

    @zipped
    @hostile.cases(40)
    def fuzz(change):
        file.write_bytes(harm(whole, change, place))
        # What a user gave as arrays is told by the arrays' own names.
        says = ("images", "labels", "class names", "class_names", "name of class", "mean", "std")
        found = hostile.read("npz of real data", load, file, root=place, says=says)
        if not isinstance(found, Exception):
            assert np.isfinite(np.asarray(found.train.mean)).all() and found.train.images.dtype == np.uint8

    with warnings.catch_warnings():  # that arrays of other names are not used
        warnings.simplefilter("ignore")
        fuzz()
    assert not (place / "canary").exists()


def test_latents_are_read_as_they_were_or_refused(place):
    file = place / "latents" / "latents.npz"
    tree = {"w": np.ones((3, 4), np.float32), "deep": {"x": np.zeros((2, 2), np.float32)}}
    exchange.export_latents(file, tree, {"parameterisation": "pixels", "stored_values": 16})
    whole = file.read_bytes()

    @zipped
    @hostile.cases(40)
    def fuzz(change):
        file.write_bytes(harm(whole, change, place))
        found = hostile.read("latents", exchange.load_latents, file, root=place)
        if not isinstance(found, Exception):
            assert jax.tree.all(jax.tree.map(np.array_equal, found[0], tree))

    fuzz()


def test_a_file_of_safetensors_is_fit_or_refused(place, real):
    pytest.importorskip("safetensors")
    exchange.export_safetensors(place / "whole.safetensors", made(soft_labels=jnp.asarray(SOFT)), FACTS)
    whole, file = (place / "whole.safetensors").read_bytes(), place / "set.safetensors"
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    facts = json.loads(header["__metadata__"]["metadd_jax"])

    @given(st.sampled_from(["bytes", "header", "facts"]), hostile.DAMAGE, hostile.EDITS)
    @hostile.cases(50)
    def fuzz(where, steps, edits):
        told = header
        if where == "header":
            told = hostile.edited(header, edits)
        if where == "facts":
            told = {**header, "__metadata__": {"metadd_jax": json.dumps(hostile.edited(facts, edits))}}
        text = json.dumps(told).encode()
        content = len(text).to_bytes(8, "little") + text + body
        file.write_bytes(hostile.damaged(content, steps) if where == "bytes" else content)
        found = hostile.read("safetensors", judged(real), file, root=place, says=("the set",))
        fit(found)

    fuzz()
    file.write_bytes(whole)
    assert len(judged(real)(file)) == 1


def test_a_flax_checkpoint_is_fit_or_refused(place, real):
    import msgpack

    exchange.export_regression(place / "frepo", made(), FACTS)
    whole = (place / "frepo" / "checkpoint_0").read_bytes()
    file = place / "checkpoint_7"
    odd = [
        {"params": {"x_proto": 3, "y_proto": "text"}},
        {"params": [1, 2]},
        {"params": {"x_proto": None, "y_proto": None}},
        {
            "ema_average": {
                "x_proto": {"__msgpack_chunked_array__": True, "shape": {"0": 10**12}, "chunks": {}},
                "y_proto": 1,
            }
        },
        {"params": {"x_proto": msgpack.ExtType(1, msgpack.packb(((10**6, 10**6), "float32", b""))), "y_proto": 1}},
        {"params": {"x_proto": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"\0" * 8))), "y_proto": 1}},
        {"params": {"x_proto": msgpack.ExtType(9, b"x"), "y_proto": msgpack.ExtType(3, b"")}},
        [],
        3,
        None,
    ]
    hard = [msgpack.packb(one) for one in odd]
    # Lists in lists, each of which claims as many entries as the file has bytes.
    hard += [b"\x81\xa1a" + b"\xdd\x00\x02\x00\x00" * 400 + bytes(140_000), b"\x91" * 5000, b"\x81" * 5000]

    @given(st.one_of(hostile.DAMAGE, st.integers(0, len(hard) - 1)))
    @hostile.cases(50)
    def fuzz(change):
        file.write_bytes(hard[change] if isinstance(change, int) else hostile.damaged(whole, change))
        found = hostile.read("Flax checkpoint", judged(real), file, root=place)
        fit(found)

    for number in range(len(hard)):
        fuzz = example(number)(fuzz)
    fuzz()


def test_weights_are_finite_and_of_their_shapes_or_refused(place):
    pytest.importorskip("safetensors")
    like = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.zeros(4, np.float32)}}
    weights.dump(like, place / "whole_weights.safetensors")
    whole, file = (place / "whole_weights.safetensors").read_bytes(), place / "weights.safetensors"

    @given(hostile.DAMAGE)
    @hostile.cases(40)
    def fuzz(steps):
        file.write_bytes(hostile.damaged(whole, steps))
        found = hostile.read("weights of a generator", lambda file: weights.load(file, like), file, root=place)
        if not isinstance(found, Exception):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))

    fuzz()
