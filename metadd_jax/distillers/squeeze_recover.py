"""SRe2L, the recover step: images that a trained network classifies and whose statistics are those of its training.

Yin, Xing and Shen, "Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective"
(NeurIPS 2023, arXiv 2306.13092). Squeeze is the training of the teacher (``training.recipes.sre2l_squeeze``, or
published weights); relabelling and post-training are ``fit`` and ``cross_architecture`` with ``teacher=``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metadd_jax import augment, parallel, ranges, transforms, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.distances import norm
from metadd_jax.ranges import Ordered, Real, Whole
from metadd_jax.structs import Dataset


def sre2l(
    teacher_net: zoo.Architecture,
    teacher_variables: Any,
    *,
    ipc: int | Sequence[int],
    r_bn: float = 0.01,
    first_multiplier: float = 10.0,
    tv: float = 0.0,
    l2: float = 0.0,
    crop: bool = True,
    flip: bool = True,
    roll: tuple[int, int] = (0, 32),
    group_size: int = 100,
    group_ipc: int = 1,
) -> Distiller:
    """SRe2L's recovery as a ``Distiller``; give it the optimiser that ``recover_optimiser`` makes.

    The loss of a group of images x with labels y, seen through one draw of crop, flip and roll:
    mean CE(teacher(x), y) + r_bn * sum_l w_l (|var_l - running_var_l|_2 + |mean_l - running_mean_l|_2) + tv * TV(x)
    + l2 * mean_i |x_i|_2, with the statistics at the input of every batch norm l of the teacher in evaluation mode,
    w_1 = ``first_multiplier`` and all others 1. As published, a group is up to ``group_size`` different classes of one
    pass over the classes (the k-th image of each); ``group_ipc`` passes can share one. The groups' losses are added, so
    each image's gradient, and with Adam its whole course, is that of its group alone.

    One update therefore works on all groups, one after the other, each with its gradient: it needs the memory of one
    group's activations and of the set (images, gradient, Adam's two moments and copies on the way). ImageNet at 224
    pixels and IPC 50 is 30 GB of images, so more than 120 GB; since groups do not touch each other (unless MetaDD ties
    them), distil it as several sets of few images per class with different seeds and join them. Several devices share
    the groups.

    Published settings (ImageNet-1K are the defaults); learning rate and steps go to ``recover_optimiser``:

    ========  ====  ==========  =======  =============  =====
    data      r_bn  crop, flip  roll     learning rate  steps
    ========  ====  ==========  =======  =============  =====
    ImageNet  .01   yes         (0, 32)  .25            4000
    Tiny      1     yes         (-4, 4)  .1             4000
    CIFAR     .01   no          (0, 4)   .25            1000
    ========  ====  ==========  =======  =============  =====

    A teacher may be trained here (``training.pretrain`` with ``recipes.sre2l_squeeze``) or come from torchvision:

    >>> teacher = zoo.create("resnet18", 1000, (224, 224, 3))
    >>> method = sre2l(teacher, zoo.torchvision.load(teacher, "resnet18-f37072fd.pth"), ipc=1)
    >>> tx = recover_optimiser(0.25, 4000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    Args:
      teacher_net: a trained network with batch norm for the set's images.
      teacher_variables: its ``params`` and ``batch_stats``.
      ipc: images per class, one number for all classes or one a class: a pass over the classes then leaves out those
        that have had all of theirs. No real images are read, so it may be above what a class has of them.
      r_bn: weight of the statistics.
      first_multiplier: further weight of the first layer's.
      tv: weight of the total variation (norms of the four differences to neighbours; published runs use 0).
      l2: weight of the mean norm of an image (published runs use 0).
      crop: whether a group is seen through a random resized crop.
      flip: whether a group is mirrored with probability 1/2.
      roll: lowest and highest shift in pixels of the toroidal roll, both axes; (0, 0) for none.
      group_size: most images whose statistics are taken together.
      group_ipc: how many of them are of one class. Published is 1; with few classes more images tell more about the
        statistics of many channels (docs/methods.md).

    Raises:
      ValueError: for a setting out of range or a teacher without batch norm; in ``init``, for a data set of another
        shape or number of classes than the teacher's.
    """
    if "batch_stats" not in teacher_variables or not teacher_net.has_batch_stats:
        raise ValueError(
            f"{teacher_net.label} has no batch-norm statistics to match; use a teacher with them, such as resnet18_bn"
        )
    counts = sampling.per_class(ipc, teacher_net.num_classes)
    recover = _Recover(teacher_net, counts, r_bn, first_multiplier, tv, l2, crop, flip, roll, group_size, group_ipc)
    return Distiller(
        name="sre2l",
        init=recover.init,
        sample=lambda key, data, step, *, axis_name=None: (),
        loss=recover.loss,
        refresh=lambda key, synthetic, aux, step, frozen: aux,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
        frozen=teacher_variables,
    )


def recover_optimiser(
    learning_rate: float, steps: int, mean: ArrayLike, std: ArrayLike
) -> optax.GradientTransformation:
    """SRe2L's optimiser: Adam (betas .5 and .9, eps 1e-8), cosine from ``learning_rate`` to 0 over ``steps`` updates.

    After each update every pixel is clipped to what a picture can hold, [-mean / std, (1 - mean) / std].

    Args:
      mean, std: [C], the constants that the set is standardised by.

    Raises:
      ValueError: if the rate is not above 0 or there is no step.
    """
    ranges.require("learning_rate", learning_rate, Real(0, above=True))
    ranges.require("steps", steps, Whole(1))
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps), b1=0.5, b2=0.9, eps=1e-8)
    return optax.chain(adam, _stay_within(-mean / std, (1 - mean) / std))


def _stay_within(low: jax.Array, high: jax.Array) -> optax.GradientTransformation:
    """Changes updates so that the updated parameters lie in [low, high]."""

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, p: jnp.clip(p + u, low, high) - p, updates, params)

    return optax.stateless(update)


@dataclasses.dataclass(frozen=True)
class _Recover:
    """The settings of ``sre2l`` and the functions that they close over."""

    net: zoo.Architecture
    counts: class_images.Counts
    r_bn: Annotated[float, Real(0)]
    first_multiplier: Annotated[float, Real(0)]
    tv: Annotated[float, Real(0)]
    l2: Annotated[float, Real(0)]
    crop: bool
    flip: bool
    roll: Annotated[tuple[int, int], Ordered()]
    group_size: Annotated[int, Whole(1)]
    group_ipc: Annotated[int, Whole(1)]

    def __post_init__(self) -> None:
        ranges.check(self)
        uneven = [count for count in self.counts if count % self.group_ipc]
        if self.group_ipc > self.group_size or uneven:
            raise ValueError(
                f"group_ipc={self.group_ipc} must divide ipc={(uneven or self.counts)[0]} and be at most "
                f"group_size={self.group_size}"
            )

    def init(self, key: jax.Array, dataset: Dataset) -> tuple[dict[str, jax.Array], tuple]:
        return class_images.initial(key, dataset, self.net, counts=self.counts, init="noise"), ()

    def loss(
        self, key: jax.Array, synthetic: dict, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        del batch
        images = parallel.sum_gradient(synthetic["images"], axis_name)
        labels, by_size = class_images.labels_of(self.counts), self._groups()
        parts = [
            self._sum_over_groups(jax.random.fold_in(key, count), images[places], labels[places], frozen, axis_name)
            for count, places in by_size
        ]
        total = jax.tree.map(lambda *sums: sum(sums), *parts)
        loss, count = total.pop("loss"), sum(len(places) for _, places in by_size)
        return loss, (aux, {name: value / count for name, value in total.items()})

    def _groups(self) -> list[tuple[int, np.ndarray]]:
        """The places in the set of the images of each group, [G, b] for each size b; and a number of its own for each.

        A pass takes the next ``group_ipc`` images of every class that has images left.
        """
        classes, together = len(self.counts), self.group_ipc
        size, offsets = min(self.group_size // together, classes), np.cumsum(self.counts) - self.counts
        groups: dict[int, list] = {}
        for first in range(0, max(self.counts), together):
            left = np.flatnonzero(np.array(self.counts) > first)
            for start in range(0, len(left), size):
                places = offsets[left[start : start + size]] + np.arange(first, first + together)[:, None]
                groups.setdefault(places.shape[1], []).append(places.ravel())
        return [(0 if width == size else classes - width, np.array(places)) for width, places in groups.items()]

    def _sum_over_groups(
        self, key: jax.Array, groups: jax.Array, labels: jax.Array, variables: Any, axis_name: str | None
    ) -> dict[str, jax.Array]:
        """Sums over groups [G, b, H, W, C], on all devices together, of what ``_group`` gives."""
        keys = jax.random.split(key, len(groups))

        def group(item: tuple) -> dict[str, jax.Array]:
            key, images, labels = item
            constant = jax.lax.stop_gradient(images)
            value_of = jax.value_and_grad(self._group, argnums=1, has_aux=True)
            (loss, parts), slope = value_of(key, constant, labels, variables)
            # The plane that touches the loss here, so that the way back needs no activations of all groups at once.
            # First derivatives are true, in the teacher too; ``parts`` are for reading and have none in the images.
            return {"loss": loss + jnp.vdot(slope, images - constant), **parts}

        return parallel.sum_over(group, (keys, groups, labels), axis_name)

    def _group(
        self, key: jax.Array, images: jax.Array, labels: jax.Array, variables: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of images [b, H, W, C] of one group, and its two main parts."""
        images = self._view(key, images)
        logits, layers = zoo.batch_norm_inputs(self.net, variables, images)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        multipliers = [self.first_multiplier, *[1.0] * (len(layers) - 1)]
        statistics = sum(
            w * (norm(layer.variance - layer.running_variance) + norm(layer.mean - layer.running_mean))
            for w, layer in zip(multipliers, layers, strict=True)
        )
        loss = entropy + self.r_bn * statistics
        if self.tv:
            loss += self.tv * _total_variation(images)
        if self.l2:
            loss += self.l2 * jax.vmap(norm)(images).mean()
        return loss, {"cross_entropy": entropy, "statistics": statistics}

    def _view(self, key: jax.Array, images: jax.Array) -> jax.Array:
        crop_key, flip_key, roll_key = jax.random.split(key, 3)
        if self.crop:
            images = transforms.resized_crop(images, transforms.draw_resized_crop(crop_key, 1, images.shape[1:3]))
        if self.flip:
            images = augment.flip(images, jax.random.bernoulli(flip_key))
        if self.roll == (0, 0):
            return images
        return jnp.roll(images, jax.random.randint(roll_key, (2,), self.roll[0], self.roll[1] + 1), axis=(1, 2))


def _total_variation(x: jax.Array) -> jax.Array:
    """Norms of the differences to the neighbours to the right, below, and on both diagonals, added."""
    right, below = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    falling, rising = x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]
    return sum(norm(difference) for difference in (right, below, falling, rising))
