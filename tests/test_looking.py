"""Some networks of a pool, drawn anew at each step: who looks, what terms make of it, and that the others do not."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, features, invariant, zoo

SHAPE, K = (8, 8, 1), 3
LABELS = jnp.array([0, 0, 1, 1, 2, 2])
RNG = np.random.default_rng(0)
SPECS = ("convnet:width=4,depth=1", "convnet_bn:width=6,depth=1", "convnet:width=3,depth=2")
X = jnp.asarray(RNG.normal(size=(6, *SHAPE)), jnp.float32)
TERMS = {name: invariant.TERMS[name] for name in ("ai", *invariant.CONTROLS)}


@pytest.fixture(scope="module")
def pool():
    """Three networks of other widths, with all that a term may ask for."""
    labels = np.repeat(np.arange(K), 6)
    images = (RNG.integers(0, 120, (len(labels), *SHAPE)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    tiny = data.from_arrays("tiny", images, labels, images[:3], labels[:3])
    nets = [zoo.parse(spec, K, SHAPE) for spec in SPECS]
    frozen = [features.freeze(net, net.init(jax.random.key(n)), tiny) for n, net in enumerate(nets)]
    return invariant.equip(frozen, tiny, TERMS.values())


def config(**settings):
    return invariant.InvariantConfig(views="none", **settings)


def test_every_subset_is_drawn_equally_often():
    draw = jax.jit(jax.vmap(lambda key: invariant.draw_networks(key, 4, config(drawn=2))))
    drawn = np.sort(np.asarray(draw(jax.random.split(jax.random.key(0), 6000))), axis=1)
    assert (drawn[:, 0] < drawn[:, 1]).all()
    counts = [(drawn == pair).all(1).sum() for pair in itertools.combinations(range(4), 2)]
    # 1000 each of six; four and a half standard deviations: fails by chance in fewer than 1 of 10,000 runs.
    assert sum(counts) == 6000 and max(np.abs(np.array(counts) - 1000)) < 130
    assert invariant.draw_networks(jax.random.key(0), 4, config()) is None


@pytest.mark.parametrize("drawn", [(0, 1), (2, 0), (1,)])
def test_the_drawn_ones_are_seen_as_if_they_were_alone(pool, drawn):
    """Their embeddings end in zeros up to the widest network, and no term sees that."""

    def values(chosen, networks):
        draws = jnp.arange(6, dtype=jnp.uint32)
        seen = invariant.look(X, LABELS, networks, None, terms=TERMS, config=config(), draws=draws, drawn=chosen)
        return {name: (term.value(seen)[0] if name == "ai" else term.value(seen)) for name, term in TERMS.items()}

    found = jax.jit(values)(jnp.array(drawn), pool)
    alone = jax.jit(lambda networks: values(None, networks))([pool[number] for number in drawn])
    for name in TERMS:
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_who_is_not_drawn_is_not_asked(pool):
    """Networks of NaN give a finite loss and gradient in the very steps in which they are not drawn."""
    ill = dataclasses.replace(pool[2], variables=jax.tree.map(lambda w: w * jnp.nan, pool[2].variables))
    settings = config(drawn=2, ai=1, pos=1, var=1, extra=(("class_mean", 1.0),), micro_batch=None)

    @jax.jit
    def both(key):
        def loss(x):
            return invariant.invariant_loss(key, x, LABELS, [*pool[:2], ill], config=settings)[0]

        return jax.value_and_grad(loss)(X), (invariant.draw_networks(key, 3, settings) == 2).any()

    seen = set()
    for number in range(12):
        (loss, gradient), is_drawn = both(jax.random.key(number))
        assert np.isfinite(loss) != bool(is_drawn) and np.isfinite(gradient).all() != bool(is_drawn)
        seen.add(bool(is_drawn))
    assert seen == {True, False}


def test_in_parts_one_draw_holds_for_all_images(pool):
    """The mean over images of one draw of networks, by hand."""
    settings, key = config(drawn=2, ai=1, pos=0, var=0, micro_batch=4), jax.random.key(3)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda x: invariant.invariant_loss(key, x, LABELS, pool, config=settings)[0])
    )(X)

    drawn = np.asarray(invariant.draw_networks(key, 3, settings))

    def by_hand(x):
        total = 0.0
        for number in drawn:
            logits = pool[number].net.apply(pool[number].variables, x)[0]
            total += -jax.nn.log_softmax(logits)[jnp.arange(6), LABELS].mean()
        return total

    expected, slope = jax.jit(jax.value_and_grad(by_hand))(X)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_drawn_is_refused(pool):
    def loss(**settings):
        return invariant.invariant_loss(jax.random.key(0), X, LABELS, pool, config=config(**settings))

    with pytest.raises(ValueError, match="drawn=4 is more than the 3 auxiliaries; lower it, or None for all of them"):
        loss(drawn=4)
    with pytest.raises(ValueError, match="L_pos and L_var compare networks, and drawn=1 leaves one a step; draw at"):
        loss(drawn=1, pos=0.1, var=0.1)
    with pytest.raises(ValueError, match="drawn=0 must be a whole number, at least 1"):
        loss(drawn=0)
