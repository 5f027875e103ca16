"""Images of unequal classes, divided and added up, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax.distillers import class_images

COUNTS = {"unequal": (1, 3, 2), "equal": (2, 2, 2)}


@pytest.fixture(params=COUNTS)
def counts(request):
    return COUNTS[request.param]


def own(values, counts, label):
    start = sum(counts[:label])
    return values[start : start + counts[label]]


def test_dividing_by_class_fills_up_with_a_classs_own_and_comes_back(counts):
    values = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)
    divided, shares = class_images.by_class(jnp.asarray(values), counts), class_images.shares(counts)
    assert divided.shape == (3, max(counts), 2, 5)
    for label in range(3):
        alone = own(values, counts, label)
        np.testing.assert_array_equal(divided[label, : len(alone)], alone)
        for filling in divided[label, len(alone) :]:
            np.testing.assert_array_equal(filling, alone[0])
        mean = class_images.mean(divided[label], None if shares is None else shares[label])
        np.testing.assert_allclose(mean, alone.astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(class_images.in_a_row(divided, counts), values)
    np.testing.assert_array_equal(class_images.labels_of(counts), np.repeat([0, 1, 2], counts))


@pytest.mark.parametrize("class_batch", [1, 2])
def test_the_sum_over_classes_and_all_its_gradients_are_those_of_a_loop(counts, class_batch):
    rng = np.random.default_rng(1)
    images, factors, shared = rng.normal(size=(6, 2, 2, 1)), rng.normal(size=3), rng.normal(size=(2, 2, 1))

    def distance(mean, factor, shared):
        return jnp.sum((jnp.tanh(mean * shared) - factor) ** 2)

    def together(images, factors, shared):
        def of_class(images, item, shared):
            factor, label, share = item
            return (1 + label) * distance(class_images.mean(jnp.sin(images), share), factor, shared)

        divided = class_images.by_class(images, counts)
        items = (factors, jnp.arange(3), class_images.shares(counts))
        return class_images.sum_over_classes(of_class, divided, items, shared, class_batch=class_batch)

    def looped(images, factors, shared):
        means = [jnp.sin(own(images, counts, label)).mean(axis=0) for label in range(3)]
        return sum((1 + label) * distance(means[label], factors[label], shared) for label in range(3))

    with jax.enable_x64():
        arguments = [jnp.asarray(leaf) for leaf in (images, factors, shared)]
        for wanted in (0, (0, 1, 2)):
            value, slopes = jax.value_and_grad(together, argnums=wanted)(*arguments)
            expected, true = jax.value_and_grad(looped, argnums=wanted)(*arguments)
            assert float(value) == pytest.approx(float(expected), rel=1e-6)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), slopes, true)
