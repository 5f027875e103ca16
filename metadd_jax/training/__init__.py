"""Training of networks from scratch: recipes, ``fit``, pre-training with a cache, expert trajectories."""

from metadd_jax.training.experts import expert_folder, expert_training, train_experts
from metadd_jax.training.fitting import count_correct, fit
from metadd_jax.training.guidance import Guidance
from metadd_jax.training.pretrained import Trained, cache_key, measure, pretrain
from metadd_jax.training.protocols import ncfm_evaluation, ncfm_pretraining, rded_evaluation
from metadd_jax.training.recipes import (
    Recipe,
    datm_evaluation,
    dc_evaluation,
    pretraining,
    short_evaluation,
    sre2l_evaluation,
    sre2l_squeeze,
)
from metadd_jax.training.relabel import Committee, committee, prior_weights
from metadd_jax.training.trajectories import Trajectories, device_experts, load_experts

__all__ = [
    "Committee",
    "Guidance",
    "Recipe",
    "Trained",
    "Trajectories",
    "cache_key",
    "committee",
    "count_correct",
    "datm_evaluation",
    "dc_evaluation",
    "device_experts",
    "expert_folder",
    "expert_training",
    "fit",
    "load_experts",
    "measure",
    "ncfm_evaluation",
    "ncfm_pretraining",
    "pretrain",
    "pretraining",
    "prior_weights",
    "rded_evaluation",
    "short_evaluation",
    "sre2l_evaluation",
    "sre2l_squeeze",
    "train_experts",
]
