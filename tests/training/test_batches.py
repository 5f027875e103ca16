"""Sums over parts of a batch against the sum at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax.training import batches


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 7, 10, 50])
def test_parts_add_up_to_the_whole_and_each_is_small(micro_batch):
    values, weights = np.random.default_rng(0).normal(size=(10, 2)), np.arange(10.0)
    sizes = []

    def function(part):
        x, w = part
        sizes.append(len(x))
        return {"sum": w @ x, "count": w.sum()}

    total = batches.sum_in_parts(function, (jnp.asarray(values), jnp.asarray(weights)), micro_batch=micro_batch)
    np.testing.assert_allclose(total["sum"], weights @ values, rtol=1e-5)
    assert total["count"] == 45 and max(sizes) <= (micro_batch or 10)


def test_it_can_be_differentiated_and_mapped():
    x = jnp.arange(12.0).reshape(2, 6)

    def total(x):
        return batches.sum_in_parts(lambda part: (part**3).sum(), x, micro_batch=4)

    np.testing.assert_allclose(jax.vmap(jax.grad(total))(x), 3 * np.asarray(x) ** 2, rtol=1e-6)


def test_only_a_cpu_divides_unasked(monkeypatch):
    items = jnp.ones(70)

    def parts():
        return "scan" in str(jax.make_jaxpr(lambda x: batches.sum_in_parts(jnp.sum, x))(items))

    assert parts()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not parts()
