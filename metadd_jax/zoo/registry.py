"""The networks by name, and the short text that names a network and its options on a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from metadd_jax import ranges
from metadd_jax.zoo import layers, norms
from metadd_jax.zoo.alexnet import AlexNet, ImageNetAlexNet
from metadd_jax.zoo.architecture import COMPUTE, Architecture
from metadd_jax.zoo.convnet import ConvNet
from metadd_jax.zoo.googlenet import GoogLeNet
from metadd_jax.zoo.lenet import LeNet
from metadd_jax.zoo.mlp import MLP
from metadd_jax.zoo.resnet import ResNet
from metadd_jax.zoo.swin import Swin
from metadd_jax.zoo.vgg import STAGES, VGG
from metadd_jax.zoo.vit import ViT

Option = int | float | str


class _Entry(NamedTuple):
    """A module class and the fields that its name settles; the other fields are options."""

    module: type[nn.Module]
    fixed: dict[str, Any]


def _vit(*, width: int, heads: int) -> dict[str, Any]:
    return {"width": width, "depth": 12, "heads": heads, "mlp_ratio": 4.0}


def _resnet(*stage_sizes: int, **fixed: Any) -> dict[str, Any]:
    return {"stage_sizes": stage_sizes, "bottleneck": False, "average_pooling": False, "imagenet": False, **fixed}


def _imagenet(fixed: dict[str, Any], norm: str = "batch") -> dict[str, Any]:
    return {**fixed, "imagenet": True, "norm": norm}


_BATCH = {"norm": "batch"}
_RESNETS = {
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "resnet101": _resnet(3, 4, 23, 3, bottleneck=True),
}
_VGGS = {f"vgg{depth}": {"stages": stages, "imagenet": False} for depth, stages in STAGES.items()}
_VITS = {
    "vit_ti_16": _vit(width=192, heads=3),
    "vit_s_16": _vit(width=384, heads=6),
    "vit_b_16": _vit(width=768, heads=12),
}
_SWINS = {
    "swin_t": {},
    "swin_s": {"depths": "2-2-18-2"},
    "swin_b": {"width": 128, "depths": "2-2-18-2", "heads": 4},
}
_GOOGLENET = {"imagenet": False, "transform_input": False}
# The field's networks: of any size, made for small images.
_SMALL = {
    "mlp": _Entry(MLP, {}),
    "lenet": _Entry(LeNet, {}),
    "convnet": _Entry(ConvNet, {}),
    "convnet_bn": _Entry(ConvNet, _BATCH),
    "alexnet": _Entry(AlexNet, {}),
    "alexnet_bn": _Entry(AlexNet, _BATCH),
    **{name: _Entry(VGG, fixed) for name, fixed in _VGGS.items()},
    **{f"{name}_bn": _Entry(VGG, fixed | _BATCH) for name, fixed in _VGGS.items()},
    **{name: _Entry(ResNet, fixed) for name, fixed in _RESNETS.items()},
    "resnet18_bn": _Entry(ResNet, _RESNETS["resnet18"] | _BATCH),
    "resnet18_ap": _Entry(ResNet, _resnet(2, 2, 2, 2, average_pooling=True)),
    "resnet18_bn_ap": _Entry(ResNet, _resnet(2, 2, 2, 2, average_pooling=True) | _BATCH),
    "googlenet": _Entry(GoogLeNet, _GOOGLENET),
    "vit": _Entry(ViT, {}),
    **{name: _Entry(ViT, fixed) for name, fixed in _VITS.items()},
    **{name: _Entry(Swin, fixed) for name, fixed in _SWINS.items()},
}
# torchvision's networks of the same name, for images of at least layers.IMAGENET_SIDE pixels.
_IMAGENET = {
    "alexnet": _Entry(ImageNetAlexNet, {}),
    **{name: _Entry(VGG, _imagenet(fixed, "none")) for name, fixed in _VGGS.items()},
    **{f"{name}_bn": _Entry(VGG, _imagenet(fixed)) for name, fixed in _VGGS.items()},
    **{name: _Entry(ResNet, _imagenet(fixed)) for name, fixed in _RESNETS.items()},
    "googlenet": _Entry(GoogLeNet, {"imagenet": True, "norm": "batch"}),
    **{name: _Entry(ViT, {**fixed, "patch": 16}) for name, fixed in _VITS.items()},
    **{name: _Entry(Swin, {**fixed, "patch": 4, "window": 7}) for name, fixed in _SWINS.items()},
}
_GEOMETRIES = {"small": _SMALL, "imagenet": _IMAGENET}
_WORDS = {"norm": norms.NORMS, "activation": tuple(layers.ACTIVATIONS), "pooling": layers.POOLINGS}


def names() -> tuple[str, ...]:
    """The networks that ``create`` knows."""
    return tuple(_SMALL)


def create(name: str, num_classes: int, image_shape: Sequence[int], **options: Option) -> Architecture:
    """Makes a network of the zoo for images of one shape.

    From 128 pixels (the longer side) on a name that torchvision knows means exactly its network; below, and for
    all other names, the field's small-image network. ``geometry`` ("imagenet" or "small") overrides that.

    Args:
      name: one of ``names()``.
      num_classes: K, at least 1.
      image_shape: (H, W, C) in pixels and channels.
      **options: ``geometry``, ``compute`` (see ``Architecture``), and the network's own, e.g. ``width``, ``depth``,
        ``norm``; see the families' docstrings.

    Returns:
      The architecture; equal arguments give equal, hashable objects.

    Raises:
      SizeError: (a ValueError) if the images do not suit the network.
      ValueError: if the name, an option or a value is unknown.
    """
    if name not in _SMALL:
        raise ValueError(f"unknown network {name!r}{ranges.nearest(name, _SMALL)}; choose one of {', '.join(_SMALL)}")
    if len(image_shape) != 3 or not all(_is_count(size) for size in (num_classes, *image_shape)):
        raise ValueError(
            f"{name}: num_classes={num_classes}, image_shape={tuple(image_shape)}: give a positive number of "
            "classes and (height, width, channels)"
        )
    usual = "imagenet" if name in _IMAGENET and max(image_shape[:2]) >= layers.IMAGENET_SIDE else "small"
    geometry = options.pop("geometry", usual) if name in _IMAGENET else usual
    if geometry not in _GEOMETRIES:
        raise ValueError(f"{name}: geometry={geometry}; choose one of {', '.join(_GEOMETRIES)}")
    compute = options.pop("compute", COMPUTE[0])
    if compute not in COMPUTE:
        raise ValueError(f"{name}: compute={compute}; choose one of {', '.join(COMPUTE)}")
    entry = _GEOMETRIES[geometry][name]
    chosen = _chosen(name, entry, options)
    shown = {} if geometry == usual else {"geometry": geometry}
    shown |= {} if compute == COMPUTE[0] else {"compute": compute}
    shown |= chosen
    text = ",".join(f"{option}={value}" for option, value in shown.items())
    label = f"{name}:{text}" if text else name
    try:
        return Architecture(
            name=name,
            label=label,
            module=entry.module(num_classes=num_classes, **entry.fixed, **chosen),
            num_classes=num_classes,
            image_shape=tuple(image_shape),
            geometry=geometry,
            compute=compute,
        )
    except layers.SizeError as error:
        height, width, channels = image_shape
        raise layers.SizeError(f"{label} on {height}x{width}x{channels} images: {error}") from error


def parse(spec: str, num_classes: int, image_shape: Sequence[int]) -> Architecture:
    """``create`` from text: "vgg11" or "resnet18:width=16,norm=batch".

    Raises:
      ValueError: as ``create``, and if the text has another form.
    """
    name, _, rest = spec.partition(":")
    if {part.partition(":")[0].strip() for part in spec.split(",")[1:]} & set(_SMALL):
        raise ValueError(f"{spec!r} names several networks; put spaces between them, no commas")
    options = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"cannot read {item!r} in network {spec!r}; write name:option=value,option=value")
        options[option.strip()] = _number_or_word(value.strip())
    return create(name.strip(), num_classes, image_shape, **options)


def _chosen(name: str, entry: _Entry, options: dict[str, Option]) -> dict[str, Option]:
    """The options that differ from their defaults, checked, in the order of the module's fields."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(entry.module)
        if field.name not in {"num_classes", "parent", "name", *entry.fixed}
    }
    for option, value in options.items():
        if option not in defaults:
            known = ", ".join([*defaults, *["geometry"] * (name in _IMAGENET), "compute"])
            raise ValueError(f"{name} has no option {option!r}; its options are: {known}")
        _check(name, option, value, defaults[option])
    return {
        option: options[option]
        for option, default in defaults.items()
        if option in options and options[option] != default
    }


def _check(name: str, option: str, value: Option, default: Option | None) -> None:
    if option in _WORDS:
        if value not in _WORDS[option]:
            raise ValueError(f"{name}: {option}={value}; choose one of {', '.join(_WORDS[option])}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name}: {option}={value}; choose one of True, False")
    elif isinstance(default, float):
        if not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"{name}: {option}={value}; give a number above 0")
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise ValueError(f"{name}: {option}={value}; give text such as {default}")
    elif not (_is_count(value) or value == default):
        raise ValueError(f"{name}: {option}={value}; give a whole number of at least 1")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number_or_word(text: str) -> Option:
    if text in {"True", "False"}:
        return text == "True"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
