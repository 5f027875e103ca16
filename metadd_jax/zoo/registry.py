"""The networks by name, and the short text that names a network and its options on a command line."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from metadd_jax import ranges, registries
from metadd_jax.registries import Option
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


class _Entry(NamedTuple):
    """A builder of modules, and those of its arguments that the network's name settles; the others are options."""

    build: Callable[..., nn.Module]
    fixed: dict[str, Any]


def _vit(*, width: int, heads: int) -> dict[str, Any]:
    return {"width": width, "depth": 12, "heads": heads, "mlp_ratio": 4.0}


def _resnet(*stage_sizes: int, **fixed: Any) -> dict[str, Any]:
    return {"stage_sizes": stage_sizes, "bottleneck": False, "average_pooling": False, "imagenet": False, **fixed}


def _imagenet(fixed: dict[str, Any], norm: str = "batch") -> dict[str, Any]:
    return {**fixed, "imagenet": True, "norm": norm}


_BATCH = {"norm": "batch"}
# Blocks per stage: He et al. 2016, table 1.
_RESNETS = {
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "resnet101": _resnet(3, 4, 23, 3, bottleneck=True),
}
_VGGS = {f"vgg{depth}": {"stages": stages, "imagenet": False} for depth, stages in STAGES.items()}
# Dosovitskiy et al. 2021 (B) and DeiT (Ti, S); the last number of a name is the patch side at ImageNet geometry.
_VITS = {
    "vit_ti_16": _vit(width=192, heads=3),
    "vit_s_16": _vit(width=384, heads=6),
    "vit_b_16": _vit(width=768, heads=12),
}
# Liu et al. 2021, section 3.3; Swin's own defaults are those of swin_t.
_SWINS: dict[str, dict[str, Any]] = {
    "swin_t": {},
    "swin_s": {"depths": "2-2-18-2"},
    "swin_b": {"width": 128, "depths": "2-2-18-2", "heads": 4},
}
# What a name settles is no option: ``transform_input`` belongs to torchvision's weights, which small networks have not.
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
    # Settled, because another patch or window would be another network than the published weights fit.
    **{name: _Entry(ViT, {**fixed, "patch": 16}) for name, fixed in _VITS.items()},
    **{name: _Entry(Swin, {**fixed, "patch": 4, "window": 7}) for name, fixed in _SWINS.items()},
}
_GEOMETRIES = {"small": _SMALL, "imagenet": _IMAGENET}
_OWN: dict[str, Callable[..., nn.Module]] = {}
_FACTS = ("num_classes", "image_shape")
_WORDS = {"norm": norms.NORMS, "activation": tuple(layers.ACTIVATIONS), "pooling": layers.POOLINGS}


def names() -> tuple[str, ...]:
    """Lists the networks that ``create`` knows: the zoo's, then those of ``register``."""
    return (*_SMALL, *_OWN)


def register(name: str, build: Callable[..., nn.Module]) -> None:
    """Registers a network of your own under a name, for ``create``, ``parse`` and the command line.

    >>> def build(num_classes, image_shape, *, width=16):
    ...     return MyNet(num_classes, width)
    >>> register("mynet", build)
    >>> net = parse("mynet:width=8", 10, (28, 28, 1))

    Registering a changed ``build`` under the same name replaces the old one. Networks made before stay as they were.
    Nothing that was compiled or cached for them is used for the new ones, since their modules differ.

    Args:
      name: letters, digits and underscores; no name of the zoo.
      build: ``build(num_classes, image_shape, **options)`` returns a Linen module that keeps to the contract of
        ``Architecture``. It is called with keywords; equal ones must give equal modules. ``image_shape`` may be left
        out, and a module class with these fields is a ``build`` too. Arguments whose default is a number, a truth
        value, text or None are the options of the network, with the type of the default. It raises ``SizeError`` for
        images that do not suit the network.

    Raises:
      ValueError: if the name is no word or taken, or if ``build`` has other arguments.
    """
    kinds = inspect.Parameter
    for argument in _arguments(build):
        if argument.name in ("name", "compute", "map_side", "geometry"):
            raise ValueError(
                f"network {name}: build has an option {argument.name!r}, which all networks share; rename it"
            )
        if argument.kind not in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY):
            raise ValueError(f"network {name}: build takes {argument}; name every option, so that a typo is seen")
        if argument.default is kinds.empty and argument.name not in _FACTS:
            raise ValueError(f"network {name}: build asks for {argument.name!r}; give this option a default")
    if "num_classes" not in [argument.name for argument in _arguments(build)]:
        raise ValueError(f"network {name}: build does not take num_classes, how many logits it must give")
    registries.claim(_OWN, name, build, kind="network", taken=_SMALL)


