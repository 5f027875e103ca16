"""Compiled steps under jit and pmap, on the four CPU devices of the tests."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import parallel

DATA = jnp.arange(8.0)


def make_update(axis_name):
    """x <- x + frozen * (sum of the data): first over this device's share, then over all devices."""

    def update(state, data, frozen):
        start, share = parallel.own_share(data.shape[0], axis_name)
        total = parallel.psum_if(jax.lax.dynamic_slice_in_dim(data, start, share).sum(), axis_name)
        return {"x": state["x"] + frozen * total}, {"total": total, "x": state["x"]}

    return update


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_many_steps_in_one_dispatch(mode):
    chunk = parallel.compile_steps(make_update, steps=3, mode=mode)
    state, metrics = chunk({"x": jnp.zeros(())}, DATA, jnp.float32(0.5))
    assert float(state["x"]) == 3 * 14
    np.testing.assert_array_equal(metrics["total"], [28, 28, 28])
    np.testing.assert_array_equal(metrics["x"], [0, 14, 28])
    state, _ = chunk(state, DATA, jnp.float32(1.0))
    assert float(state["x"]) == 42 + 84


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_state_is_donated(mode):
    chunk = parallel.compile_steps(make_update, steps=1, mode=mode)
    state = parallel.replicate({"x": jnp.zeros(())}, mode=mode)
    chunk(state, DATA, jnp.float32(1.0))
    assert state["x"].is_deleted()
    assert not DATA.is_deleted()


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("pmap", 4), ("auto", 4)])
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
    with pytest.raises(ValueError, match="unknown device mode 'tpu'; use one of auto, jit, pmap"):
        parallel.choose_mode("tpu")


def test_auto_is_jit_on_one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert parallel.choose_mode("auto") == "jit"


def test_jit_passes_static_and_donated_arguments_on():
    double = parallel.jit(lambda x, *, times: x * times, static_argnames=("times",))
    assert float(double(jnp.float32(3.0), times=2)) == 6
    x = jnp.arange(4.0)
    parallel.jit(lambda x: x + 1, donate_argnums=(0,))(x)
    assert x.is_deleted()


COUNTING = """
import collections, sys
import jax, jax.numpy as jnp
from metadd_jax import parallel
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
parallel.cache_compilations(sys.argv[1])
print(float(parallel.jit(lambda x: jnp.sin(x) @ x)(jnp.arange(3.0))))
print(counts["cache_hits"], counts["cache_misses"])
"""


def test_a_second_start_compiles_nothing(tmp_path):
    def start():
        printed = subprocess.run(
            [sys.executable, "-c", COUNTING, tmp_path / "compiled"], capture_output=True, text=True, check=True
        )
        value, counts = printed.stdout.splitlines()
        return value, [int(count) for count in counts.split()]

    (value, (hits, misses)), (again, (hits_again, misses_again)) = start(), start()
    assert value == again
    assert hits == 0 and misses > 0
    assert hits_again == misses and misses_again == 0


def test_independent_work_is_shared_whatever_its_number():
    """6 terms on 4 devices: value and gradient of their sum on every device are those of one device."""

    def loss(x, axis_name):
        terms = parallel.sum_gradient(x, axis_name).reshape(6, 2)
        (own, factors), weights = parallel.own_items((terms, jnp.arange(6.0)), axis_name)
        assert len(weights) == (6 if axis_name is None else 2)
        return parallel.sum_value((factors * (own**3).sum(axis=1)) @ weights, axis_name)

    x = jnp.arange(12.0) / 7
    alone = jax.value_and_grad(loss)(x, None)
    shared = jax.pmap(
        lambda _: jax.value_and_grad(loss)(x, parallel.AXIS), axis_name=parallel.AXIS, devices=jax.devices()
    )(jnp.arange(4))
    for one, each in zip(alone, shared, strict=True):
        assert len(each) == 4
        np.testing.assert_allclose(each, jnp.broadcast_to(one, each.shape), rtol=1e-6)
    np.testing.assert_allclose(alone[1], np.repeat(np.arange(6.0), 2) * 3 * np.asarray(x) ** 2, rtol=1e-6)
