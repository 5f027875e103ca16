"""Real images as baselines, from which sets may start, too: every table of distilled sets needs them.

On foreign architectures real images near k-means centres match or beat most distillation methods (DC-BENCH,
arXiv 2207.09639), so a method that does not beat these rows has gained nothing. Images that several networks are sure
of beat both (docs/laboratory.md).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metadd_jax import features, files, keys, parallel, ranges, structs
from metadd_jax.data import sampling

_MOST_IMAGES = 5_000  # of a class, drawn by seed: bounds the time and memory of k-means
_RESTARTS = 10  # k-means keeps the best of them; one start may end in a poor local minimum
_EMBED_BATCH = 500
_KNOWN_BYTES = 64_000_000  # of clusterings; CIFAR-10's ten at 10 images per class are 2 MB
_known: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()


def random_real(
    key: jax.Array, dataset: structs.Dataset, ipc: int | Sequence[int], *, repeat: bool = False
) -> structs.SyntheticSet:
    """Draws ``ipc`` distinct real images of each class, uniformly.

    Args:
      key: typed PRNG key.
      dataset: real images; the training split is used.
      ipc: images of each class, one number for all classes or one per class in the order of the labels.
      repeat: whether a class with fewer images gives all of them, again and again.

    Returns:
      A set of K * ipc standardised images, class-major, with hard labels.

    Raises:
      ValueError: if a class has fewer than ``ipc`` images and may not repeat them.
    """
    images, labels = sampling.random_per_class(key, dataset.train, ipc, repeat=repeat)
    return structs.SyntheticSet(images, labels)


def kmeans_real(
    seed: int,
    dataset: structs.Dataset,
    ipc: int | Sequence[int],
    *,
    repeat: bool = False,
    embed: Callable[[jax.Array], ArrayLike] | None = None,
) -> structs.SyntheticSet:
    """Takes the distinct real images nearest to ``ipc`` k-means centres of each class.

    Args:
      seed: of the starting centres, and of the 5,000 images taken from a larger class; 0 to 2^32 - 1.
      dataset: real images; the training split is used.
      ipc: centres of each class, one number for all classes or one per class in the order of the labels.
      repeat: whether a class with fewer images gives all of them, again and again.
      embed: maps standardised images [B, H, W, C] to the embeddings [B, D] to cluster; default: the pixels, so that
        the baseline depends on no network.

    Returns:
      A set of K * ipc standardised images, class-major; inside a class in the order of the centres.

    Raises:
      ValueError: if a class has fewer than ``ipc`` images and may not repeat them.
    """

    def nearest(rows: np.ndarray, label: int, count: int) -> np.ndarray:
        del label
        return _nearest_to_centres(_distances(seed, _features(dataset.train, rows, embed), count))

    return _of_each_class(seed, dataset, ipc, nearest, repeat=repeat)


def consensus_real(
    seed: int,
    dataset: structs.Dataset,
    ipc: int | Sequence[int],
    auxiliaries: Sequence[structs.Auxiliary],
    *,
    repeat: bool = False,
) -> structs.SyntheticSet:
    """Takes from each k-means cluster of a class's pixels the real image that all networks together are surest of.

    An image x of class y scores s(x) = 1/M sum_m log p_m(y | x). One network that does not see the class in it pulls it
    down without bound, so that what is taken shows what all of them see: meta features, of whole images. RDED (arXiv
    2312.03526) ranks crops by one network's cross-entropy; the clusters keep a class from being ten views of one thing.

    Args:
      seed: of the clusters, as in ``kmeans_real``.
      dataset: real images; the training split is used, on which the networks may have learned.
      ipc: clusters of each class, one number for all classes or one per class in the order of the labels.
      auxiliaries: the M networks, frozen (``features.freeze``).
      repeat: as in ``kmeans_real``.

    Returns:
      A set of K * ipc standardised images, class-major; inside a class in the order of the centres.

    Raises:
      ValueError: without a network, or if a class has fewer than ``ipc`` images and may not repeat them.
    """
    if not auxiliaries:
        raise ValueError("a consensus needs at least one network that looks at the images; give auxiliaries")
    see = parallel.jit(mean_log_probability)
    batch = min(_EMBED_BATCH, dataset.train.max_count)

    def score(images: np.ndarray) -> np.ndarray:
        # Filled up with empty images: one program, however many images each class has.
        filled = np.zeros((batch, *images.shape[1:]), np.float32)
        filled[: len(images)] = images
        return np.asarray(see(tuple(auxiliaries), filled))[: len(images)]

    def surest(rows: np.ndarray, label: int, count: int) -> np.ndarray:
        distances = _distances(seed, _features(dataset.train, rows, None), count)
        scores = _features(dataset.train, rows, score)[:, label]
        return _surest_of_clusters(distances.argmin(axis=1), scores, count)

    return _of_each_class(seed, dataset, ipc, surest, repeat=repeat)


def mean_log_probability(auxiliaries: Sequence[structs.Auxiliary], images: jax.Array) -> jax.Array:
    """Computes how sure the networks are of each class in each image: 1/M sum_m log p_m(y | x).

    Args:
      auxiliaries: M >= 1 networks.
      images: [B, H, W, C] in the set's value space.

    Returns:
      [B, K] float32, at most 0; far below where one network does not see the class.
    """
    chex.assert_rank(images, 4)
    labels = jnp.zeros(len(images), jnp.int32)  # of no map
    sights = [features.observe(auxiliary, images, labels, maps=False) for auxiliary in auxiliaries]
    # In float32, since the logits of a network that computes in bfloat16 are rounded to three digits.
    every = [jax.nn.log_softmax(sight.logits.astype(jnp.float32)) for sight in sights]
    return jnp.mean(jnp.stack(every), axis=0)


def _of_each_class(
    seed: int,
    dataset: structs.Dataset,
    ipc: int | Sequence[int],
    choose: Callable[[np.ndarray, int, int], np.ndarray],
    *,
    repeat: bool,
) -> structs.SyntheticSet:
    """The set of what ``choose(rows, label, count)`` takes of each class: places in ``rows``, the class's images."""
    ranges.require("seed", seed, ranges.Whole(0, ranges.SEEDS - 1))
    arrays = dataset.train
    counts, offsets = np.asarray(arrays.counts), np.asarray(arrays.offsets)
    wanted = sampling.images_per_class(arrays, ipc, short_class="repeat" if repeat else "error")
    chosen = []
    for label, (offset, count, own) in enumerate(zip(offsets, counts, wanted, strict=True)):
        rows = offset + np.arange(count)
        # Sorted, so that the images reach k-means in the order of the data set, whatever the draw.
        if count > max(_MOST_IMAGES, own):
            generator = keys.generator("kmeans", seed, label)
            rows = np.sort(generator.choice(rows, max(_MOST_IMAGES, own), replace=False))
        chosen.append(rows[np.resize(choose(rows, label, min(own, len(rows))), own)])
    images = sampling.standardise(arrays.images[np.concatenate(chosen)], arrays.mean, arrays.std)
    return structs.SyntheticSet(images, np.repeat(np.arange(len(counts), dtype=np.int32), wanted))