def create(name: str, num_classes: int, image_shape: Sequence[int], **options: Option) -> Architecture:
    """Makes a network of the zoo for images of one shape.

    From 128 pixels (the longer side) on a name that torchvision knows means exactly its network; below, and for
    all other names, the field's small-image network. ``geometry`` ("imagenet" or "small") overrides that.

    Args:
      name: one of ``names()``; with ``register`` also your own.
      num_classes: K, at least 1.
      image_shape: (H, W, C) in pixels and channels.
      **options: ``geometry``, ``compute``, ``map_side`` (see ``Architecture``), and the network's own, e.g. ``width``,
        ``depth``, ``norm``; see the families' docstrings.

    Returns:
      The architecture; equal arguments give equal, hashable objects.

    Raises:
      SizeError: (a ValueError) if the images do not suit the network.
      ValueError: if the name, an option or a value is unknown.

    Example:
      >>> import jax
      >>> net = create("convnet", 10, (32, 32, 3), width=128)
      >>> variables = jax.eval_shape(net.init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))  # the field's ConvNet
      320010
    """
    _check_name(name)
    if len(image_shape) != 3 or not all(_is_count(size) for size in (num_classes, *image_shape)):
        raise ValueError(
            f"{name}: num_classes={num_classes}, image_shape={tuple(image_shape)}: give a positive number of "
            "classes and (height, width, channels)"
        )
    height, width, channels = image_shape
    usual = "imagenet" if name in _IMAGENET and max(height, width) >= layers.IMAGENET_SIDE else "small"
    geometry = options.pop("geometry", usual) if name in _IMAGENET else usual
    if geometry not in _GEOMETRIES:
        raise ValueError(f"{name}: geometry={geometry}; choose one of {', '.join(_GEOMETRIES)}")
    compute = options.pop("compute", COMPUTE[0])
    if compute not in COMPUTE:
        raise ValueError(f"{name}: compute={compute}; choose one of {', '.join(COMPUTE)}")
    map_side = options.pop("map_side", None)
    if map_side is not None and not _is_count(map_side):
        raise ValueError(f"{name}: map_side={map_side}; give a whole number of at least 1")
    entry = _entry(name, geometry)
    chosen = _chosen(name, entry, options)
    # The label holds what is not default, so that equal networks have equal labels: rows of a table are matched by it.
    shown: dict[str, Option] = {} if geometry == usual else {"geometry": geometry}
    shown |= {} if compute == COMPUTE[0] else {"compute": compute}
    shown |= {} if map_side is None else {"map_side": map_side}
    shown |= chosen
    text = ",".join(f"{option}={value}" for option, value in shown.items())
    label = f"{name}:{text}" if text else name
    try:
        net = Architecture(
            name=name,
            label=label,
            module=_module(label, entry, num_classes, image_shape, chosen),
            num_classes=num_classes,
            image_shape=(height, width, channels),
            geometry=geometry,
            compute=compute,
            map_side=None if map_side is None else int(map_side),
        )
        # jit compares static arguments by ``==``; one more call of build shows whether it would ever hit its cache.
        if name in _OWN and net.module != _module(label, entry, num_classes, image_shape, chosen):
            raise ValueError(
                f"{label}: build gives another module at each call, so that everything would be compiled again and "
                "again; define its class outside of build, and keep functions made in build out of its fields"
            )
        return net
    except layers.SizeError as error:  # the layer that raised it knows neither the network nor the images
        raise layers.SizeError(f"{label} on {height}x{width}x{channels} images: {error}") from error


