"""The base methods by name: what each must know before it starts, how it is made, and its optimiser."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import metadd_jax as mdd
from metadd_jax import augment, parallel, ranges
from metadd_jax.data import catalog, sampling
from metadd_jax.distillers import Distiller, recover_optimiser, trajectory_optimiser
from metadd_jax.job import command, common
from metadd_jax.job.options import MATCHING, TRAJECTORIES, DistillConfig
from metadd_jax.training import recipes

_TEACHER_PREFIX = "sre2l_"


def _relabelled(data: str, epochs: int, *, augmentation: str = "none") -> mdd.training.Recipe:
    """SRe2L's way to judge, for another number of epochs; it has views of its own, so ``augmentation`` is left out."""
    del augmentation
    return _shortened(recipes.sre2l_evaluation(data), epochs)


def _shortened(recipe: mdd.training.Recipe, epochs: int) -> mdd.training.Recipe:
    """The recipe for another number of epochs, which its warm-up must leave some of."""
    return dataclasses.replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs - 1))


EVALUATIONS: dict[str, Callable[..., mdd.training.Recipe]] = {
    "short": recipes.short_evaluation,
    "dc": recipes.dc_evaluation,
    **{
        _TEACHER_PREFIX + data: functools.partial(_relabelled, data)
        for data in ("cifar", "cifar_code", "tiny", "tiny_ddranking", "imagenet")
    },
}


def check(config: DistillConfig) -> None:
    """Finds what cannot work before any data is read.

    Raises:
      ValueError: one line that says what to mend.
    """
    ranges.require("--eval-recipe", config.eval_recipe, ranges.OneOf(tuple(EVALUATIONS)))
    if relabels(config) and config.method != "sre2l":
        raise ValueError(
            f"--eval-recipe {config.eval_recipe} wants the labels of a teacher; it goes with --method sre2l"
        )
    if config.zca and config.method == "sre2l":
        raise ValueError("sre2l clips to what a picture can hold, which a whitened image has not; leave --zca out")
    settings = config.mtt
    if config.method in TRAJECTORIES and settings.snapshots - 1 > settings.epochs:
        raise ValueError(
            f"--mtt.max-start-epoch {settings.max_start_epoch} and --mtt.expert-epochs {settings.expert_epochs} reach "
            f"epoch {settings.snapshots - 1} of experts of {settings.epochs} epochs; "
            "raise --mtt.epochs or lower one of them"
        )
    for words in (config.augmentation, config.pretrain_augmentation):
        augment.strategy(augmentation(config, words))
    # Also where the recipe has views of its own and leaves these words out.
    recipes.short_evaluation(1, augmentation=augmentation(config, config.eval_augmentation))
    pretraining_recipe(config), expert_recipe(config), evaluation_recipe(config)
    if config.method == "sre2l" and not config.sre2l.weights:
        squeeze_recipe(config)


def check_backbone(config: DistillConfig, backbone: mdd.zoo.Architecture) -> None:
    """The same, once the data's shape is known."""
    if config.method == "sre2l" and not backbone.has_batch_stats:
        raise ValueError(f"sre2l needs a teacher with batch norm, which {backbone.label} has not; use e.g. resnet18_bn")
    if config.method in TRAJECTORIES and backbone.has_batch_stats:
        raise ValueError(f"{config.method} needs a network without batch norm, not {backbone.label}; use e.g. convnet")
    if config.method == "sre2l" and config.sre2l.weights and backbone.geometry != "imagenet":
        raise ValueError(
            f"--sre2l.weights are torchvision's; {backbone.label} at {backbone.image_shape} is the field's network; "
            "leave them out or use images of at least 128 pixels"
        )
    if config.method == "sre2l" and config.sre2l.weights:
        mdd.zoo.torchvision.load(backbone, config.sre2l.weights)
    if config.method == "dm" and backbone.has_batch_stats and _devices(config, ("pmap",)) > 1:
        raise ValueError(
            f"dm with batch-norm network {backbone.label} runs on one device; use its instance norm, or "
            "--device-mode jit"
        )


def check_made(config: DistillConfig, backbone: mdd.zoo.Architecture, dataset: mdd.Dataset) -> int:
    """Makes the method and its first state of shapes alone, so that all of its own refusals come before the long work.

    Returns:
      The bytes of a state, which is what a checkpoint holds.

    Raises:
      ValueError: from the method's factory or its start.
    """
    devices = _devices(config, ("pmap", "sharded"))
    if config.method in MATCHING and config.batch_size % devices:
        raise ValueError(
            f"--batch-size {config.batch_size} does not split over {devices} devices; use a multiple of {devices}, "
            "or --device-mode jit"
        )
    config = dataclasses.replace(config, class_batch=config.class_batch or 1)
    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    experts = jax.ShapeDtypeStruct((config.mtt.experts, config.mtt.snapshots, backbone.num_params()), np.float32)
    if config.stream_per_class:
        pool = mdd.data.stream_pool(dataset.train, config.first_seed, 0, config.stream_per_class)
        dataset = dataclasses.replace(dataset, train=pool)

    def start(variables: Any, experts: Any) -> Any:
        teacher = mdd.training.Trained(backbone, variables, 0.0, False)
        method, tx = make(config, backbone, dataset, trained=experts if config.method in TRAJECTORIES else teacher)
        return mdd.distillers.init_state(jax.random.key(config.first_seed), method, tx, dataset)

    leaves = jax.tree.leaves(jax.eval_shape(start, variables, experts))
    return sum(leaf.size * getattr(leaf.dtype, "itemsize", 8) for leaf in leaves)  # a key is two words


