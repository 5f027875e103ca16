"""Whether trainings of one architecture run at once on an accelerator, or one after the other.

Each kernel that a step starts costs some 4 microseconds, and networks that train at once share it. But a convolution
with kernels of their own is then a product of patches, which are written and read (``zoo.convolution``).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from metadd_jax import zoo

# A training step starts about 24 kernels a convolution (docs/gpu.md), which cost 80 microseconds; in that time six
# passes over 50 MB go through an H200's memory: patches written and read forwards, and twice more on the way back.
_MOST_BYTES = 50e6


def at_once(net: zoo.Architecture, batch: int) -> bool:
    """Tells whether trainings of ``net`` on an accelerator are faster at once than one after the other.

    By a rule of sizes, not by a measurement of this device: the same job must run the same programs everywhere.

    Args:
      net: the architecture.
      batch: images of a training step.

    Returns:
      True if the patches of a convolution take at most 50 MB on average (networks without convolutions have none);
      False where they take more, where a convolution is not the zoo's, for which XLA has a slow way at once, and on a
      CPU.
    """
    return jax.default_backend() != "cpu" and _are_small(net, batch)


@functools.lru_cache(maxsize=64)
def _are_small(net: zoo.Architecture, batch: int) -> bool:
    variables = jax.eval_shape(net.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *net.image_shape), jnp.float32)
    sizes = _patch_bytes(jax.make_jaxpr(net.apply)(variables, images).jaxpr)
    return sum(sizes) <= _MOST_BYTES * len(sizes)


def _patch_bytes(jaxpr: core.Jaxpr) -> list[float]:
    """Bytes of the patches of each convolution of a program."""
    found: list[float] = []
    for equation in jaxpr.eqns:
        params: dict[str, Any] = equation.params
        if equation.primitive.name == "convolution_product":
            found.append(params["geometry"].patch_bytes)
        elif equation.primitive.name == "conv_general_dilated":
            found.append(math.inf)
        for inner in jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: isinstance(leaf, core.ClosedJaxpr)):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                found += _patch_bytes(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
    return found
