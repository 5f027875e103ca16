"""What the base method's gradient and the added one do to each other, re-derived by NumPy over a quadratic base."""

import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest
from members import energy

from metadd_jax import distillers, features, invariant
from metadd_jax.distillers import conflict

RNG = np.random.default_rng(0)
START = RNG.normal(size=(6, 8, 8, 1)).astype(np.float32)
# The first two images are pulled outwards, against a term that wants little energy, the others inwards.
TARGET = START * np.array([3, 3, -1, 0.2, 0, -2], np.float32)[:, None, None, None] + RNG.normal(size=START.shape)
TARGET = TARGET.astype(np.float32)
PLAIN = {"views": "none", "weighting": "raw"}
TX = optax.sgd(0.1)


def quadratic():
    return members.quadratic(START, TARGET)


def projected(added, base, by):
    """PCGrad of one task onto another, in float64; by image one row at a time."""
    added, base = np.float64(added).copy(), np.float64(base)
    rows = [slice(None)] if by == "set" else range(len(added))
    for row in rows:
        dot = (added[row] * base[row]).sum()
        if dot < 0:
            added[row] -= dot / (base[row] ** 2).sum() * base[row]
    return added


def updated(method, tiny):
    state = distillers.init_state(jax.random.key(0), method, TX, tiny)
    return jax.jit(distillers.make_update(method, TX))(state, tiny.train, method.frozen)


@pytest.mark.parametrize("by", ["set", "image"])
@pytest.mark.parametrize("strength", [100.0, 1.0])
def test_the_update_is_that_of_the_projected_gradient(by, strength, tiny, auxiliaries):
    base = START - np.float64(TARGET)
    added = strength * 2 * np.float64(START) / START.size
    method = distillers.penalise(quadratic(), auxiliaries, {energy: strength}, project=by, **PLAIN)
    after, metrics = updated(method, tiny)
    slope = base + projected(added, base, by)
    np.testing.assert_allclose(after.synthetic["images"], START - 0.1 * slope, rtol=1e-4, atol=1e-5)
    wanted = 0.5 * (base**2).sum() + strength * np.square(np.float64(START)).mean()
    assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-5)
    lengths = np.linalg.norm(added) * np.linalg.norm(base)
    assert float(metrics["added_cosine"]) == pytest.approx((added * base).sum() / lengths, abs=1e-5)
    removed = np.linalg.norm(added - projected(added, base, by)) / np.linalg.norm(added)
    assert float(metrics["removed"]) == pytest.approx(removed, abs=1e-5)
    assert removed > 0.1 if by == "image" else True


def test_over_the_whole_set_a_conflict_of_few_images_may_be_none(tiny, auxiliaries):
    """The set as a whole agrees, so nothing is taken; its first two images do not."""
    dots = ((START - TARGET) * START).sum((1, 2, 3))
    assert (dots[:2] < 0).all() and dots.sum() > 0
    settings = {"project": "set", **PLAIN}
    same, _ = updated(distillers.penalise(quadratic(), auxiliaries, {energy: 9.0}, **settings), tiny)
    plain, metrics = updated(distillers.penalise(quadratic(), auxiliaries, {energy: 9.0}, **PLAIN), tiny)
    np.testing.assert_allclose(same.synthetic["images"], plain.synthetic["images"], rtol=1e-5, atol=1e-6)
    assert "removed" not in metrics


@pytest.mark.parametrize("by", ["set", "image"])
def test_to_first_order_the_base_method_never_loses(by):
    added, base = RNG.normal(size=(2, 50, 6, 4))
    base[:40] -= 2 * added[:40]
    found, facts = conflict.without_conflict({"images": jnp.asarray(added)}, {"images": jnp.asarray(base)}, by=by)
    np.testing.assert_allclose(found["images"], projected(added, base, by), rtol=1e-4, atol=1e-5)
    dots = (np.asarray(found["images"]) * base).sum((1, 2))
    assert (dots.sum() if by == "set" else dots.min()) > -1e-3
    # Nothing is against nothing.
    zero = {"images": jnp.zeros((3, 2))}
    for pair in ((zero, {"images": jnp.ones((3, 2))}), ({"images": jnp.ones((3, 2))}, zero)):
        same, facts = conflict.without_conflict(*pair, by=by)
        np.testing.assert_array_equal(same["images"], pair[0]["images"])
        assert float(facts["removed"]) == 0 and float(facts["added_cosine"]) == 0


def test_labels_and_a_step_size_have_no_part_in_it():
    added = {"images": jnp.ones((2, 3)), "label_logits": jnp.ones((2, 4)), "learning_rate": jnp.ones(())}
    base = {"images": -jnp.ones((2, 3)), "label_logits": -9 * jnp.ones((2, 4)), "learning_rate": -9 * jnp.ones(())}
    for by in ("set", "image"):
        found, facts = conflict.without_conflict(added, base, by=by)
        np.testing.assert_allclose(found["images"], np.zeros((2, 3)), atol=1e-6)
        np.testing.assert_array_equal(found["label_logits"], added["label_logits"])
        assert float(found["learning_rate"]) == 1 and float(facts["added_cosine"]) == pytest.approx(-1)
    with pytest.raises(ValueError, match=r"no image by image in them; give project=\"set\""):
        conflict.without_conflict(
            [jnp.ones((2, 3)), jnp.ones((3, 2))], [jnp.ones((2, 3)), jnp.ones((3, 2))], by="image"
        )


