"""Tiny real data, and sets as an author of another program would have them: PyTorch's layout, hard or soft labels."""

import numpy as np

from metadd_jax import data

RNG = np.random.default_rng(7)
NAMES = ["ant", "bee", "cow"]
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]


def real(*, whitened=False, names=NAMES):
    images = RNG.integers(0, 256, (30, 4, 6, 3), np.uint8)
    made = data.from_arrays(
        "pets", images, np.arange(30) % 3, images[:6], np.arange(6) % 3, class_names=names, mean=MEAN, std=STD
    )
    return data.whiten(made) if whitened else made


def images(count=6):
    """[N, C, H, W] float32."""
    return RNG.normal(size=(count, 3, 4, 6)).astype(np.float32)


LABELS = np.array([2, 0, 1, 1, 0, 2])  # not sorted: an importer sorts images with their labels
ORDER = np.argsort(LABELS, kind="stable")


def ours(theirs):
    """What an importer must make of images [N, C, H, W] in the order of ``LABELS``."""
    return np.moveaxis(np.asarray(theirs), 1, -1)[ORDER]
