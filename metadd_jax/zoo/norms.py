"""The norms of the zoo, with PyTorch's conventions: instance, batch, layer and group norm of [B, H, W, C]."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax.zoo.layers import SizeError, widen

NORMS = ("instance", "batch", "layer", "group", "none")
_OF_FEATURES = ("instance", "layer", "group")
EPSILON = 1e-5
_GROUPS = 4


def norm(x: jax.Array, kind: str, *, train: bool, name: str, epsilon: float = EPSILON) -> jax.Array:
    """Applies one of ``NORMS``; ``epsilon`` is batch norm's.

    Batch norm: momentum .9 here is PyTorch's .1; the running variance is the biased one (Flax), where PyTorch
    keeps the unbiased one: a factor n / (n - 1), n = B H W.

    Raises:
      ValueError: for another kind.
    """
    if kind not in NORMS:
        raise ValueError(f"norm {kind!r} must be one of {', '.join(NORMS)}")
    if kind == "none":
        return x
    if kind == "batch":
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=epsilon, use_fast_variance=False, name=name
        )(x)
    return FeatureNorm(kind, name=name)(x)


def counting(weights: jax.Array | None) -> contextlib.AbstractContextManager:
    """Within it, a batch norm that trains takes its statistics over the images of a weight above 0, [B], and no others.

    It reaches every ``flax.linen.BatchNorm`` of a module that is applied there, a user's own too. None: over all.

    Raises:
      ValueError: at a batch norm whose input has another first axis than the images.
    """
    if weights is None:
        return contextlib.nullcontext()

    def only_those(layer: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            shape = args[0].shape
            if shape[0] != len(weights):
                raise ValueError(
                    f"batch norm {context.module.name} sees {shape} and cannot tell which rows fill up a batch of "
                    f"{len(weights)} images; keep the images on its first axis"
                )
            kwargs = {"mask": (weights > 0).reshape(-1, *[1] * (len(shape) - 1)), **kwargs}
        return layer(*args, **kwargs)

    return nn.intercept_methods(only_those)


class FeatureNorm(nn.Module):
    """Instance, group or layer norm of [B, H, W, C], without running statistics; eps 1e-5.

    ``instance``: group norm with as many groups as channels, affine, params [C]. ``group``: 4 groups,
    params [C]. ``layer``: over all of H, W, C, params [H, W, C] (PyTorch: (C, H, W)).

    Raises:
      ValueError: for another kind.
    """

    kind: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in _OF_FEATURES:
            raise ValueError(f"norm {self.kind!r} must be one of {', '.join(_OF_FEATURES)}")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        shape = x.shape[1:] if self.kind == "layer" else (channels,)
        together = {"instance": 1, "group": max(1, channels // _GROUPS), "layer": channels}[self.kind]
        if x.shape[1] * x.shape[2] * together == 1:
            raise SizeError(
                f"{self.kind} norm over one number each (a map of 1x1 pixels, {channels} channels) makes all images "
                "alike; use larger images, or another norm such as norm=batch"
            )
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if self.kind == "instance" and jax.default_backend() == "cpu":
            return instance_norm(x, scale, bias)
        if self.kind == "group":
            if channels % _GROUPS:
                raise SizeError(f"group norm needs channels in multiples of {_GROUPS}, not {channels}; set width so")
            grouped = x.reshape(*x.shape[:3], _GROUPS, channels // _GROUPS)
            return standardise(grouped, (1, 2, 4))[0].reshape(x.shape) * scale + bias
        return standardise(x, (1, 2, 3) if self.kind == "layer" else (1, 2))[0] * scale + bias


def standardise(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes away the mean over ``axes`` and divides by the (biased) standard deviation, in float32 at least.

    Two passes: the one-pass E[x^2] - E[x]^2 loses every digit where the mean is large beside the deviation.

    Returns:
      The result, in the type of ``x``; the mean and 1 / sqrt(variance + eps), both with ``axes`` of length 1.
    """
    wide = widen(x)
    mean = wide.mean(axes, keepdims=True)
    centred = wide - mean
    rate = jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + EPSILON)
    return (centred * rate).astype(x.dtype), mean, rate


@jax.custom_vjp
def instance_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, H, W, C] standardised image by image and channel by channel, times ``scale`` [C] plus ``bias`` [C].

    The gradient is the one that differentiation gives, as a formula: with as few passes over the map as it takes, and
    with coefficients that are computed once and not at every pixel. On a CPU what XLA makes of the plain formula took
    half of a ConvNet's training step (docs/costs.md). It has no forward-mode derivative, so only CPUs use it.
    """
    return _keep(x, scale, bias)[0]


def _keep(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    standard, mean, rate = standardise(widen(x), (1, 2))
    # Rounded once: a CPU rounds to bfloat16 by integer operations.
    return (standard * widen(scale) + widen(bias)).astype(x.dtype), (x, mean, rate, scale)


def _gradients(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # With z = (x - mean) rate and n pixels: dx = scale rate (g - sum(g) / n - z sum(g z) / n).
    x, mean, rate, scale = kept
    centred, wide, pixels = widen(x) - mean, widen(gradient), x.shape[1] * x.shape[2]
    # The barriers keep XLA from computing what belongs to a channel anew at every pixel.
    to_bias, to_scale = jax.lax.optimization_barrier(
        (wide.sum((1, 2), keepdims=True), rate * (wide * centred).sum((1, 2), keepdims=True))
    )
    slope, shift, pull = jax.lax.optimization_barrier((scale * rate, to_bias / pixels, rate * to_scale / pixels))
    to_x = slope * (wide - shift - centred * pull)
    return to_x.astype(x.dtype), to_scale.sum((0, 1, 2)).astype(scale.dtype), to_bias.sum((0, 1, 2)).astype(scale.dtype)


instance_norm.defvjp(_keep, _gradients)
