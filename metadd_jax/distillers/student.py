"""What MTT, TESLA and DATM share: their settings, their experts, and the student, whose steps they differentiate.

The formula stands in ``trajectory_matching``, and what each of its letters is in ``unrolled``.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metadd_jax import augment, exchange, ranges, training, zoo
from metadd_jax.distillers import class_images
from metadd_jax.distillers.contract import LABELS, Distiller
from metadd_jax.distillers.registry import Method, Progress
from metadd_jax.distillers.unrolled import alpha_of, chunk_indices, ends, first_alpha, in_turn, step_gradient
from metadd_jax.ranges import Real, Text, Whole
from metadd_jax.structs import Dataset, SyntheticSet
from metadd_jax.training.trajectories import unflatten

_STOOD_IN = 2  # experts of a plan
_LABEL_MOMENTUM = 0.9  # as published by DATM, where the images have 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryMatching(Method):
    """Settings that MTT, TESLA and DATM share. The published rows differ by data set; the defaults suit a small one.

    Attributes:
      syn_steps: N, steps of the student on the synthetic images.
      expert_epochs: how far the target lies ahead of the start, in epochs of the expert.
      max_start_epoch: the start is drawn uniformly from the epochs 0 ... ``max_start_epoch`` - 1.
      lr_teacher: alpha before the first update.
      lr_lr: learning rate of alpha, see ``trajectory_optimiser``.
      batch_syn: images of one student step: the next chunk of a random permutation of the set, drawn anew when it is
        used up (a remainder makes one smaller chunk); None for all.
      augmentation: what student and experts see: DSA tokens joined by "_", "none", or a ``Strategy``; one token a step,
        individual parameters per image. None as published (in a job: those of its data set).
      soft_labels: at every step the expert labels the images anew with its weights at the target epoch (softmax), as
        published with TESLA; the set carries the labels of the last step. Otherwise the classes are the labels.
      raw_lr: train alpha itself, as published, and not its logarithm, which keeps it positive.
      experts: networks trained on the real data.
      epochs: epochs of an expert.
      at_once: experts that train together; less needs less memory.
      half: store the steps between an expert's snapshots in half precision.
      rho: radius of adaptive GSAM in the experts' training, which leads them to flat minima (FTD, DATM: 0.01); 0
        trains them plainly.
      rho_alpha: alpha of GSAM (DATM: 0.3), see ``training.sharpness``.
      buffers: a folder of MTT's ``replay_buffer_N.pt``, or one such file, whose experts are taken in place of ours (see
        ``exchange.load_buffers``); what trained them plays no part then.
    """

    # A small set's: the published rows (metadd_jax/job/published.py) take 10 to 80 steps and 50 to 100 experts.
    syn_steps: Annotated[int, Whole(1)] = 10
    expert_epochs: Annotated[int, Whole(1)] = 2
    max_start_epoch: Annotated[int, Whole(1)] = 5
    lr_teacher: Annotated[float, Real(0, above=True)] = 0.01
    lr_lr: Annotated[float, Real(0)] = 1e-5
    batch_syn: Annotated[int | None, Whole(1)] = None
    augmentation: Annotated[augment.Augmentation | None, Text("augment.strategy")] = None
    soft_labels: bool = False
    raw_lr: bool = False
    experts: Annotated[int, Whole(1)] = 10
    epochs: Annotated[int, Whole(1)] = 10
    at_once: Annotated[int, Whole(1)] = 5
    half: bool = False
    rho: Annotated[float, Real(0)] = 0.0
    rho_alpha: Annotated[float, Real(0)] = 0.0
    buffers: Annotated[str | None, Text("exchange.load_buffers")] = None

    group: ClassVar[str] = "mtt"
    reads_last: ClassVar[bool] = False  # whether the method asks the finished experts too
    scratch_fields: ClassVar[tuple[str, ...]] = ("batch_syn",)
    frozen_fields: ClassVar[tuple[str, ...]] = ("experts",)
    file_fields: ClassVar[tuple[str, ...]] = ("buffers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        augment.strategy(self.views)

    @property
    def name(self) -> str:
        """What tables call the method."""
        raise NotImplementedError

    @property
    def views(self) -> augment.Augmentation:
        """The augmentation, published or chosen."""
        return augment.NATURAL if self.augmentation is None else self.augmentation

    @property
    def snapshots(self) -> int:
        """How many of an expert's snapshots a student can meet: the start, and the epochs up to the last target."""
        # The last start is ``max_start_epoch`` - 1; its target, and the snapshot before the first epoch, make the sum.
        return self.max_start_epoch + self.expert_epochs

    def distance(
        self, g: Callable, seen: tuple, alpha: jax.Array, theta_0: jax.Array, target: jax.Array, chunks: tuple
    ) -> jax.Array:
        """The loss; MTT and TESLA differ in how it is differentiated.

        Args:
          g: ``(theta, seen, chunk) -> [P]``, the gradient of one step.
          seen: images [N, H, W, C] and labels [N, K] of the set.
          alpha: [] step size.
          theta_0: [P] where the student starts.
          target: [P] where it should end.
          chunks: what each of the N steps draws: keys [N], indices [N, b] and weights [N, b].
        """
        raise NotImplementedError

    def make(
        self, net: zoo.Architecture, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the backbone, without batch norm.
          counts: images of each of the K classes of the set.
          given: the experts [E, T + 1, P] float32.
          repeat: whether a class with fewer real images than it starts from gives them again and again.

        Raises:
          ValueError: if the network, the experts or ``batch_syn`` do not go together.
        """
        self.check_network(net)
        self._check_experts(net, np.shape(given))
        if self.batch_syn is not None and self.batch_syn > sum(counts):
            raise ValueError(f"batch_syn={self.batch_syn} must be from 1 to the set's {sum(counts)} images")
        return distiller(self, net, counts, given, repeat)

    def optimiser(
        self, learning_rate: float, momentum: float, steps: int, dataset: Dataset
    ) -> optax.GradientTransformation:
        """Makes SGD for the images, and for alpha at a rate of its own (see ``Method.optimiser``)."""
        del steps, dataset
        return trajectory_optimiser(learning_rate, self.lr_lr, lr_teacher=self.lr_teacher, momentum=momentum)

    def for_data(self, tokens: Callable[[], augment.Augmentation]) -> TrajectoryMatching:
        """Takes the data set's own tokens."""
        return self if self.augmentation is not None else dataclasses.replace(self, augmentation=tokens())

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses batch norm."""
        if net.has_batch_stats:
            raise ValueError(f"{net.label} has batch norm, whose statistics no trajectory holds; use its instance norm")

    def check_prepare(self) -> None:
        """Refuses experts too short for the last target; of other people's that is seen when they are read.

        Of other people's experts it only asks whether their files are there.
        """
        if self.buffers is not None:
            exchange.buffer_files(self.buffers)
        elif self.snapshots - 1 > self.epochs:
            raise ValueError(
                f"max_start_epoch={self.max_start_epoch} and expert_epochs={self.expert_epochs} reach epoch "
                f"{self.snapshots - 1} of experts of {self.epochs} epochs; raise epochs or lower one of them"
            )

    def _check_experts(self, net: zoo.Architecture, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[2] != net.num_params():
            raise ValueError(
                f"experts have shape {shape}, but {net.label} needs [experts, snapshots, {net.num_params()}]; train "
                "experts of this network"
            )
        if self.snapshots > shape[1]:
            raise ValueError(
                f"max_start_epoch={self.max_start_epoch} and expert_epochs={self.expert_epochs} reach epoch "
                f"{self.snapshots - 1}, but the experts hold {shape[1] - 1} epochs; lower one of them or train longer "
                "experts"
            )

    def prepare(
        self,
        net: zoo.Architecture,
        dataset: Dataset,
        trained: training.Trained,
        cache: pathlib.Path,
        *,
        progress: Progress,
    ) -> jax.Array:
        """Trains the experts, or takes them from the cache or a peer's files: [experts, snapshots, P] on the device."""
        del trained
        progress("experts", 0, self.experts)
        if self.buffers is not None:
            read = exchange.load_buffers(
                self.buffers, net, experts=self.experts, snapshots=self.snapshots, last=self.reads_last
            )
            progress("experts", self.experts, self.experts)
            return jnp.asarray(read)
        trajectories = training.train_experts(
            self._folder(net, dataset, cache), net, dataset, self._recipe(),
            on_shard=lambda done: progress("experts", done, self.experts), **self._numbers(),
        )  # fmt: skip
        progress("experts", self.experts, self.experts)
        # Later snapshots are reached by no target, so they stay on the disk.
        return training.device_experts(trajectories, snapshots=self.snapshots, last=self.reads_last)

    def stand_in(self, net: zoo.Architecture, variables: Any) -> jax.Array:
        """Makes two experts of random weights, [2, snapshots, P].

        Args:
          net: the backbone.
          variables: nothing; only their number P counts.
        """
        del variables
        return 0.02 * jax.random.normal(jax.random.key(0), (_STOOD_IN, self._held, net.num_params()))

    def given_size(self, net: zoo.Architecture) -> float:
        """Bytes of the experts beyond two."""
        return 4.0 * (self.experts - _STOOD_IN) * self._held * net.num_params()

    @property
    def _held(self) -> int:
        """Snapshots of an expert that lie on the device."""
        return self.snapshots + self.reads_last

    def cached(
        self, net: zoo.Architecture, dataset: Dataset, cache: pathlib.Path
    ) -> Sequence[tuple[pathlib.Path, int]]:
        """The folder of the experts: a snapshot of the start and one after each epoch."""
        if self.buffers is not None:
            return []
        # The first snapshot is stored whole, the others as steps from it.
        width = 2 if self.half else 4
        size = self.experts * net.num_params() * (4 + width * self.epochs)
        return [(self._folder(net, dataset, cache), size)]

    def _recipe(self) -> training.Recipe:
        return training.expert_training(self.epochs, augmentation=self.views, rho=self.rho, rho_alpha=self.rho_alpha)

    def _numbers(self) -> dict[str, Any]:
        return {"experts": self.experts, "at_once": self.at_once, "half": self.half}

    def _folder(self, net: zoo.Architecture, dataset: Dataset, cache: pathlib.Path) -> pathlib.Path:
        return training.expert_folder(cache, net, dataset, self._recipe(), **self._numbers())

    # A step is computed again on the way back whether by ``checkpoint`` (MTT) or by ``pull`` (TESLA).
    def flops(self, forward: float, counts: class_images.Counts) -> float:
        """12 f batch_syn syn_steps: each step's gradient (3 f), once more on the way back, and its derivative (6 f)."""
        images = sum(counts)
        return 12 * forward * self.syn_steps * min(self.batch_syn or images, images)

    def prepare_flops(self, forward: float, images: int) -> dict[str, float]:
        """FLOPs of the experts' training; GSAM takes every gradient twice."""
        if self.buffers is not None:
            return {}
        return {"experts": 3 * (1 + (self.rho > 0)) * forward * self.experts * self.epochs * images}

    def describe(self) -> str:
        """How many experts, and how long the student trains."""
        experts = f"{self.experts} experts of " + (f"{self.epochs} epochs" if self.buffers is None else self.buffers)
        return f"{experts}, {self.syn_steps} student steps"


def trajectory_optimiser(
    image_lr: float, lr_lr: float, *, lr_teacher: float, momentum: float = 0.5, lr_labels: float | None = None
) -> optax.GradientTransformation:
    """SGD with momentum for the images, and with a step size of its own for alpha and for trained labels.

    Args:
      image_lr: step size of the images, or of the latents that stand for them (``parameterise``).
      lr_lr: the published step size of alpha. Where its logarithm is trained the step is ``lr_lr / lr_teacher**2``:
        d log alpha = -s alpha dL/d alpha moves alpha by -s alpha^2 dL/d alpha, so to first order around
        alpha = ``lr_teacher`` both forms take the same steps.
      lr_teacher: alpha before the first update, as given to ``mtt`` or ``tesla``.
      momentum: of both.
      lr_labels: step size of the logits that are the labels, whose momentum is 0.9 (DATM); None where none are trained.

    Raises:
      ValueError: for a number out of range, or a step of the logarithm that is infinite in float32.
    """
    ranges.require("image_lr", image_lr, Real(0, above=True))
    ranges.require("lr_lr", lr_lr, Real(0))
    ranges.require("lr_teacher", lr_teacher, Real(0, above=True))
    ranges.require("momentum", momentum, Real(0, 1, below=True))
    ranges.require(f"lr_lr / lr_teacher**2 with lr_teacher={lr_teacher}", lr_lr / lr_teacher**2, Real(0))
    # Rates as far apart as published, 1000 and 1e-5: one optimiser for both would need one rate.
    rates = {"images": image_lr, "lr": lr_lr, "log_lr": lr_lr / lr_teacher**2}
    steps = {name: optax.sgd(rate, momentum=momentum) for name, rate in rates.items()}
    if lr_labels is not None:
        ranges.require("lr_labels", lr_labels, Real(0))
        steps[LABELS] = optax.sgd(lr_labels, momentum=_LABEL_MOMENTUM)
    return optax.partition(
        steps,
        lambda synthetic: {name: "images" if name == "latents" else name for name in synthetic},
    )


def distiller(
    settings: TrajectoryMatching, net: zoo.Architecture, counts: class_images.Counts, experts: ArrayLike, repeat: bool
) -> Distiller:
    """Makes the functions of MTT or TESLA, whichever ``settings`` are.

    Args:
      settings: the method's settings; their ``distance`` is the loss.
      net: the backbone.
      counts: images of each of the K classes of the set.
      experts: [E, T + 1, P] float32, the experts' weights.
      repeat: whether a class with fewer real images than it starts from gives them again and again.
    """
    count = sum(counts)

    def own_labels() -> jax.Array:  # [N, K]: the classes themselves
        return jax.nn.one_hot(class_images.labels_of(counts), net.num_classes)

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict, dict]:
        # The order of the experts must not change from step to step, so its key is kept in ``aux``.
        image_key, order_key = jax.random.split(key)
        images = class_images.initial(image_key, dataset, net, counts=counts, init=settings.start, repeat=repeat)
        aux = {"order_key": order_key, "expert": jnp.zeros((), jnp.int32), "start": jnp.zeros((), jnp.int32)}
        if settings.soft_labels:
            aux["soft_labels"] = own_labels()  # until the first expert labels them
        return {**images, **first_alpha(settings.lr_teacher, raw=settings.raw_lr)}, aux

    def refresh(key: jax.Array, synthetic: dict, aux: dict, step: jax.Array, frozen: jax.Array) -> dict:
        """The next expert of this round, an epoch to start from, and what the expert calls the images."""
        aux = {**aux, "expert": in_turn(aux["order_key"], step, frozen.shape[0])}
        # An exclusive upper bound, as published: "max_start_epoch" itself is never a start.
        aux["start"] = jax.random.randint(key, (), 0, settings.max_start_epoch)
        if settings.soft_labels:
            # The expert at the target, not at the start: the weights that the student is to reach (TESLA).
            params = unflatten(net, ends(frozen, aux, settings.expert_epochs)[1])

            def label(image: jax.Array) -> jax.Array:
                return jax.nn.softmax(net.apply({"params": params}, image[None])[0][0])

            # Chunks of 50 as in the released program, which fails on sets that have no more than 50 images.
            aux["soft_labels"] = jax.lax.map(label, synthetic["images"], batch_size=min(50, count))
        return aux

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: Any, frozen: jax.Array, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        del batch, axis_name
        chex.assert_rank([synthetic["images"], frozen], [4, 3])
        y = aux["soft_labels"] if settings.soft_labels else own_labels()
        value = matched(key, settings, net, synthetic, y, ends(frozen, aux, settings.expert_epochs))
        return value, (aux, {"learning_rate": alpha_of(synthetic)})

    def decode(synthetic: dict, aux: dict, frozen: Any) -> SyntheticSet:
        del frozen
        return SyntheticSet(
            images=synthetic["images"],
            labels=class_images.labels_of(counts),
            soft_labels=aux["soft_labels"] if settings.soft_labels else None,
            learning_rate=alpha_of(synthetic),
        )

    return Distiller(
        name=settings.name,
        init=init,
        sample=lambda key, data, step, *, axis_name=None: (),
        loss=loss,
        refresh=refresh,
        decode=decode,
        frozen=jnp.asarray(experts),
    )


def matched(
    key: jax.Array,
    settings: TrajectoryMatching,
    net: zoo.Architecture,
    synthetic: dict[str, jax.Array],
    y: jax.Array,
    way: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Trains a student on the set and says how far from the expert's it ends: the ``distance`` of ``settings``, [].

    Args:
      key: draws the order of the images and their views.
      settings: the method's settings.
      net: the backbone.
      synthetic: ``images`` [N, H, W, C] and alpha.
      y: [N, K] labels, probabilities.
      way: [P] where the student starts and [P] where the expert is ``expert_epochs`` later.
    """
    count = len(synthetic["images"])
    order_key, view_key = jax.random.split(key)
    chunks = (
        jax.random.split(view_key, settings.syn_steps),
        *chunk_indices(order_key, count, settings.batch_syn or count, settings.syn_steps),
    )
    # Not Siamese: a student sees the set as every network that is trained on it does, each image under its own view.
    g = step_gradient(net, augment.strategy(settings.views))
    return settings.distance(g, (synthetic["images"], y), alpha_of(synthetic), *way, chunks)
