"""MetaDD in JAX: dataset distillation whose synthetic sets train any architecture."""

from metadd_jax import (
    data,
    distillers,
    evaluation,
    exchange,
    features,
    generators,
    invariant,
    split,
    storage,
    training,
    zoo,
)
from metadd_jax.structs import Auxiliary, Dataset, DistillState, ImageArrays, Split, SyntheticSet

__version__ = "0.2.0"

__all__ = [
    "Auxiliary",
    "Dataset",
    "DistillState",
    "ImageArrays",
    "Split",
    "SyntheticSet",
    "data",
    "distillers",
    "evaluation",
    "exchange",
    "features",
    "generators",
    "invariant",
    "split",
    "storage",
    "training",
    "zoo",
]
