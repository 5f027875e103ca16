"""Independent work on the cores of one CPU: in order, at once, and with the same numbers."""

import os
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import cores, parallel


@pytest.fixture
def alone(monkeypatch):
    """The tests have four devices; users have one, of two cores here."""
    monkeypatch.setattr(cores, "is_alone", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def planned(function, *, temporary=0):
    """Something to call, with XLA's plan of its memory."""

    class Program:
        __call__ = staticmethod(function)

        def memory_analysis(self):
            return types.SimpleNamespace(temp_size_in_bytes=temporary, output_size_in_bytes=0)

    return Program()


def test_two_are_worked_on_at_a_time_and_given_in_order(alone):
    together = threading.Barrier(2)

    def wait(item):
        together.wait(timeout=30)  # nobody passes alone
        return item

    assert list(cores.ahead(wait, [3, 1, 2, 0])) == [3, 1, 2, 0]
    assert cores.run_each(planned(wait), [(5,), (4,)], memory=2**30) == [5, 4]


def test_elsewhere_it_is_one_after_the_other():
    threads = list(cores.ahead(lambda _: threading.get_ident(), range(3)))
    assert threads == [threading.get_ident()] * 3


def test_a_setting_of_the_callers_thread_counts(alone):
    """JAX keeps what a ``with`` sets for its own thread: work elsewhere would not see it."""

    def debugged(_):
        return threading.get_ident(), jax.config.jax_debug_nans

    with jax.debug_nans(True):
        assert list(cores.ahead(debugged, range(2))) == [(threading.get_ident(), True)] * 2
    own, elsewhere = zip(*cores.ahead(debugged, range(2)), strict=True)
    assert threading.get_ident() not in own
    assert elsewhere == (False, False)


def test_an_error_does_not_wait_for_what_has_begun(alone):
    ended, begun = threading.Event(), []

    def work(item):
        begun.append(item)
        if item == 0:
            raise ValueError("the first fails")
        ended.wait(timeout=60)

    with pytest.raises(ValueError, match="the first fails"):
        list(cores.ahead(work, range(20)))
    assert len(begun) < 20  # the rest was never begun
    ended.set()


@pytest.mark.parametrize(("temporary", "threads"), [(1, 2), (300, 1), (10_000, 1)])
def test_memory_bounds_what_goes_at_once(alone, temporary, threads):
    most, running, lock = [0], [0], threading.Lock()
    wake = threading.Event()

    def run(_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        wake.wait(timeout=0.05)
        with lock:
            running[0] -= 1

    cores.run_each(planned(run, temporary=temporary), [(0,)] * 6, memory=1000)
    assert most == [threads]


def test_runs_spread_over_cores_are_those_of_one_after_the_other(alone):
    def run(seed, factor, shared):
        noise = jax.random.normal(jax.random.fold_in(shared, seed), (5,))
        return {"sum": factor * noise.sum(), "seed": seed, "nothing": ()}

    arguments = jnp.arange(5), jnp.linspace(1.0, 2.0, 5), jax.random.key(3)
    traces = []
    spread = parallel.spread(lambda *own: traces.append(1) or run(*own), mapped=2)
    results = spread(*arguments)
    expected = [run(seed, factor, arguments[2]) for seed, factor in zip(*arguments[:2], strict=True)]
    assert isinstance(results["sum"], np.ndarray)
    np.testing.assert_array_equal(results["seed"], np.arange(5))
    np.testing.assert_allclose(results["sum"], np.stack([one["sum"] for one in expected]), rtol=1e-6)
    again = spread(*arguments)
    np.testing.assert_array_equal(results["sum"], again["sum"])
    assert len(traces) == 1  # the second call found the program


def test_what_is_called_once_gives_what_it_gives_under_jit(monkeypatch):
    """With the options of users, which the tests' own quick compilation replaces."""
    assert cores.quick_options() is None
    monkeypatch.setattr(cores, "quick_options", lambda: {"xla_backend_optimization_level": 1})
    x = jnp.linspace(0.0, 1.0, 50)
    result = parallel.call_once(lambda x, y: jnp.sin(x) @ y, x, x)
    np.testing.assert_allclose(result, np.sin(np.asarray(x)) @ np.asarray(x), rtol=1e-5)
