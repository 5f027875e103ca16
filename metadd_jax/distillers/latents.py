"""Latents of a set beside its pixels: what updates them, how many images their storage gives, what a set stores."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from metadd_jax.distillers.parameterisation import Parameterisation, name_of, per_stored


def images_for(parameterisation: Parameterisation, stored: int) -> int:
    """How many images a set has that may store as much as ``stored`` pictures of a class."""
    own = getattr(parameterisation, "images_for", None)
    return per_stored(parameterisation) * stored if own is None else own(stored)


def stored_for(parameterisation: Parameterisation, images: int) -> int:
    """The fewest pictures in whose storage so many images have room: ``images_for`` the other way round."""
    return next(stored for stored in range(1, images + 1) if images_for(parameterisation, stored) >= images)


def with_rates(tx: optax.GradientTransformation, parameterisation: Parameterisation) -> optax.GradientTransformation:
    """Gives latents their own optimiser, or latents that are a dict learning rates as multiples of that of ``tx``.

    The updates of leaf NAME are those of ``tx`` times ``rates[NAME]``, which for every optimiser is its learning rate
    so many times as large: after a momentum or Adam's moments, not before. With an ``optimiser`` that one updates all
    latents, and ``tx`` what is trained beside them. With neither it is ``tx`` itself.

    >>> made = stylegan(...)  # rates = {"w": 0.001}
    >>> tx = with_rates(optax.sgd(10.0, momentum=0.5), made)  # f by 10, w by 0.01

    Args:
      tx: what updates the images, or the latents in their place.
      parameterisation: whose latents; its ``rates`` are numbers above 0 by leaf, 1 where there is none.
    """
    rates, own = getattr(parameterisation, "rates", {}), getattr(parameterisation, "optimiser", None)
    if own is not None:
        return _beside(tx, own)
    if not rates:
        return tx

    def update(updates: Any, state: Any, params: Any = None, **facts: Any) -> tuple[Any, Any]:
        # Facts such as the loss are for those that ask for them.
        updates, state = optax.with_extra_args_support(tx).update(updates, state, params, **facts)
        latents = {name: optax.tree.scale(rates.get(name, 1.0), tree) for name, tree in updates["latents"].items()}
        return {**updates, "latents": latents}, state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _beside(tx: optax.GradientTransformation, own: optax.GradientTransformation) -> optax.GradientTransformation:
    """``own`` for the latents, ``tx`` for all else that a method trains, such as a step size."""

    def apart(tree: Any) -> tuple[Any, Any]:
        return {name: leaf for name, leaf in tree.items() if name != "latents"}, tree["latents"]

    def init(params: Any) -> tuple[Any, Any]:
        rest, latents = apart(params)
        return tx.init(rest), own.init(latents)

    def update(updates: Any, state: Any, params: Any = None, **facts: Any) -> tuple[Any, Any]:
        (rest, latents), (others, values) = apart(updates), apart(params)
        rest, first = optax.with_extra_args_support(tx).update(rest, state[0], others, **facts)
        latents, second = optax.with_extra_args_support(own).update(latents, state[1], values, **facts)
        return {**rest, "latents": latents}, (first, second)

    return optax.GradientTransformationExtraArgs(init, update)


def budget(parameterisation: Parameterisation, latents: Any, labels: jax.Array | np.ndarray) -> dict[str, Any]:
    """Says what a set stores, for its metadata: sets are compared fairly where they store as much.

    Args:
      parameterisation: how the images were made.
      latents: what was trained, ``state.synthetic["latents"]``; for the bare method its images.
      labels: [N] of the decoded images.

    Returns:
      ``parameterisation`` (its name), its own facts (``factor``), ``stored_values`` (numbers that were trained),
      ``stored_values_per_class`` (one number, or a list where classes differ; what classes share is counted by their
      images) and ``frozen_values`` (numbers that decoding needs besides, such as a generator's weights).
    """
    stored, images = (sum(np.size(leaf) for leaf in jax.tree.leaves(tree)) for tree in (latents, labels))
    each = [int(stored * count / images) for count in np.bincount(np.asarray(labels))]
    return {
        "parameterisation": name_of(parameterisation) or "pixels",
        **getattr(parameterisation, "facts", {}),
        "stored_values": stored,
        "stored_values_per_class": each[0] if len(set(each)) == 1 else each,
        "frozen_values": sum(np.size(leaf) for leaf in jax.tree.leaves(parameterisation.frozen)),
    }
