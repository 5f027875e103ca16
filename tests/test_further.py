"""Auxiliaries that learn from the set: their step against finite differences, what stays as it was, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import invariant, zoo
from metadd_jax.structs import Auxiliary

SHAPE, K = (8, 8, 1), 3
LABELS = jnp.array([0, 0, 1, 1, 2])
RNG = np.random.default_rng(0)
ETA = 0.25


def config(**settings):
    return invariant.InvariantConfig(views="none", further_lr=ETA, **settings)


def network(spec, seed):
    net = zoo.parse(spec, K, SHAPE)
    return Auxiliary(variables=net.init(jax.random.key(seed)), map_eps={}, net=net)


def cross_entropy(one, params, x):
    logits = np.asarray(one.net.apply({**one.variables, "params": params}, x)[0], np.float64)
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return -log_p[np.arange(len(x)), np.asarray(LABELS)].mean()


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_step_is_down_the_slope_of_finite_differences(micro_batch):
    networks = [network("mlp:width=5", 0), network("convnet_bn:width=3,depth=1", 1)]
    x = jnp.asarray(RNG.normal(size=(5, *SHAPE)), jnp.float32)
    before = invariant.own_params(networks)
    after = jax.jit(
        lambda p: invariant.train_further(
            jax.random.key(0), x, LABELS, networks, p, config=config(micro_batch=micro_batch)
        )
    )(before)
    with jax.enable_x64():
        for one, old, new in zip(networks, before, after, strict=True):
            wide = dataclasses.replace(
                one, variables=jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), one.variables)
            )
            along = jax.tree.map(lambda a: RNG.normal(size=a.shape), old)
            ends = []
            for sign in (1, -1):
                there = jax.tree.map(lambda a, d, s=sign: a + s * 1e-5 * d, wide.variables["params"], along)
                ends.append(cross_entropy(wide, there, np.asarray(x, np.float64)))
            moved = jax.tree.map(lambda a, b, d: ((np.float64(a) - np.float64(b)) / ETA * d).sum(), old, new, along)
            assert sum(jax.tree.leaves(moved)) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-5)


def test_nothing_but_parameters_moves_and_the_drift_is_their_way():
    one = network("convnet_bn:width=3,depth=1", 1)
    x = jnp.asarray(RNG.normal(size=(5, *SHAPE)), jnp.float32)
    params = invariant.own_params([one])
    assert float(invariant.drift([one], params)) == 0
    further = jax.jit(lambda key, p: invariant.train_further(key, x, LABELS, [one], p, config=config()))
    for number in range(30):
        params = further(jax.random.key(number), params)
    (moved,) = invariant.with_params([one], params)
    assert cross_entropy(one, params[0], x) < 0.5 * cross_entropy(one, one.variables["params"], x)
    for name in set(one.variables) - {"params"}:
        jax.tree.map(np.testing.assert_array_equal, moved.variables[name], one.variables[name])
    old, new = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(p)]) for p in (one.variables["params"], params)
    )
    way = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert float(invariant.drift([one], params)) == pytest.approx(way, rel=1e-5) and way > 0.01


def test_terms_beside_real_images_are_refused():
    terms = {name: invariant.TERMS[name] for name in ("ai", "cos")}
    with pytest.raises(
        ValueError, match=r"further_lr=0.25 trains the auxiliaries on, and L_cos compares with what they"
    ):
        invariant.check_further(config(), terms)
    invariant.check_further(invariant.InvariantConfig(), terms)
    invariant.check_further(config(), {"ai": terms["ai"]})
