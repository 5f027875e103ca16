"""The order of the images and what is done to them: functions of keys and arrays alone.

``fit`` trains on these batches and ``relabel.store`` writes a teacher's opinion on the very same ones.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from metadd_jax import augment, keys, transforms
from metadd_jax.training import recipes, views

MIXUP_ALPHA, CUTMIX_ALPHA = 0.8, 1.0  # of the Beta distributions in SRe2L's programs


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
    """Computes the view of a batch to train on: augmentation, then patches, crop and flip, then mixing.

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
    chex.assert_rank(images, 4)
    # Two keys: what is drawn for each image differs between networks, the token of a step does not (see ``fit``).
    step_key = jax.random.fold_in(keys.named(key, "view"), step)
    op_key = jax.random.fold_in(keys.named(shared_key, "token"), step)
    images = views.augmentation(recipe.augmentation)(step_key, op_key, images, weights)
    crop_key, flip_key = (keys.named(step_key, part) for part in ("crop", "flip"))
    count, height, width, _ = images.shape
    size = (height, width)
    images = transforms.shuffle_patches(keys.named(step_key, "shuffle"), images, recipe.shuffle)
    if recipe.crop == "shift":
        crop_keys = jax.random.split(crop_key)
        shift_y, shift_x = (
            jax.random.randint(k, (count,), -(side // 8), side // 8 + 1)
            for k, side in zip(crop_keys, size, strict=True)
        )
        images = augment.crop(images, shift_y, shift_x)
    elif recipe.crop == "resized":
        box = transforms.draw_resized_crop(crop_key, count, size, scale=recipe.crop_scale)
        images = transforms.resized_crop(images, box)
    if recipe.flip:
        images = augment.flip(images, jax.random.bernoulli(flip_key, shape=(count,)))
    how = mixture(key, step, count, size, recipe, weights=weights)
    return images if how is None else transforms.mix(images, how)


def mixture(
    key: jax.Array,
    step: jax.Array,
    count: int,
    size: tuple[int, int],
    recipe: recipes.Recipe,
    *,
    weights: jax.Array | None = None,
) -> transforms.Mix | None:
    """Draws how ``view`` mixes the batch of a step, for its images and, where there is no teacher, for its labels.

    Args:
      key: the key of ``fit``.
      step: [] int, counted from 0 over all epochs.
      count: images of the batch B.
      size: (H, W) in pixels.
      recipe: what is done.
      weights: [B], 0 for padding, see ``view``.

    Returns:
      The mixture, or None where the recipe mixes nothing.
    """
    if recipe.mix == "none":
        return None
    step_key = jax.random.fold_in(keys.named(key, "view"), step)
    mix_key = keys.named(step_key, "mix")
    if recipe.mix == "mixup":
        how = transforms.draw_mixup(mix_key, count, size, MIXUP_ALPHA, weights=weights)
    else:
        how = transforms.draw_cutmix(mix_key, count, size, CUTMIX_ALPHA, weights=weights)
    if recipe.mix_probability == 1:
        return how
    mixed = jax.random.bernoulli(keys.named(step_key, "mixed"), recipe.mix_probability)
    return how._replace(share=jnp.where(mixed, how.share, 1.0))
