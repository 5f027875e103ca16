"""Whether a distilled set still means something: a run can end in nonsense while every number in it is finite.

With a far too large step the images grow without bound, the loss stops falling, and in float32 the gradient is 0.
DM on the embedded digits (1 image a class, 100 steps): at image learning rate 1 the root mean square of the
standardised pixels is 1.3 (real images: 1), the loss ends at 0.45 of its start; at 1e3 it is 132 and the loss still
halves; at 1e4 it is 1300 and the loss stands still; at 1e30 the gradient is 0 from the second step on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from metadd_jax import parallel
from metadd_jax.exchange import pixels
from metadd_jax.structs import Dataset, SyntheticSet

MOST = 300.0
"""Root mean square of a set's pixels, over the farthest value that a picture can hold, from which it means nothing."""

_FAR = 5.0  # The same, from which it is worth a warning.
_DEAD = 1e-3  # What is left of the gradient norm when it is worth a warning.


class MeaninglessError(ValueError):
    """The set cannot get better any more; the message says why and what to change."""


class Condition(NamedTuple):
    """The state of a set beside its metrics.

    Attributes:
      outside: share (0..1) of the pixel values outside what a picture can hold, by more than rounding to 8 bits.
      size: root mean square of the images in their value space, over the farthest value that a picture can hold.
      loss: mean of the first and of the last chunk logged.
      gradient: the gradient's norm, of the first and of the last chunk logged.
    """

    outside: float
    size: float
    loss: tuple[float, float]
    gradient: tuple[float, float]

    def describe(self) -> str:
        """One line for the head of results."""
        return (
            f"{100 * self.outside:.0f} % of the pixel values lie outside what a picture can hold; loss "
            f"{self.loss[0]:.3g} at the start, {self.loss[1]:.3g} at the end; gradient norm {self.gradient[0]:.3g}, "
            f"{self.gradient[1]:.3g}"
        )

    def warnings(self) -> list[str]:
        """What looks wrong, one line each; nothing for a run in order."""
        found = []
        if self.size > _FAR:
            found.append(
                f"the images have left what a picture can hold ({100 * self.outside:.0f} % of the values outside, root "
                f"mean square {self.size:.3g} times the farthest one inside); lower the image learning rate"
            )
        # Relative to its own start: how large a gradient norm is depends on the method.
        if self.gradient[1] < _DEAD * self.gradient[0]:
            found.append(
                f"the gradient has died (norm {self.gradient[0]:.3g} at the start, {self.gradient[1]:.3g} at the end); "
                "lower the image learning rate or do fewer steps"
            )
        if self.loss[1] > self.loss[0] and self.size > 1:
            found.append(
                f"the loss has risen from {self.loss[0]:.4g} to {self.loss[1]:.4g}; lower the image learning rate"
            )
        return found


def examine(synthetic: SyntheticSet, dataset: Dataset, lines: Sequence[Mapping[str, float]]) -> Condition | None:
    """Looks at a set and at the metrics of its run.

    Args:
      synthetic: in the value space of ``dataset``.
      dataset: the real data.
      lines: what ``metrics.jsonl`` holds (see ``storage.JsonLines.read``).

    Returns:
      The condition, or None where no step was logged.
    """
    steps = [line for line in lines if "distill/loss" in line]
    if not steps:
        return None
    # In [0, 1], where "outside" means the same for every data set and whitening.
    unit = pixels.to_pixels(np.asarray(synthetic.images), pixels.value_space(dataset))
    ends = {name: (steps[0][f"distill/{name}"], steps[-1][f"distill/{name}"]) for name in ("loss", "gradient_norm")}
    return Condition(
        outside=pixels.share_outside(unit),
        size=float(_root_mean_square(synthetic.images)) / farthest(dataset),
        loss=ends["loss"],
        gradient=ends["gradient_norm"],
    )


def farthest(dataset: Dataset) -> float:
    """The largest value, by size, that a pixel in [0, 1] has after standardisation; 1 for whitened images."""
    mean, std = np.asarray(dataset.train.mean), np.asarray(dataset.train.std)
    return 1.0 if dataset.whitening is not None else float(np.maximum(mean / std, (1 - mean) / std).max())


def refuse_meaningless(
    synthetic: SyntheticSet,
    dataset: Dataset,
    gradient_norm: float,
    *,
    done: int,
    is_last: bool,
    taken: float = 1.0,
    kept: str = "",
) -> None:
    """Refuses to go on with a set from which nothing can come.

    That is one whose gradient was exactly 0 in every step of a chunk, whose learned step size is 0 (at the end:
    or negative), whose pixels are more than ``MOST`` times as large as a picture's, or whose every step was skipped.

    Args:
      synthetic: the set as it stands.
      dataset: the real data.
      gradient_norm: its mean over the last chunk.
      done: steps so far.
      is_last: whether the run ends here.
      taken: share of the last chunk's steps that were taken (DATM skips those above its threshold).
      kept: what the message says of the state that is kept.

    Raises:
      MeaninglessError: with the number and the mend.
    """
    # Of MTT and TESLA alone; published, alpha has no bound and may cross 0 and come back, so it ends a run only there.
    rate = None if synthetic.learning_rate is None else float(synthetic.learning_rate)
    size = float(_root_mean_square(synthetic.images)) / farthest(dataset)
    what, mend = "", "lower the image learning rate"
    # The most telling first: under a step size of 0 the images have no gradient either.
    if rate is not None and (rate == 0 or (is_last and rate < 0)):
        what, mend = f"the learned step size is {rate}", "lower lr_lr, the learning rate of the step size"
    elif size > MOST:
        what = f"the images' pixels are {size:.3g} times as large as a picture's"
    elif taken == 0:
        what, mend = "the loss was above the threshold in every step of a chunk", "lower lr_teacher or raise threshold"
    elif gradient_norm == 0:
        what = "the gradient is 0, so nothing changes any more,"
    if what:
        raise MeaninglessError(f"{what} after step {done}{kept}; {mend}")


_root_mean_square: Any = parallel.jit(lambda images: jnp.sqrt(jnp.mean(jnp.square(images))))
