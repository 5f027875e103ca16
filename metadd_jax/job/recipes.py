"""How networks of a job are trained: the auxiliaries on the real images, and those that judge a set."""

from __future__ import annotations

import dataclasses

from metadd_jax import augment
from metadd_jax.data import catalog
from metadd_jax.job.labels import Labels, read
from metadd_jax.job.options import DistillConfig
from metadd_jax.training import Recipe, recipes


def augmentation(config: DistillConfig, words: augment.Augmentation) -> augment.Augmentation:
    """Puts the data set's own DSA tokens (of ``config.dataset``) in place of ``words`` "auto"."""
    return catalog.augmentation(config.dataset) if words == "auto" else words


def pretraining(config: DistillConfig, *, epochs: int | None = None) -> Recipe:
    """How the networks of the table are trained on the real images, or others for so many ``epochs``."""
    words = augmentation(config, config.pretrain_augmentation)
    return recipes.pretraining(config.pretrain_epochs if epochs is None else epochs, augmentation=words)


def backbone(config: DistillConfig) -> Recipe:
    """How the backbone is: the method may have a teacher of its own."""
    return config.own.backbone_recipe(pretraining(config))


def evaluation(config: DistillConfig, *, per_stored: int = 1) -> Recipe:
    """How judged networks train.

    Args:
      config: the job's settings.
      per_stored: images that one stored image of the set gives; under ``--eval-same-compute`` it is passed over so many
        times less often.
    """
    # Resolved here, by data set: digits are not flipped.
    words = augmentation(config, config.eval_augmentation)
    epochs = max(1, config.eval_epochs // per_stored) if config.eval_same_compute else config.eval_epochs
    recipe = recipes.EVALUATIONS[config.eval_recipe](epochs, augmentation=words)
    return recipe if config.eval_batch is None else dataclasses.replace(recipe, batch_size=config.eval_batch)


def labels(config: DistillConfig) -> Labels:
    """What judged networks learn from; as published where nothing is said.

    Raises:
      ValueError: if ``--eval-labels`` cannot be read.
    """
    if config.eval_labels is not None:
        return read(config.eval_labels)
    return Labels("teacher" if config.eval_recipe in recipes.RELABELLING else "own")


def describe_evaluation(config: DistillConfig) -> str:
    """What judged networks see, in a few words."""
    guided = f", batches of {config.eval_batch}" if config.eval_batch else ""
    guided += ", guided by the backbone trained on the same set (--eval-kd)" if config.eval_kd else ""
    if config.eval_same_compute:
        guided += ", fewer epochs on a packed set: at the same compute"
    if config.eval_recipe in recipes.RELABELLING:
        return f"with views of its own{guided}"
    return f"augmentation {augmentation(config, config.eval_augmentation)}{guided}"
