"""Real images as baselines: every table of distilled sets needs them.

On foreign architectures real images near k-means centres match or beat most distillation methods (DC-BENCH,
arXiv 2207.09639), so a method that does not beat these rows has gained nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from metadd_jax import keys, ranges, structs
from metadd_jax.data import sampling

_MOST_IMAGES = 5_000  # of a class, drawn by seed: bounds the time and memory of k-means
_RESTARTS = 10  # k-means keeps the best of them; one start may end in a poor local minimum
_EMBED_BATCH = 500


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
        nearest = _nearest_to_centres(seed, _features(arrays, rows, embed), min(own, len(rows)))
        chosen.append(rows[np.resize(nearest, own)])
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


def _nearest_to_centres(seed: int, features: np.ndarray, ipc: int) -> np.ndarray:
    """[ipc] distinct rows of ``features``: for each centre in turn the nearest row that is not taken yet."""
    try:
        import threadpoolctl  # a dependency of scikit-learn
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ValueError("k-means needs scikit-learn; run: pip install 'metadd_jax[experiments]'") from error

    # One thread: sums in a fixed order, so equal seeds give equal images; and threads that spin beside other
    # work on the machine made it 10 times slower (500 digits, 10 centres: 4.3 against 0.5 s).
    with threadpoolctl.threadpool_limits(1):
        distances = KMeans(ipc, n_init=_RESTARTS, random_state=seed).fit(features).transform(features)  # [n, ipc]
    # Greedy, so that no image stands for two centres: at one image per cluster the nearest may be shared.
    chosen: list[int] = []
    for centre in range(ipc):
        distances[chosen, centre] = np.inf
        chosen.append(int(distances[:, centre].argmin()))
    return np.array(chosen)
