"""``Architecture``: one network of the zoo as a set of pure functions, static and hashable."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax import eager
from metadd_jax.zoo import contract, initialise, layers, norms

Variables = dict[str, Any]
Outputs = dict[str, jax.Array]
GEOMETRIES = ("small", "imagenet")
COMPUTE = ("float32", "bfloat16")  # the first is the default, which no label mentions


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network for images of one shape. Equal options give equal, interchangeable objects.

    It is static: hashable, without weights, so it may be an argument of ``jax.jit`` that selects a program. Weights
    are a plain dict beside it, because a distillation method differentiates through updates of them.

    Your own network is an ``Architecture`` around a Linen module of yours that returns what follows. The constructor
    checks this, and raises a ValueError that says what is broken.

    ``out``, the second result of each apply function, holds

    * ``embedding`` [B, D]: the input of the last Linear layer;
    * ``map`` [B, h, w, C]: the feature map for class activation maps (absent where ``has_map`` is False), the
      deepest stage that is fine enough (``layers.least_map_side``). ``{"perturbations": {"map": ...}}`` among
      the variables is added to it. So the gradient with respect to zeros there is d logits / d map, and the layers
      below the map are not differentiated;
    * ViT only: ``attention`` [L, B, heads, T, T] (token 0 is the class token) and
      ``patch_logits`` [B, h, w, K].

    Attributes:
      name: network, e.g. "resnet18".
      label: ``name`` and the options that are not default, e.g. "resnet18:width=16"; ``zoo.parse`` reads it.
      module: the Linen module, called as ``module(images, train=...) -> (logits, out)``.
      num_classes: K.
      image_shape: (H, W, C) of the images.
      geometry: "imagenet" where the network is torchvision's of that name, else "small".
      compute: "float32", or "bfloat16" for the layers' products and activations. Weights, images, running statistics
        and all results stay float32, and norms take their means in float32.
      map_side: least pixels of the map's shorter side, where it shall be taken at another stage than
        ``layers.least_map_side`` says; None for that one.
    """

    name: str
    label: str
    module: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    geometry: str = "small"
    compute: str = "float32"
    map_side: int | None = None

    def __post_init__(self) -> None:
        for field, words in (("geometry", GEOMETRIES), ("compute", COMPUTE)):
            if getattr(self, field) not in words:
                raise ValueError(f"{self.name}: {field}={getattr(self, field)}; choose one of {', '.join(words)}")
        # Tracing checks the contract. Here, because a broken network would otherwise show only as a bad number, after
        # it has been trained.
        shapes(self)

    def init(self, key: jax.Array) -> Variables:
        """Draws new ``params`` (and ``batch_stats``, where the network has batch norm). Works under ``vmap``.

        Args:
          key: typed PRNG key; equal keys give equal weights.

        Returns:
          A dict of collections, all leaves float32.
        """
        return _init(self, key)

    def apply(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Outputs]:
        """Applies the network in evaluation mode: batch norm uses its running statistics.

        Args:
          variables: as ``init`` returns them, and optionally ``perturbations``.
          images: [B, H, W, C] float32 in the value space the network was trained in.

        Returns:
          Logits [B, K] and ``out``.

        Raises:
          ValueError: if the images have another shape than ``image_shape``.
        """
        self._check(images)
        with layers.map_of(self.map_side):
            return jax.tree.map(layers.widen, self.module.apply(*self._inputs(variables, images), train=False))

    def apply_train(
        self, variables: Variables, images: jax.Array, weights: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs, Variables]:
        """Applies the network in training mode: batch norm uses the statistics of ``images`` and updates its own.

        Args:
          variables: as for ``apply``.
          images: [B, H, W, C] float32, as for ``apply``.
          weights: [B], 0 for padding, which batch norm leaves out, so that the other images give the same result as
            without padding. Every weight above 0 counts alike. None: all images count.

        Returns:
          Logits [B, K], ``out`` and the new ``batch_stats`` ({} where there are none): .9 old + .1 batch, as
          PyTorch with momentum .1, but with the biased variance of the batch (Flax), not the unbiased.

        Raises:
          ValueError: if the images have another shape than ``image_shape``, or a batch norm does not see the images on
            its first axis although there are ``weights``.
        """
        self._check(images)
        inputs = self._inputs(variables, images)
        with norms.counting(weights), layers.map_of(self.map_side):
            outputs, updates = self.module.apply(*inputs, train=True, mutable=["batch_stats"])
        return *jax.tree.map(layers.widen, outputs), updates.get("batch_stats", {})

    def apply_batch(
        self, variables: Variables, images: jax.Array, weights: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs]:
        """Applies the network with the batch norm statistics of ``images``, and stores none.

        For networks with random weights (DM): their running statistics are still the initial 0 and 1.

        Args:
          variables: as for ``apply``.
          images: [B, H, W, C] float32, as for ``apply``.
          weights: [B], 0 for padding, as for ``apply_train``.

        Returns:
          Logits [B, K] and ``out``.
        """
        return self.apply_train(variables, images, weights)[:2]

    @property
    def has_map(self) -> bool:
        """Whether ``out`` has a spatial ``map``."""
        return "map" in shapes(self)[1]

    @property
    def has_attention(self) -> bool:
        """Whether ``out`` has the ``attention`` of a transformer."""
        return "attention" in shapes(self)[1]

    @property
    def has_batch_stats(self) -> bool:
        """Whether the network has batch norm."""
        return "batch_stats" in shapes(self)[0]

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of ``out["map"]``.

        Raises:
          ValueError: if the network has no map.
        """
        if not self.has_map:
            raise ValueError(f"{self.label} has no spatial feature map; use a convolutional network or a vit")
        _, height, width, channels = shapes(self)[1]["map"].shape
        return height, width, channels

    @property
    def embedding_size(self) -> int:
        """D of ``out["embedding"]`` [B, D]."""
        return shapes(self)[1]["embedding"].shape[-1]

    def num_params(self) -> int:
        """Counts the trained parameters, without batch norm's running statistics. Allocates nothing."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(self)[0]["params"]))

    def _inputs(self, variables: Variables, images: jax.Array) -> tuple[Variables, jax.Array]:
        if self.compute == "float32":
            return variables, images
        # Running statistics stay float32: bfloat16 would round small changes of .9 old + .1 new away.
        narrow = {name: tree for name, tree in variables.items() if name != "batch_stats"}
        narrow, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, self.compute), (narrow, images))
        return {**variables, **narrow}, images

    def _check(self, images: jax.Array) -> None:
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"{self.label} was created for images {self.image_shape}, not {tuple(images.shape[1:])}; "
                "preprocess the images or create the network with their image_shape"
            )


