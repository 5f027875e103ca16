"""DATM: trajectory matching whose targets become harder as the set grows, and whose labels are trained too.

Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching" (ICLR 2024). The student,
the experts and the loss are MTT's (``trajectory_matching``). What is new: the student starts from an epoch t of the
expert in a window whose upper end moves from easy patterns to hard ones ("sequential generation"),

    t ~ Uniform{min, ..., Upper - 1},    Upper = min(max, current + floor((max - current) it / end)) at step ``it``;

image i carries K logits L_i that are trained with it, and the student's l is their cross-entropy, at temperature 1,

    l = -sum_c softmax(L_i)_c log softmax(f(A(x_i); theta))_c;

and where |theta_N - theta_*|^2 / |theta_t - theta_*|^2 > threshold, or is no number, the step is skipped: images,
logits and alpha stay as they are, and so do their momenta.

Images start from real ones that an expert at its last epoch is right on, L_i from the mean logits of all last experts
that are right on image i.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metadd_jax import parallel, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, networks, registry
from metadd_jax.distillers.contract import LABELS, Distiller
from metadd_jax.distillers.student import TrajectoryMatching, matched, trajectory_optimiser
from metadd_jax.distillers.trajectory_matching import MTT, TESLA
from metadd_jax.distillers.unrolled import alpha_of, ends, first_alpha, in_turn
from metadd_jax.ranges import OneOf, Real, Whole
from metadd_jax.structs import Dataset, ImageArrays, SyntheticSet
from metadd_jax.training.trajectories import unflatten

PICKS = ("correct", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DifficultyAlignment(TrajectoryMatching):
    """Settings of DATM: those of ``TrajectoryMatching``, of which ``max_start_epoch`` is the window's "max", and these.

    Attributes:
      min_start_epoch: min, the lower end of the window.
      first_upper: "current", the upper end (exclusive) at the first step; None for ``max_start_epoch`` at every step.
      expansion_end: the step at which the upper end has come to ``max_start_epoch``.
      threshold: the loss up to which a step is taken.
      soft_labels: whether labels are logits that are trained. Otherwise they are the classes, and nothing trains them
        (as M-DATM has it): the control beside methods of hard labels.
      lr_labels: learning rate of the logits, whose momentum is 0.9; 0 leaves them as they start.
      picks: real images to start from, where ``init`` says nothing else: "correct", which an expert is right on, or
        "random" ones. With "random" the logits are those of the first expert, right or not, else the mean over the
        experts that are right.
    """

    min_start_epoch: Annotated[int, Whole(0)] = 0
    first_upper: Annotated[int | None, Whole(1)] = None
    expansion_end: Annotated[int, Whole(1)] = 1000
    threshold: Annotated[float, Real(0, above=True)] = 1.0
    soft_labels: bool = True
    lr_labels: Annotated[float, Real(0)] = 2.0
    picks: Annotated[str, OneOf(PICKS)] = "correct"
    rho: Annotated[float, Real(0)] = 0.01
    rho_alpha: Annotated[float, Real(0)] = 0.3

    group: ClassVar[str] = "datm"
    reads_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        first = self.max_start_epoch if self.first_upper is None else self.first_upper
        if not self.min_start_epoch < first <= self.max_start_epoch:
            raise ValueError(
                f"min_start_epoch={self.min_start_epoch}, first_upper={self.first_upper} and max_start_epoch="
                f"{self.max_start_epoch} leave no epoch to start from; each must be above the one before, or the last "
                "two equal"
            )

    def upper(self, step: ArrayLike) -> jax.Array:
        """The upper end of the window, exclusive, [] int32.

        Args:
          step: [] integer, updates done so far.
        """
        first = self.max_start_epoch if self.first_upper is None else self.first_upper
        # Held at the end first: the product of a long run would not fit in 32 bits.
        step = jnp.minimum(jnp.asarray(step, jnp.int32), self.expansion_end)
        return first + (self.max_start_epoch - first) * step // self.expansion_end

    def optimiser(
        self, learning_rate: float, momentum: float, steps: int, dataset: Dataset
    ) -> optax.GradientTransformation:
        """Makes SGD for images, alpha and logits, each at its own rate (see ``Method.optimiser``)."""
        del steps, dataset
        return trajectory_optimiser(
            learning_rate, self.lr_lr, lr_teacher=self.lr_teacher, momentum=momentum,
            lr_labels=self.lr_labels if self.soft_labels else None,
        )  # fmt: skip

    def make(
        self, net: zoo.Architecture, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the backbone, without batch norm.
          counts: images of each of the K classes of the set.
          given: the experts [E, T + 1, P] float32, the last snapshot that of the finished expert.
          repeat: whether a class with fewer real images than it starts from gives them again and again.

        Raises:
          ValueError: if the network, the experts or ``batch_syn`` do not go together.
        """
        bare = super().make(net, counts, given, repeat=repeat)  # checks what MTT checks
        return bare._replace(**_functions(self, net, counts, bare.frozen, repeat))

    def prepare_flops(self, forward: float, images: int) -> dict[str, float]:
        """FLOPs of the experts' training, and of one expert's look at every real image (if "correct")."""
        look = {"correct images": forward * images} if self.picks == "correct" else {}
        return super().prepare_flops(forward, images) | look

    def describe(self) -> str:
        """The experts, the window of their epochs, and the labels."""
        window = f"start from epoch {self.min_start_epoch} to below {self.max_start_epoch}"
        return f"{super().describe()}, {window}, {'learned soft' if self.soft_labels else 'hard'} labels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DATM(DifficultyAlignment, MTT):
    """Settings of DATM with MTT's exact gradient."""

    @property
    def name(self) -> str:
        """What tables call the method."""
        return "datm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DATMTesla(DifficultyAlignment, TESLA):
    """Settings of DATM with TESLA's gradient, as published for the largest sets; the factor 2 is not lost there."""

    @property
    def name(self) -> str:
        """What tables call the method."""
        return f"datm_{super().name}"


