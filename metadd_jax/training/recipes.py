"""Training protocols: all settings of one in a hashable record, and the published ones by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp
import optax

from metadd_jax import augment, provenance, transforms
from metadd_jax.ranges import Each, OneOf, Real, Text, Whole, check
from metadd_jax.training import views

OPTIMISERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine", "half_cosine", "drops")
CROPS = ("none", "shift", "resized")
MIXES = ("none", "mixup", "cutmix")
TEACHER_MODES = ("evaluation", "training")
# The settings of the step itself: an optax transformation has its own, so they must stay at their defaults beside it.
STEP_SETTINGS = (
    "learning_rate",
    "momentum",
    "weight_decay",
    "schedule",
    "drop_epoch",
    "drops",
    "drop_factor",
    "warmup_epochs",
    "decay_vectors",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training protocol.

    Attributes:
      epochs: passes over the set.
      batch_size: images per step; a smaller set is one batch, the last batch of an epoch may be smaller.
      optimiser: "sgd" (momentum; weight decay is added to the gradient), "adamw" (decoupled decay), or any optax
        transformation. That is the whole step, its size and schedule included (``optax.adam(1e-3)``), so what says so
        here (``STEP_SETTINGS``) must stand at its default beside it.
      learning_rate: step size at the start, above 0.
      momentum: of SGD, 0 to below 1.
      weight_decay: at least 0, on all parameters or on those that ``decay_vectors`` says.
      schedule: "step" (x 0.1 from epoch ``drop_epoch`` on, momentum restarted there), "cosine" (to 0), "half_cosine"
        (the first half of a cosine, which ends at one half of the rate: RDED's) or "drops" (see there).
      drop_epoch: first epoch (from 0) of the lower rate.
      drops: shares of the epochs, 0 to 1, from each of which on the rate is multiplied by ``drop_factor`` once more;
        the momentum goes on.
      drop_factor: above 0.
      augmentation: DSA tokens joined by "_" (one token per batch, individual parameters per image), "none", or "dc_"
        and DC's own tokens (one per image): see ``views.augmentation``. An ``augment.Strategy`` serves too, and words
        with tokens of ``augment.register`` become one.
      warmup_epochs: the step size grows linearly over these, the cosine falls over the rest.
      crop: of each image: "none", "shift" (by up to an eighth of the side, as a crop of 32 from 32 + 2 * 4 pixels; what
        is missing becomes the data's mean) or "resized" (``transforms.draw_resized_crop``).
      crop_scale: lowest and highest share of the area of a resized crop, 0 to 1.
      flip: mirror each image with probability 1/2.
      shuffle: cut each image into so many rows and columns of patches, and permute the columns and the rows; 1 leaves
        it.
      mix: mix each batch with itself: "none", "mixup" (Beta(.8, .8)) or "cutmix" (Beta(1, 1)). Labels are mixed in
        the shares of the pixels; a teacher labels the mixture itself.
      mix_probability: share of the batches that are mixed.
      temperature: T of the softmax of teacher and student where a teacher gives the labels, above 0.
      temperature_squared: whether the loss against a teacher's labels is multiplied by ``temperature`` squared, which
        keeps its gradient at the size that it has at temperature 1. Without it SGD needs a far larger step size.
      teacher_mode: batch norm of the teacher uses its running statistics ("evaluation") or the batch's ("training").
      decay_vectors: whether parameters of one axis (biases, scales of norms) decay too.
      rho: radius of adaptive GSAM (see ``sharpness``), which takes each gradient a second time; 0 leaves it out.
      rho_alpha: alpha of GSAM, at least 0.

    Raises:
      ValueError: if a setting is out of its range, or two do not go together.
    """

    epochs: Annotated[int, Whole(1)]
    batch_size: Annotated[int, Whole(1)] = 256
    optimiser: Annotated[str | optax.GradientTransformation, OneOf(OPTIMISERS)] = "sgd"
    learning_rate: Annotated[float, Real(0, above=True)] = 0.01
    momentum: Annotated[float, Real(0, 1, below=True)] = 0.9
    weight_decay: Annotated[float, Real(0)] = 5e-4
    schedule: Annotated[str, OneOf(SCHEDULES)] = "step"
    drop_epoch: Annotated[int | None, Whole(0)] = None
    drops: Annotated[tuple[float, ...], Each(Real(0, 1))] = ()
    drop_factor: Annotated[float, Real(0, above=True)] = 0.1
    augmentation: Annotated[augment.Augmentation, Text("views.augmentation")] = "none"
    warmup_epochs: Annotated[int, Whole(0)] = 0
    crop: Annotated[str, OneOf(CROPS)] = "none"
    crop_scale: Annotated[tuple[float, float], Each(Real(0, 1, above=True))] = transforms.SCALE
    flip: bool = False
    shuffle: Annotated[int, Whole(1)] = 1
    mix: Annotated[str, OneOf(MIXES)] = "none"
    mix_probability: Annotated[float, Real(0, 1)] = 1.0
    temperature: Annotated[float, Real(0, above=True)] = 1.0
    temperature_squared: bool = False
    teacher_mode: Annotated[str, OneOf(TEACHER_MODES)] = "evaluation"
    decay_vectors: bool = True
    rho: Annotated[float, Real(0)] = 0.0
    rho_alpha: Annotated[float, Real(0)] = 0.0

    def __post_init__(self) -> None:
        check(self)
        if self.warmup_epochs >= self.epochs or (self.warmup_epochs and self.schedule != "cosine"):
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} with schedule {self.schedule!r} and epochs={self.epochs}: give 0, "
                "or fewer than the epochs of a cosine"
            )
        if len(self.crop_scale) != 2 or self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale={self.crop_scale} must be two shares of the area, the lower one first")
        # Equal recipes must train alike: a compiled program and a cached network are found by them.
        object.__setattr__(self, "augmentation", views.settled(self.augmentation))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(self.optimiser, str) and field.name in STEP_SETTINGS and value != field.default:
                raise ValueError(
                    f"{field.name}={value!r} plays no part beside an optax transformation, which is the whole step; "
                    f"leave it at {field.default!r} and build it into the transformation"
                )


