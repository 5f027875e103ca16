"""Every named setting of the main job. A preset is a starting point: any option can be overridden."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from typing import Any

from metadd_jax import distillers, ranges
from metadd_jax.invariant import TERMS, InvariantConfig
from metadd_jax.job import published
from metadd_jax.job.options import DistillConfig

PAPER = "paper"  # a variant: the paper's reading of the loss
ONLY = "only"  # of a variant: no terms but those that it names
PRESETS: dict[str, DistillConfig] = {
    "mnist5k": DistillConfig(),
    "smoke": DistillConfig(
        backbone="convnet:width=8,depth=2",
        seen=("resnet18:width=4", "vit:width=24,depth=2"),
        unseen=("lenet", "alexnet:width=8", "mlp:width=16"),
        steps=6,
        own=distillers.DM(batch_size=8),
        distill_seeds=2,
        train_seeds=2,
        pretrain_epochs=1,
        eval_epochs=10,
        metadd=InvariantConfig(views="auto", calibration_steps=2, pos=0.1, var=0.1),  # all terms, since it tries all
        chunk=2,
        save_every=2,
    ),
    "cifar10": DistillConfig(
        dataset="cifar10",
        backbone="convnet:width=32",
        steps=1000,
        own=distillers.DM(batch_size=32),
        pretrain_epochs=5,
    ),
    # What two cores judge in about half an hour.
    "cifar10_cpu": DistillConfig(
        dataset="cifar10",
        train_per_class=1000,
        validation_fraction=0.1,
        ipc=10,
        backbone="convnet:width=32",
        seen=("vgg11:width=8", "alexnet:width=8"),  # as measured
        own=distillers.DM(batch_size=32),
        distill_seeds=4,
        train_seeds=1,
        pretrain_epochs=5,
        chunk=50,
    ),
    "cifar10_published": DistillConfig(
        dataset="cifar10",
        backbone="convnet",
        seen=("resnet18", "vgg11", "vit"),
        unseen=("alexnet", "lenet", "resnet18_ap", "mlp"),
        steps=20000,
        own=distillers.DM(class_batch=None),
        train_seeds=5,
        pretrain_epochs=30,
        eval_recipe="dc",
        eval_epochs=1000,
        chunk=100,
        save_every=2000,
    ),
    **published.PRESETS,
}
# SRe2L at that size, under the labels of one teacher for the real images too. The committee's three teachers pass in
# every update, so in a third of the updates as often as the one.
_RECOVER = distillers.SqueezeRecover(crop=False, flip=False, roll=(0, 4), squeeze="short", group_ipc=10, r_bn=1.0)
PRESETS["cifar10_cpu_sre2l"] = dataclasses.replace(
    PRESETS["cifar10_cpu"],
    method="sre2l",
    own=_RECOVER,
    backbone="resnet18_bn:width=8",
    seen=("vgg11_bn:width=8",),
    unseen=("convnet:width=32", "lenet", "mlp"),
    wrapped=False,
    image_lr=0.25,
    steps=300,
    eval_labels="teacher:resnet18_bn:width=8",
)
PRESETS["cifar10_cpu_committee"] = dataclasses.replace(
    PRESETS["cifar10_cpu_sre2l"],
    own=dataclasses.replace(_RECOVER, committee=("vgg11_bn:width=8", "convnet_bn:width=32")),
    steps=100,
)
# The same with the paper's own reading of the loss beside ours, as a further set in the same table.
PRESETS |= {
    f"{name}_paper": dataclasses.replace(PRESETS[name], variants=(PAPER,))
    for name in ("mnist5k", "cifar10_cpu", "cifar10_published")
}


def variant(config: InvariantConfig, changes: str) -> InvariantConfig:
    """``config`` with changes read from text such as "ai=0.3,kl=0,cam.low_confidence=soft".

    A term of ``invariant.register`` is a name too ("sharpness=0.1"), its value a strength. Changes that begin with the
    word "paper" are to ``InvariantConfig.paper()``, which keeps of ``config`` what is no part of the paper's loss:
    views, and how many images pass the networks at once. After the word "only" there are no terms but those that are
    named: "only,ce=3" is a control.

    Raises:
      ValueError: for a setting that does not exist or a value that it cannot take.
    """
    first, _, rest = changes.partition(",")
    if first.strip() == PAPER:
        kept = {name: getattr(config, name) for name in ("views", "subset", "micro_batch", "checkpoint")}
        config = InvariantConfig.paper(**kept)
        if not rest:
            return config
        changes = rest
    if first.strip() == ONLY:
        config = dataclasses.replace(config, ai=0.0, pos=0.0, var=0.0, extra=())
        if not rest:
            raise ValueError(f"variant {changes!r} leaves no term; name those that shall stay: {ONLY},ce=3")
        changes = rest
    own: dict[str, Any] = {}
    cam: dict[str, Any] = {}
    extra: dict[str, Any] = dict(config.extra)
    kinds, of_cam = (_readable(type(settings)) for settings in (config, config.cam))
    for item in changes.split(","):
        name, equals, text = (part.strip() for part in item.partition("="))
        if equals and name in kinds:
            own[name] = _read(text, kinds[name], item)
        elif equals and name.removeprefix("cam.") in of_cam:
            cam[name.removeprefix("cam.")] = _read(text, of_cam[name.removeprefix("cam.")], item)
        elif equals and name in TERMS:
            extra[name] = _read(text, (float,), item)
        else:
            known = [*kinds, *(f"cam.{name}" for name in of_cam), *(name for name in TERMS if name not in kinds)]
            hint = ranges.nearest(name, [PAPER, ONLY, *known])
            raise ValueError(
                f"cannot read {item!r} in variant {changes!r}{hint}; write {PAPER} or {ONLY}, or NAME=VALUE with "
                f"{', '.join(known)}"
            )
    try:
        # All at once: some settings are only allowed together.
        cams = dataclasses.replace(config.cam, **cam)
        return dataclasses.replace(config, **own, extra=tuple(extra.items()), cam=cams)
    except ValueError as error:
        raise ValueError(f"variant {changes!r}: {error}") from error


def _readable(settings: type) -> dict[str, tuple[type, ...]]:
    """The fields of a record that one word can set, and the types that they take."""
    hints = typing.get_type_hints(settings)
    kinds = {name: typing.get_args(hints[name]) or (hints[name],) for name in ranges.field_names(settings)}
    return {name: of for name, of in kinds.items() if {bool, int, float, str} & set(of)}


def _read(text: str, kinds: tuple[type, ...], item: str) -> bool | int | float | str | None:
    if type(None) in kinds and text == "None":
        return None
    if str in kinds:
        return text
    # ``bool("False")`` is True.
    if bool in kinds:
        if text not in ("True", "False"):
            raise ValueError(f"cannot read {item!r}; write True or False")
        return text == "True"
    number = int if int in kinds else float
    try:
        return number(text)
    except ValueError as error:
        none = " or None" if type(None) in kinds else ""
        raise ValueError(f"cannot read {item!r}; write a number like {number(1)}{none}") from error


def listing(*, method: str | None = None) -> str:
    """The presets in a few lines: the own ones, then METHOD/DATA/IPC with what goes together in one line.

    Args:
      method: whose published settings are listed and not only named; None lists those of all.
    """
    own = ", ".join(name for name in PRESETS if "/" not in name)
    lines = textwrap.wrap(own, 100, break_on_hyphens=False)
    data_of: dict[tuple[str, str], list[str]] = {}
    others: dict[str, None] = {}
    for name in published.PRESETS:
        first, data, ipc = name.split("/")
        if method in (None, first):
            data_of.setdefault((first, data), []).append(ipc)
        else:
            others[first] = None
    rows: dict[tuple[str, str], list[str]] = {}
    for (first, data), ipcs in data_of.items():
        rows.setdefault((first, "|".join(ipcs)), []).append(data)
    lines += [f"{first}/{'|'.join(data)}/{ipcs}" for (first, ipcs), data in rows.items()]
    if others:
        lines.append(f"and those of {ranges.listed(list(others))} (--method NAME --help, --help-all)")
    return "\n".join(f"    {line}" for line in lines)  # indented, as --help keeps such lines apart


def preset(name: str) -> DistillConfig:
    """The named preset.

    Raises:
      ValueError: if there is none of that name; the message lists those there are.
    """
    if name not in PRESETS:
        hint = ranges.nearest(name, PRESETS)
        own = ", ".join(name for name in PRESETS if "/" not in name)
        raise ValueError(f"unknown preset {name!r}{hint}; use {own} or METHOD/DATA/IPC (--help lists them)")
    return PRESETS[name]