registry.register("datm", DATM)
registry.register("datm_tesla", DATMTesla)


def datm(
    net: zoo.Architecture,
    experts: ArrayLike,
    *,
    ipc: int | Sequence[int],
    settings: DifficultyAlignment | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """Difficulty-aligned trajectory matching as a ``Distiller``; the record's ``optimiser`` makes its optimiser.

    Trained are ``images`` [N, H, W, C], alpha as with ``mtt``, and ``label_logits`` [N, K]. The decoded set carries
    alpha as ``learning_rate`` and the softmax of the logits as ``soft_labels``: their logarithm is the logits again, up
    to a number an image that no softmax sees. A loss above the threshold counts as the threshold, and the metric
    "kept" is the share of steps that were taken.

    Args:
      net: the backbone, without batch norm.
      experts: [E, T + 1, P] float32, see ``mtt``. Their last snapshots pick the images and give the first labels.
      ipc: images per class, one number for all classes or one a class.
      settings: the method's settings, also a ``DATMTesla``'s; None for the defaults.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.
      changes: fields of ``DATM`` to be other than in ``settings``: ``threshold=1.1, soft_labels=False``.

    Raises:
      ValueError: as ``mtt``, or for a window without an epoch.
    """
    counts = sampling.per_class(ipc, networks.single(net).num_classes)
    return dataclasses.replace(settings or DATM(), **changes).make(net, counts, experts, repeat=repeat)


def _functions(
    settings: DifficultyAlignment, net: zoo.Architecture, counts: class_images.Counts, experts: jax.Array, repeat: bool
) -> dict[str, Any]:
    classes = jax.nn.one_hot(class_images.labels_of(counts), net.num_classes)

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict, dict]:
        image_key, order_key = jax.random.split(key)
        last = experts[:, -1]
        # The published start; any other that is asked for comes first, and its logits are asked for all the same.
        if settings.picks == "correct" and settings.init is None and dataset.start is None:
            class_images.check_data(dataset, net)
            images = correct_images(image_key, net, last, dataset.train, counts, repeat=repeat)
        else:
            start = class_images.initial(image_key, dataset, net, counts=counts, init=settings.start, repeat=repeat)
            images = start["images"]
        synthetic = {"images": images, **first_alpha(settings.lr_teacher, raw=settings.raw_lr)}
        if settings.soft_labels:
            asked = opinions(net)(last if settings.picks == "correct" else last[:1], images)
            synthetic[LABELS] = mean_opinion(asked, class_images.labels_of(counts))
        return synthetic, {
            "order_key": order_key,
            "expert": jnp.zeros((), jnp.int32),
            "start": jnp.zeros((), jnp.int32),
        }

    def refresh(key: jax.Array, synthetic: dict, aux: dict, step: jax.Array, frozen: jax.Array) -> dict:
        """The next expert of this round, and an epoch of the window to start from."""
        start = jax.random.randint(key, (), settings.min_start_epoch, settings.upper(step))
        return {**aux, "expert": in_turn(aux["order_key"], step, frozen.shape[0]), "start": start}

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: Any, frozen: jax.Array, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        del batch, axis_name
        chex.assert_rank([synthetic["images"], frozen], [4, 3])
        y = jax.nn.softmax(synthetic[LABELS]) if settings.soft_labels else classes
        value = matched(key, settings, net, synthetic, y, ends(frozen, aux, settings.expert_epochs))
        # False for NaN too: a student that runs away costs this step and not the run, as it does MTT's.
        kept = value <= settings.threshold
        value = jnp.where(kept, value, settings.threshold)
        return value, (aux, {"learning_rate": alpha_of(synthetic), "kept": kept.astype(jnp.float32)})

    def decode(synthetic: dict, aux: dict, frozen: Any) -> SyntheticSet:
        del aux, frozen
        return SyntheticSet(
            images=synthetic["images"],
            labels=class_images.labels_of(counts),
            soft_labels=jax.nn.softmax(synthetic[LABELS]) if settings.soft_labels else None,
            learning_rate=alpha_of(synthetic),
        )

    return {"init": init, "refresh": refresh, "loss": loss, "decode": decode}


