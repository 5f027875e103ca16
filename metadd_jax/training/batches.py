"""The order of the images, what is done to them, and sums over parts of a batch: functions of keys and arrays alone.

``fit`` trains on these batches and ``relabel.store`` writes a teacher's opinion on the very same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax import augment, keys, parts, transforms
from metadd_jax.training import recipes, views

MIXUP_ALPHA, CUTMIX_ALPHA = 0.8, 1.0  # of the Beta distributions in SRe2L's programs
_CPU_PART = 32


def epoch_order(key: jax.Array, epoch: jax.Array, count: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draws the order of the images in one epoch, cut into batches of which the last is padded.

    Args:
      key: the key of ``fit``.
      epoch: [] int, counted from 0; each epoch has its own order.
      count: number of images.
      batch_size: at most ``count``.

    Returns:
      indices: [steps, batch_size] int32; read row by row, the first ``count`` name each image once.
      weights: [steps, batch_size] float32, 0 for padding and else 1.
    """
    order = jax.random.permutation(jax.random.fold_in(keys.named(key, "order"), epoch), count)
    steps = -(-count // batch_size)
    padding = steps * batch_size - count
    # Padded with real images, so that all numbers stay finite; their weight takes them out of loss and norms.
    indices = jnp.concatenate([order, order[:padding]]).reshape(steps, batch_size)
    weights = (jnp.arange(steps * batch_size) < count).astype(jnp.float32).reshape(steps, batch_size)
    return indices, weights


def view(
    key: jax.Array,
    step: jax.Array,
    images: jax.Array,
    recipe: recipes.Recipe,
    *,
    shared_key: jax.Array,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Computes the view of a batch that the network is trained on: augmentation, then crop and flip, then mixing.

    Args:
      key: the key of ``fit``.
      step: [] int, counted from 0 over all epochs.
      images: [B, H, W, C] float32, zero = the data's mean (what shifted images are filled with).
      recipe: what is done.
      shared_key: chooses the DSA token (see ``fit``).
      weights: [B], 0 for padding, which takes no part in other images: neither in DC's mean colour nor as the partner
        of a mixture. None: all images count.

    Returns:
      [B, H, W, C] float32.
    """
    # By step and not by a split of the key: a teacher's labels can then be stored for any step alone.
    step_key = jax.random.fold_in(keys.named(key, "view"), step)
    op_key = jax.random.fold_in(keys.named(shared_key, "token"), step)
    images = views.augmentation(recipe.augmentation)(step_key, op_key, images, weights)
    crop_key, flip_key, mix_key = (keys.named(step_key, part) for part in ("crop", "flip", "mix"))
    count, height, width, _ = images.shape
    size = (height, width)
    if recipe.crop == "shift":
        crop_keys = jax.random.split(crop_key)
        shift_y, shift_x = (
            jax.random.randint(k, (count,), -(side // 8), side // 8 + 1)
            for k, side in zip(crop_keys, size, strict=True)
        )
        images = augment.crop(images, shift_y, shift_x)
    elif recipe.crop == "resized":
        images = transforms.resized_crop(images, transforms.draw_resized_crop(crop_key, count, size))
    if recipe.flip:
        images = augment.flip(images, jax.random.bernoulli(flip_key, shape=(count,)))
    if recipe.mix == "mixup":
        images = transforms.mix(images, transforms.draw_mixup(mix_key, count, size, MIXUP_ALPHA, weights=weights))
    elif recipe.mix == "cutmix":
        images = transforms.mix(images, transforms.draw_cutmix(mix_key, count, size, CUTMIX_ALPHA, weights=weights))
    return images


def sum_in_parts(function: Callable[[Any], Any], items: Any, *, micro_batch: int | None = None) -> Any:
    """Sum of ``function(part)`` over parts of arrays [n, ...], one after the other: memory is that of one part.

    Args:
      function: from a part of ``items`` to a pytree of sums over it, to which items of zeros add nothing.
      items: pytree of arrays [n, ...]; zeros fill up the last part.
      micro_batch: largest part; None takes all at once, on a CPU 32 (docs/costs.md: what then passes from layer to
        layer stays in its caches).
    """
    size = len(jax.tree.leaves(items)[0])
    micro_batch = micro_batch or (_CPU_PART if jax.default_backend() == "cpu" else size)
    count, share = parts.shares(size, micro_batch)
    if count == 1:
        return function(items)

    def divide(leaf: jax.Array) -> jax.Array:
        return parts.deal(jnp.pad(leaf, ((0, count * share - size), *[(0, 0)] * (leaf.ndim - 1))), count)

    divided = jax.tree.map(divide, items)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, _first(divided)))
    return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, divided)[0]


def _first(items: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], items)