def _features(arrays: structs.ImageArrays, rows: np.ndarray, embed: Callable | None) -> np.ndarray:
    """The features to cluster, [len(rows), D] float32, computed in batches to bound the memory of ``embed``."""
    batches = []
    for start in range(0, len(rows), _EMBED_BATCH):
        images = arrays.images[rows[start : start + _EMBED_BATCH]]
        images = sampling.standardise(images, arrays.mean, arrays.std)
        features = images.reshape(len(images), -1) if embed is None else embed(images)
        batches.append(np.asarray(features, np.float32))
    return np.concatenate(batches)


def _distances(seed: int, features: np.ndarray, ipc: int) -> np.ndarray:
    """[n, ipc], of n rows of ``features`` to the centres that k-means finds; of the very same question the answer."""
    # A row of the table, the start of a set and the sets of a study ask it again and again (10 s each on CIFAR-10).
    question = (seed, ipc, files.hash_arrays(features))
    if question not in _known:
        _known[question] = _fitted(seed, features, ipc)
    _known.move_to_end(question)
    answer = _known[question].copy()
    while sum(distances.nbytes for distances in _known.values()) > _KNOWN_BYTES:
        _known.popitem(last=False)
    return answer


def _fitted(seed: int, features: np.ndarray, ipc: int) -> np.ndarray:
    try:
        import threadpoolctl  # a dependency of scikit-learn
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ValueError("k-means needs scikit-learn; run: pip install 'metadd_jax[experiments]'") from error

    # One thread: sums in a fixed order, so equal seeds give equal images; and threads that spin beside other
    # work on the machine made it 10 times slower (500 digits, 10 centres: 4.3 against 0.5 s).
    with threadpoolctl.threadpool_limits(1):
        return KMeans(ipc, n_init=_RESTARTS, random_state=seed).fit(features).transform(features)


def _nearest_to_centres(distances: np.ndarray) -> np.ndarray:
    """[ipc] distinct rows of ``distances`` [n, ipc]: for each centre in turn the nearest row that is not taken yet."""
    # Greedy, so that no image stands for two centres: at one image per cluster the nearest may be shared.
    chosen: list[int] = []
    for centre in range(distances.shape[1]):
        distances[chosen, centre] = np.inf
        chosen.append(int(distances[:, centre].argmin()))
    return np.array(chosen)


def _surest_of_clusters(clusters: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """[count] distinct rows: of each cluster the one of the largest score; for an empty one the surest that is left."""
    left = scores.astype(np.float64)
    chosen: list[int] = []
    for cluster in range(count):
        inside = np.where(clusters == cluster, left, -np.inf)
        # Fewer distinct images than clusters leave clusters without any.
        chosen.append(int((inside if np.isfinite(inside).any() else left).argmax()))
        left[chosen[-1]] = -np.inf
    return np.array(chosen)
