"""MTT and TESLA: a student trained on the set for a few steps must end where an expert ends after whole epochs.

MTT: Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (CVPR 2022). The student starts from
an expert's snapshot theta_0 and takes N plain SGD steps of the learned size alpha on the set,

    theta_{i+1} = theta_i - alpha g_i,    g_i = grad_theta mean l(A(x_i), y_i; theta_i),    x_i, y_i the i-th chunk;
    loss = |theta_N - theta_*|^2 / |theta_0 - theta_*|^2,    theta_* the expert ``expert_epochs`` epochs later,

differentiated through all N steps. TESLA: Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant
Memory" (ICML 2023): the same loss, but the gradient takes the weights theta_i at which each step was made as constants.
For N = 1 that is MTT's gradient; for more steps it is an approximation of it.

No real image is read after the start. On several devices every one computes the same student from the same expert.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metadd_jax import zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import networks, registry
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.student import TrajectoryMatching
from metadd_jax.ranges import OneOf

VARIANTS = ("paper", "code")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MTT(TrajectoryMatching):
    """Settings of MTT, whose gradient is exact: those of ``TrajectoryMatching`` and this one.

    Attributes:
      checkpoint: compute each step again in the backward pass: the memory of N weight vectors and one step's
        activations instead of the activations of N steps, and the same result.
    """

    checkpoint: bool = True

    @property
    def name(self) -> str:
        """What tables call the method."""
        return "mtt"

    def distance(
        self, g: Callable, seen: tuple, alpha: jax.Array, theta_0: jax.Array, target: jax.Array, chunks: tuple
    ) -> jax.Array:
        """Differentiates the student from end to end."""

        def step(theta: jax.Array, chunk: tuple) -> tuple[jax.Array, None]:
            return theta - alpha * g(theta, seen, chunk), None

        # Inside a scan nothing can be shared between the two passes, so no barrier is needed against it.
        # A step more then costs its weights (0.1 MB at width 32) and not its activations (196
        # MB at 100 images, docs/costs.md).
        step = jax.checkpoint(step, prevent_cse=False) if self.checkpoint else step
        # A scan and no Python loop: one step is compiled, however many the student takes.
        theta_n, _ = jax.lax.scan(step, theta_0, chunks)
        # The published program divides both by the number of weights, which cancels.
        return _square(theta_n - target) / _square(theta_0 - target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TESLA(TrajectoryMatching):
    """Settings of TESLA, whose gradient takes the student's way as given: those of ``TrajectoryMatching`` and this one.

    Attributes:
      variant: "paper", or "code" for the released program, whose gradient of the images lacks the factor 2.
    """

    variant: Annotated[str, OneOf(VARIANTS)] = "paper"

    @property
    def name(self) -> str:
        """What tables call the method."""
        return "tesla" if self.variant == "paper" else "tesla_code"

    def distance(
        self, g: Callable, seen: tuple, alpha: jax.Array, theta_0: jax.Array, target: jax.Array, chunks: tuple
    ) -> jax.Array:
        """The value of MTT's loss, with the gradient of ``tesla``'s docstring."""
        # With these stopped ``total`` and theta_i are constants: what TESLA's gradient leaves
        # out. The value stays exact.
        theta_0, target = jax.lax.stop_gradient((theta_0, target))
        still_seen, still_alpha = jax.lax.stop_gradient((seen, alpha))

        def step(carry: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
            theta, total = carry
            slope = g(theta, still_seen, chunk)
            return (theta - still_alpha * slope, total + slope), theta

        # Only the N weight vectors are kept of the way; activations come back one step at a time in ``pull``.
        (_, total), way = jax.lax.scan(step, (theta_0, jnp.zeros_like(theta_0)), chunks)  # total is G
        d = _square(theta_0 - target)
        value = _square(theta_0 - alpha * total - target) / d
        # The derivative of the loss in G, see the docstring of ``tesla``.
        v = 2 * (still_alpha * (target - theta_0) + still_alpha**2 * total) / d

        def pull(carry: jax.Array, item: tuple) -> tuple[jax.Array, None]:
            theta, chunk = item
            return carry + v @ g(theta, seen, chunk), None

        # A sum of <v, g_i> whose theta_i are constants, so its steps do not depend on each other.
        pulled, _ = jax.lax.scan(jax.checkpoint(pull, prevent_cse=False), jnp.zeros((), v.dtype), (way, chunks))
        # The released program repeats a tuple of one where it means to double, and so loses the factor.
        factor = 1.0 if self.variant == "paper" else 0.5
        return value + factor * (pulled - jax.lax.stop_gradient(pulled))  # adds a gradient and no value


registry.register("mtt", MTT)
registry.register("tesla", TESLA)
registry.register("tesla_code", functools.partial(TESLA, variant="code"))


def mtt(
    net: zoo.Architecture,
    experts: ArrayLike,
    *,
    ipc: int | Sequence[int],
    settings: MTT | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """Trajectory matching with the exact gradient as a ``Distiller``; ``trajectory_optimiser`` makes its optimiser.

    The trained parameterisation is ``images`` [K * ipc, H, W, C], at first random real images, and ``log_lr`` [], the
    logarithm of alpha, which thereby stays positive (``raw_lr``: ``lr`` [], alpha itself, as published; it may turn
    negative). The decoded set carries alpha as ``learning_rate``.

    Args:
      net: the backbone, without batch norm (the field uses instance norm here).
      experts: [E, T + 1, P] float32, the weights of E trained networks at the start and after each of T epochs (see
        ``training.device_experts``). They become ``frozen``: each device holds all of them. Steps go through the
        experts in random order, shuffled anew in every round.
      ipc: images per class, one number for all classes or one a class.
      settings: the method's settings; None for the defaults. What trains experts plays no part here.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.
      changes: fields of ``MTT`` to be other than in ``settings``: ``syn_steps=30``.

    Raises:
      ValueError: for a setting out of range, an epoch that the experts do not have, experts of another size or a
        network with batch norm; (in ``init``, without ``repeat``) for a class with fewer than ``ipc`` images.
    """
    counts = sampling.per_class(ipc, networks.single(net).num_classes)
    return dataclasses.replace(settings or MTT(), **changes).make(net, counts, experts, repeat=repeat)


def tesla(
    net: zoo.Architecture,
    experts: ArrayLike,
    *,
    ipc: int | Sequence[int],
    settings: TESLA | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """Trajectory matching with TESLA's constant-memory gradient as a ``Distiller``.

    With g_i the gradient at step i, G = sum_i g_i and D = |theta_0 - target|^2, the images' gradient is that of
    <v, sum_i g_i(images)>, v = 2 (alpha (target - theta_0) + alpha^2 G) / D and theta_i constant; alpha's is that of
    |theta_0 - alpha G - target|^2 / D with G constant. Soft labels have the gradient of the same product; the expert's
    weights are constants. The reported loss is the true one. ``mtt`` with ``checkpoint`` needs about the same memory,
    N weight vectors, and its gradient is exact.

    Args:
      net: see ``mtt``.
      experts: see ``mtt``.
      ipc: see ``mtt``.
      repeat: see ``mtt``.
      settings: the method's settings; None for the defaults.
      changes: fields of ``TESLA`` to be other than in ``settings``.

    Raises:
      ValueError: see ``mtt``.
    """
    counts = sampling.per_class(ipc, networks.single(net).num_classes)
    return dataclasses.replace(settings or TESLA(), **changes).make(net, counts, experts, repeat=repeat)


def _square(vector: jax.Array) -> jax.Array:
    return jnp.sum(vector**2)
