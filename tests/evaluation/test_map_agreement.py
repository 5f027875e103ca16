"""Agreement of a set's maps, made in batches, against maps made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import evaluation, features, zoo
from metadd_jax.structs import SyntheticSet

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def synthetic():
    return SyntheticSet(images=jax.random.normal(jax.random.key(0), (7, *SHAPE)), labels=jnp.arange(7) % 3)


@pytest.fixture(scope="module")
def auxiliaries(synthetic):
    nets = [zoo.parse(spec, 3, SHAPE) for spec in ("convnet:width=4,depth=1", "convnet:width=6,depth=1")]
    make = jax.jit(
        lambda net, key: features.make_auxiliary(net, net.init(key), synthetic.images, synthetic.labels),
        static_argnums=0,
    )
    return [make(net, jax.random.key(seed)) for seed, net in enumerate(nets)]


@pytest.fixture(scope="module")
def whole(synthetic, auxiliaries):
    """All maps in one batch."""
    return np.asarray(jax.jit(features.stack_maps)(auxiliaries, synthetic.images, synthetic.labels))


def test_batches_make_no_difference(synthetic, auxiliaries, whole):
    stack = evaluation.map_stack(auxiliaries, synthetic.images, synthetic.labels, batch_size=3)  # 3, 3 and 1
    assert stack.shape == (2, 7, 8, 8)
    np.testing.assert_allclose(stack, whole, atol=1e-5)


def test_all_sets_of_one_size_share_a_program(synthetic, auxiliaries, caplog):
    """A run measures a set a row and seed; each used to compile the maps of all networks anew."""
    config = features.CamConfig(alpha="mean")
    compiled = []
    for sign in (1, -1):
        caplog.clear()
        with jax.log_compiles():
            evaluation.map_stack(auxiliaries, sign * synthetic.images, synthetic.labels, config=config)
        compiled.append("stack_maps" in caplog.text)
    assert compiled == [True, False]


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_the_ratios_against_numpy(synthetic, auxiliaries, whole, threshold):
    facts = evaluation.agreement(synthetic, auxiliaries, threshold=threshold)
    high = whole >= threshold
    both, areas = high.all(axis=0), high.mean(axis=(2, 3))
    chance = areas.prod(axis=0)
    assert facts["meta_ratio"] == pytest.approx(both.mean(), abs=1e-5)
    np.testing.assert_allclose(facts["high_area"], areas.mean(axis=1), atol=1e-5)
    corrected = (both.mean(axis=(1, 2)) - chance).mean() / (areas.min(axis=0) - chance).mean()
    assert facts["chance_corrected"] == pytest.approx(corrected, abs=1e-4)
    assert isinstance(facts["meta_ratio"], float) and isinstance(facts["high_area"], list)


def test_the_maps_are_of_the_kind_that_is_asked_for(synthetic, auxiliaries, whole):
    config = features.CamConfig(alpha="mean")
    stack = evaluation.map_stack(auxiliaries, synthetic.images, synthetic.labels, config=config)
    for auxiliary, maps, others in zip(auxiliaries, stack, whole, strict=True):
        raw_maps = jax.jit(features.raw_maps, static_argnums=0, static_argnames="config")
        raw = raw_maps(auxiliary.net, auxiliary.variables, synthetic.images, synthetic.labels, config=config)
        up = np.asarray(jax.image.resize(raw[0], maps.shape, "bilinear"))
        low, high = up.min((1, 2), keepdims=True), up.max((1, 2), keepdims=True)
        np.testing.assert_allclose(maps, (up - low) / (high - low + auxiliary.map_eps["mean"]), atol=1e-5)
        assert np.abs(maps - others).max() > 0.01
    facts = evaluation.agreement(synthetic, auxiliaries, config=config)
    assert facts["meta_ratio"] == pytest.approx((stack >= 0.5).all(axis=0).mean(), abs=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_at_equal_areas_each_map_counts_its_highest_pixels(synthetic, auxiliaries, whole, threshold):
    facts = evaluation.agreement(synthetic, auxiliaries, threshold=threshold, area=1 / 8)
    flat = whole.reshape(2, 7, 64)
    ranked = np.sort(flat)
    assert (ranked[:, :, -8] > ranked[:, :, -9]).all()  # no ties at the edge, which would be broken at random
    both = [set(np.argsort(first)[-8:]) & set(np.argsort(second)[-8:]) for first, second in zip(*flat, strict=True)]
    assert facts["meta_ratio"] == pytest.approx(np.mean([len(pixels) for pixels in both]) / 64, abs=1e-6)
    assert facts["high_area"] == pytest.approx([1 / 8, 1 / 8])


def test_one_network_agrees_with_nobody(synthetic, auxiliaries):
    with pytest.raises(ValueError, match="at least 2 networks with activation maps, got 1"):
        evaluation.agreement(synthetic, auxiliaries[:1])
