"""Compiled steps under jit, pmap and sharded jit, on the four CPU devices of the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from metadd_jax import parallel

DATA = jnp.arange(8.0)


def make_update(axis_name):
    """x <- x + frozen * (sum of the data): first over this device's share, then over all devices."""

    def update(state, data, frozen):
        start, share = parallel.own_share(data.shape[0], axis_name)
        total = parallel.psum_if(jax.lax.dynamic_slice_in_dim(data, start, share).sum(), axis_name)
        return {"x": state["x"] + frozen * total}, {"total": total, "x": state["x"]}

    return update


@pytest.mark.parametrize("mode", ["jit", "pmap", "sharded"])
def test_many_steps_in_one_dispatch(mode):
    chunk = parallel.compile_steps(make_update, steps=3, mode=mode)
    state, metrics = chunk({"x": jnp.zeros(())}, DATA, jnp.float32(0.5))
    assert float(state["x"]) == 3 * 14
    np.testing.assert_array_equal(metrics["total"], [28, 28, 28])
    np.testing.assert_array_equal(metrics["x"], [0, 14, 28])
    state, _ = chunk(state, DATA, jnp.float32(1.0))
    assert float(state["x"]) == 42 + 84


@pytest.mark.parametrize("mode", ["jit", "pmap", "sharded"])
def test_the_state_is_donated(mode):
    chunk = parallel.compile_steps(make_update, steps=1, mode=mode)
    state = parallel.replicate({"x": jnp.zeros(())}, mode=mode)
    chunk(state, DATA, jnp.float32(1.0))
    assert state["x"].is_deleted()
    assert not DATA.is_deleted()


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("pmap", 4), ("sharded", 4), ("auto", 4)])
def test_replicate_puts_a_whole_copy_on_each_device_once(mode, devices):
    placed = parallel.replicate({"a": np.arange(3)}, mode=mode)
    assert len(placed["a"].sharding.device_set) == devices
    np.testing.assert_array_equal(placed["a"].addressable_shards[-1].data, [0, 1, 2])
    assert parallel.replicate(placed, mode=mode)["a"] is placed["a"]


def test_shares_cover_every_item_once():
    @functools.partial(jax.pmap, axis_name=parallel.AXIS)
    def shares(_):
        start, length = parallel.own_share(8, parallel.AXIS)
        return start + jnp.arange(length)

    np.testing.assert_array_equal(shares(jnp.arange(4)).ravel(), np.arange(8))
    assert parallel.own_share(8, None) == (0, 8)


def test_items_that_cannot_be_shared_evenly_are_refused():
    share = jax.pmap(lambda x: x + parallel.own_share(6, parallel.AXIS)[0], axis_name=parallel.AXIS)
    with pytest.raises(ValueError, match="a batch of 6 does not split over 4 devices; use a multiple of 4"):
        share(jnp.arange(4))
    assert parallel.own_share(6, None) == (0, 6)


def test_modes():
    assert parallel.choose_mode("jit") == "jit"
    assert parallel.choose_mode("auto") == parallel.choose_mode("pmap") == "pmap"  # four devices here
    with pytest.raises(ValueError, match="unknown device mode 'tpu'; use one of auto, jit, pmap, sharded"):
        parallel.choose_mode("tpu")


