"""Judging a distilled set: across architectures, against real images, with paired statistics."""

from metadd_jax.data.splits import split_of
from metadd_jax.evaluation.baselines import consensus_real, kmeans_real, mean_log_probability, random_real
from metadd_jax.evaluation.judging import Row, cross_architecture
from metadd_jax.evaluation.map_agreement import agreement, map_stack
from metadd_jax.evaluation.statistics import paired

__all__ = [
    "Row",
    "agreement",
    "consensus_real",
    "cross_architecture",
    "kmeans_real",
    "map_stack",
    "mean_log_probability",
    "paired",
    "random_real",
    "split_of",
]
