"""Generators of images, whose latents are trained in place of pixels (``distillers.parameterise``)."""

from metadd_jax.generators.glad import resolution_for, stylegan
from metadd_jax.generators.siren import Siren
from metadd_jax.generators.synthesis import Generator

__all__ = ["Generator", "Siren", "resolution_for", "stylegan"]
