"""Drawing all parameters of a network from one stream of random numbers.

A layer does not draw its parameters. Its initialiser returns a box (``Drawn``) around zeros that names the distribution
and its scale; ``draw`` then fills all boxes of one distribution from one stream. The reason is compile time on CPU: a
ResNet18 has 62 tensors, and 62 generators took 20 times as long to compile as one (23 s against 1.2 s), inside every
function that initialises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

# ``(key, shape, dtype) -> value``. Flax takes a box as well as an array, which JAX's own type does not say.
Initialiser = Callable[..., Any]


class Drawn(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter still to be drawn: zeros of its shape, the name of its distribution and its scale.

    Attributes:
      value: zeros of the parameter's shape.
      law: a key of ``LAWS``.
      scale: what the numbers of that distribution are multiplied by.
    """

    # A box of Flax, so that a module computes with ``value`` and needs to know nothing of boxes.
    value: Any
    law: str = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """Returns the value, as the module computes with it."""
        return self.value

    def replace_boxed(self, val: Any) -> Drawn:
        """Returns the same box around ``val``."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict) -> Drawn:
        """Keeps the distribution where a lifted transform stacks parameters (``index``, ``params``: Flax's)."""
        del index, params
        return self

    def remove_axis(self, index: int, params: dict) -> Drawn:
        """Undoes ``add_axis``, with the same ``index`` and ``params``."""
        del index, params
        return self


# The position of a law decides its random stream (``draw``), so the order is part of every seed.
LAWS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "uniform": lambda key, size: jax.random.uniform(key, (size,), minval=-1.0, maxval=1.0),
    "normal": lambda key, size: jax.random.truncated_normal(key, -2.0, 2.0, (size,)),
    # Last, so that the streams of the others stay what they were.
    "untruncated": lambda key, size: jax.random.normal(key, (size,)),
}


def _initializer(law: str, scale: float) -> Initialiser:
    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Drawn:
        del key  # one key for the whole network, see ``draw``
        return Drawn(jnp.zeros(shape, dtype), law=law, scale=scale)

    return init


def fan_in_uniform(fan_in: int) -> Initialiser:
    """Returns PyTorch's default initialiser for weights and biases alike: uniform in +-1 / sqrt(``fan_in``).

    It equals ``kaiming_uniform`` with a = sqrt(5) (``torch.nn.Linear.reset_parameters``). With Flax's default (LeCun
    normal, zero bias) a random network has other embeddings and gradients, and these are what DM and DC match.
    """
    return _initializer("uniform", fan_in**-0.5)


def truncated_normal(deviation: float) -> Initialiser:
    """Returns a normal initialiser of mean 0, truncated at two deviations; ``deviation`` is that before truncation."""
    return _initializer("normal", deviation)


def normal(deviation: float) -> Initialiser:
    """Returns a normal initialiser of mean 0 and standard deviation ``deviation``, not truncated."""
    return _initializer("untruncated", deviation)


def fan_out_normal() -> Initialiser:
    """Returns a normal initialiser of variance 2 / (k k O) for a kernel [k, k, C, O].

    He et al. 2015, mode "fan out", gain of ReLU: how torchvision draws its ResNets and VGGs.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Drawn:
        fan_out = math.prod(shape[:-2]) * shape[-1]
        return normal(math.sqrt(2 / fan_out))(key, shape, dtype)

    return init


def draw(key: jax.Array, variables: Any) -> Any:
    """Fills every box in ``variables`` and removes it; other leaves stay as they are.

    Args:
      key: typed PRNG key.
      variables: collections with ``Drawn`` boxes as leaves.

    Returns:
      The same tree, arrays in place of boxes.
    """
    leaves, structure = jax.tree.flatten(variables, is_leaf=lambda leaf: isinstance(leaf, Drawn))
    for index, (law, sample) in enumerate(LAWS.items()):
        # One draw for all tensors of a law, then cut: the compile time is that of one generator.
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Drawn) and leaf.law == law]
        sizes = [leaves[place].value.size for place in places]
        if not places:
            continue
        stream, start = sample(jax.random.fold_in(key, index), sum(sizes)), 0
        for place, size in zip(places, sizes, strict=True):
            box = leaves[place]
            leaves[place] = (box.scale * stream[start : start + size]).reshape(box.value.shape)
            start += size
    return jax.tree.unflatten(structure, leaves)