def dc_evaluation(epochs: int, *, augmentation: augment.Augmentation = "none", learning_rate: float = 0.01) -> Recipe:
    """Returns the DC family's evaluation of a distilled set: SGD momentum 0.9, weight decay 5e-4, batch 256.

    The loop of the released programs (DC, DSA, DM, MTT) runs ``epochs`` + 1 passes and multiplies the step size by 0.1
    once, after pass number ``epochs // 2 + 1`` (counted from 0), where the optimiser is created again, so its momentum
    restarts. The accuracy that counts is that of the last pass.

    Args:
      epochs: as published 300 without augmentation, 1000 with DSA and where DC augments.
      augmentation: "none", DSA's tokens, or DC's own: "dc_crop_scale_rotate" on MNIST, "dc_crop_noise" for a ConvNet
        with batch norm.
      learning_rate: 0.01 for DC, DSA and DM; MTT and TESLA learn one with the set.
    """
    return Recipe(
        epochs=epochs + 1,
        learning_rate=learning_rate,
        drop_epoch=epochs // 2 + 2,  # after pass number epochs // 2 + 1
        augmentation=augmentation,
    )


def datm_evaluation(epochs: int, *, augmentation: augment.Augmentation = "none") -> Recipe:
    """Returns DATM's evaluation: that of the DC family in batches of 128.

    A set brings its learned step size, which takes the place of the recipe's, and its labels (soft ones by
    cross-entropy). Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching" (ICLR
    2024), and its released program.

    Args:
      epochs: as published 1000 (and one pass more, see ``dc_evaluation``).
      augmentation: as for ``Recipe``; DSA's as published.
    """
    return dataclasses.replace(dc_evaluation(epochs, augmentation=augmentation), batch_size=128)


def short_evaluation(epochs: int, *, augmentation: augment.Augmentation = "none") -> Recipe:
    """Returns a short recipe for judging sets on a CPU: AdamW at 2e-3, cosine to 0, batch 256.

    Networks without norm (AlexNet, LeNet) hardly change in a few hundred SGD steps at 0.01. With this recipe every
    network of the zoo converges on a small set in 100 to 200 passes. It is not the published protocol: report which one
    a number comes from.

    Args:
      epochs: passes over the set.
      augmentation: as for ``Recipe``.
    """
    return Recipe(epochs=epochs, optimiser="adamw", learning_rate=2e-3, schedule="cosine", augmentation=augmentation)


def pretraining(epochs: int, *, augmentation: augment.Augmentation = "none", learning_rate: float = 1e-3) -> Recipe:
    """Returns a recipe that trains every network of the zoo on real images: AdamW, cosine to 0, batch 128.

    Args:
      epochs: passes over the training split.
      augmentation: as for ``Recipe``.
      learning_rate: step size at the start.
    """
    return Recipe(
        epochs=epochs,
        batch_size=128,
        optimiser="adamw",
        learning_rate=learning_rate,
        schedule="cosine",
        augmentation=augmentation,
    )


