"""Generators of images, whose latents are trained in place of pixels (``distillers.parameterise``)."""

from metadd_jax.generators.autodecoder import AutoDecoding, TrainedGenerator, train_generator
from metadd_jax.generators.decoder import Decoder
from metadd_jax.generators.glad import resolution_for, stylegan
from metadd_jax.generators.siren import Siren
from metadd_jax.generators.styles import Styles, samples, weights_of
from metadd_jax.generators.synthesis import Generator
from metadd_jax.generators.weights import dump, load

__all__ = [
    "AutoDecoding",
    "Decoder",
    "Generator",
    "Siren",
    "Styles",
    "TrainedGenerator",
    "dump",
    "load",
    "resolution_for",
    "samples",
    "stylegan",
    "train_generator",
    "weights_of",
]
