"""The architecture-invariant loss: its terms, their settings, and their weighted sum."""

from metadd_jax.invariant.controls import CONTROLS
from metadd_jax.invariant.equipment import equip, stand_in
from metadd_jax.invariant.focus import focus_on_meta, focus_weights, weigh_gradient
from metadd_jax.invariant.further import check_further, drift, own_params, train_further, with_params
from metadd_jax.invariant.looking import check_networks, draw_networks, look
from metadd_jax.invariant.loss import invariant_loss, invariant_terms
from metadd_jax.invariant.settings import FOCUS_MASKS, PROJECT, WEIGHTING, InvariantConfig
from metadd_jax.invariant.terms import (
    POSITIVITY,
    TERMS,
    Seen,
    Term,
    Values,
    as_term,
    cross_entropy,
    divergence,
    l_ai,
    l_pos,
    l_var,
    margin,
    positivity,
    register,
    variance,
)

__all__ = [
    "CONTROLS",
    "FOCUS_MASKS",
    "POSITIVITY",
    "PROJECT",
    "TERMS",
    "WEIGHTING",
    "InvariantConfig",
    "Seen",
    "Term",
    "Values",
    "as_term",
    "check_further",
    "check_networks",
    "cross_entropy",
    "divergence",
    "draw_networks",
    "drift",
    "equip",
    "focus_on_meta",
    "focus_weights",
    "invariant_loss",
    "invariant_terms",
    "l_ai",
    "l_pos",
    "l_var",
    "look",
    "margin",
    "own_params",
    "positivity",
    "register",
    "stand_in",
    "train_further",
    "variance",
    "weigh_gradient",
    "with_params",
]
