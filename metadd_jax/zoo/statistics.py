"""What enters the batch-norm layers of a network: the statistics that SRe2L and its kin match."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from metadd_jax.zoo import layers
from metadd_jax.zoo.architecture import Architecture, Variables


class NormInput(NamedTuple):
    """Statistics at the input of one batch-norm layer of C channels, each [C] float32.

    Attributes:
      mean: over the batch and all positions.
      variance: the biased one (divided by their number), two-pass.
      running_mean: what the layer has stored.
      running_variance: the same.
    """

    mean: jax.Array
    variance: jax.Array
    running_mean: jax.Array
    running_variance: jax.Array


def batch_norm_inputs(net: Architecture, variables: Variables, images: jax.Array) -> tuple[jax.Array, list[NormInput]]:
    """Evaluates a network (batch norm uses its running statistics) and measures what enters each batch norm.

    Differentiable, and at home under jit, grad, vmap and scan.

    Args:
      variables: ``params`` and ``batch_stats``.
      images: [B, H, W, C] float32 in the network's value space.

    Returns:
      Logits [B, K], and one ``NormInput`` a layer in the order of the forward pass; [] without batch norm.

    Raises:
      ValueError: if the images have another shape than the network's.
    """
    found: list[NormInput] = []

    def measure(layer: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            x, stored = args[0], context.module.variables["batch_stats"]
            axes, x = tuple(range(x.ndim - 1)), layers.widen(x)
            found.append(NormInput(x.mean(axes), x.var(axes), stored["mean"], stored["var"]))
        return layer(*args, **kwargs)

    with nn.intercept_methods(measure):
        logits, _ = net.apply(variables, images)
    return logits, found
