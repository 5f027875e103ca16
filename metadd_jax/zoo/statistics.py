"""Statistics at the inputs of a network's batch-norm layers, which SRe2L and its kin match."""

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
    """Evaluates a network and measures the statistics at the input of each batch norm.

    Batch norm itself uses its running statistics, as in SRe2L's recovery (Yin et al., arXiv 2306.13092). Differentiable
    in the images; works under jit, grad, vmap and scan.

    Args:
      net: the network; only ``flax.linen.BatchNorm`` layers are measured.
      variables: ``params`` and ``batch_stats``.
      images: [B, H, W, C] float32 in the network's value space.

    Returns:
      Logits [B, K], and a list of one ``NormInput`` per layer in the order of the forward pass, [] without batch norm.

    Raises:
      ValueError: if the images have another shape than the network's.
    """
    found: list[NormInput] = []

    def measure(layer: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            x, stored = args[0], context.module.variables["batch_stats"]
            # float32, and the biased variance, as the published program has it: not PyTorch's running (unbiased) one.
            axes, x = tuple(range(x.ndim - 1)), layers.widen(x)
            found.append(NormInput(x.mean(axes), x.var(axes), stored["mean"], stored["var"]))
        return layer(*args, **kwargs)

    # Intercepted, so that any module works: no layer has to record what it sees.
    with nn.intercept_methods(measure):
        logits, _ = net.apply(variables, images)
    return logits, found
