"""What a frozen network sees in an image: class activation maps, differentiable in the image.

Source: MetaDD, section 1 of the project's method notes. [Q] the maps are Grad-CAM (CNNs) at the image's own
label of a network pre-trained on the real training set; [U] layer, rectification and post-processing are
switches of ``CamConfig``. Grad-CAM: alpha_k = spatial mean of d logit_y / d A_k, map = ReLU(sum_k alpha_k A_k).
HiResCAM (Draelos and Carin, arXiv 2011.08891): each place keeps its own derivative, map = ReLU(sum_k dA_k A_k). The two
are one where the head averages over space; where it is linear in all pixels of the map (ConvNet, AlexNet) only the
second adds up to the logit, and the first is dead in many images.

Shapes: B images [H, W, C], feature maps [h, w, D], T tokens of a vision transformer, M networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metadd_jax import eager, keys, parallel, zoo
from metadd_jax.data import sampling
from metadd_jax.ranges import OneOf, Real, check
from metadd_jax.structs import Array, Auxiliary, Dataset

ATTENTION = ("attention", "rollout", "attention_logits")
TRANSFORMER_METHODS = ("grad", *ATTENTION)
ALPHA = ("mean", "local")
LOW_CONFIDENCE = ("none", "hard", "soft")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CamConfig:
    """How a map is made; hashable, so usable as a static argument.

    Attributes:
      transformer_method: how vision transformers with a class token are mapped (all others by derivatives):
        "rollout" (attention of the class token to the patches through all layers; the same for every label),
        "attention" (in the last layer, mean over heads), "attention_logits" (that times the class's patch logits)
        or "grad" (derivatives at the patch tokens that enter the last block). Rollout is the default because it alone
        lies on the object where one decides (docs/cams.md).
      alpha: "local" (HiResCAM) or "mean" (Grad-CAM, what the paper is reported to use), for every map that is made of
        derivatives. They differ only for heads that do not average over space; there Grad-CAM left 81 % (ConvNet) and
        67 % (AlexNet) of the maps of real digits dead, HiResCAM none.
      stop_gradient_alpha: treat alpha as constant: first-order gradients only.
      stop_gradient_range: treat each map's minimum and maximum as constants when it is scaled to [0, 1].
      low_confidence: what happens below ``threshold``: "none", "hard" (set to zero), "soft" (gate of width 0.05).
      threshold: from which value on a map counts as high, 0 to 1, in the loss and in its log.
    """

    transformer_method: Annotated[str, OneOf(TRANSFORMER_METHODS)] = "rollout"
    alpha: Annotated[str, OneOf(ALPHA)] = "local"
    stop_gradient_alpha: bool = False
    stop_gradient_range: bool = True
    low_confidence: Annotated[str, OneOf(LOW_CONFIDENCE)] = "none"
    threshold: Annotated[float, Real(0, 1)] = 0.5

    def __post_init__(self) -> None:
        check(self)

    def describe(self) -> str:
        """What a reader of maps must know of their making, in a few words."""
        confidence = "" if self.low_confidence == "none" else f", low confidence {self.low_confidence!r}"
        confidence += f", high from {self.threshold:g}" * (self.threshold != 0.5)
        return f"maps with alpha {self.alpha!r}, of class-token transformers by {self.transformer_method!r}{confidence}"


def map_kinds(net: zoo.Architecture) -> tuple[str, ...]:
    """The kinds of raw map that a network can make, by the names that ``Auxiliary.map_eps`` knows them under.

    Those of derivatives, "mean" and "local", and with a class token "attention", "attention_logits" and "rollout".
    A network without a spatial map has none.
    """
    if not net.has_map:
        return ()
    return (*ALPHA, *ATTENTION) if net.has_attention else ALPHA


def map_kind(net: zoo.Architecture, config: CamConfig) -> str:
    """Tells which kind of map a network makes under these switches.

    Args:
      net: the network.
      config: how maps are made.

    Returns:
      One of ``map_kinds(net)``.

    Raises:
      ValueError: if the network has no spatial map.
    """
    if not net.has_map:
        raise ValueError(f"{net.name} has no spatial feature map, so no activation map; choose a network that has")
    return config.transformer_method if net.has_attention and config.transformer_method != "grad" else config.alpha


def raw_maps(
    net: zoo.Architecture, variables: Any, images: jax.Array, labels: jax.Array, *, config: CamConfig | None = None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Makes the un-normalised map of each image, and the logits, in one forward pass through the trunk.

    Args:
      net: the network, with a spatial map.
      variables: its ``params`` (+ ``batch_stats``).
      images: [B, H, W, C] in the network's own value space.
      labels: [B] int, the class whose evidence is mapped.
      config: how maps are made; None for the defaults.

    Returns:
      maps [B, h, w] >= 0, logits [B, K], and the network's ``out`` dict.

    Raises:
      ValueError: if the network has no spatial map.
    """
    config = config or CamConfig()
    chex.assert_rank([images, labels], [4, 1])
    kind = map_kind(net, config)
    if kind in ALPHA:
        slopes, logits, out = _slopes(net, variables, images, labels)
        return _derivative_map(out, slopes, kind, constant=config.stop_gradient_alpha), logits, out
    logits, out = net.apply(variables, images)
    return _attention_map(out, labels, kind), logits, out


def all_raw_maps(net: zoo.Architecture, variables: Any, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Makes the un-normalised maps of every kind that the network can make, in one forward pass.

    Args:
      net: the network, with a spatial map.
      variables: its ``params`` (+ ``batch_stats``).
      images: [B, H, W, C] in the network's own value space.
      labels: [B] int, the class whose evidence is mapped.

    Returns:
      Maps [B, h, w] >= 0, by the names of ``map_kinds``.
    """
    slopes, _, out = _slopes(net, variables, images, labels)
    return {
        kind: _derivative_map(out, slopes, kind) if kind in ALPHA else _attention_map(out, labels, kind)
        for kind in map_kinds(net)
    }


def _slopes(
    net: zoo.Architecture, variables: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """d logit_y / d A at every place and channel [B, h, w, D], the logits, and ``out``."""

    def score(shift: jax.Array) -> tuple[jax.Array, tuple]:
        logits, out = net.apply({**variables, "perturbations": {"map": shift}}, images)
        return jnp.take_along_axis(logits, labels[:, None], axis=1).sum(), (logits, out)

    # The derivative is taken at the feature map, so back-propagation runs through the head alone and the one trunk
    # forward serves logits, map and alpha.
    shift = jnp.zeros((images.shape[0], *net.map_shape), images.dtype)
    slopes, (logits, out) = jax.grad(score, has_aux=True)(shift)
    return slopes, logits, out


def _derivative_map(out: dict[str, jax.Array], slopes: jax.Array, kind: str, *, constant: bool = False) -> jax.Array:
    alpha = slopes.mean(axis=(1, 2), keepdims=True) if kind == "mean" else slopes
    if constant:
        alpha = jax.lax.stop_gradient(alpha)
    return jax.nn.relu((out["map"] * alpha).sum(axis=-1))


def _attention_map(out: dict[str, jax.Array], labels: jax.Array, method: str) -> jax.Array:
    attention = out["attention"].mean(axis=2)  # [L, B, T, T], mean over heads
    patch_logits = out["patch_logits"]  # [B, h, w, K]
    if method == "rollout":
        # Half of each layer is the residual path (Abnar and Zuidema, 2020).
        half = 0.5 * (attention + jnp.eye(attention.shape[-1]))
        flow, _ = jax.lax.scan(lambda seen, layer: (layer @ seen, None), half[0], half[1:])
    else:
        flow = attention[-1]
    maps = flow[:, 0, 1:].reshape(patch_logits.shape[:3])  # class token to patches
    if method == "attention_logits":
        maps = maps * jax.nn.relu(jnp.take_along_axis(patch_logits, labels[:, None, None, None], axis=3)[..., 0])
    return maps


def normalise_maps(
    maps: jax.Array, size: tuple[int, ...], *, map_eps: ArrayLike = 1e-6, config: CamConfig | None = None
) -> jax.Array:
    """Scales maps up to the images (bilinear) and each to [0, 1] by its own minimum and maximum.

    Args:
      maps: [B, h, w] >= 0. A dead one, 0 everywhere, stays 0.
      size: (H, W) of the images.
      map_eps: [] > 0, added to the range of each map: where a map is flat the gradient would grow as 1 / range.
      config: what becomes of low values and of the range's gradient; None for the defaults.

    Returns:
      [B, H, W] in [0, 1].
    """
    config = config or CamConfig()
    chex.assert_rank(maps, 3)
    maps = jax.image.resize(maps, (maps.shape[0], *size), "bilinear")
    low = maps.min(axis=(1, 2), keepdims=True)
    high = maps.max(axis=(1, 2), keepdims=True)
    if config.stop_gradient_range:
        low, high = jax.lax.stop_gradient((low, high))
    maps = (maps - low) / (high - low + map_eps)
    if config.low_confidence == "hard":
        return jnp.where(maps >= config.threshold, maps, 0.0)
    if config.low_confidence == "soft":
        return maps * jax.nn.sigmoid((maps - config.threshold) / 0.05)
    return maps


@eager.one_program(static_argnames=("net", "config"))
def activation_maps(
    net: zoo.Architecture, variables: Any, images: jax.Array, labels: jax.Array, *, map_eps: ArrayLike = 1e-6,
    config: CamConfig | None = None,
) -> jax.Array:  # fmt: skip
    """Makes class activation maps, differentiable in the images.

    Args:
      net: the network, with a spatial map.
      variables: its ``params`` (+ ``batch_stats``).
      images: [B, H, W, C] in the network's own value space.
      labels: [B] int, the class whose evidence is mapped.
      map_eps: see ``normalise_maps``; an ``Auxiliary`` holds one that was measured on real images.
      config: how maps are made; None for the defaults.

    Returns:
      [B, H, W] in [0, 1].

    Raises:
      ValueError: see ``raw_maps``.
    """
    maps, _, _ = raw_maps(net, variables, images, labels, config=config)
    return normalise_maps(maps, images.shape[1:3], map_eps=map_eps, config=config)


class Sight(NamedTuple):
    """What one frozen network makes of B images.

    Attributes:
      maps: [B, H, W] class activation maps in [0, 1], or None where none were asked for.
      logits: [B, K].
      embedding: [B, D], what the network's last linear layer sees.
    """

    maps: jax.Array | None
    logits: jax.Array
    embedding: jax.Array


def observe(
    auxiliary: Auxiliary,
    images: jax.Array,
    labels: jax.Array,
    *,
    maps: bool = True,
    config: CamConfig | None = None,
) -> Sight:
    """Shows images to a frozen network, differentiably, and returns what it sees in them.

    No gradient reaches the network's weights.

    Args:
      auxiliary: the network, its weights, and the way from the set's value space to its own.
      images: [B, H, W, C] in the *set's* value space.
      labels: [B] int, the class whose evidence is mapped.
      maps: whether to make maps; without them any network will do, also one that has no spatial map.
      config: how maps are made; None for the defaults.

    Returns:
      ``Sight(maps, logits, embedding)``, all from one forward pass through the trunk.

    Raises:
      ValueError: see ``raw_maps``; or if the auxiliary holds no range for this kind of map.
    """
    config = config or CamConfig()
    map_eps = _map_eps(auxiliary, map_kind(auxiliary.net, config)) if maps else None
    variables = jax.lax.stop_gradient(auxiliary.variables)
    seen = images if auxiliary.preprocess is None else auxiliary.preprocess(images)
    if map_eps is None:
        logits, out = auxiliary.net.apply(variables, seen)
        return Sight(None, logits, out["embedding"])
    raw, logits, out = raw_maps(auxiliary.net, variables, seen, labels, config=config)
    return Sight(normalise_maps(raw, images.shape[1:3], map_eps=map_eps, config=config), logits, out["embedding"])


def _map_eps(auxiliary: Auxiliary, kind: str) -> Array:
    if not isinstance(auxiliary.map_eps, Mapping) or kind not in auxiliary.map_eps:
        raise ValueError(
            f"the auxiliary {auxiliary.net.name} holds no range of {kind!r} maps; "
            "make it with features.freeze or features.make_auxiliary, which measure every kind"
        )
    return jax.lax.stop_gradient(auxiliary.map_eps[kind])


@eager.one_program(static_argnames=("config",))
def stack_maps(
    auxiliaries: Sequence[Auxiliary], images: jax.Array, labels: jax.Array, *, config: CamConfig | None = None
) -> jax.Array:
    """Makes the maps of several auxiliaries over the same images.

    Args:
      auxiliaries: M frozen networks.
      images: [B, H, W, C] in the set's value space.
      labels: [B] int, the class whose evidence is mapped.
      config: how maps are made; None for the defaults.

    Returns:
      [M, B, H, W] in [0, 1].

    Raises:
      ValueError: see ``observe``.
    """
    sights = [observe(auxiliary, images, labels, config=config) for auxiliary in auxiliaries]
    return jnp.stack([sight.maps for sight in sights if sight.maps is not None])  # asked for, so that none is None


def freeze(net: zoo.Architecture, variables: Any, dataset: Dataset, *, preprocess: Any = None) -> Auxiliary:
    """Freezes a network trained on ``dataset``, to look at synthetic images through it.

    The typical range of each kind of map that it can make is measured on up to 32 real images a class (as many as the
    smallest class has), which pass it in parts: a thousand classes at 224 pixels do not fit at once.

    Args:
      net: the architecture.
      variables: its ``params`` (+ ``batch_stats``).
      dataset: the real data; its training images are the probe.
      preprocess: hashable differentiable function from the set's value space and size to the network's; None where
        they are the same.

    Returns:
      The ``Auxiliary``; of a network without a spatial map one that has no ranges, which can still serve as a
      reference or for terms that read no maps.
    """
    if not net.has_map:
        return Auxiliary(variables=variables, map_eps={}, net=net, preprocess=preprocess)
    arrays = dataset.train
    per_class = min(_PROBES, int(np.min(arrays.counts)))
    drawn, labels = sampling.random_rows(keys.root(0, "probe"), arrays, per_class)
    rows = np.asarray(drawn)
    height, width, _ = net.image_shape
    parts = -(-len(rows) * height * width // _PART_PIXELS)
    share = -(-len(rows) // parts)
    # Every part has the same shape, so one program serves all: the last is filled up with the first images again.
    places = np.resize(np.arange(len(rows)), (parts, share))
    ranges_of = parallel.jit(lambda v, x, y: _ranges(net, v, x, y, preprocess))
    found = [
        # Rows are taken before anything goes to the device: the real images may be larger than it.
        ranges_of(variables, sampling.standardise(arrays.images[rows[part]], arrays.mean, arrays.std), labels[part])
        for part in places
    ]
    ranges = {kind: jnp.concatenate([part[kind] for part in found])[: len(rows)] for kind in found[0]}
    return Auxiliary(variables=variables, map_eps=_typical(ranges), net=net, preprocess=preprocess)


_PROBES = 32  # real images a class
_PART_PIXELS = 2**20  # 1,024 images of 32 x 32 pixels, 20 of 224 x 224


def make_auxiliary(
    net: zoo.Architecture, variables: Any, images: jax.Array, labels: jax.Array, *, preprocess: Any = None
) -> Auxiliary:
    """Freezes a trained network and measures its typical map ranges on given images (``freeze`` draws them itself).

    Each ``map_eps`` becomes 1e-2 x the median range (max - min) of the raw maps of its kind at the true labels. Ranges
    differ up to fifty times between kinds, so every kind has its own, whatever ``CamConfig`` is used later.

    Args:
      net: the architecture.
      variables: its ``params`` (+ ``batch_stats``).
      images: [B, H, W, C] real images in the set's value space; they pass the network at once.
      labels: [B] int, their classes.
      preprocess: as in ``freeze``.

    Raises:
      ValueError: if the network has no spatial map.
    """
    if not net.has_map:
        raise ValueError(f"{net.name} has no spatial feature map, so no range of it; choose a network that has")
    measure = parallel.jit(lambda v, x, y: _typical(_ranges(net, v, x, y, preprocess)))
    return Auxiliary(variables=variables, map_eps=measure(variables, images, labels), net=net, preprocess=preprocess)


def _ranges(
    net: zoo.Architecture, variables: Any, images: jax.Array, labels: jax.Array, preprocess: Any
) -> dict[str, jax.Array]:
    """Range [B] of each image's raw map, by kind."""
    seen = images if preprocess is None else preprocess(images)
    maps = all_raw_maps(net, variables, seen, labels)
    return {kind: values.max(axis=(1, 2)) - values.min(axis=(1, 2)) for kind, values in maps.items()}


def _typical(ranges: dict[str, jax.Array]) -> dict[str, jax.Array]:
    # A network whose maps are all dead would get eps = 0 and divide 0 by 0.
    return {kind: jnp.maximum(1e-2 * jnp.median(values), 1e-8) for kind, values in ranges.items()}