def _devices(config: DistillConfig, modes: tuple[str, ...]) -> int:
    """How many devices share a batch, if the device mode is one of these."""
    return parallel.device_count() if parallel.choose_mode(config.device_mode) in modes else 1


def images_per_class(config: DistillConfig, dataset: mdd.Dataset) -> tuple[int, ...]:
    """The images of each class of the set; real ones are asked for only where the set starts from them.

    Raises:
      ValueError: if ``ipc_per_class`` does not name every class, or a class is too small under "error".
    """
    wanted = sampling.per_class(config.ipc_per_class or config.ipc, dataset.num_classes)
    if config.short_class == "error" and _start(config) == "noise":
        return wanted
    arrays = dataset.train
    if config.stream_per_class:  # the start comes from a pool
        arrays = arrays.replace(counts=np.minimum(arrays.counts, config.stream_per_class))
    return mdd.data.images_per_class(arrays, wanted, short_class=config.short_class)


def _start(config: DistillConfig) -> str:
    """What the images start from: "real" or "noise"."""
    if config.method in MATCHING and config.init != "auto":
        return config.init
    return "noise" if config.method in ("dc", "sre2l") else "real"


def describe_counts(counts: tuple[int, ...]) -> str:
    """The images of each class in a few words."""
    if len(set(counts)) == 1:
        return f"{counts[0]} image(s) per class"
    return f"{min(counts)} to {max(counts)} images per class ({sum(counts)} in all)"


def relabels(config: DistillConfig) -> bool:
    """Whether judged networks learn from the labels of the sre2l teacher."""
    return config.eval_recipe.startswith(_TEACHER_PREFIX)


def augmentation(config: DistillConfig, words: str) -> str:
    """ "auto" becomes the data set's own DSA tokens."""
    return catalog.augmentation(config.dataset) if words == "auto" else words


def evaluation_recipe(config: DistillConfig) -> mdd.training.Recipe:
    """How judged networks train."""
    words = augmentation(config, config.eval_augmentation)
    return EVALUATIONS[config.eval_recipe](config.eval_epochs, augmentation=words)


def describe(config: DistillConfig) -> str:
    """The base method in a few words, for the head of the results."""
    head = f"{config.method}: {config.steps} steps"
    if config.method in MATCHING:
        return f"{head}, {config.batch_size} real images a class"
    if config.method == "sre2l":
        return f"{head}, teacher {config.sre2l.weights or f'trained by {config.sre2l.squeeze!r}'}"
    own = config.mtt
    return f"{head}, {own.experts} experts of {own.epochs} epochs, {own.syn_steps} student steps"


def describe_evaluation(config: DistillConfig) -> str:
    """What judged networks see, in a few words."""
    if relabels(config):
        return "labels of the sre2l teacher for every set, the real images included"
    return f"augmentation {augmentation(config, config.eval_augmentation)}"


def squeeze(config: DistillConfig, backbone: mdd.zoo.Architecture, dataset: mdd.Dataset, cache: Any) -> Any:
    """SRe2L's teacher: trained (or taken from the cache), or with the weights of a file."""
    settings = config.sre2l
    if settings.weights:
        return mdd.training.measure(
            backbone, mdd.zoo.torchvision.load(backbone, settings.weights), dataset, split=config.evaluate_on
        )
    return common.pretrain(
        [backbone], dataset, squeeze_recipe(config), cache, split=config.evaluate_on, description="squeeze"
    )[0]


def squeeze_recipe(config: DistillConfig) -> mdd.training.Recipe:
    """How the teacher of sre2l is trained."""
    settings = config.sre2l
    if settings.squeeze == "short":
        words = augmentation(config, config.pretrain_augmentation)
        return recipes.pretraining(settings.squeeze_epochs or config.pretrain_epochs, augmentation=words)
    recipe = recipes.sre2l_squeeze(settings.squeeze)
    return _shortened(recipe, settings.squeeze_epochs or recipe.epochs)


def pretraining_recipe(config: DistillConfig) -> mdd.training.Recipe:
    """How the networks of the table are trained on the real images."""
    words = augmentation(config, config.pretrain_augmentation)
    return recipes.pretraining(config.pretrain_epochs, augmentation=words)


