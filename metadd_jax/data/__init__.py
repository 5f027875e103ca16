"""Real data: loading, checking, caching, and drawing from it on the device."""

from metadd_jax.data.arrays import from_arrays, stratified_split, to_device
from metadd_jax.data.cache import cache_folder
from metadd_jax.data.catalog import CLASS_NAMES, CONSTANTS, IMAGENET_SUBSETS, Constants, augmentation
from metadd_jax.data.registry import register
from metadd_jax.data.sampling import (
    class_indices,
    images_per_class,
    random_per_class,
    standardise,
    stream_pool,
)
from metadd_jax.data.sources import load
from metadd_jax.data.splits import split_of
from metadd_jax.data.whitening import whiten

__all__ = [
    "CLASS_NAMES",
    "CONSTANTS",
    "IMAGENET_SUBSETS",
    "Constants",
    "augmentation",
    "cache_folder",
    "class_indices",
    "from_arrays",
    "images_per_class",
    "load",
    "random_per_class",
    "register",
    "split_of",
    "standardise",
    "stratified_split",
    "stream_pool",
    "to_device",
    "whiten",
]