# github.com/zeyuanyin/tiny-imagenet trains teacher and student alike, but for the number of epochs.
_TINY = Recipe(
    epochs=50,
    batch_size=256,
    learning_rate=0.2,
    weight_decay=1e-4,
    schedule="cosine",
    warmup_epochs=5,
    crop="resized",
    flip=True,
)


def sre2l_squeeze(data: str) -> Recipe:
    """Returns SRe2L's training of its teacher, a resnet18_bn: SGD, momentum 0.9, cosine to 0.

    Yin, Xing and Shen, arXiv 2306.13092, and its released programs.

    Args:
      data: "cifar" (0.1, decay 5e-4, 200 epochs, batch 128, shifts and flips) or "tiny" (0.2, decay 1e-4, 50 epochs of
        which 5 warm up, batch 256; resized crops and flips as in its recovery). On ImageNet the teacher is
        torchvision's ResNet18, see ``distillers.sre2l``.

    Raises:
      ValueError: for other data.
    """
    recipes = {
        "cifar": Recipe(epochs=200, batch_size=128, learning_rate=0.1, crop="shift", flip=True, schedule="cosine"),
        "tiny": _TINY,
    }
    return _named(recipes, data)


_CIFAR = Recipe(
    epochs=400,
    batch_size=128,
    optimiser="adamw",
    learning_rate=1e-3,
    weight_decay=0.01,
    schedule="cosine",
    crop="shift",
    flip=True,
    mix="mixup",
    temperature=30.0,
    decay_vectors=False,
)
_CUT = dataclasses.replace(_CIFAR, batch_size=256, crop="resized", mix="cutmix", temperature=20.0)
_SRE2L_EVALUATIONS = {
    "cifar": _CIFAR,
    "cifar_code": dataclasses.replace(_CIFAR, teacher_mode="training", decay_vectors=True),
    # T^2 = 400, as code and log of the program have it: without it SGD at this step size learns nothing (on digits
    # 9.5 % against 72.1 %, docs/methods.md).
    "tiny": dataclasses.replace(_TINY, epochs=100, temperature=20.0, temperature_squared=True),
    "tiny_ddranking": dataclasses.replace(_CUT, decay_vectors=True),
    "imagenet": dataclasses.replace(_CUT, epochs=300, batch_size=1024),
}


def sre2l_evaluation(data: str) -> Recipe:
    """Returns SRe2L's training on a recovered set with the labels of a teacher (``fit(..., teacher=...)``).

    Two differences: the released loops change the step size once per epoch, here it changes with every step; shifted
    images are filled with the data's mean, there with black.

    Args:
      data: one of

        * "cifar": AdamW at 1e-3, decay .01 but for vectors, 400 epochs, batch 128, shifts, flips, mixup, T = 30;
        * "cifar_code": the same as in the released program: its teacher stays in training mode, so that its batch
          norm uses the statistics of the mixed batch, and vectors decay too;
        * "tiny": SGD at .2, decay 1e-4, 100 epochs of which 5 warm up, batch 256, resized crops, flips, T = 20, the
          loss times T^2 (github.com/zeyuanyin/tiny-imagenet, ``train_kd.py``);
        * "tiny_ddranking": DD-Ranking's evaluation of SRe2L there: AdamW at 1e-3, decay .01, 400 epochs, batch 256,
          resized crops, flips, cutmix, T = 20;
        * "imagenet": AdamW as for "cifar", 300 epochs, batch 1024, resized crops, flips, cutmix, T = 20.

    Raises:
      ValueError: for other data.
    """
    return _named(_SRE2L_EVALUATIONS, data)


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe for another number of epochs, which its warm-up must leave some of.

    Args:
      recipe: a protocol.
      epochs: passes over the set, at least 1.
    """
    return dataclasses.replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs - 1))


def _relabelled(data: str, epochs: int, *, augmentation: augment.Augmentation = "none") -> Recipe:
    """SRe2L's way to judge, for another number of epochs; it has views of its own, so ``augmentation`` is left out."""
    del augmentation
    return shortened(sre2l_evaluation(data), epochs)


