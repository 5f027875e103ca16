"""Random and k-means real images, on blobs whose centres are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import structs
from metadd_jax.evaluation import baselines

MEAN, STD = np.array([0.4], np.float32), np.array([0.2], np.float32)


def dataset_of(images, counts):
    counts = np.array(counts, np.int32)
    arrays = structs.ImageArrays(
        images=np.asarray(images, np.uint8),
        labels=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offsets=(np.cumsum(counts) - counts).astype(np.int32),
        counts=counts,
        mean=MEAN,
        std=STD,
        max_count=int(counts.max()),
    )
    return structs.Dataset("blobs", arrays, arrays, None, tuple(map(str, range(len(counts)))), "")


def blobs():
    """Two classes of 27 pictures (3 x 3 x 1): 9 around each of three grey levels, the fifth exactly on it."""
    levels = [[40, 120, 200], [20, 100, 240]]
    spread = np.arange(-4, 5)[:, None, None, None] * np.ones((1, 3, 3, 1))
    return np.concatenate([level + spread for of_class in levels for level in of_class]), levels


def pixels(synthetic):
    """Back to 0 ... 255: [N], the first pixel of each picture."""
    return np.round((np.asarray(synthetic.images) * STD + MEAN) * 255)[:, 0, 0, 0]


def test_kmeans_finds_the_middle_of_each_blob():
    images, levels = blobs()
    synthetic = baselines.kmeans_real(0, dataset_of(images, [27, 27]), 3)
    assert synthetic.images.shape == (6, 3, 3, 1) and synthetic.images.dtype == np.float32
    np.testing.assert_array_equal(synthetic.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(np.sort(pixels(synthetic)[:3]), levels[0])
    np.testing.assert_array_equal(np.sort(pixels(synthetic)[3:]), levels[1])


def test_kmeans_clusters_what_embed_returns():
    # Modulo 80 the levels 40, 120 and 200 are one blob around 40.
    images, _ = blobs()
    seen = []

    def embed(x):
        seen.append(x.shape)
        grey = (np.asarray(x)[:, 0, 0, :] * STD + MEAN) * 255
        return grey % 80

    synthetic = baselines.kmeans_real(0, dataset_of(images[:27], [27]), 1, embed=embed)
    assert seen == [(27, 3, 3, 1)]
    assert pixels(synthetic)[0] in (40, 120, 200)


def test_kmeans_never_takes_an_image_twice():
    values = np.array([10, 10, 10, 200])[:, None, None, None] * np.ones((1, 2, 2, 1))
    values[1, 0, 0] = 11
    values[2, 1, 1] = 12
    synthetic = baselines.kmeans_real(3, dataset_of(values, [4]), 4)
    assert len(np.unique(np.asarray(synthetic.images), axis=0)) == 4
    features = np.array([[0.0], [1.0], [5.0]], np.float32)
    assert sorted(baselines._nearest_to_centres(baselines._distances(0, features, 3))) == [0, 1, 2]


def test_a_shared_nearest_image_goes_to_the_next(monkeypatch):
    class Centres:
        """Stands in for KMeans: both centres are nearest to row 1, then to row 2."""

        def __init__(self, *args, **kwargs):
            pass

        def fit(self, features):
            return self

        def transform(self, features):
            return np.array([[3.0, 3.0], [0.1, 0.2], [1.0, 0.9]])

    monkeypatch.setattr("sklearn.cluster.KMeans", Centres)
    assert baselines._nearest_to_centres(baselines._distances(0, np.zeros((3, 1)), 2)).tolist() == [1, 2]


def test_the_same_clusters_are_found_once(monkeypatch):
    images, _ = blobs()
    fits, fitted = [], baselines._fitted
    monkeypatch.setattr(baselines, "_known", type(baselines._known)())
    monkeypatch.setattr(baselines, "_fitted", lambda *question: fits.append(question) or fitted(*question))
    dataset = dataset_of(images, [27, 27])
    first = baselines.kmeans_real(0, dataset, 3)
    np.testing.assert_array_equal(first.images, baselines.kmeans_real(0, dataset, 3).images)
    assert len(fits) == 2  # of each class
    baselines.kmeans_real(1, dataset, 3)
    baselines.kmeans_real(0, dataset, 2)
    assert len(fits) == 6
    # Nothing is kept beyond the bound, and what is left answers as before.
    monkeypatch.setattr(baselines, "_KNOWN_BYTES", 27 * 3 * 4)
    np.testing.assert_array_equal(first.images, baselines.kmeans_real(0, dataset, 3).images)
    assert len(baselines._known) <= 1


def test_kmeans_of_a_large_class_uses_a_seeded_part_of_it(monkeypatch):
    monkeypatch.setattr(baselines, "_MOST_IMAGES", 10)
    images, _ = blobs()
    sizes = []
    dataset = dataset_of(images, [27, 27])
    results = []
    for seed in (0, 0, 1, 2):
        embed = lambda x: sizes.append(len(x)) or np.asarray(x).reshape(len(x), -1)  # noqa: E731
        results.append(pixels(baselines.kmeans_real(seed, dataset, 2, embed=embed)))
    assert set(sizes) == {10}
    np.testing.assert_array_equal(results[0], results[1])
    assert len({r.tobytes() for r in results}) > 1


def test_random_real_draws_distinct_images_of_the_right_class(key):
    images = np.arange(30)[:, None, None, None] * np.ones((1, 2, 2, 1))
    dataset = dataset_of(images, [10, 20])
    synthetic = baselines.random_real(key, dataset, 5)
    np.testing.assert_array_equal(synthetic.labels, [0] * 5 + [1] * 5)
    drawn = pixels(synthetic)
    assert len(set(drawn)) == 10
    np.testing.assert_array_equal(drawn >= 10, np.asarray(synthetic.labels) == 1)
    assert not np.array_equal(drawn, pixels(baselines.random_real(jax.random.key(1), dataset, 5)))


@pytest.mark.parametrize("ipc", [0, 11])
def test_ipc_beyond_the_smallest_class_is_refused(key, ipc):
    dataset = dataset_of(np.zeros((30, 2, 2, 1)), [10, 20])
    for draw in (
        lambda: baselines.random_real(key, dataset, ipc),
        lambda: baselines.kmeans_real(0, dataset, ipc),
    ):
        with pytest.raises(ValueError, match={0: "ipc=0 must be", 11: "ipc is 11, but class 0 has 10 images"}[ipc]):
            draw()


def test_each_class_gives_its_own_number_and_a_short_one_repeats(key):
    images = np.array([0, 9, 100, 101, 109, 200, 209])[:, None, None, None] * np.ones((1, 2, 2, 1))
    dataset = dataset_of(images, [2, 5])
    for synthetic in (
        baselines.random_real(key, dataset, (5, 2), repeat=True),
        baselines.kmeans_real(0, dataset, (5, 2), repeat=True),
    ):
        np.testing.assert_array_equal(synthetic.labels, [0] * 5 + [1] * 2)
        drawn = pixels(synthetic)
        assert set(drawn[:2]) == {0, 9} and len(set(drawn[5:])) == 2 and min(drawn[5:]) >= 100
        np.testing.assert_array_equal(drawn[:5], np.resize(drawn[:2], 5))
    assert sorted(drawn[5:] >= 150) == [False, True]  # one of each blob


class Grey:
    """A network that is surest of class 0 in the darkest image and of class 1 in the brightest, ``slope`` times."""

    def __init__(self, slope):
        self.name, self.slope = "grey", slope

    def apply(self, variables, images):
        grey = self.slope * (images.mean(axis=(1, 2, 3)) - variables)
        return jnp.stack([-grey, grey], axis=1), {"embedding": grey[:, None]}


def auxiliary(slope, centre=0.0):
    return structs.Auxiliary(variables=jnp.float32(centre), map_eps={}, net=Grey(slope))


def test_a_consensus_is_the_surest_image_of_each_cluster():
    images, levels = blobs()
    synthetic = baselines.consensus_real(0, dataset_of(images, [27, 27]), 3, [auxiliary(1.0), auxiliary(0.3)])
    np.testing.assert_array_equal(synthetic.labels, [0, 0, 0, 1, 1, 1])
    # Each blob is nine levels wide: its darkest image for class 0, its brightest for class 1.
    np.testing.assert_array_equal(np.sort(pixels(synthetic)[:3]), np.array(levels[0]) - 4)
    np.testing.assert_array_equal(np.sort(pixels(synthetic)[3:]), np.array(levels[1]) + 4)


def test_a_network_that_does_not_see_the_class_has_its_way_and_a_sure_one_leaves_it_to_others():
    # One sees class 0 in what is dark, the other, ten times as steep, in what is bright.
    images, levels = blobs()
    synthetic = baselines.consensus_real(0, dataset_of(images, [27, 27]), 3, [auxiliary(1.0), auxiliary(-10.0)])
    dark, middle, bright = levels[0]
    # In the dark cluster the second sees nothing of the class; in the others it is sure of every image.
    np.testing.assert_array_equal(np.sort(pixels(synthetic)[:3]), [dark + 4, middle - 4, bright - 4])


def test_the_mean_log_probability_is_that_of_numpy():
    images = np.random.default_rng(0).normal(size=(4, 3, 3, 1)).astype(np.float32)
    found = baselines.mean_log_probability((auxiliary(1.0, 0.2), auxiliary(-2.0)), jnp.asarray(images))
    wanted = 0
    for slope, centre in ((1.0, 0.2), (-2.0, 0.0)):
        grey = slope * (images.astype(np.float64).mean(axis=(1, 2, 3)) - centre)
        wanted = wanted - np.log(1 + np.exp([2 * grey, -2 * grey])).T / 2
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_empty_clusters_take_the_surest_that_is_left():
    clusters, scores = np.array([0, 0, 2, 2, 2]), np.array([-1.0, -3.0, -2.0, -0.5, -4.0])
    assert baselines._surest_of_clusters(clusters, scores, 3).tolist() == [0, 3, 2]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_a_consensus_never_takes_an_image_twice_and_repeats_where_it_may():
    values = np.array([10, 10, 10, 200])[:, None, None, None] * np.ones((1, 2, 2, 1))
    dataset = dataset_of(np.concatenate([values, values + 5]), [4, 4])
    synthetic = baselines.consensus_real(3, dataset, 4, [auxiliary(1.0)])
    assert np.bincount(pixels(synthetic)[:4].astype(int))[[10, 200]].tolist() == [3, 1]
    assert len(baselines.consensus_real(3, dataset, (4, 6), [auxiliary(1.0)], repeat=True).images) == 10


def test_a_consensus_of_nobody_is_refused():
    images, _ = blobs()
    with pytest.raises(ValueError, match="needs at least one network"):
        baselines.consensus_real(0, dataset_of(images, [27, 27]), 3, [])
