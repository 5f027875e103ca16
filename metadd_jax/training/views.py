"""The augmentation that a recipe names: DSA's scheme, DC's older one, or a user's ``Strategy``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from metadd_jax import augment, dc_augment, provenance

# DC's and DSA's schemes both have a "crop", so DC's tokens get a prefix.
_OLDER = "dc_"


def augmentation(
    text: augment.Augmentation,
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """Returns the function that augments a batch.

    Args:
      text: as for ``augment.strategy``: one op per batch, individual parameters for each image; or "dc_" and tokens of
        ``dc_augment.TOKENS`` ("dc_crop_scale_rotate"), for ``dc_augment.augment_each``.

    Returns:
      ``(key, op_key, images, weights) -> images``. ``op_key`` chooses the op of a batch; "dc_" does not use it.
      ``weights`` as for ``augment_each``; DSA's ops do not use them, since they look at one image each.

    Raises:
      ValueError: if a token is unknown.
    """
    if not (isinstance(text, str) and text.startswith(_OLDER)):
        chosen = augment.strategy(text)
        return lambda key, op_key, images, weights: augment.transform(key, images, chosen, siamese=False, op_key=op_key)
    tokens = tuple(text.removeprefix(_OLDER).split("_"))
    unknown = [token for token in tokens if token not in dc_augment.TOKENS]
    if unknown:
        known = ", ".join(dc_augment.TOKENS)
        raise ValueError(f"unknown augmentation {unknown[0]!r} in {text!r}; after 'dc_' use {known}")
    return lambda key, op_key, images, weights: dc_augment.augment_each(key, images, tokens, weights=weights)


def settled(text: augment.Augmentation) -> augment.Augmentation:
    """Returns ``text`` as it is, or, with tokens of ``augment.register``, the strategy that holds their present ops.

    So two recipes are equal only if they do the same, even after an op has been registered again.

    Raises:
      ValueError: if a token is unknown.
    """
    if isinstance(text, str) and text.startswith(_OLDER):
        augmentation(text)  # an unknown token is found when the recipe is made, not when the training begins
        return text
    chosen = augment.strategy(text)
    return chosen if chosen.own else text


def facts(text: augment.Augmentation) -> Any:
    """Returns what decides the augmentation ``text``, as JSON for a cache key: words, or numbers and code of own ops.

    Raises:
      UnknownCodeError: (a ValueError) if the code of an own op cannot be found.
    """
    if not isinstance(text, augment.Strategy):
        return text
    values = {field.name: getattr(text, field.name) for field in dataclasses.fields(text)}
    return values | {"own": {token: provenance.code_of(op) for token, op in text.own}}