def parse(spec: str, num_classes: int, image_shape: Sequence[int]) -> Architecture:
    """Makes a network from text: "vgg11" or "resnet18:width=16,norm=batch".

    Args:
      spec: the name and the options of ``create``, as a command line gives them.
      num_classes: K, at least 1.
      image_shape: (H, W, C) in pixels and channels.

    Raises:
      ValueError: as ``create``, and if the text has another form.

    Example:
      >>> parse("convnet:width=64,depth=3", 10, (32, 32, 3)).num_classes
      10
    """
    name, options = _read(spec)
    return create(name, num_classes, image_shape, **options)


def check(spec: str) -> None:
    """Checks the text of a network before any images are loaded, so that a typo costs no waiting.

    Args:
      spec: as for ``parse``.

    Raises:
      ValueError: as ``parse``, except for what the images' shape and the classes decide.
    """
    name, options = _read(spec)
    if name in _OWN:  # which may suit one shape alone, so none is tried
        for common in ("compute", "map_side"):
            options.pop(common, None)
        _chosen(name, _entry(name), options)
        return
    with contextlib.suppress(layers.SizeError):
        create(name, 10, (32, 32, 3), **options)


def _read(spec: str) -> tuple[str, dict[str, Option]]:
    # A list with commas would otherwise be read as options of its first network.
    if {part.partition(":")[0].strip() for part in spec.split(",")[1:]} & set(names()):
        raise ValueError(f"{spec!r} names several networks; put spaces between them, no commas")
    name, options = registries.read(spec, kind="network")
    _check_name(name)
    return name, options


def _check_name(name: str) -> None:
    if name not in names():
        raise ValueError(f"unknown network {name!r}{ranges.nearest(name, names())}; choose one of {', '.join(names())}")


def _entry(name: str, geometry: str = "small") -> _Entry:
    return _Entry(_OWN[name], {}) if name in _OWN else _GEOMETRIES[geometry][name]


def _arguments(build: Callable[..., nn.Module]) -> list[inspect.Parameter]:
    """The arguments of ``build``; of a module class its fields, without those that Flax adds."""
    hidden = ("parent", "name") if inspect.isclass(build) else ()
    return [argument for argument in inspect.signature(build).parameters.values() if argument.name not in hidden]


def _module(
    label: str, entry: _Entry, num_classes: int, image_shape: Sequence[int], chosen: dict[str, Option]
) -> nn.Module:
    facts: dict[str, Any] = {"num_classes": num_classes, "image_shape": tuple(image_shape)}
    taken = {argument.name for argument in _arguments(entry.build)}
    module = entry.build(**{name: fact for name, fact in facts.items() if name in taken}, **entry.fixed, **chosen)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{label}: build gives {type(module).__name__}; return the Linen module")
    return module


def _chosen(name: str, entry: _Entry, options: dict[str, Option]) -> dict[str, Option]:
    """The options that differ from their defaults, checked, in the order of the module's fields."""
    # An option written out with its default value is dropped, so that it makes no other label.
    plain = bool | int | float | str | None
    defaults = {
        argument.name: argument.default
        for argument in _arguments(entry.build)
        if argument.name not in {*_FACTS, *entry.fixed} and isinstance(argument.default, plain)
    }
    check = _check_own if name in _OWN else _check_value
    for option, value in options.items():
        if option not in defaults:
            known = ", ".join([*defaults, *["geometry"] * (name in _IMAGENET), "compute", "map_side"])
            raise ValueError(f"{name} has no option {option!r}; its options are: {known}")
        check(name, option, value, defaults[option])
    return {
        option: options[option]
        for option, default in defaults.items()
        if option in options and options[option] != default
    }


def _check_value(name: str, option: str, value: Option, default: Option | None) -> None:
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


def _check_own(name: str, option: str, value: Option, default: Option | None) -> None:
    """Checks the type of an own option; its range is checked by the network itself."""
    registries.require_kind(name, option, value, default)
    if "," in str(value):
        raise ValueError(f"{name}: {option}={value}; give text without commas, which part the options of a network")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1  # True is an int in Python
