"""The norms of the zoo, with PyTorch's conventions: instance, batch, layer and group norm of [B, H, W, C]."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax.zoo.layers import SizeError, widen

NORMS = ("instance", "batch", "layer", "group", "none")
_OF_FEATURES = ("instance", "layer", "group")
EPSILON = 1e-5  # PyTorch's; Flax has 1e-6
GROUPS = 4  # the DC family's


def norm(x: jax.Array, kind: str, *, train: bool, name: str, epsilon: float = EPSILON) -> jax.Array:
    """Applies one of ``NORMS``.

    Batch norm: momentum .9 here is PyTorch's .1. The running variance is the biased one (Flax), where PyTorch
    keeps the unbiased one: a factor n / (n - 1), n = B H W. The biased one is what the batch is normalised by, and
    what Flax's users expect (docs/zoo.md).

    Args:
      x: [B, H, W, C].
      kind: one of ``NORMS``; "none" returns ``x``.
      train: whether batch norm uses the statistics of the batch and updates its own.
      name: of the submodule.
      epsilon: added to the variance by batch norm; the other norms have 1e-5.

    Returns:
      [B, H, W, C].

    Raises:
      SizeError: (a ValueError) if instance, layer or group norm does not suit the size of the map.
      ValueError: for another kind.
    """
    if kind not in NORMS:
        raise ValueError(f"norm {kind!r} must be one of {', '.join(NORMS)}")
    if kind == "none":
        return x
    if kind == "batch":
        # Two passes, as in ``normalise``.
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=epsilon, use_fast_variance=False, name=name
        )(x)
    return FeatureNorm(kind, name=name)(x)


def counting(weights: jax.Array | None) -> contextlib.AbstractContextManager:
    """Makes batch norm leave padding out of its statistics, as a context manager.

    Every ``flax.linen.BatchNorm`` of a module that is applied within it is reached, those of a user's module too. The
    last batch of an epoch is padded to have one compiled shape. With padding in the statistics its gradient is not
    that of its images alone, which PyTorch computes.

    Args:
      weights: [B]; images of weight 0 are padding. None: all images count.

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
            # A mask that the module itself passes is kept.
            kwargs = {"mask": (weights > 0).reshape(-1, *[1] * (len(shape) - 1)), **kwargs}
        return layer(*args, **kwargs)

    return nn.intercept_methods(only_those)


class FeatureNorm(nn.Module):
    """Instance, group or layer norm of [B, H, W, C], without running statistics; eps 1e-5.

    The DC family calls a group norm with as many groups as channels "instance norm".

    Attributes:
      kind: "instance" (over H and W, params [C]), "group" (4 groups of channels, params [C]) or "layer" (over H, W and
        C, params [H, W, C]; PyTorch's are [C, H, W]).

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
        # How many channels share their statistics. One number minus its own mean is 0 for every image.
        together = {"instance": 1, "group": max(1, channels // GROUPS), "layer": channels}[self.kind]
        if x.shape[1] * x.shape[2] * together == 1:
            raise SizeError(
                f"{self.kind} norm over one number each (a map of 1x1 pixels, {channels} channels) makes all images "
                "alike; use larger images, or another norm such as norm=batch"
            )
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if self.kind == "instance":
            return (instance_norm if _on_cpu() else instance_norm_in_few_kernels)(x, scale, bias)
        if self.kind == "group":
            if channels % GROUPS:
                raise SizeError(f"group norm needs channels in multiples of {GROUPS}, not {channels}; set width so")
            grouped = x.reshape(*x.shape[:3], GROUPS, channels // GROUPS)
            return normalise(grouped, (1, 2, 4))[0].reshape(x.shape) * scale + bias
        return normalise(x, (1, 2, 3) if self.kind == "layer" else (1, 2))[0] * scale + bias


def normalise(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Subtracts the mean over ``axes`` and divides by the (biased) standard deviation, in float32 at least.

    In two passes on a CPU, in one elsewhere (``_statistics``): the usual formula of one pass, E[x^2] - E[x]^2, loses
    every digit where the mean is much larger than the deviation.

    Args:
      x: array of any shape.
      axes: what the statistics are taken over.

    Returns:
      The result, in the type of ``x``; the mean and 1 / sqrt(variance + eps), both with ``axes`` of length 1.
    """
    wide = widen(x)
    if not _on_cpu():
        mean, rate = _statistics(wide, axes)
        return ((wide - mean) * rate).astype(x.dtype), mean, rate
    mean = wide.mean(axes, keepdims=True)
    centred = wide - mean
    rate = jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + EPSILON)
    return (centred * rate).astype(x.dtype), mean, rate


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


