"""Images of unequal classes, divided by class, against plain loops."""

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
