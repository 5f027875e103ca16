"""Training networks from scratch: recipes, one fit, pre-training with a cache."""

from metadd_jax.training.fit import count_correct, fit
from metadd_jax.training.pretrain import Trained, pretrain
from metadd_jax.training.recipes import (
    Recipe,
    dc_evaluation,
    pretraining,
    short_evaluation,
    sre2l_evaluation,
    sre2l_squeeze,
)

__all__ = [
    "Recipe",
    "Trained",
    "count_correct",
    "dc_evaluation",
    "fit",
    "pretrain",
    "pretraining",
    "short_evaluation",
    "sre2l_evaluation",
    "sre2l_squeeze",
]
