"""Distillation methods: pure functions behind one contract, and MetaDD, which wraps any of them."""

from metadd_jax.distillers import networks, parameterisations
from metadd_jax.distillers.characteristic_function import NCFM, ncfm
from metadd_jax.distillers.condition import Condition, MeaninglessError, examine
from metadd_jax.distillers.contract import Distiller, LossTerms, init_state, make_update
from metadd_jax.distillers.difficulty_alignment import DATM, DATMTesla, datm
from metadd_jax.distillers.distances import gradient_distance
from metadd_jax.distillers.distribution_matching import DM, dm
from metadd_jax.distillers.gradient_matching import DC, DSA, GradientMatching, dc, dsa
from metadd_jax.distillers.latents import budget, with_rates
from metadd_jax.distillers.meta import metadd
from metadd_jax.distillers.packing import factor
from metadd_jax.distillers.parameterisation import Parameterisation, parameterise, pixels
from metadd_jax.distillers.penalty import penalise
from metadd_jax.distillers.pixel_updates import ncfm_optimiser, recover_optimiser
from metadd_jax.distillers.pulling import pulls
from metadd_jax.distillers.real_training import IDC, idc, idc_optimiser
from metadd_jax.distillers.realism_selection import RDED, rded
from metadd_jax.distillers.registry import Method, get, names, register
from metadd_jax.distillers.run import NotFiniteError, RunConfig, compile_chunks, distil
from metadd_jax.distillers.several import match_all
from metadd_jax.distillers.squeeze_recover import SqueezeRecover, sre2l
from metadd_jax.distillers.starts import start_from
from metadd_jax.distillers.student import TrajectoryMatching, trajectory_optimiser
from metadd_jax.distillers.trajectory_matching import MTT, TESLA, mtt, tesla

__all__ = [
    "DATM",
    "DC",
    "DM",
    "DSA",
    "IDC",
    "MTT",
    "NCFM",
    "RDED",
    "TESLA",
    "Condition",
    "DATMTesla",
    "Distiller",
    "GradientMatching",
    "LossTerms",
    "MeaninglessError",
    "Method",
    "NotFiniteError",
    "Parameterisation",
    "RunConfig",
    "SqueezeRecover",
    "TrajectoryMatching",
    "budget",
    "compile_chunks",
    "datm",
    "dc",
    "distil",
    "dm",
    "dsa",
    "examine",
    "factor",
    "get",
    "gradient_distance",
    "idc",
    "idc_optimiser",
    "init_state",
    "make_update",
    "match_all",
    "metadd",
    "mtt",
    "names",
    "ncfm",
    "ncfm_optimiser",
    "networks",
    "parameterisations",
    "parameterise",
    "penalise",
    "pixels",
    "pulls",
    "rded",
    "recover_optimiser",
    "register",
    "sre2l",
    "start_from",
    "tesla",
    "trajectory_optimiser",
    "with_rates",
]
