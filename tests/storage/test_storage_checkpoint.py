"""Checkpoints: exact to the bit, whole or absent, refused by name when damaged."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from metadd_jax import storage, structs


def bits(leaf):
    """A leaf as (type, shape, bytes), keys unwrapped: what 'the same to the bit' means."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    assert list(map(bits, jax.tree.leaves(got))) == list(map(bits, jax.tree.leaves(wanted)))


def make_state(seed=0, step=7):
    key = jax.random.key(seed)
    images = jax.random.normal(key, (4, 5, 5, 1)).at[0, 0].set(jnp.array([[-0.0], [jnp.inf], [1e-40], [3], [4]]))
    synthetic = {"images": images}
    tx = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.5))
    aux = {
        "weights": jnp.arange(3, dtype=jnp.bfloat16) / 3,
        "nothing": None,
        "empty": (),
        "no_networks": {},
        "no_elements": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2),
        "flag": jnp.array([True, False]),
    }
    return structs.DistillState(
        step=jnp.int32(step),
        synthetic=synthetic,
        opt_state=tx.init(synthetic),
        aux=aux,
        key=jax.random.fold_in(key, 3),
    )


def make_set(**fields):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 5, 5, 3)).astype(np.float32)
    return structs.SyntheticSet(images=images, labels=np.arange(4, dtype=np.int32), **fields)


@pytest.mark.parametrize(
    "fields",
    [{}, {"soft_labels": np.eye(4, dtype=np.float32)}, {"learning_rate": np.asarray(0.1, np.float32)}],
    ids=["hard", "soft", "learning rate"],
)
def test_a_set_comes_back_with_its_metadata(tmp_path, fields):
    synthetic, metadata = (
        make_set(**fields),
        {"mean": [0.1], "class_names": ["a", "b"], "seed": 3, "note": None},
    )
    storage.save(tmp_path / "set", synthetic, metadata)
    restored, read = storage.restore(tmp_path / "set")
    assert_same(restored, synthetic)
    assert read == metadata


def test_an_existing_path_is_replaced_only_on_request(tmp_path):
    first, second = make_set(), make_set(learning_rate=np.asarray(0.2, np.float32))
    storage.save(tmp_path / "set", first, {"seed": 1})
    with pytest.raises(ValueError, match=r"set exists already; choose another path"):
        storage.save(tmp_path / "set", second, {"seed": 2})
    assert_same(storage.restore(tmp_path / "set")[0], first)
    storage.save(tmp_path / "set", second, {"seed": 2}, overwrite=True)
    assert_same(storage.restore(tmp_path / "set")[0], second)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_failed_replacement_keeps_the_old_one(tmp_path):
    storage.save(tmp_path / "set", make_set(), {"seed": 1})
    with pytest.raises(TypeError):
        storage.save(tmp_path / "set", make_set(), {"seed": object()}, overwrite=True)
    assert storage.restore(tmp_path / "set")[1] == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_disk_without_room_is_told_before_orbax_begins(tmp_path, monkeypatch, capfd):
    """Its threads would print a traceback each; the numbers are those of the disk and of the arrays."""
    free = 2_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    large = {"x": np.ones((700, 700), np.float32)}
    with pytest.raises(ValueError, match=r"has 2\.0 MB free and needs about 2\.2 MB; free some space"):
        storage.save_tree(tmp_path / "net", large)
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""
    free = 2_300_000
    storage.save_tree(tmp_path / "net", large)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_state_comes_back_to_the_bit_and_draws_the_same_numbers(tmp_path):
    state = make_state()
    checkpointer = storage.Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(7, state)
    restored = checkpointer.restore(7, make_state(seed=9, step=0))
    assert_same(restored, state)
    assert isinstance(restored.opt_state[1][0], optax.TraceState)
    draw = jax.random.normal(jax.random.fold_in(restored.key, restored.step), (3,))
    assert_same(draw, jax.random.normal(jax.random.fold_in(state.key, 7), (3,)))


def test_an_abstract_tree_is_enough(tmp_path):
    state = make_state()
    tree = {"state": state.replace(aux={"keys": state.aux["keys"], "bf": state.aux["weights"]})}
    storage.save_tree(tmp_path / "tree", tree)
    like = jax.eval_shape(lambda tree: tree, tree)
    assert_same(storage.restore_tree(tmp_path / "tree", like), tree)


def test_kinds_of_leaves_follow_the_pattern(tmp_path):
    tree = {"host": np.arange(3), "count": 5, "rate": 0.1, "half": np.ones(2, ml_dtypes.bfloat16)}
    storage.save_tree(tmp_path / "tree", tree)
    restored = storage.restore_tree(tmp_path / "tree", tree | {"count": 0, "rate": 0.0})
    assert (restored["count"], restored["rate"]) == (5, 0.1)
    assert type(restored["host"]) is np.ndarray and restored["host"].dtype == np.int64
    assert_same(restored, tree)


