"""Draws: distinct, even, of the right class, padded with weight 0, and traceable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data

COUNTS = (3, 7, 1)
MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.1)


@pytest.fixture(scope="module")
def arrays():
    """Eleven images in three classes of unequal size; every pixel of image i is i, so a draw names itself."""
    labels = np.repeat(np.arange(3), COUNTS)
    images = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 2, 2, 3))
    dataset = data.from_arrays("own", images, labels, images, labels, mean=MEAN, std=STD)
    return dataset.train


def numbers(images, arrays):
    """Which images these are: the inverse of the fixture."""
    pixels = np.asarray(images)[..., 0, 0, 0] * np.asarray(arrays.std)[0] + np.asarray(arrays.mean)[0]
    return np.rint(pixels * 255).astype(int)


def test_standardise_is_the_textbook_formula():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    got = data.standardise(pixels, MEAN, STD)
    expected = (pixels.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_small_class_comes_whole_and_padding_weighs_nothing(key, arrays):
    indices, weights = data.class_indices(key, arrays, 0, 9)  # 9 is above max_count = 7 as well.
    assert indices.dtype == jnp.int32 and weights.dtype == jnp.float32
    np.testing.assert_array_equal(weights, [1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert sorted(np.asarray(indices[:3])) == [0, 1, 2]
    np.testing.assert_array_equal(indices[3:], 0)  # the first image of the class: a place that can be read


def test_last_class_never_points_outside(key, arrays):
    indices, weights = data.class_indices(key, arrays, 2, 5)
    np.testing.assert_array_equal(indices, 10)
    np.testing.assert_array_equal(weights, [1, 0, 0, 0, 0])


def test_every_subset_of_a_class_is_equally_likely(arrays):
    trials = 7000
    keys = jax.random.split(jax.random.key(1), trials)
    indices, weights = jax.jit(jax.vmap(lambda k: data.class_indices(k, arrays, 1, 3)))(keys)
    assert weights.min() == 1
    triples, seen = np.unique(np.sort(np.asarray(indices), axis=1), axis=0, return_counts=True)
    assert len(triples) == 35  # 7 choose 3: all subsets, and no image twice in one.
    assert triples.min() == 3 and triples.max() == 9
    chi_square = ((seen - trials / 35) ** 2 / (trials / 35)).sum()
    assert chi_square < 65  # 34 degrees of freedom: exceeded by chance in 0.1 % of all seeds.
    first = np.bincount(np.asarray(indices)[:, 0] - 3, minlength=7)
    assert ((first - trials / 7) ** 2 / (trials / 7)).sum() < 22.5  # The order is even too: 6 degrees, 0.1 %.


def test_traced_class_under_jit_and_vmap_equals_one_by_one(key, arrays):
    on_device = data.to_device(arrays)
    assert isinstance(on_device.images, jax.Array) and on_device.max_count == 7
    keys = jax.random.split(key, 3)
    draw = jax.jit(jax.vmap(data.class_indices, in_axes=(0, None, 0, None)), static_argnums=3)
    indices, weights = draw(keys, on_device, jnp.arange(3), 4)
    np.testing.assert_array_equal(weights.sum(axis=1), [3, 4, 1])
    for label in range(3):
        alone, alone_weights = data.class_indices(keys[label], arrays, label, 4)
        np.testing.assert_array_equal(indices[label], alone)
        np.testing.assert_array_equal(weights[label], alone_weights)
        np.testing.assert_array_equal(arrays.labels[np.asarray(alone)], label)


def test_random_per_class_is_class_major_and_distinct(key):
    labels = np.repeat(np.arange(3), (5, 4, 6))
    images = np.broadcast_to(np.arange(15, dtype=np.uint8)[:, None, None, None], (15, 2, 2, 3))
    arrays = data.from_arrays("own", images, labels, images, labels, mean=MEAN, std=STD).train
    drawn, drawn_labels = data.random_per_class(key, arrays, 4)
    assert drawn.shape == (12, 2, 2, 3) and drawn_labels.dtype == jnp.int32
    np.testing.assert_array_equal(drawn_labels, np.repeat([0, 1, 2], 4))
    names = numbers(drawn, arrays)
    assert len(set(names)) == 12
    np.testing.assert_array_equal(labels[names], drawn_labels)


def test_a_short_class_repeats_its_images_in_their_order_or_gives_fewer(key, arrays):
    drawn, labels = data.random_per_class(key, arrays, (7, 2, 3), repeat=True)
    np.testing.assert_array_equal(labels, [0] * 7 + [1] * 2 + [2] * 3)
    names = numbers(drawn, arrays)
    assert sorted(names[:3]) == [0, 1, 2] and set(names[7:9]) < set(range(3, 10)) and set(names[9:]) == {10}
    np.testing.assert_array_equal(names[:7], np.resize(names[:3], 7))
    fewer = data.images_per_class(arrays, 5, short_class="fewer")
    assert fewer == (3, 5, 1)
    drawn, labels = data.random_per_class(key, arrays, fewer)
    np.testing.assert_array_equal(labels, [0] * 3 + [1] * 5 + [2])
    names = numbers(drawn, arrays)
    assert len(set(names)) == 9
    np.testing.assert_array_equal(arrays.labels[names], labels)


def test_equal_numbers_draw_what_one_number_draws(key, arrays):
    for one, row in zip(
        data.random_per_class(key, arrays, 2, repeat=True), data.random_per_class(key, arrays, [2, 2, 2], repeat=True),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(one, row)


def test_what_classes_cannot_give_is_refused(key, arrays):
    short = r"ipc is 2, but class 2 has 1 images; lower ipc, or set short_class: repeat .* or fewer"
    for ipc, words in {
        0: "ipc=0 must be a whole number, at least 1",
        2: short,
        (3, 7, 2): short,
        (1, 1): "ipc gives 2 numbers for 3 classes; give one number, or one a class",
        (1, 0, 1): "ipc of class 1=0 must be a whole number, at least 1",
    }.items():
        with pytest.raises(ValueError, match=words):
            data.random_per_class(key, arrays, ipc)
        with pytest.raises(ValueError, match=words):
            data.images_per_class(arrays, ipc)
    with pytest.raises(ValueError, match="short_class='less' must be one of error, repeat, fewer"):
        data.images_per_class(arrays, 1, short_class="less")


def test_pool_is_balanced_fixed_in_shape_and_set_by_seed_and_chunk(arrays):
    pools = [data.stream_pool(arrays, 5, chunk, 4) for chunk in range(20)]
    for pool in pools:
        np.testing.assert_array_equal(pool.counts, [3, 4, 1])
        np.testing.assert_array_equal(pool.offsets, [0, 3, 7])
        np.testing.assert_array_equal(pool.labels, [0, 0, 0, 1, 1, 1, 1, 2])
        assert pool.max_count == 4 and pool.images.dtype == np.uint8
        names = pool.images[:, 0, 0, 0]
        assert len(set(names)) == 8
        np.testing.assert_array_equal(arrays.labels[names], pool.labels)
    structures = {str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), pool)) for pool in pools}
    assert len(structures) == 1
    seen = {int(name) for pool in pools for name in pool.images[:, 0, 0, 0]}
    assert seen == set(range(11))  # Chunks differ, so in time every image comes by.
    np.testing.assert_array_equal(pools[3].images, data.stream_pool(arrays, 5, 3, 4).images)
    assert any((pools[i].images != data.stream_pool(arrays, 6, i, 4).images).any() for i in range(3))


def test_empty_pool_is_refused(arrays):
    with pytest.raises(ValueError, match="per_class is 0"):
        data.stream_pool(arrays, 0, 0, 0)