@eager.one_program(static_argnames=("net",))
def _init(net: Architecture, key: jax.Array) -> Variables:
    images = jax.ShapeDtypeStruct((1, *net.image_shape), jnp.float32)
    # Lazy, so no forward pass is computed: DM draws a new network for every update. The perturbations are left
    # out, because an optimiser would train them and a checkpoint would store them.
    return initialise.draw(key, net.module.lazy_init(key, images, train=False, mutable=contract.COLLECTIONS))


# Cached: a trace takes 0.1 to 0.4 s for a deep network, and ``has_map`` and its kin are asked often.
@functools.lru_cache(maxsize=256)
def shapes(net: Architecture) -> tuple[Variables, Outputs]:
    """Returns the shapes of the variables and of ``out`` of ``net`` for one image; allocates nothing."""
    with layers.map_of(net.map_side) as wish:
        found = contract.trace(net.label, net.module, net.num_classes, net.image_shape)
    if wish and not wish.heard:
        raise ValueError(f"{net.label}: the map of this network is always taken at one place; leave map_side out")
    if wish and wish.side > min(found[1]["map"].shape[1:3]):
        _, height, width, _ = found[1]["map"].shape
        raise ValueError(f"{net.label}: its finest map is {height}x{width}; lower map_side")
    return found
