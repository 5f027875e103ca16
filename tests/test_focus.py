"""The base gradient weighed by where all networks look, against weights made by hand and by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, features, invariant, zoo

SHAPE, K = (8, 8, 1), 3
LABELS = jnp.array([0, 1, 2, 0, 1])
RNG = np.random.default_rng(0)


def expected(maps, focus, mask, cap=10.0):
    m = (maps >= 0.5).all(0).astype(float) if mask == "hard" else maps.min(0)
    found = np.ones_like(m)
    for image, own in enumerate(m):
        if own.any():
            f = min(focus, (cap - 1) / max(own.max() / own.mean() - 1, 1e-9))
            found[image] = 1 - f + f * own / own.mean()
    return found


def test_weights_of_a_hand_example():
    maps = np.zeros((2, 2, 2, 2), np.float32)
    maps[0, 0], maps[1, 0] = [[0.9, 0.8], [0.2, 0.5]], [[0.6, 0.1], [0.7, 0.5]]  # shared: two of four corners
    hard = invariant.focus_weights(jnp.asarray(maps), focus=1.0)
    np.testing.assert_allclose(hard[0], [[2, 0], [0, 2]])
    np.testing.assert_allclose(hard[1], np.ones((2, 2)))  # dead maps: as without a focus
    soft = invariant.focus_weights(jnp.asarray(maps), focus=1.0, mask="soft")
    np.testing.assert_allclose(soft[0], np.array([[0.6, 0.1], [0.2, 0.5]]) / 0.35, rtol=1e-6)
    low = invariant.focus_weights(jnp.asarray(maps), focus=1.0, threshold=0.2)
    np.testing.assert_allclose(low[0], np.array([[4, 0], [4, 4]]) / 3, rtol=1e-6)
    half = invariant.focus_weights(jnp.asarray(maps), focus=0.5)
    np.testing.assert_allclose(half[0], [[1.5, 0.5], [0.5, 1.5]])


def test_where_little_is_shared_the_focus_is_lowered_and_not_the_mean():
    maps = np.zeros((2, 2, 20, 20), np.float32)
    maps[:, 0, 3, 4] = 1  # one pixel of 400
    maps[:, 1, :10] = 1  # half of them
    found = np.asarray(invariant.focus_weights(jnp.asarray(maps), focus=1.0, cap=10.0))
    assert found[0, 3, 4] == pytest.approx(10) and found[0, 0, 0] == pytest.approx(1 - 9 / 399)
    np.testing.assert_allclose(found[1], np.where(maps[0, 1] > 0, 2, 0))
    np.testing.assert_allclose(found.mean((1, 2)), [1, 1], rtol=1e-6)


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_the_mean_weight_of_an_image_is_one(mask):
    maps = RNG.uniform(size=(3, 7, 6, 5))
    maps[0, 2] = 0
    found = invariant.focus_weights(jnp.asarray(maps, jnp.float32), focus=0.7, mask=mask)
    np.testing.assert_allclose(found, expected(maps, 0.7, mask), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(found).mean((1, 2)), np.ones(7), rtol=1e-6)


def test_the_images_stay_and_their_gradient_is_weighed():
    images, slope = RNG.normal(size=(2, 5, *SHAPE)).astype(np.float32)
    w = jnp.asarray(RNG.uniform(0, 9, size=(5, 8, 8)), jnp.float32)

    def loss(x):
        shown = invariant.weigh_gradient(x, w)
        return (shown * slope).sum(), shown

    gradient, shown = jax.jit(jax.grad(loss, has_aux=True))(images)
    np.testing.assert_array_equal(shown, images)
    np.testing.assert_allclose(gradient, np.asarray(w)[..., None] * slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_weights_are_those_of_the_plain_images_in_parts_too(micro_batch):
    images = RNG.integers(0, 255, (12, *SHAPE)).astype(np.uint8)
    tiny = data.from_arrays("tiny", images, np.arange(12) % K, images[:3], np.arange(3))
    nets = [zoo.parse(spec, K, SHAPE) for spec in ("convnet:width=4,depth=1", "convnet_bn:width=6,depth=1")]
    auxiliaries = [features.freeze(net, net.init(jax.random.key(n)), tiny) for n, net in enumerate(nets)]
    x = jnp.asarray(RNG.normal(size=(5, *SHAPE)), jnp.float32)
    config = invariant.InvariantConfig(focus=0.8, focus_mask="soft", micro_batch=micro_batch)
    maps = [
        features.activation_maps(one.net, one.variables, x, LABELS, map_eps=one.map_eps["local"]) for one in auxiliaries
    ]
    w, facts = jax.jit(lambda x: invariant.focus_on_meta(x, LABELS, auxiliaries, config=config))(x)
    wanted = expected(np.asarray(maps, np.float64), 0.8, "soft")
    np.testing.assert_allclose(w, wanted, rtol=1e-3, atol=1e-4)
    assert float(facts["focus_area"]) == pytest.approx((wanted > 1).mean(), abs=0.01)
    assert wanted.max() > 1.5
    assert float(facts["focus_largest"]) == pytest.approx(wanted.max(), rel=1e-3)
    sums = jax.jit(jax.grad(lambda x: invariant.focus_on_meta(x, LABELS, auxiliaries, config=config)[0].sum()))(x)
    assert (np.asarray(sums) == 0).all()
