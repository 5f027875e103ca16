"""torchvision's names for the layers of the zoo's networks: one small table of rules per family."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from metadd_jax.zoo import alexnet, vgg
from metadd_jax.zoo.architecture import Architecture

# Name of an array within its layer, here and there.
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Rule(NamedTuple):
    """A rule from a layer's path here to its name in torchvision.

    Attributes:
      path: regular expression that matches the whole path of the layer here, names joined by "."; an array that is
        none of ``_LEAVES`` (a class token) counts as a layer.
      name: from the groups of ``path`` to the layer's name there. The array's name is joined to it by ".", or
        directly where it ends in "_" (PyTorch's attention has "in_proj_weight").
    """

    path: str
    name: Callable[..., str]


class Family(NamedTuple):
    """The naming of one family of networks.

    Attributes:
      rules: from the network to its rules; the first that matches counts.
      grids: layer here whose input is a flattened map -> side of that map in pixels.
      extras: regular expression of keys that import ignores.
      renamed: (old, new) pieces of keys in files that older versions of torchvision wrote.
    """

    rules: Callable[[Architecture], tuple[Rule, ...]]
    grids: Mapping[str, int] = types.MappingProxyType({})
    extras: str = r".*\.num_batches_tracked"
    renamed: tuple[tuple[str, str], ...] = ()


def family(net: Architecture) -> Family:
    """Finds the family of ``net``.

    Raises:
      ValueError: if ``net`` has no counterpart in torchvision, or is not at ImageNet geometry.
    """
    found = next((family for names, family in FAMILIES.items() if re.fullmatch(names, net.name)), None)
    if found is None:
        raise ValueError(f"{net.label} has no counterpart in torchvision; its weights cannot be carried over")
    if net.geometry != "imagenet":
        height, width, _ = net.image_shape
        raise ValueError(
            f"{net.label} for {height}x{width} images is not torchvision's network; create it for at least 128 "
            "pixels or with geometry=imagenet"
        )
    return found


def key(path: Sequence[str], rules: Iterable[Rule]) -> str:
    """Returns the key of an array in torchvision's state dict.

    Args:
      path: names of the modules here, then of the array, e.g. ("stage1_block1", "conv1", "kernel").
      rules: of its network.

    Returns:
      For that example "layer1.0.conv1.weight".
    """
    *layer, name = path
    suffix = _LEAVES.get(name)
    where = ".".join(layer if suffix else path)
    theirs = next(rule.name(*match.groups()) for rule in rules if (match := re.fullmatch(rule.path, where)))
    if suffix is None:
        return theirs
    return theirs + suffix if theirs.endswith("_") else f"{theirs}.{suffix}"


def _alexnet(net: Architecture) -> tuple[Rule, ...]:
    del net
    # torchvision numbers the layers of one list, ReLUs and max pools too; the third and fourth have no pool.
    places = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    return (Rule(r"(conv\d)", lambda conv: f"features.{places[conv]}"), *_classifier(1, 4, 6))


def _vgg(net: Architecture) -> tuple[Rule, ...]:
    # One list there: convolution, batch norm (in the _bn networks), ReLU; a max pool after each stage.
    step = 3 if net.name.endswith("_bn") else 2
    places, place = {}, 0
    for stage, convolutions in enumerate(net.module.stages):
        for index in range(len(convolutions)):
            places[f"{stage + 1}_{index + 1}"] = place
            place += step
        place += 1
    return (
        Rule(r"conv(\d_\d)", lambda at: f"features.{places[at]}"),
        Rule(r"norm(\d_\d)", lambda at: f"features.{places[at] + 1}"),
        *_classifier(0, 3, 6),
    )


def _classifier(*places: int) -> tuple[Rule, ...]:
    names = dict(zip(("fc1", "fc2", "head"), places, strict=True))
    return (Rule("(fc1|fc2|head)", lambda layer: f"classifier.{names[layer]}"),)


def _resnet(net: Architecture) -> tuple[Rule, ...]:
    del net
    layer = {"conv": "conv", "norm": "bn", "shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}
    return (
        Rule(r"stem_(conv|norm)", lambda kind: f"{layer[kind]}1"),
        # Blocks count from 0 there and from 1 here.
        Rule(
            r"stage(\d+)_block(\d+)\.([a-z_]+)(\d?)",
            lambda stage, block, kind, number: f"layer{stage}.{int(block) - 1}.{layer[kind]}{number}",
        ),
        Rule("head", lambda: "fc"),
    )


def _googlenet(net: Architecture) -> tuple[Rule, ...]:
    del net
    # A branch is a list there: the reduction (in the fourth the max pool) is its item 0.
    branch = {"1": "1", "2_reduce": "2.0", "2": "2.1", "3_reduce": "3.0", "3": "3.1", "4": "4.1"}
    kinds = {"conv": "conv", "norm": "bn"}
    return (
        Rule(r"stem(\d)\.(conv|norm)", lambda number, kind: f"conv{number}.{kinds[kind]}"),
        Rule(
            r"inception(\w+)\.branch(\w+)\.(conv|norm)",
            lambda block, which, kind: f"inception{block}.branch{branch[which]}.{kinds[kind]}",
        ),
        Rule("head", lambda: "fc"),
    )


def _vit(net: Architecture) -> tuple[Rule, ...]:
    del net
    layer = {
        "norm1": "ln_1",
        "qkv": "self_attention.in_proj_",
        "projection": "self_attention.out_proj",
        "norm2": "ln_2",
        "mlp1": "mlp.0",  # 1 is the GELU, 2 a dropout
        "mlp2": "mlp.3",
    }
    outside = {
        "patches": "conv_proj",
        "class_token": "class_token",
        "positions": "encoder.pos_embedding",
        "norm": "encoder.ln",
        "head": "heads.head",
    }
    return (
        Rule(
            r"block(\d+)\.(\w+)",
            lambda block, name: f"encoder.layers.encoder_layer_{int(block) - 1}.{layer[name]}",
        ),
        Rule(r"(\w+)", lambda name: outside[name]),
    )


def _swin(net: Architecture) -> tuple[Rule, ...]:
    del net
    layer = {
        "norm1": "norm1",
        "qkv": "attn.qkv",
        "projection": "attn.proj",
        "position_bias": "attn.relative_position_bias_table",
        "norm2": "norm2",
        "mlp1": "mlp.0",
        "mlp2": "mlp.3",
    }
    # features.0 embeds the patches (its item 1 permutes axes); then stages and mergings take turns.
    outside = {"patches": "features.0.0", "patch_norm": "features.0.2", "norm": "norm", "head": "head"}
    return (
        Rule(
            r"stage(\d+)_block(\d+)\.(\w+)",
            lambda stage, block, name: f"features.{2 * int(stage) - 1}.{int(block) - 1}.{layer[name]}",
        ),
        Rule(r"merging(\d+)\.(norm|reduction)", lambda stage, name: f"features.{2 * int(stage)}.{name}"),
        Rule(r"(\w+)", lambda name: outside[name]),
    )


# By regular expression of the network's name.
FAMILIES = {
    # In these two the first Linear layer of the head sees a flattened map.
    r"alexnet": Family(_alexnet, grids={"fc1": alexnet.IMAGENET_GRID}),
    r"vgg\d+(_bn)?": Family(_vgg, grids={"fc1": vgg.IMAGENET_GRID}),
    r"resnet\d+": Family(_resnet),
    r"googlenet": Family(_googlenet, extras=r".*\.num_batches_tracked|aux[12]\..*"),
    # The published ViT files still have the older names.
    r"vit_\w+": Family(_vit, renamed=(("mlp.linear_1.", "mlp.0."), ("mlp.linear_2.", "mlp.3."))),
    r"swin_\w+": Family(_swin, extras=r".*\.relative_position_index"),  # a buffer that follows from the window
}