def correct_images(
    key: jax.Array,
    net: zoo.Architecture,
    experts: jax.Array,
    arrays: ImageArrays,
    counts: class_images.Counts,
    *,
    repeat: bool = False,
) -> jax.Array:
    """Picks real images that a trained network is right on: [N, H, W, C] float32, standardised, class-major.

    Each class is walked in random order for images that the first expert classifies correctly; what is missing then is
    filled with those that the second is right on, and so on; at last with any.

    Args:
      key: typed PRNG key of the order.
      net: the experts' architecture.
      experts: [E, P] their weights.
      arrays: the real images.
      counts: images of each class, N in all.
      repeat: whether a class with fewer images gives them again.

    Raises:
      ValueError: without ``repeat``, if a class has fewer images than it should give.
    """
    rows, labels = sampling.random_rows(key, arrays, tuple(np.asarray(arrays.counts)))  # all, each class in its order
    if not repeat:
        sampling.images_per_class(arrays, counts)  # refuses a class that is too small
    first = _first_right(net)(experts, arrays, jnp.asarray(counts))[rows]
    # Stable: among images of the same expert the random order stays.
    order = rows[jnp.lexsort((first, jnp.asarray(labels)))]
    sizes = np.asarray(arrays.counts)
    starts = np.cumsum(sizes) - sizes
    places = [start + np.arange(wanted) % size for start, wanted, size in zip(starts, counts, sizes, strict=True)]
    chosen = order[np.concatenate(places)]
    return sampling.standardise(jnp.asarray(arrays.images)[chosen], arrays.mean, arrays.std)


@functools.lru_cache(maxsize=8)
def _first_right(net: zoo.Architecture) -> Callable[..., jax.Array]:
    """``(experts, arrays, counts) -> [n]``: the number of the first expert that is right on each real image, else E.

    Cached, so that the seeds of a method compile it once.
    """

    def find(experts: jax.Array, arrays: ImageArrays, counts: jax.Array) -> jax.Array:
        labels = jnp.asarray(arrays.labels)

        def is_right(number: jax.Array) -> jax.Array:
            params = unflatten(net, experts[number])

            def one(row: jax.Array) -> jax.Array:
                image = sampling.standardise(jnp.asarray(arrays.images)[row], arrays.mean, arrays.std)
                return net.apply({"params": params}, image[None])[0][0].argmax() == labels[row]

            # In batches of 256 as published; all at once would not fit.
            return jax.lax.map(one, jnp.arange(len(labels)), batch_size=min(256, len(labels)))

        def is_short(carry: tuple) -> jax.Array:
            number, first = carry
            found = jax.ops.segment_sum((first < len(experts)).astype(jnp.int32), labels, len(counts))
            # A class with fewer images than it gives is never full by their number.
            wanted = jnp.minimum(counts, jnp.asarray(arrays.counts))
            return (number < len(experts)) & (found < wanted).any()

        def ask(carry: tuple) -> tuple:
            number, first = carry
            return number + 1, jnp.where((first == len(experts)) & is_right(number), number, first)

        # Most often the first expert suffices; the others then cost nothing.
        nobody = jnp.full(len(labels), len(experts), jnp.int32)
        return jax.lax.while_loop(is_short, ask, (jnp.zeros((), jnp.int32), nobody))[1]

    return parallel.jit(find)


@functools.lru_cache(maxsize=8)
def opinions(net: zoo.Architecture) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``(experts [E, P], images [n, H, W, C]) -> [E, n, K]``, the logits of each expert on each image."""

    def ask(experts: jax.Array, images: jax.Array) -> jax.Array:
        def one(theta: jax.Array) -> jax.Array:
            params = unflatten(net, theta)

            def label(image: jax.Array) -> jax.Array:
                return net.apply({"params": params}, image[None])[0][0]

            return jax.lax.map(label, images, batch_size=min(256, len(images)))

        return jax.lax.map(one, experts)

    return parallel.jit(ask)


def mean_opinion(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Averages logits [E, N, K] over the experts that are right on an image: [N, K]; over all where none is.

    Args:
      logits: the opinion of E networks on N images.
      labels: [N] their classes.
    """
    right = logits.argmax(axis=-1) == labels
    # Published as 0 / 0 where no expert is right.
    share = jnp.where(right.any(axis=0), right, True).astype(logits.dtype)
    return (share[..., None] * logits).sum(axis=0) / share.sum(axis=0)[:, None]
