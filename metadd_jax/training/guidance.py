"""Knowledge distillation beside the labels of a distilled set: ModelPool's second half (arXiv 2402.13007).

A network learns from the set's labels and from another network that was trained on the same set. With its own loss L,
an epoch e counted from 0 and both logits divided by tau it makes small

    (1 - a) L + a tau^2 KL(softmax(teacher / tau) || softmax(student / tau)),    tau = 1.5 * 0.9^e,  a = 0.5.

This is the paper's formula. The released program's own term is no number: it asserts temperature 0 and hands the
divergence probabilities in place of log-probabilities and the other way round.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from metadd_jax import zoo
from metadd_jax.ranges import Real, check
from metadd_jax.training import relabel

LEAST = 1e-3
"""The lowest tau. From epoch 70 on it stands here: 1.5 * 0.9^e is 0 in float32 at 990, and logits / 0 are NaN."""


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What guides judged networks; static, so that it is part of a compiled training.

    Attributes:
      net: the teacher's architecture: as published the ConvNet that distilled. It trains on each set as the judged
        networks do, and learns from nobody.
      share: a, the share of the teacher in the loss, 0 to 1.
      temperature: tau at epoch 0, above 0.
      decay: what tau is multiplied by from one epoch to the next, above 0, at most 1.

    Raises:
      ValueError: for a number out of its range.
    """

    net: zoo.Architecture
    share: Annotated[float, Real(0, 1)] = 0.5
    temperature: Annotated[float, Real(0, above=True)] = 1.5
    decay: Annotated[float, Real(0, 1, above=True)] = 0.9

    def __post_init__(self) -> None:
        check(self)

    def tau(self, epoch: jax.Array | int) -> jax.Array:
        """Computes tau of an epoch [] from 0: 1.5, 1.35, 1.215, ...; at least ``LEAST``."""
        return jnp.maximum(self.temperature * self.decay ** jnp.asarray(epoch, jnp.float32), LEAST)

    def losses(self, own: jax.Array, teacher_logits: jax.Array, logits: jax.Array, epoch: jax.Array | int) -> jax.Array:
        """Computes (1 - a) L + a tau^2 KL of each image: [B].

        Args:
          own: [B] the losses L under the labels.
          teacher_logits: [B, K].
          logits: [B, K], the student's.
          epoch: [] passes over the set so far.
        """
        tau = self.tau(epoch)
        return (1 - self.share) * own + self.share * tau**2 * relabel.divergence(teacher_logits, logits, tau)