EVALUATIONS: dict[str, Callable[..., Recipe]] = {
    "short": short_evaluation,
    "dc": dc_evaluation,
    "datm": datm_evaluation,
    **{f"sre2l_{data}": functools.partial(_relabelled, data) for data in _SRE2L_EVALUATIONS},
}
"""How judged networks train, by name: ``(epochs, *, augmentation) -> Recipe``; ``protocols`` adds newer ones."""
RELABELLING = {f"sre2l_{data}" for data in _SRE2L_EVALUATIONS}
"""Those whose published labels are a teacher's; ``protocols`` adds newer ones."""


def _named(recipes: dict[str, Recipe], data: str) -> Recipe:
    if data not in recipes:
        raise ValueError(f"no published recipe for {data!r}; use one of {', '.join(recipes)}")
    return recipes[data]


def facts(recipe: Recipe) -> dict[str, Any]:
    """Returns every setting of ``recipe`` as JSON, for a cache key.

    An optax transformation has no name and no settings to read. It is made of functions that hold its numbers, so its
    hash is that of their code (``provenance.code_of``), which is the same at every start. So are own augmentations.

    Raises:
      UnknownCodeError: (a ValueError) if the code of one of them cannot be found.
    """
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    if not isinstance(recipe.optimiser, str):
        values["optimiser"] = provenance.code_of(recipe.optimiser)
    # Rows as lists, as JSON gives them back: a manifest is compared with this.
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return values | {"augmentation": views.facts(recipe.augmentation)}


def direction(recipe: Recipe) -> optax.GradientTransformation:
    """Returns the optimiser of ``recipe`` without its step size, to be multiplied by -``learning_rate``.

    Apart, because a set brings a step size that it learned, which is traced, and the schedule multiplies it.
    """
    if not isinstance(recipe.optimiser, str):
        return optax.chain(recipe.optimiser, optax.scale(-1.0))
    mask = None if recipe.decay_vectors else _has_several_axes
    decay = optax.add_decayed_weights(recipe.weight_decay, mask)
    # PyTorch's SGD adds the decay to the gradient, before the momentum; AdamW's is apart from the moments.
    if recipe.optimiser == "sgd":
        return optax.chain(decay, optax.trace(recipe.momentum))  # PyTorch's momentum, without dampening
    return optax.chain(optax.scale_by_adam(), decay)


def _has_several_axes(params: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the step size of ``recipe`` as a function of the step number (from 0).

    Args:
      recipe: the protocol.
      steps_per_epoch: optimiser steps in one pass.
    """
    if not isinstance(recipe.optimiser, str):
        return lambda step: jnp.ones(())
    if recipe.warmup_epochs:
        warmup = recipe.warmup_epochs * steps_per_epoch
        rest = dataclasses.replace(recipe, epochs=recipe.epochs - recipe.warmup_epochs, warmup_epochs=0)
        falling = learning_rate(rest, steps_per_epoch)
        # + 1, so that the first step is not lost on a step size of 0.
        return lambda step: jnp.where(step < warmup, recipe.learning_rate * (step + 1) / warmup, falling(step - warmup))
    if recipe.schedule == "cosine":
        return optax.cosine_decay_schedule(recipe.learning_rate, recipe.epochs * steps_per_epoch)
    if recipe.schedule == "half_cosine":
        # As over twice the epochs: it is at one half when the training ends.
        return optax.cosine_decay_schedule(recipe.learning_rate, 2 * recipe.epochs * steps_per_epoch)
    if recipe.schedule == "drops":
        # Rounded to a step: a share such as 5/6 is no binary number, and its epoch must not be missed by a hair.
        places = [round(share * recipe.epochs * steps_per_epoch) for share in sorted(recipe.drops)]

        def dropped(step: jax.Array) -> jax.Array:
            number = jnp.searchsorted(jnp.asarray(places, jnp.int32), step, side="right")
            return recipe.learning_rate * jnp.float32(recipe.drop_factor) ** number

        return dropped
    drop = restart_step(recipe, steps_per_epoch)  # the momentum restarts with the lower step size
    return lambda step: jnp.where(step >= drop, 0.1 * recipe.learning_rate, recipe.learning_rate)


def restart_step(recipe: Recipe, steps_per_epoch: int) -> int:
    """Returns the step at which the step size drops and the optimiser starts anew; past the end if it never does.

    Args:
      recipe: the protocol.
      steps_per_epoch: optimiser steps in one pass.
    """
    if recipe.schedule != "step" or recipe.drop_epoch is None:
        return recipe.epochs * steps_per_epoch
    return recipe.drop_epoch * steps_per_epoch
