"""Means taken part by part against the same taken at once, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import parts

IMAGES = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
LABELS = np.arange(7)


def look(images, labels, weights, scale):
    """Two sums, of scale * label * sin(x) and of cubes, and what each image and label are."""
    each = (scale * labels * jnp.sin(images).sum((1, 2)), (images**3).sum((1, 2)))
    return jnp.stack(each) @ weights, {"squares": jnp.stack(each) ** 2, "labels": labels[None]}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 50])
def test_values_facts_and_gradients_are_those_of_the_whole(size):
    def loss(images):
        sums, facts = parts.means(look, images, jnp.asarray(LABELS), jnp.float32(2.0), size=size)
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

    def watched(images, labels, weights, scale):
        seen.append(len(images))
        return look(images, labels, weights, scale)

    def loss(images):
        return parts.means(watched, images, jnp.asarray(LABELS), jnp.float32(2.0), size=3)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(IMAGES))
    assert program.count("= sin") == 1 and program.count("= cos") == 1
    assert max(seen) == 3