def expert_recipe(config: DistillConfig) -> mdd.training.Recipe:
    """How the experts of mtt and tesla are trained."""
    return recipes.expert_training(config.mtt.epochs, augmentation=augmentation(config, config.augmentation))


def experts(config: DistillConfig, backbone: mdd.zoo.Architecture, dataset: mdd.Dataset, cache: Any) -> Any:
    """Expert trajectories on the device, trained or taken from the cache."""
    settings, recipe, numbers = config.mtt, expert_recipe(config), _expert_numbers(config)
    folder = experts_folder(config, backbone, dataset, cache)
    with command.bar(settings.experts, "experts", "net") as progress:
        trained = mdd.training.train_experts(
            folder, backbone, dataset, recipe, on_shard=lambda done: progress.update(done - progress.n), **numbers
        )
        progress.update(settings.experts - progress.n)
    return mdd.training.device_experts(trained, snapshots=settings.snapshots)


def experts_folder(config: DistillConfig, backbone: mdd.zoo.Architecture, dataset: mdd.Dataset, cache: Any) -> Any:
    """Where the experts of mtt and tesla lie in the cache, or will."""
    key = mdd.training.cache_key(backbone, dataset, expert_recipe(config), seed=0, **_expert_numbers(config))
    return cache / "experts" / f"{backbone.name}-{key[:20]}"


def _expert_numbers(config: DistillConfig) -> dict[str, Any]:
    return {name: getattr(config.mtt, name) for name in ("experts", "at_once", "half")}


def experts_size(config: DistillConfig, backbone: mdd.zoo.Architecture) -> int:
    """Bytes of the experts on the disk: a snapshot of the start and one after each epoch."""
    width = 2 if config.mtt.half else 4
    return config.mtt.experts * backbone.num_params() * (4 + width * config.mtt.epochs)


def make(
    config: DistillConfig, backbone: mdd.zoo.Architecture, dataset: mdd.Dataset, *, trained: Any = None
) -> tuple[Distiller, optax.GradientTransformation]:
    """The bare method and what updates its set.

    Args:
      trained: what ``squeeze`` gave, for sre2l; what ``experts`` gave, for mtt and tesla.
    """
    counts = images_per_class(config, dataset)
    if config.method == "sre2l":
        return _sre2l(config, counts, trained), recover_optimiser(
            config.image_lr, config.steps, dataset.train.mean, dataset.train.std
        )
    if config.method in TRAJECTORIES:
        tx = trajectory_optimiser(
            config.image_lr, config.mtt.lr_lr, lr_teacher=config.mtt.lr_teacher, momentum=config.image_momentum
        )
        return _trajectory(config, backbone, counts, trained), tx
    return _matching(config, backbone, counts), optax.sgd(config.image_lr, momentum=config.image_momentum)


def _matching(config: DistillConfig, backbone: mdd.zoo.Architecture, counts: tuple[int, ...]) -> Distiller:
    common_settings: dict[str, Any] = {
        "ipc": counts,
        "repeat": config.short_class == "repeat",
        "batch_size": config.batch_size,
        "class_batch": config.class_batch,
        "micro_batch": config.micro_batch or None,
        "init": _start(config),
    }
    if config.method != "dc":
        common_settings["augmentation"] = augmentation(config, config.augmentation)
    if config.method == "dm":
        return mdd.distillers.dm(backbone, **common_settings)
    own = {
        "outer": config.dc.outer or None,
        "inner": config.dc.inner or None,
        "distance": config.dc.distance,
        "batch_norm": config.dc.batch_norm,
    }
    factory = mdd.distillers.dc if config.method == "dc" else mdd.distillers.dsa
    return factory(backbone, **common_settings, **own)


def _trajectory(
    config: DistillConfig, backbone: mdd.zoo.Architecture, counts: tuple[int, ...], trained: Any
) -> Distiller:
    names = ("syn_steps", "expert_epochs", "max_start_epoch", "lr_teacher", "batch_syn", "raw_lr")
    settings: dict[str, Any] = {name: getattr(config.mtt, name) for name in names}
    settings["batch_syn"] = config.mtt.batch_syn or None
    settings |= {"ipc": counts, "augmentation": augmentation(config, config.augmentation)}
    settings["repeat"] = config.short_class == "repeat"
    if config.method == "mtt":
        return mdd.distillers.mtt(backbone, trained, checkpoint=config.mtt.checkpoint, **settings)
    variant = "code" if config.method == "tesla_code" else "paper"
    return mdd.distillers.tesla(backbone, trained, variant=variant, soft_labels=config.mtt.soft_labels, **settings)


def _sre2l(config: DistillConfig, counts: tuple[int, ...], teacher: Any) -> Distiller:
    names = ("r_bn", "crop", "flip", "roll", "group_size", "group_ipc")
    settings = {name: getattr(config.sre2l, name) for name in names}
    return mdd.distillers.sre2l(teacher.net, teacher.variables, ipc=counts, **settings)