def test_auto_is_jit_on_one_device(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    assert parallel.choose_mode("auto") == "jit"


def test_jit_passes_static_and_donated_arguments_on():
    double = parallel.jit(lambda x, *, times: x * times, static_argnames=("times",))
    assert float(double(jnp.float32(3.0), times=2)) == 6
    x = jnp.arange(4.0)
    parallel.jit(lambda x: x + 1, donate_argnums=(0,))(x)
    assert x.is_deleted()


@pytest.mark.parametrize("size", [8, 6])
def test_sharded_jit_divides_what_divides(size):
    """The parts of what is named lie on different devices, and the work on them too."""
    seen = []

    def make(axis_name):
        assert axis_name is None

        def update(state, data, frozen):
            rows = parallel.divide(data, axis=1)
            jax.debug.inspect_array_sharding(rows, callback=seen.append)
            return state + (rows[0] @ frozen).sum(), {}

        return update

    rows, matrix = jnp.arange(size * 3.0).reshape(1, size, 3), jnp.ones((3, 50))
    state, _ = parallel.compile_steps(make, steps=1, mode="sharded")(jnp.zeros(()), rows, matrix)
    assert float(state) == 50 * rows.sum()
    assert seen[0].shard_shape(rows.shape) == (1, size // 4 if size % 4 == 0 else size, 3)
    assert parallel.divide(rows) is rows  # elsewhere it is nothing


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("axes", [{"data": 4}, {"data": 2, "model": 2}, {"devices": 2, "model": 2}])
def test_inside_a_users_own_mesh_nothing_is_divided_or_asked_for(axes, kind):
    """A mesh is ours only if its one axis is; an update made without an axis name runs in any other as it is."""
    rows = jnp.arange(24.0).reshape(8, 3)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))
    with jax.set_mesh(mesh):
        assert parallel.mesh_size() == 1 and parallel.divide(rows) is rows
        assert parallel.own_share(6, None) == (0, 6) and parallel.psum_if(rows, None) is rows
        state, metrics = jax.jit(make_update(None))({"x": jnp.zeros(())}, DATA, jnp.float32(0.5))
    assert float(state["x"]) == 14 and float(metrics["total"]) == 28


def test_sharded_jit_refuses_a_batch_that_does_not_divide():
    chunk = parallel.compile_steps(make_update, steps=1, mode="sharded")
    with pytest.raises(ValueError, match="a batch of 6 does not split over 4 devices; use a multiple of 4"):
        chunk({"x": jnp.zeros(())}, DATA[:6], jnp.float32(1))


@pytest.mark.parametrize("runs", [1, 4, 6])
def test_independent_runs_are_spread_over_the_devices(runs):
    """Each device computes its own runs, and the results come back in order, whatever their number."""

    def run(seed, factor, shared):
        return {"draw": factor * jax.random.normal(jax.random.fold_in(shared, seed), (2,)), "seed": seed}

    key, seeds, factors = jax.random.key(3), jnp.arange(runs), jnp.arange(1.0, runs + 1)
    results = parallel.spread(run, mapped=2)(seeds, factors, key)
    assert isinstance(results["draw"], np.ndarray)
    np.testing.assert_array_equal(results["seed"], np.arange(runs))
    expected = [factor * jax.random.normal(jax.random.fold_in(key, seed), (2,)) for seed, factor in enumerate(factors)]
    np.testing.assert_allclose(results["draw"], np.stack(expected), rtol=1e-6)


def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("nobody asked for it"))
    parallel.initialize()
    assert parallel.is_main()
    parallel.barrier("alone")
    np.testing.assert_array_equal(parallel.from_main(jnp.arange(3)), [0, 1, 2])
    parallel.require_agreement({"key": jax.random.key(0)}, text="data")


def test_how_the_processes_find_each_other(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: asked.append(settings))
    parallel.initialize(num_processes=None)
    parallel.initialize(coordinator="one:1234", num_processes=2, process_id=1)
    assert asked == [{}, {"coordinator_address": "one:1234", "num_processes": 2, "process_id": 1}]
    for wrong in (
        {"num_processes": 2},
        {"coordinator": "one:1234"},
        {"coordinator": "one:1234", "num_processes": 2, "process_id": 2},
        {"coordinator": "one:1234", "num_processes": None, "process_id": 0},
    ):
        with pytest.raises(ValueError, match=r"do not go together; give host:port"):
            parallel.initialize(**wrong)
    assert len(asked) == 2


def test_only_a_cpu_does_independent_runs_one_after_the_other(monkeypatch):
    items = jnp.arange(5.0)
    for backend, one_by_one in (("cpu", True), ("gpu", False)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        np.testing.assert_array_equal(parallel.each(lambda x: x**2, items), items**2)
        program = jax.make_jaxpr(functools.partial(parallel.each, jnp.sin))(items)
        assert ("scan" in str(program)) == one_by_one
        asked = jax.make_jaxpr(functools.partial(parallel.each, jnp.sin, at_once=False))(items)
        assert "scan" in str(asked)
