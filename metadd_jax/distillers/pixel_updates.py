"""NCFM's optimiser: steps in pixels of [0, 1], whatever space the images are stored in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metadd_jax import ranges
from metadd_jax.ranges import OneOf, Real

UPDATES = ("adamw", "sgd")


def ncfm_optimiser(
    learning_rate: float,
    mean: ArrayLike,
    std: ArrayLike,
    *,
    update: str = "adamw",
    weight_decay: float = 5e-4,
    momentum: float = 0.5,
    patience: int | None = 500,
) -> optax.GradientTransformation:
    """NCFM's optimiser: AdamW or SGD in pixels of [0, 1], halved on a plateau, within what a picture can hold.

    The released program trains pixels, and here they are standardised, x = (p - mean) / std: gradient, step and decay
    are brought to pixels and back. Latents that are no images ([n, H, W, C] with the data's C) train plainly.

    Args:
      learning_rate: .001 as published (AdamW), .01 for "sgd".
      mean, std: [C], the constants that the set is standardised by.
      update: "adamw" or "sgd" (without decay).
      weight_decay: of AdamW, on the pixel: towards black.
      momentum: of "sgd".
      patience: steps without a loss lower by 1e-4 of itself after which the rate is halved; None never does. The
        update must be told the loss, as ``make_update`` does.

    Raises:
      ValueError: for a number out of its range or another ``update``.
    """
    ranges.require("learning_rate", learning_rate, Real(0, above=True))
    ranges.require("update", update, OneOf(UPDATES))
    mean, std = jnp.asarray(mean), jnp.asarray(std)

    def of_pixels(function: Any) -> optax.GradientTransformation:
        """Changes the updates of leaves that are images by ``function(update, leaf)``."""

        def changed(u: jax.Array, leaf: jax.Array) -> jax.Array:
            return function(u, leaf) if leaf.ndim == 4 and leaf.shape[-1] == len(std) else u

        return optax.stateless(lambda updates, params: jax.tree.map(changed, updates, params))

    to_pixels = of_pixels(lambda u, x: u / std)  # dL/dp = dL/dx / std
    if update == "adamw":
        direction = [optax.scale_by_adam(), of_pixels(lambda u, x: u + weight_decay * (x * std + mean))]
    else:
        direction = [optax.trace(momentum)]
    # torch reduces at the first step beyond the patience, optax at the last one of it.
    plateau = [] if patience is None else [_halving(patience + 1)]
    # The program clamps before a step what it changed in the one before: the same, but for the last.
    low, high = -mean / std, (1 - mean) / std
    back = of_pixels(lambda u, x: jnp.clip(x + u / std, low, high) - x)
    return optax.chain(to_pixels, *direction, *plateau, optax.scale(-learning_rate), back)


def _halving(patience: int) -> optax.GradientTransformation:
    """``reduce_on_plateau`` whose first best value is the largest number and not infinity: a state must be finite."""
    plain = optax.contrib.reduce_on_plateau(0.5, patience, rtol=1e-4)

    def init(params: Any) -> Any:
        return plain.init(params)._replace(best_value=jnp.finfo(jnp.float32).max * jnp.ones(()))

    return optax.GradientTransformationExtraArgs(init, plain.update)
