"""How a network is trained: every setting of a protocol in one hashable record.

``dc_evaluation`` is the evaluation protocol of the DC family (DC, DSA, DM) to the letter, see its docstring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metadd_jax import augment

OPTIMISERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training protocol.

    Attributes:
      epochs: passes over the set.
      batch_size: images per step; a smaller set is one batch, the last batch of an epoch may be ragged.
      optimiser: "sgd" (momentum; weight decay is added to the gradient) or "adamw" (decoupled decay).
      learning_rate: at the start.
      momentum: of SGD.
      weight_decay: on all parameters.
      schedule: "step" (x 0.1 from epoch ``drop_epoch`` on, momentum restarted there) or "cosine" (to 0).
      drop_epoch: first epoch (from 0) of the lower rate.
      augmentation: DSA tokens joined by "_" (one token per batch, individual parameters per image), "none", or "dc_"
        and DC's own tokens (one per image): see ``augment.training_augmentation``.
    """

    epochs: int
    batch_size: int = 256
    optimiser: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    drop_epoch: int | None = None
    augmentation: str = "none"

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS or self.schedule not in SCHEDULES:
            raise ValueError(
                f"optimiser {self.optimiser!r} must be one of {', '.join(OPTIMISERS)} and schedule "
                f"{self.schedule!r} one of {', '.join(SCHEDULES)}"
            )
        if self.epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"epochs={self.epochs} and batch_size={self.batch_size} must be at least 1 and "
                f"learning_rate={self.learning_rate} above 0"
            )
        augment.training_augmentation(self.augmentation)


def dc_evaluation(epochs: int, *, augmentation: str = "none", learning_rate: float = 0.01) -> Recipe:
    """The DC family's evaluation of a distilled set: SGD momentum 0.9, weight decay 5e-4, batch 256.

    The published loop runs ``epochs`` + 1 passes and multiplies the rate by 0.1 once, after pass number
    ``epochs // 2 + 1`` (counted from 0), where the optimiser is made anew, so its momentum restarts. 300 epochs
    without augmentation, 1000 with DSA and where DC augments (MNIST "dc_crop_scale_rotate", ConvNet with batch norm
    "dc_crop_noise"). The accuracy that counts is that of the last pass.
    """
    return Recipe(
        epochs=epochs + 1,
        learning_rate=learning_rate,
        drop_epoch=epochs // 2 + 2,
        augmentation=augmentation,
    )


def expert_training(epochs: int, *, augmentation: str) -> Recipe:
    """How MTT and TESLA train experts: plain SGD at 0.01 (no momentum, no decay), batch 256; published: 50 epochs, DSA.

    Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (CVPR 2022), and its published code.
    """
    return Recipe(epochs=epochs, momentum=0.0, weight_decay=0.0, augmentation=augmentation)


def short_evaluation(epochs: int, *, augmentation: str = "none") -> Recipe:
    """A recipe for judging on a CPU: AdamW at 2e-3, cosine to 0, batch 256.

    Networks without normalisation (AlexNet, LeNet) hardly leave the start in a few hundred SGD steps at 0.01; this
    brings every network of the zoo to rest on a small set in 100 to 200 passes. Not the published protocol: say which
    one a number comes from.
    """
    return Recipe(epochs=epochs, optimiser="adamw", learning_rate=2e-3, schedule="cosine", augmentation=augmentation)


def pretraining(epochs: int, *, augmentation: str = "none", learning_rate: float = 1e-3) -> Recipe:
    """A recipe that trains every network of the zoo on real images: AdamW, cosine to 0, batch 128."""
    return Recipe(
        epochs=epochs,
        batch_size=128,
        optimiser="adamw",
        learning_rate=learning_rate,
        schedule="cosine",
        augmentation=augmentation,
    )


def direction(recipe: Recipe) -> optax.GradientTransformation:
    """The optimiser without its step size: what is multiplied by -learning rate."""
    if recipe.optimiser == "sgd":
        return optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.trace(recipe.momentum))
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(recipe.weight_decay))


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> Callable[[jax.Array], jax.Array]:
    """Step size as a function of the step number (from 0)."""
    if recipe.schedule == "cosine":
        return optax.cosine_decay_schedule(recipe.learning_rate, recipe.epochs * steps_per_epoch)
    drop = restart_step(recipe, steps_per_epoch)
    return lambda step: jnp.where(step >= drop, 0.1 * recipe.learning_rate, recipe.learning_rate)


def restart_step(recipe: Recipe, steps_per_epoch: int) -> int:
    """The step at which the rate drops and the optimiser starts anew; past the end if it never does."""
    if recipe.schedule == "cosine" or recipe.drop_epoch is None:
        return recipe.epochs * steps_per_epoch
    return recipe.drop_epoch * steps_per_epoch