# A custom jvp, because the derivative of the mean within the variance is 0: left to itself JAX computes it, with a sum
# over the map of its own.
@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _statistics(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and 1 / sqrt(variance + eps) over ``axes``, from one pass over the array.

    Of values less the first of them, f. No value is further from the mean than sqrt(n) deviations (Samuelson's
    inequality), so E[(x - f)^2] - E[x - f]^2 loses at most a factor n + 1 of the precision of the sums, however large
    the mean is, and usually a factor 2.
    """
    first = x[tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))]
    moved = x - first
    shift = moved.mean(axes, keepdims=True)
    variance = jnp.square(moved).mean(axes, keepdims=True) - jnp.square(shift)
    return first + shift, jax.lax.rsqrt(jnp.maximum(variance, 0) + EPSILON)


@_statistics.defjvp
def _statistics_tangents(axes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x,), (tangent,) = primals, tangents
    mean, rate = _statistics(x, axes)
    to_rate = -(rate**3) * ((x - mean) * tangent).mean(axes, keepdims=True)
    return (mean, rate), (tangent.mean(axes, keepdims=True), to_rate)


@jax.custom_vjp
def instance_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Standardises each channel of each image over its pixels, then scales and shifts.

    The gradient is written out by hand, with few passes over the map, and with coefficients that are computed once and
    not at every pixel. On a CPU, what XLA makes of the plain formula took half of a ConvNet's training step
    (docs/costs.md). For CPUs; a custom gradient has no forward-mode derivative.

    Args:
      x: [B, H, W, C].
      scale: [C].
      bias: [C].

    Returns:
      [B, H, W, C], in the type of ``x``.
    """
    return _keep(x, scale, bias)[0]


def _keep(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    standard, mean, rate = normalise(widen(x), (1, 2))
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


@jax.custom_jvp
def instance_norm_in_few_kernels(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes ``instance_norm`` for an accelerator, where a step waits for memory and for starting kernels.

    A kernel for the statistics and one for the result; back, one for both sums over the map and one for the gradient
    (docs/gpu.md). It has derivatives of every order, in both modes.

    Args:
      x: as for ``instance_norm``.
      scale: as for ``instance_norm``.
      bias: as for ``instance_norm``.
    """
    standard, _, _ = normalise(widen(x), (1, 2))
    return (standard * widen(scale) + widen(bias)).astype(x.dtype)


@instance_norm_in_few_kernels.defjvp
def _few_kernels_tangents(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # With z = (x - mean) rate: dy = scale rate (dx - mean(dx) - z mean(z dx)) + z dscale + dbias, sorted by what is of
    # the map and what is of a channel: transposed, all of it comes from the two sums over g and over (x - mean) g.
    (x, scale, bias), (to_x, to_scale, to_bias) = primals, tangents
    mean, rate = _statistics(widen(x), (1, 2))
    centred, moved, slope = widen(x) - mean, widen(to_x), widen(scale) * rate
    shift = widen(to_bias) - slope * moved.mean((1, 2), keepdims=True)
    pull = rate * widen(to_scale) - slope * jnp.square(rate) * (centred * moved).mean((1, 2), keepdims=True)
    result = centred * slope + widen(bias)
    return result.astype(x.dtype), (slope * moved + shift + centred * pull).astype(x.dtype)
