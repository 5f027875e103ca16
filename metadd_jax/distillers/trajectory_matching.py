"""MTT and TESLA: a student trained on the set for a few steps must end where an expert ends after whole epochs.

MTT: Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (CVPR 2022). The student starts from
an expert's snapshot, takes N plain SGD steps of the learned size alpha on the set, and the loss is |theta_N - target|^2
/ |theta_0 - target|^2, differentiated through all N steps. TESLA: Cui et al., "Scaling Up Dataset Distillation to
ImageNet-1K with Constant Memory" (ICML 2023): the same loss, but the gradient takes the weights theta_i at which each
step was made as constants. For N = 1 that is MTT's gradient; for more steps it is an approximation of it.

No real image is read after the start. On several devices every one computes the same student from the same expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metadd_jax import ranges, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.student import Student
from metadd_jax.ranges import Real

VARIANTS = ("paper", "code")
_DSA = "color_crop_cutout_flip_scale_rotate"


def mtt(
    net: zoo.Architecture,
    experts: ArrayLike,
    *,
    ipc: int | Sequence[int],
    syn_steps: int,
    expert_epochs: int,
    max_start_epoch: int,
    lr_teacher: float = 0.01,
    batch_syn: int = 0,
    augmentation: str = _DSA,
    raw_lr: bool = False,
    checkpoint: bool = True,
    repeat: bool = False,
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
      syn_steps: N, steps of the student.
      expert_epochs: how far the target lies ahead of the start, in epochs of the expert.
      max_start_epoch: the start is drawn uniformly from the epochs 0 ... ``max_start_epoch`` - 1.
      lr_teacher: alpha before the first update.
      batch_syn: images of one student step: the next chunk of a random permutation of the set, drawn anew when it is
        used up (a remainder makes one smaller chunk); 0 takes all images.
      augmentation: DSA tokens joined by "_", or "none"; one token a step, individual parameters per image.
      raw_lr: train alpha instead of its logarithm.
      checkpoint: compute each step again in the backward pass. Memory is then N weight vectors and one step's
        activations instead of the activations of N steps; the result is the same.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.

    Raises:
      ValueError: for a setting out of range, an epoch that the experts do not have, experts of another size or a
        network with batch norm; (in ``init``, without ``repeat``) for a class with fewer than ``ipc`` images.
    """
    counts = sampling.per_class(ipc, net.num_classes)
    student = Student(
        net, counts, syn_steps, expert_epochs, max_start_epoch, lr_teacher, batch_syn, augmentation, raw_lr,
        repeat=repeat,
    )  # fmt: skip
    return _distiller("mtt", experts, _Exact(student, checkpoint=checkpoint))