def test_it_goes_over_methods_that_train_more_than_images(tiny, auxiliaries):
    """MTT's step size moves as it does without the penalty: no term pulls at it, and nothing is taken of it."""
    base, tx = members.trajectories(distillers.mtt), members.TRAJECTORY_TX
    strengths, found = {"ai": 0.5}, {}
    for by in ("none", "image"):
        method = distillers.penalise(base, auxiliaries, strengths, project=by, **PLAIN)
        state = distillers.init_state(jax.random.key(0), method, tx, tiny)
        found[by] = jax.jit(distillers.make_update(method, tx))(state, tiny.train, method.frozen)
    for name, leaf in found["none"][0].synthetic.items():
        if name != "images":
            np.testing.assert_allclose(found["image"][0].synthetic[name], leaf, rtol=1e-4)
    loss = found["none"][1]["loss"]
    assert float(found["image"][1]["loss"]) == pytest.approx(float(loss), rel=1e-5)


def weights(auxiliaries, images, focus, mask="hard"):
    maps = np.asarray(features.stack_maps(auxiliaries, jnp.asarray(images), jnp.arange(6) // 2), np.float64)
    m = (maps >= 0.5).all(0).astype(float) if mask == "hard" else maps.min(0)
    share = m.mean((1, 2), keepdims=True)
    above = np.divide(m, share, out=np.ones_like(m), where=share > 0) - 1
    largest = np.maximum(above.max((1, 2), keepdims=True), 1e-9)
    return (1 + np.minimum(focus, 9 / largest) * above)[..., None]


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_the_base_gradient_is_weighed_by_where_all_networks_look(mask, tiny, auxiliaries):
    w, base = weights(auxiliaries, START, 0.6, mask), START - np.float64(TARGET)
    assert w.std() > 0.1
    settings = {"focus": 0.6, "focus_mask": mask, "views": "none"}
    alone = distillers.penalise(quadratic(), auxiliaries, {}, **settings)
    after, metrics = updated(alone, tiny)
    np.testing.assert_allclose(after.synthetic["images"], START - 0.1 * w * base, rtol=1e-3, atol=1e-3)
    assert float(metrics["loss"]) == pytest.approx(0.5 * (base**2).sum(), rel=1e-5)
    assert float(metrics["focus_largest"]) == pytest.approx(w.max(), rel=1e-3)
    # A term's strength is beside the gradient that moves the set, and its own gradient is not weighed.
    both = distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, calibration_steps=2, **settings)
    after, _ = updated(both, tiny)
    added = 0.25 * np.linalg.norm(w * base) * START / np.linalg.norm(START)
    np.testing.assert_allclose(after.synthetic["images"], START - 0.1 * (w * base + added), rtol=1e-3, atol=1e-3)
    state = distillers.init_state(jax.random.key(0), both, TX, tiny)
    pulls = distillers.pulls(jax.random.key(1), both, state, tiny.train)
    assert float(pulls["gradient_norm_base"]) == pytest.approx(np.linalg.norm(w * base), rel=1e-3)


def test_conflict_is_judged_with_the_weighed_gradient(tiny, auxiliaries):
    w, base = weights(auxiliaries, START, 1.0), START - np.float64(TARGET)
    method = distillers.penalise(quadratic(), auxiliaries, {energy: 500.0}, focus=1.0, project="image", **PLAIN)
    after, _ = updated(method, tiny)
    slope = w * base + projected(1000 * np.float64(START) / START.size, w * base, "image")
    np.testing.assert_allclose(after.synthetic["images"], START - 0.1 * slope, rtol=1e-3, atol=1e-3)


class Negative:
    frozen = ()

    def init(self, key, images):
        return -images

    def decode(self, latents, frozen):
        return -latents


def test_a_focus_is_of_pixels_and_goes_inside_of_latents(tiny, auxiliaries):
    latents = distillers.parameterise(quadratic(), Negative())
    method = distillers.penalise(latents, auxiliaries, {}, focus=0.5, views="none")
    with pytest.raises(ValueError, match=r"focus=0.5 weighs the gradient of pixels, and quadratic\+negative trains no"):
        method.init(jax.random.key(0), tiny)
    inside = distillers.penalise(quadratic(), auxiliaries, {energy: 3.0}, focus=0.5, project="set", **PLAIN)
    after, _ = updated(distillers.parameterise(inside, Negative()), tiny)
    pixels, _ = updated(inside, tiny)
    np.testing.assert_allclose(-after.synthetic["latents"], pixels.synthetic["images"], rtol=1e-5, atol=1e-6)
    flat = members.make_net("mlp:width=4")
    blind = features.freeze(flat, flat.init(jax.random.key(0)), tiny)
    with pytest.raises(ValueError, match="mlp has no spatial feature map"):
        distillers.penalise(quadratic(), [blind], {}, focus=0.5)


def test_settings_of_a_job_reach_the_method(tiny, auxiliaries):
    config = invariant.InvariantConfig(ai=0.5, focus=1.0, project="set", **PLAIN)
    _, metrics = updated(distillers.metadd(quadratic(), auxiliaries, config=config), tiny)
    assert {"focus_area", "removed", "added_cosine", "weight_ai"} <= set(metrics)
