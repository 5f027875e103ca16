"""A small set and its metadata, for every test of this folder."""

import numpy as np

from metadd_jax import structs

MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]
NAMES = ["a cat", "dog/hound"]


def make_set(**fields):
    images = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    return structs.SyntheticSet(images=images, labels=np.array([0, 0, 1, 1], np.int32), **fields)


def metadata(**changes):
    facts = {"mean": MEAN, "std": STD, "class_names": NAMES, "value_space": "standardised", "seed": 3}
    return facts | changes