def tesla(
    net: zoo.Architecture,
    experts: ArrayLike,
    *,
    ipc: int | Sequence[int],
    syn_steps: int,
    expert_epochs: int,
    max_start_epoch: int,
    lr_teacher: float = 0.01,
    batch_syn: int = 0,
    augmentation: str = _DSA,
    raw_lr: bool = False,
    variant: str = "paper",
    soft_labels: bool = False,
    repeat: bool = False,
) -> Distiller:
    """Trajectory matching with TESLA's constant-memory gradient as a ``Distiller``.

    With g_i the gradient at step i, G = sum_i g_i and D = |theta_0 - target|^2, the images' gradient is that of
    <v, sum_i g_i(images)>, v = 2 (alpha (target - theta_0) + alpha^2 G) / D and theta_i constant; alpha's is that of
    |theta_0 - alpha G - target|^2 / D with G constant. Soft labels have the gradient of the same product; the expert's
    weights are constants. The reported loss is the true one. ``mtt`` with ``checkpoint`` needs about the same memory,
    N weight vectors, and its gradient is exact.

    Args:
      net, experts, ipc, syn_steps, expert_epochs, max_start_epoch, lr_teacher, batch_syn, augmentation, raw_lr,
        repeat: see ``mtt``.
      variant: "paper", or "code" for the released program, whose gradient of the images lacks the factor 2.
      soft_labels: at every step the expert labels the images anew with its weights at the target epoch (softmax); the
        set carries the labels of the last step. Otherwise the classes are the labels.

    Raises:
      ValueError: see ``mtt``; or for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} must be one of {', '.join(VARIANTS)}")
    counts = sampling.per_class(ipc, net.num_classes)
    student = Student(
        net, counts, syn_steps, expert_epochs, max_start_epoch, lr_teacher, batch_syn, augmentation, raw_lr,
        soft_labels, repeat,
    )  # fmt: skip
    name = "tesla" if variant == "paper" else "tesla_code"
    return _distiller(name, experts, _ConstantMemory(student, factor=1.0 if variant == "paper" else 0.5))


def trajectory_optimiser(
    image_lr: float, lr_lr: float, *, lr_teacher: float, momentum: float = 0.5
) -> optax.GradientTransformation:
    """SGD with momentum for the images, and with a step size of its own for alpha.

    Args:
      image_lr: step size of the images, or of the latents that stand for them (``parameterise``).
      lr_lr: the published step size of alpha. Where its logarithm is trained the step is ``lr_lr / lr_teacher**2``:
        d log alpha = -s alpha dL/d alpha moves alpha by -s alpha^2 dL/d alpha, so to first order around
        alpha = ``lr_teacher`` both forms take the same steps.
      lr_teacher: alpha before the first update, as given to ``mtt`` or ``tesla``.
      momentum: of both.

    Raises:
      ValueError: for a number out of range, or a step of the logarithm that is infinite in float32.
    """
    ranges.require("image_lr", image_lr, Real(0, above=True))
    ranges.require("lr_lr", lr_lr, Real(0))
    ranges.require("lr_teacher", lr_teacher, Real(0, above=True))
    ranges.require("momentum", momentum, Real(0, 1, below=True))
    ranges.require(f"lr_lr / lr_teacher**2 with lr_teacher={lr_teacher}", lr_lr / lr_teacher**2, Real(0))
    rates = {"images": image_lr, "lr": lr_lr, "log_lr": lr_lr / lr_teacher**2}
    return optax.partition(
        {name: optax.sgd(rate, momentum=momentum) for name, rate in rates.items()},
        lambda synthetic: {name: "images" if name == "latents" else name for name in synthetic},
    )


def _distiller(name: str, experts: ArrayLike, matching: _Exact | _ConstantMemory) -> Distiller:
    matching.student.check(np.shape(experts))
    student, experts = matching.student, jnp.asarray(experts)

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: Any, frozen: jax.Array, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        del batch, axis_name
        alpha, (start, target) = student.alpha(synthetic), student.ends(aux, frozen)
        value = matching.value(synthetic["images"], alpha, student.targets(aux), start, target, student.batches(key))
        return value, (aux, {"learning_rate": alpha})

    return Distiller(
        name=name,
        init=student.init,
        sample=lambda key, data, step, *, axis_name=None: (),
        loss=loss,
        refresh=student.refresh,
        decode=student.decode,
        frozen=experts,
    )


@dataclasses.dataclass(frozen=True)
class _Exact:
    """MTT's loss: the student is differentiated from end to end."""

    student: Student
    checkpoint: bool

    def value(
        self, images: jax.Array, alpha: jax.Array, labels: jax.Array, start: jax.Array, target: jax.Array, batches: Any
    ) -> jax.Array:
        def step(theta: jax.Array, batch: tuple) -> tuple[jax.Array, None]:
            return theta - alpha * self.student.slope(theta, images, labels, batch), None

        # Inside a scan nothing can be shared between the two passes, so no barrier is needed against it.
        step = jax.checkpoint(step, prevent_cse=False) if self.checkpoint else step
        end, _ = jax.lax.scan(step, start, batches)
        return _square(end - target) / _square(start - target)


@dataclasses.dataclass(frozen=True)
class _ConstantMemory:
    """TESLA's: the value of MTT's loss, with a gradient that takes the student's way as given."""

    student: Student
    factor: float

    def value(
        self, images: jax.Array, alpha: jax.Array, labels: jax.Array, start: jax.Array, target: jax.Array, batches: Any
    ) -> jax.Array:
        start, target = jax.lax.stop_gradient((start, target))
        still_images, still_labels, still_alpha = jax.lax.stop_gradient((images, labels, alpha))

        def step(carry: tuple, batch: tuple) -> tuple[tuple, jax.Array]:
            theta, total = carry
            slope = self.student.slope(theta, still_images, still_labels, batch)
            return (theta - still_alpha * slope, total + slope), theta

        (_, total), way = jax.lax.scan(step, (start, jnp.zeros_like(start)), batches)
        distance = _square(start - target)
        value = _square(start - alpha * total - target) / distance
        direction = 2 * (still_alpha * (target - start) + still_alpha**2 * total) / distance

        def pull(carry: jax.Array, item: tuple) -> tuple[jax.Array, None]:
            theta, batch = item
            return carry + direction @ self.student.slope(theta, images, labels, batch), None

        pulled, _ = jax.lax.scan(
            jax.checkpoint(pull, prevent_cse=False), jnp.zeros((), direction.dtype), (way, batches)
        )
        return value + self.factor * (pulled - jax.lax.stop_gradient(pulled))  # adds a gradient and no value


def _square(vector: jax.Array) -> jax.Array:
    return jnp.sum(vector**2)
