"""The augmentation that a recipe names: DSA's scheme, DC's older one, or a user's ``Strategy``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax import augment, dc_augment, provenance

# The schemes share tokens such as "crop", so all but DSA's have a prefix.
OTHERS = _OLDER, _PACKED = "dc_", "idc_"
_ALWAYS = ("color", "flip")  # in IDC's scheme


def augmentation(
    text: augment.Augmentation,
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """Returns the function that augments a batch.

    Args:
      text: as for ``augment.strategy``: one op per batch, individual parameters for each image; or "dc_" and tokens of
        ``dc_augment.TOKENS`` ("dc_crop_scale_rotate"), for ``dc_augment.augment_each``; or "idc_" and DSA's tokens:
        "color" and "flip" act on every image, and of the others each image gets one (IDC's and NCFM's).

    Returns:
      ``(key, op_key, images, weights) -> images``. ``op_key`` chooses the op of a batch; "dc_" does not use it.
      ``weights`` as for ``augment_each``; DSA's ops do not use them, since they look at one image each.

    Raises:
      ValueError: if a token is unknown.
    """
    if isinstance(text, str) and text.startswith(_PACKED):
        chosen = augment.strategy(text.removeprefix(_PACKED))
        # A recipe holds these words and not the ops, so an op that is registered anew would change it unseen.
        if chosen.own:
            raise ValueError(
                f"{text!r} has the token {chosen.own[0][0]!r} of your own; after 'idc_' use those of the package"
            )
        return _always_and_one(chosen)
    if not (isinstance(text, str) and text.startswith(_OLDER)):
        chosen = augment.strategy(text)
        return lambda key, op_key, images, weights: augment.transform(key, images, chosen, siamese=False, op_key=op_key)
    tokens = tuple(text.removeprefix(_OLDER).split("_"))
    unknown = [token for token in tokens if token not in dc_augment.TOKENS]
    if unknown:
        known = ", ".join(dc_augment.TOKENS)
        raise ValueError(f"unknown augmentation {unknown[0]!r} in {text!r}; after 'dc_' use {known}")
    return lambda key, op_key, images, weights: dc_augment.augment_each(key, images, tokens, weights=weights)


def _always_and_one(
    chosen: augment.Strategy,
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]:
    always, *others = (
        dataclasses.replace(chosen, tokens=tokens, mode="M")
        for tokens in (
            tuple(token for token in chosen.tokens if token in _ALWAYS),
            *((token,) for token in chosen.tokens if token not in _ALWAYS),
        )
    )

    def augmented(key: jax.Array, op_key: jax.Array, images: jax.Array, weights: jax.Array | None) -> jax.Array:
        del op_key, weights
        always_key, choice_key, *other_keys = jax.random.split(key, 2 + len(others))
        images = augment.transform(always_key, images, always, siamese=False)
        choice = jax.random.randint(choice_key, (len(images), 1, 1, 1), 0, max(1, len(others)))
        # All of them are computed, and each image keeps one: the choice is that of the image and not of the batch.
        seen = [augment.transform(k, images, other, siamese=False) for k, other in zip(other_keys, others, strict=True)]
        return jax.lax.select_n(jnp.broadcast_to(choice, images.shape), *seen) if seen else images

    return augmented


def settled(text: augment.Augmentation) -> augment.Augmentation:
    """Returns ``text`` as it is, or, with tokens of ``augment.register``, the strategy that holds their present ops.

    So two recipes are equal only if they do the same, even after an op has been registered again.

    Raises:
      ValueError: if a token is unknown.
    """
    if isinstance(text, str) and text.startswith(OTHERS):
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
