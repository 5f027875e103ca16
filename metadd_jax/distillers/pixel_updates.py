"""Optimisers of pixels that stay within what a picture can hold: NCFM's, whose steps are in [0, 1], and SRe2L's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metadd_jax import ranges
from metadd_jax.ranges import OneOf, Real, Whole

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
      mean: [C], the constant that standardisation subtracts.
      std: [C], the constant that it divides by.
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


def recover_optimiser(
    learning_rate: float, steps: int, mean: ArrayLike, std: ArrayLike
) -> optax.GradientTransformation:
    """SRe2L's optimiser: Adam (betas .5 and .9, eps 1e-8), cosine from ``learning_rate`` to 0 over ``steps`` updates.

    After each update every pixel is clipped to what a picture can hold, [-mean / std, (1 - mean) / std]; latents that
    are no images ([n, H, W, C] with the data's C) are not.

    Args:
      mean: [C], the constant that standardisation subtracts.
      std: [C], the constant that it divides by.

    Raises:
      ValueError: if the rate is not above 0 or there is no step.
    """
    ranges.require("learning_rate", learning_rate, Real(0, above=True))
    ranges.require("steps", steps, Whole(1))
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    # To 0, not to half the rate as in RDED's schedule of the same name; and without warm-up.
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps), b1=0.5, b2=0.9, eps=1e-8)
    # After Adam: the clip belongs to the pixel and must not enter the moments.
    return optax.chain(adam, _stay_within(-mean / std, (1 - mean) / std))


def _stay_within(low: jax.Array, high: jax.Array) -> optax.GradientTransformation:
    """Changes updates so that updated images lie in [low, high]; latents that are no images have no such range."""

    def within(u: jax.Array, p: jax.Array) -> jax.Array:
        # An update that ends on the border, for optax adds updates and cannot clip parameters.
        return jnp.clip(p + u, low, high) - p if p.ndim == 4 and p.shape[-1] == len(low) else u

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(within, updates, params)

    return optax.stateless(update)
