"""The augmentation of a training by its words: DSA's scheme or DC's older one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from metadd_jax import augment, dc_augment, provenance

_OLDER = "dc_"


def augmentation(
    text: augment.Augmentation,
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """What the words of a training recipe do to a batch.

    Args:
      text: as in ``augment.strategy``, for one op a batch with individual parameters an image; or "dc_" and tokens of
        ``dc_augment.TOKENS`` ("dc_crop_scale_rotate"), for ``dc_augment.augment_each``.

    Returns:
      ``(key, op_key, images, weights) -> images``; ``op_key`` chooses the op of a batch and plays no part in "dc_";
      ``weights`` as in ``augment_each``, and without effect on DSA's ops, which look at one image each.

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
    """The words as they are, or, with tokens of ``augment.register``, the strategy that holds their ops of today.

    So two recipes are equal only if they do the same, also after an op was registered anew.

    Raises:
      ValueError: if a token is unknown.
    """
    if isinstance(text, str) and text.startswith(_OLDER):
        augmentation(text)
        return text
    chosen = augment.strategy(text)
    return chosen if chosen.own else text


def facts(text: augment.Augmentation) -> Any:
    """What decides an augmentation, as JSON for a cache key: words, or numbers and the code of own ops.

    Raises:
      UnknownCodeError: (a ValueError) if it cannot be told what an own op is made of.
    """
    if not isinstance(text, augment.Strategy):
        return text
    values = {field.name: getattr(text, field.name) for field in dataclasses.fields(text)}
    return values | {"own": {token: provenance.code_of(op) for token, op in text.own}}