def test_saved_from_four_devices_loads_on_one_and_on_four(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = make_state()
    storage.save_tree(tmp_path / "tree", jax.device_put(state, replicated))
    on_one = storage.restore_tree(tmp_path / "tree", state)
    assert_same(on_one, state)
    assert on_one.synthetic["images"].devices() == {jax.devices()[0]}
    on_four = storage.restore_tree(tmp_path / "tree", jax.device_put(make_state(3), replicated))
    assert_same(on_four, state)
    assert on_four.synthetic["images"].sharding == replicated


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    storage.save_tree(tmp_path / "tree", {"images": jnp.zeros((4, 2)), "aux": jnp.zeros(3)})
    for like, words in [
        (
            {"images": jnp.zeros((8, 2)), "aux": jnp.zeros(3)},
            r"images is float32\[4, 2\] there and float32\[8, 2\] here",
        ),
        ({"images": jnp.zeros((4, 2))}, r"aux is float32\[3\] there and absent here"),
        ({"images": jnp.zeros((4, 2)), "aux": jnp.zeros(3, jnp.bfloat16)}, r"bfloat16\[3\] here"),
    ]:
        with pytest.raises(ValueError, match="belongs to another run.*" + words):
            storage.restore_tree(tmp_path / "tree", like)
    with pytest.raises(ValueError, match="is no distilled set"):
        storage.restore(tmp_path / "tree")


def test_old_steps_go_and_the_latest_is_found(tmp_path):
    checkpointer = storage.Checkpointer(tmp_path / "deep" / "checkpoints", keep=2)
    assert checkpointer.latest() is None
    for step in (100, 200, 300):
        checkpointer.save(step, {"x": jnp.float32(step)})
    assert checkpointer.latest() == 300
    assert sorted(path.name for path in checkpointer.directory.iterdir()) == [
        "step_00000200",
        "step_00000300",
    ]
    assert checkpointer.restore(200, {"x": jnp.float32(0)})["x"] == 200
    with pytest.raises(ValueError, match="step_00000300 exists already"):
        checkpointer.save(300, {"x": jnp.float32(0)})
    with pytest.raises(ValueError, match=r"no checkpoint at .*step_00000100"):
        checkpointer.restore(100, {"x": jnp.float32(0)})


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (os.unlink, "is missing"),
        (_truncate, r"has \d+ bytes instead of \d+"),
        (_flip, "is not what was written"),
        (lambda path: path.with_name("notes.txt").write_text("hello"), "notes.txt does not belong"),
    ],
    ids=["missing", "truncated", "changed", "foreign"],
)
@pytest.mark.parametrize("victim", ["tree.json", "arrays/state/manifest.ocdbt"])
def test_a_damaged_checkpoint_is_refused_by_name_and_left(tmp_path, damage, words, victim):
    checkpointer = storage.Checkpointer(tmp_path)
    tree = {"x": jnp.arange(5.0)}
    checkpointer.save(1, tree)
    checkpointer.verify()
    folder = tmp_path / "step_00000001"
    damage(folder / victim)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=words + ".*left as it is; move the folder away or restore it"):
        checkpointer.verify()
    with pytest.raises(ValueError, match=words):
        checkpointer.restore(1, tree)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"files": {"a": 3}}'])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    storage.save_tree(tmp_path / "tree", {"x": jnp.zeros(2)})
    manifest = tmp_path / "tree" / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json is (missing|not a readable manifest); left as it is"):
        storage.restore_tree(tmp_path / "tree", {"x": jnp.zeros(2)})


def test_a_full_disk_is_told_by_the_system_s_own_error(tmp_path, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    def full(path, arrays):
        raise ValueError('RESOURCE_EXHAUSTED: Error opening "zarr3" driver: Failed to write [No space left on device]')

    monkeypatch.setattr(ocp, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*tree") as found:
        storage.save_tree(tmp_path / "tree", {"x": jnp.zeros(2)})
    assert found.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


KILLED = """
    import os, sys
    import jax.numpy as jnp
    from metadd_jax import files, storage
    from metadd_jax.storage import folder
    checkpointer = storage.Checkpointer(sys.argv[1])
    checkpointer.save(1, {"x": jnp.float32(1)})
    folder.seal = lambda directory: os.kill(os.getpid(), 9)  # dies before the name is given
    checkpointer.save(2, {"x": jnp.float32(2)})
"""


def test_a_killed_save_is_not_seen_and_is_removed_by_the_next(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path], check=False, timeout=120)
    assert done.returncode == -9
    assert [path.name.partition("-")[0] for path in sorted(tmp_path.iterdir())] == [
        ".step_00000002",
        "step_00000001",
    ]
    checkpointer = storage.Checkpointer(tmp_path)
    assert checkpointer.latest() == 1
    checkpointer.verify()
    checkpointer.save(2, {"x": jnp.float32(5)})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000001", "step_00000002"]
    assert checkpointer.restore(2, {"x": jnp.float32(0)})["x"] == 5


TWO_PROCESSES = """
    import sys
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    import numpy as np
    from metadd_jax import storage
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.random.wrap_key_data(jax.device_put(np.array([0, 3], np.uint32), replicated))
    state = {"x": jax.device_put(np.arange(5.0), replicated), "key": key}
    checkpointer = storage.Checkpointer(sys.argv[3])
    checkpointer.save(1, state)
    restored = checkpointer.restore(checkpointer.latest(), state)
    assert restored["x"].sharding == replicated and restored["key"].sharding == replicated
    np.testing.assert_array_equal(restored["x"], np.arange(5.0))
    np.testing.assert_array_equal(jax.random.key_data(restored["key"]), [0, 3])
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = textwrap.dedent(TWO_PROCESSES)
    command = [sys.executable, "-c", code, port]
    processes = [subprocess.Popen([*command, str(index), tmp_path]) for index in range(2)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_importing_the_package_does_not_import_orbax():
    code = "import sys, metadd_jax.storage; sys.exit('orbax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
