"""``Architecture``: one network of the zoo as a set of pure functions, static and hashable."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax.zoo import contract, initialise, layers, norms

Variables = dict[str, Any]
Outputs = dict[str, jax.Array]
GEOMETRIES = ("small", "imagenet")
COMPUTE = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network for images of one shape. Equal options give equal, interchangeable objects.

    Your own network is an ``Architecture`` around a Linen module of yours that keeps to what follows; making it checks
    that, and raises a ValueError that says what is broken.

    ``out``, the second result of each apply function, holds

    * ``embedding`` [B, D]: what the last Linear layer sees;
    * ``map`` [B, h, w, C]: the feature map for class activation maps (absent where ``has_map`` is False), the
      deepest stage that is fine enough (``layers.least_map_side``). ``{"perturbations": {"map": ...}}`` among
      the variables shifts it, so the gradient with respect to zeros there is d logits / d map without touching
      the trunk;
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
    """

    name: str
    label: str
    module: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    geometry: str = "small"
    compute: str = "float32"

    def __post_init__(self) -> None:
        for field, words in (("geometry", GEOMETRIES), ("compute", COMPUTE)):
            if getattr(self, field) not in words:
                raise ValueError(f"{self.name}: {field}={getattr(self, field)}; choose one of {', '.join(words)}")
        shapes(self)  # a network that breaks the contract is refused here (see ``contract.trace``)

    def init(self, key: jax.Array) -> Variables:
        """New ``params`` (and ``batch_stats``, where the network has batch norm). Works under ``vmap``."""
        images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        # Lazy: no image is pushed through the network. Perturbations are left out, they are no state.
        return initialise.draw(key, self.module.lazy_init(key, images, train=False, mutable=contract.COLLECTIONS))

    def apply(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Outputs]:
        """Evaluation: batch norm uses its running statistics.

        Args:
          variables: what ``init`` gives, and optionally ``perturbations``.
          images: [B, H, W, C] float32 in the value space the network was trained in.

        Returns:
          Logits [B, K] and ``out``.

        Raises:
          ValueError: if the images have another shape than ``image_shape``.
        """
        self._check(images)
        return jax.tree.map(layers.widen, self.module.apply(*self._inputs(variables, images), train=False))

    def apply_train(
        self, variables: Variables, images: jax.Array, weights: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs, Variables]:
        """Training: like ``apply``, but batch norm uses the statistics of ``images`` and updates its own.

        Args:
          weights: [B], 0 for images that only fill up a batch: batch norm does not see them, so that the others give
            what they would give alone. The rest counts alike, whatever its weight. None: all count.

        Returns:
          Logits [B, K], ``out`` and the new ``batch_stats`` ({} where there are none): .9 old + .1 batch, as
          PyTorch with momentum .1, but with the biased variance of the batch (Flax), not the unbiased.
        """
        self._check(images)
        inputs = self._inputs(variables, images)
        with norms.counting(weights):
            outputs, updates = self.module.apply(*inputs, train=True, mutable=["batch_stats"])
        return *jax.tree.map(layers.widen, outputs), updates.get("batch_stats", {})

    def apply_batch(
        self, variables: Variables, images: jax.Array, weights: jax.Array | None = None
    ) -> tuple[jax.Array, Outputs]:
        """Like ``apply``, but batch norm uses the statistics of ``images`` and stores nothing.

        For networks with random weights, whose running statistics mean nothing (DM). ``weights`` as in ``apply_train``.
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
        return shapes(self)[1]["map"].shape[1:]

    def num_params(self) -> int:
        """Number of trained parameters (batch norm's running statistics are none). Allocates nothing."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(self)[0]["params"]))

    def _inputs(self, variables: Variables, images: jax.Array) -> tuple[Variables, jax.Array]:
        if self.compute == "float32":
            return variables, images
        narrow = {name: tree for name, tree in variables.items() if name != "batch_stats"}
        narrow, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, self.compute), (narrow, images))
        return {**variables, **narrow}, images

    def _check(self, images: jax.Array) -> None:
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"{self.label} was created for images {self.image_shape}, not {tuple(images.shape[1:])}; "
                "preprocess the images or create the network with their image_shape"
            )


@functools.lru_cache(maxsize=256)
def shapes(net: Architecture) -> tuple[Variables, Outputs]:
    """Shapes of the variables and of ``out`` for one image: one trace per architecture, nothing allocated."""
    return contract.trace(net.label, net.module, net.num_classes, net.image_shape)
