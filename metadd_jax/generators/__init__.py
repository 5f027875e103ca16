"""Generators of images, whose latents are trained in place of pixels (``distillers.parameterise``)."""

from metadd_jax.generators.siren import Siren

__all__ = ["Siren"]
