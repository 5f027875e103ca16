"""Every named setting of the main job. A preset is a starting point: any option can be overridden."""

from __future__ import annotations

import dataclasses
import difflib

from metadd_jax.invariant import InvariantConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distil a data set with and without MetaDD and judge both across architectures.

    Attributes:
      dataset: "mnist5k" (embedded), a TFDS name, an .npz file, or a folder with train/CLASS/ and test/CLASS/.
      data_dir: where prepared TFDS data lies (TFDS's default: ~/tensorflow_datasets).
      cache_dir: where decoded images and trained networks are kept (default: ~/.cache/metadd_jax).
      train_per_class: most training images of a class to use, for quick runs on a large set; 0 uses all.
      validation_fraction: share of the training images set aside for choosing settings; 0 for none.
      evaluate_on: "test", or "validation" for choosing settings.
      ipc: images per class.
      method: the base method ("dm").
      backbone: network that distils, e.g. "convnet:width=32,depth=3".
      seen: auxiliary networks that MetaDD looks through.
      unseen: further networks for the table.
      steps: updates of the synthetic images.
      batch_size: real images per class and step.
      image_lr: learning rate of the synthetic images (SGD).
      image_momentum: momentum of the synthetic images.
      augmentation: DSA tokens joined by "_", "none", or "auto" (by data set: digits are not flipped).
      class_batch: classes embedded at once; more is faster on accelerators and needs more memory.
      distill_seeds: sets distilled per method, each from its own seed.
      first_seed: seed of the first set; the others follow (settings are chosen on some seeds and measured on others).
      train_seeds: trainings of each network on each set.
      pretrain_epochs: passes over the real data for the auxiliaries and the whole-data row.
      pretrain_augmentation: DSA tokens for that pre-training, "none", or "auto".
      eval_recipe: how judged networks train: "short" (AdamW, for CPUs) or "dc" (the DC family's published protocol).
      eval_epochs: passes over a distilled set when it is judged ("dc": 300, or 1000 with DSA).
      eval_augmentation: DSA tokens for the judged trainings, "none", or "auto".
      at_once: judged networks that train together; less needs less memory.
      metadd: the switches of the architecture-invariant loss.
      variants: further settings of that loss to distil and judge beside it, as changes to ``metadd``: "ai=0.3,kl=0".
      chunk: updates per dispatch.
      save_every: updates between checkpoints.
      device_mode: "auto" (pmap on more than one device), "jit" or "pmap".
      stream_per_class: 0 keeps the images on the device; n sends n random images a class per chunk.
      run_dir: the run's folder (default: runs/PRESET).
      overwrite: start anew in a folder that holds a run.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    cache_dir: str | None = None
    train_per_class: int = 0
    validation_fraction: float = 0.0
    evaluate_on: str = "test"
    ipc: int = 1
    method: str = "dm"
    backbone: str = "convnet:width=16"
    seen: tuple[str, ...] = ("vgg11:width=8", "alexnet:width=8")
    unseen: tuple[str, ...] = ("resnet18:width=4", "lenet", "mlp")
    steps: int = 200
    batch_size: int = 64
    image_lr: float = 1.0
    image_momentum: float = 0.5
    augmentation: str = "auto"
    class_batch: int = 1
    distill_seeds: int = 3
    first_seed: int = 0
    train_seeds: int = 2
    pretrain_epochs: int = 12
    pretrain_augmentation: str = "auto"
    eval_recipe: str = "short"
    eval_epochs: int = 100
    eval_augmentation: str = "auto"
    at_once: int = 12
    metadd: InvariantConfig = InvariantConfig(views="auto")
    variants: tuple[str, ...] = ()
    chunk: int = 25
    save_every: int = 100
    device_mode: str = "auto"
    stream_per_class: int = 0
    run_dir: str | None = None
    overwrite: bool = False


PRESETS: dict[str, DistillConfig] = {
    "mnist5k": DistillConfig(),
    "smoke": DistillConfig(
        backbone="convnet:width=8,depth=2",
        seen=("resnet18:width=4", "vit:width=24,depth=2"),
        unseen=("lenet", "alexnet:width=8", "mlp:width=16"),
        steps=6,
        batch_size=8,
        distill_seeds=2,
        train_seeds=2,
        pretrain_epochs=1,
        eval_epochs=10,
        metadd=InvariantConfig(views="auto", calibration_steps=2),
        chunk=2,
        save_every=2,
    ),
    "cifar10": DistillConfig(
        dataset="cifar10",
        backbone="convnet:width=32",
        steps=1000,
        batch_size=32,
        pretrain_epochs=5,
    ),
    # What two cores judge in about half an hour; its setting of the loss was chosen on its validation images.
    "cifar10_cpu": DistillConfig(
        dataset="cifar10",
        train_per_class=1000,
        validation_fraction=0.1,
        ipc=10,
        backbone="convnet:width=32",
        batch_size=32,
        distill_seeds=4,
        train_seeds=1,
        pretrain_epochs=5,
        metadd=InvariantConfig(views="auto", ai=3.0),
        chunk=50,
    ),
    "cifar10_published": DistillConfig(
        dataset="cifar10",
        backbone="convnet",
        seen=("resnet18", "vgg11", "vit"),
        unseen=("alexnet", "lenet", "resnet18_ap", "mlp"),
        steps=20000,
        batch_size=256,
        class_batch=10,
        train_seeds=5,
        pretrain_epochs=30,
        eval_recipe="dc",
        eval_epochs=1000,
        chunk=100,
        save_every=2000,
    ),
}


def variant(config: InvariantConfig, changes: str) -> InvariantConfig:
    """``config`` with changes read from text such as "ai=0.3,kl=0,cam.low_confidence=soft".

    Raises:
      ValueError: for a setting that does not exist or a value that it cannot take.
    """
    own, cam = {}, {}
    for item in changes.split(","):
        path, equals, text = (part.strip() for part in item.partition("="))
        name = path.removeprefix("cam.")
        owner, found = (config, own) if name == path else (config.cam, cam)
        if not equals or not isinstance(getattr(owner, name, None), bool | int | float | str):
            known = [field.name for field in dataclasses.fields(config) if field.name != "cam"]
            known += [f"cam.{field.name}" for field in dataclasses.fields(config.cam)]
            raise ValueError(f"cannot read {item!r} in variant {changes!r}; write NAME=VALUE with {', '.join(known)}")
        found[name] = _read(text, getattr(owner, name), item)
    # All at once: some settings are only allowed together.
    return dataclasses.replace(config, **own, cam=dataclasses.replace(config.cam, **cam))


def _read(text: str, now: bool | int | float | str, item: str) -> bool | int | float | str:
    if isinstance(now, bool):
        if text not in ("True", "False"):
            raise ValueError(f"cannot read {item!r}; write True or False")
        return text == "True"
    try:
        return type(now)(text)
    except ValueError as error:
        raise ValueError(f"cannot read {item!r}; write a number like {now}") from error


def preset(name: str) -> DistillConfig:
    """The named preset.

    Raises:
      ValueError: if there is none of that name; the message lists those there are.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown preset {name!r}{hint}; presets are {', '.join(PRESETS)}")
    return PRESETS[name]
