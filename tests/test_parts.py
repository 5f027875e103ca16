"""Means taken part by part against the same taken at once, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import parts

IMAGES = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
LABELS = np.arange(7)


def look(images, labels, weights, scale, power):
    """Two sums, of scale * label * sin(x) and of powers, and what each image and label are."""
    each = (scale * labels * jnp.sin(images).sum((1, 2)), (images**power).sum((1, 2)))
    return jnp.stack(each) @ weights, {"squares": jnp.stack(each) ** 2, "labels": labels[None]}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 50])
def test_values_facts_and_gradients_are_those_of_the_whole(size):
    def loss(images):
        sums, facts = parts.means(look, images, jnp.asarray(LABELS), jnp.float32(2.0), 3, size=size)
        return sums[0] ** 2 + 3 * sums[1], (sums, facts)

    gradient, (sums, facts) = jax.jit(jax.grad(loss, has_aux=True))(IMAGES)
    each = np.stack([2 * LABELS * np.sin(IMAGES).sum((1, 2)), (IMAGES**3).sum((1, 2))])
    np.testing.assert_allclose(sums, each.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(facts["squares"], each**2, rtol=1e-4)
    np.testing.assert_array_equal(facts["labels"], LABELS[None])
    slopes = 2 * LABELS[:, None, None] * np.cos(IMAGES) / 7, 3 * IMAGES**2 / 7
    np.testing.assert_allclose(gradient, 2 * each[0].mean() * slopes[0] + 3 * slopes[1], rtol=1e-4, atol=1e-5)
    # Without a gradient too.
    np.testing.assert_allclose(jax.jit(loss)(IMAGES)[1][0], each.mean(axis=1), rtol=1e-5)


def test_no_part_is_computed_twice_and_none_is_larger_than_asked():
    seen = []

    def watched(images, *rest):
        seen.append(len(images))
        return look(images, *rest)

    def loss(images):
        return parts.means(watched, images, jnp.asarray(LABELS), jnp.float32(2.0), 3, size=3)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(IMAGES))
    assert program.count("= sin") == 1 and program.count("= cos") == 1
    assert max(seen) == 3


def curved(images, items, weights, shared, frozen):
    """A sum in which images, items, shared and frozen multiply each other, and one of powers of shared alone."""
    own = (jnp.sin(images * shared["scale"]).sum((1, 2)) * items + frozen * images.sum((1, 2))) @ weights
    return jnp.stack([own, (shared["rows"] ** 3).sum() * weights.sum()]), own[None, None] * jnp.ones((1, len(images)))


@pytest.mark.parametrize("size", [7, 3, 1])
def test_gradients_in_shared_and_of_gradients_agree_with_finite_differences(size):
    """In float64; in one part and in several."""
    with jax.enable_x64():
        images, items = jnp.asarray(IMAGES, jnp.float64), jnp.asarray(LABELS, jnp.float64)
        shared = {"scale": jnp.float64(0.7), "rows": jnp.asarray([[0.3, -1.2]], jnp.float64)}
        direction = jnp.asarray(np.random.default_rng(1).normal(size=images.shape))

        @jax.jit
        def loss(images, shared):
            sums, _ = parts.means(curved, images, items, shared, jnp.float64(2.0), size=size)
            return sums[0] ** 2 + sums[1]

        @jax.jit
        def slope(shared):
            """How fast the loss grows along the direction: a learner of ``shared`` differentiates this."""
            return (jax.grad(loss)(images, shared) * direction).sum()

        steps = [{"scale": 1e-6, "rows": jnp.zeros((1, 2))}, {"scale": 0.0, "rows": jnp.array([[0.0, 1e-6]])}]
        for function, mixed in ((lambda shared: loss(images, shared), False), (slope, True)):
            gradient = jax.grad(function)(shared)
            for step in steps:
                ahead, behind = (function(jax.tree.map(lambda x, d, s=s: x + s * d, shared, step)) for s in (1.0, -1.0))
                along = sum((g * d).sum() for g, d in zip(*map(jax.tree.leaves, (gradient, step)), strict=True))
                assert float(along) == pytest.approx(float(ahead - behind) / 2, rel=1e-6, abs=1e-15)
            assert float(gradient["scale"]) != 0
            assert mixed or float(gradient["rows"][0, 1]) == pytest.approx(3 * 1.2**2)


@pytest.mark.parametrize("size", [7, 3])
def test_items_frozen_and_facts_are_constants_in_one_part_and_in_several(size):
    def loss(items, frozen):
        shared = {"scale": jnp.float32(0.7), "rows": jnp.ones((1, 2))}
        sums, facts = parts.means(curved, jnp.asarray(IMAGES), items, shared, frozen, size=size)
        return sums.sum() + facts.sum()

    of_items, of_frozen = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(LABELS, jnp.float32), jnp.float32(2.0))
    assert not np.asarray(of_items).any() and float(of_frozen) == 0

    def fact(images):
        shared = {"scale": jnp.float32(0.7), "rows": jnp.ones((1, 2))}
        return parts.means(curved, images, jnp.asarray(LABELS), shared, 2.0, size=size)[1].sum()

    assert not np.asarray(jax.jit(jax.grad(fact))(jnp.asarray(IMAGES))).any()
