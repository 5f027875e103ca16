"""The plain containers that travel between modules: pytrees without logic.

Shape letters used all over the package: B images, N images of a set, K classes, M auxiliary networks,
H x W x C an image, h x w x D a feature map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray


# Frozen dataclasses that JAX takes apart as trees: a state goes through jit, scan, pmap and a checkpoint as one value.
# What decides shapes or code (sizes, networks) is static: it is part of the compiled program's key, and no array.


@struct.dataclass
class SyntheticSet:
    """A distilled set.

    Attributes:
      images: [N, H, W, C] float32 in the set's value space (by default standardised: (x / 255 - mean) / std),
        class-major: the ``ipc`` images of class 0, then those of class 1, and so on.
      labels: [N] int32 in [0, K).
      soft_labels: [N, K] float32 probabilities, or None for hard labels.
      learning_rate: [] float32, the step size learned with the set (MTT, TESLA), or None.
    """

    images: Array
    labels: Array
    soft_labels: Array | None = None
    learning_rate: Array | None = None


@struct.dataclass
class ImageArrays:
    """Real images of one split, sorted by class, ready to be drawn from on the device.

    Attributes:
      images: [N, H, W, C] uint8 in [0, 255], or float32 already in the set's value space (whitened); class-major.
      labels: [N] int32 in [0, K), non-decreasing.
      offsets: [K] int32, index of the first image of each class.
      counts: [K] int32, number of images of each class; classes may differ in size.
      mean: [C] float32, per-channel mean of the pixels in [0, 1] that standardisation subtracts.
      std: [C] float32, per-channel standard deviation that standardisation divides by.
      max_count: the largest class size (static: it sets the shape of a draw without replacement).
    """

    images: Array
    labels: Array
    offsets: Array
    counts: Array
    mean: Array
    std: Array
    # Python's integer: a traced one could not be the shape of a draw.
    max_count: int = struct.field(pytree_node=False)


class Whitening(NamedTuple):
    """A ZCA transform of flattened images in [0, 1]: ``whitened = (x - mean) @ matrix`` (see ``data.whitening``).

    Attributes:
      mean: [D] float32, D = H * W * C.
      matrix: [D, D] float32, symmetric.
      inverse: [D, D] float32, symmetric: ``x = whitened @ inverse + mean``.
    """

    mean: np.ndarray
    matrix: np.ndarray
    inverse: np.ndarray


# No tree: it stays on the host and holds names; eq=False, since arrays have no single truth of equality.
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A real image-classification data set.

    Attributes:
      name: what the user called it ("mnist5k", "cifar10", a path).
      train: the training split (less the validation images).
      test: the test split.
      validation: images carved from the training split by seed, or None.
      class_names: K names in label order.
      fingerprint: SHA-256 (hex) of the images, labels and constants of all splits.
      whitening: how the images were whitened, or None. Whitened images are float32, their constants mean 0 and std 1.
      start: [N, H, W, C] float32, class-major, what a set starts from in place of the start that its method would draw
        (``distillers.start_from``), or None. No part of the data: the fingerprint does not count it.
    """

    name: str
    train: ImageArrays
    test: ImageArrays
    validation: ImageArrays | None
    class_names: tuple[str, ...]
    fingerprint: str
    whitening: Whitening | None = None
    start: Array | None = None

    @property
    def arrays(self) -> ImageArrays:
        """``train`` under its first name, which the contract promises."""
        return self.train

    @property
    def num_classes(self) -> int:
        """K, counted by the names: a class may be absent from a split."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


@struct.dataclass
class RealSide:
    """What a frozen network makes of the real training images: what terms compare with that look at both.

    Attributes:
      counts: [K] float32, real images of each class.
      means: [K, D] float32, mean embedding of each class.
      directions: [K, D] float32, mean of the embeddings of each class, each scaled to length 1.
      spread: [] float32, root of the mean squared distance of an embedding from the mean of all.
      variances: [K, D] float32, variance of the embeddings of each class; None where nothing reads it.
    """

    counts: Array
    means: Array
    directions: Array
    spread: Array
    variances: Array | None = None


@struct.dataclass
class Auxiliary:
    """A frozen network that looks at the synthetic images.

    Attributes:
      variables: ``params`` (+ ``batch_stats``).
      map_eps: for each kind of class activation map that the network can make (``features.map_kinds``) a [] float32,
        added to a map's range when it is normalised: 1e-2 x the median range of that kind on real images, so that
        nearly flat maps do not blow the gradient up. Empty where only logits are wanted.
      net: a ``zoo.Architecture`` (static, hashable).
      preprocess: hashable differentiable function from the set's value space and size to the network's, or
        None where they are the same (static).
      real: what it makes of the real images; None where no term asks (``invariant.equip`` adds it).
      untrained: the same network with random weights, an ``Auxiliary``; None likewise.
      real_maps: for each way in which maps were made (``invariant.equipment.map_way``) the mean class activation map of
        the real training images of each class, [K, H, W] float32 in [0, 1], 0 for a class without any; None likewise.
    """

    variables: Any
    map_eps: Mapping[str, Array]
    net: Any = struct.field(pytree_node=False)
    preprocess: Any = struct.field(pytree_node=False, default=None)
    real: RealSide | None = None
    untrained: Any = None
    real_maps: Mapping[str, Array] | None = None


class Split(NamedTuple):
    """What several networks see, split in two (see ``metadd_jax.split``).

    Attributes:
      meta: [B, H, W] bool, high in the map of every network.
      heterogeneous: [M, B, H, W] bool, high in the map of network m but not in all.
    """

    meta: jax.Array
    heterogeneous: jax.Array


@struct.dataclass
class DistillState:
    """Everything that changes while a set is distilled: one pytree, one checkpoint.

    Attributes:
      step: [] int32, updates done so far.
      synthetic: the trained parameterisation of the set (for pixels: a dict with ``images``).
      opt_state: the optimiser's state.
      aux: what the method itself keeps (MetaDD: the calibrated weights of its terms).
      key: typed PRNG key of the run; step t draws from ``fold_in(key, t)`` and nothing else (see ``keys``).
    """

    step: jax.Array
    synthetic: Any
    opt_state: Any
    aux: Any
    key: jax.Array
