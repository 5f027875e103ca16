"""SRe2L, the recover step: images that a trained network classifies and whose statistics are those of its training.

Yin, Xing and Shen, "Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective"
(NeurIPS 2023, arXiv 2306.13092). A group of images x with labels y, seen through one draw of crop, flip and roll, has
the loss

    mean CE(teacher(x), y) + r_bn sum_l w_l (|var_l - running_var_l|_2 + |mean_l - running_mean_l|_2)
        + tv TV(x) + l2 mean_i |x_i|_2,

with the statistics at the input of every batch norm l of the teacher in evaluation mode, w_1 = ``first_multiplier`` and
all others 1. Squeeze is the training of the teacher (``training.recipes.sre2l_squeeze``, or published weights);
relabelling and post-training are ``fit`` and ``cross_architecture`` with ``teacher=``.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metadd_jax import augment, parallel, parts, ranges, training, transforms, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, networks, registry
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.distances import norm
from metadd_jax.distillers.registry import Method, Progress
from metadd_jax.ranges import OneOf, Ordered, Real, Text, Whole
from metadd_jax.structs import Dataset
from metadd_jax.training import recipes

SQUEEZES = ("cifar", "tiny", "short")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeRecover(Method):
    """Settings of SRe2L: of its loss, and of how its teacher, the backbone, comes about.

    Published (the defaults are ImageNet-1K's); learning rate and steps go to ``recover_optimiser``:

    ========  ====  ==========  =======  =============  =====
    data      r_bn  crop, flip  roll     learning rate  steps
    ========  ====  ==========  =======  =============  =====
    ImageNet  .01   yes         (0, 32)  .25            4000
    Tiny      1     yes         (-4, 4)  .1             4000
    CIFAR     .01   no          (0, 4)   .25            1000
    ========  ====  ==========  =======  =============  =====

    Attributes:
      r_bn: weight of the statistics.
      first_multiplier: w_1, further weight of the first layer's.
      tv: weight of the total variation (norms of the four differences to neighbours; published runs use 0).
      l2: weight of the mean norm of an image (published runs use 0).
      crop: whether a group is seen through a random resized crop.
      flip: whether a group is mirrored with probability 1/2.
      roll: lowest and highest shift in pixels of the toroidal roll, both axes; (0, 0) for none.
      group_size: most images whose statistics are taken together.
      group_ipc: how many of them are of one class. Published is 1; with few classes more images tell more about the
        statistics of many channels (docs/methods.md).
      weights: a file of torchvision's weights (.safetensors or .pth) for the teacher; None trains it.
      squeeze: how the teacher is trained: "cifar" or "tiny" (published), or "short" (as the auxiliaries).
      squeeze_epochs: passes over the real data; None for the published number ("short": that of the auxiliaries).
    """

    # ImageNet's column of the table; the released argparse defaults differ (tv 1e-4), and its scripts override them.
    r_bn: Annotated[float, Real(0)] = 0.01
    first_multiplier: Annotated[float, Real(0)] = 10.0
    tv: Annotated[float, Real(0)] = 0.0
    l2: Annotated[float, Real(0)] = 0.0
    crop: bool = True
    flip: bool = True
    roll: Annotated[tuple[int, int], Ordered()] = (0, 32)
    group_size: Annotated[int, Whole(1)] = 100
    group_ipc: Annotated[int, Whole(1)] = 1
    weights: Annotated[str | None, Text("zoo.torchvision.load")] = None
    squeeze: Annotated[str, OneOf(SQUEEZES)] = "cifar"
    squeeze_epochs: Annotated[int | None, Whole(1)] = None

    group: ClassVar[str] = "sre2l"
    published_init: ClassVar[str] = "noise"
    # The teacher's labels are SRe2L's third step, so judged networks may learn from it.
    teaches: ClassVar[bool] = True
    scratch_fields: ClassVar[tuple[str, ...]] = ("group_size",)
    file_fields: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_ipc > self.group_size:
            raise ValueError(f"group_ipc={self.group_ipc} must be at most group_size={self.group_size}")

    def make(
        self, net: zoo.Architecture, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the teacher's network, with batch norm.
          counts: images of each of the K classes of the set.
          given: the teacher's ``params`` and ``batch_stats``.
          repeat: whether a class with fewer real images than it starts from gives them again and again.

        Raises:
          ValueError: for a teacher without batch norm, or a ``group_ipc`` that does not divide an ipc.
        """
        self.check_network(net)
        # A teacher from elsewhere may lack them; without them the loss would be the cross-entropy alone.
        if "batch_stats" not in given:
            raise ValueError(f"{net.label} is given without its batch_stats, which the images are to match")
        # Groups take ``group_ipc`` images of a class at a time; a remainder would make groups of another meaning.
        uneven = [count for count in counts if count % self.group_ipc]
        if uneven:
            raise ValueError(f"group_ipc={self.group_ipc} must divide ipc={uneven[0]}")
        return _distiller(self, net, counts, given, repeat)

    def optimiser(
        self, learning_rate: float, momentum: float, steps: int, dataset: Dataset
    ) -> optax.GradientTransformation:
        """Makes Adam with a cosine, within what a picture can hold.

        Args:
          learning_rate: of the images, at the first step.
          momentum: nothing; Adam has betas of its own.
          steps: updates until the rate is 0.
          dataset: the real data, whose mean and std bound a pixel.
        """
        # Adam has betas of its own (.5 and .9, as published).
        del momentum
        return recover_optimiser(learning_rate, steps, dataset.train.mean, dataset.train.std)

    def check_pixels(self, *, zca: bool) -> None:
        """Refuses whitened images."""
        # The clip is per channel; whitening mixes pixels, so its range is no box.
        if zca:
            raise ValueError("sre2l clips to what a picture can hold, which a whitened image has not; leave zca out")

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses a teacher without batch norm, or weights of torchvision for a network that is not."""
        if not net.has_batch_stats:
            raise ValueError(
                f"{net.label} has no batch-norm statistics to match; use a teacher with them, such as resnet18_bn"
            )
        # Small images go through a stem of 3x3 and no pooling, whose shapes are other than torchvision's.
        if self.weights and net.geometry != "imagenet":
            raise ValueError(
                f"weights={self.weights} are torchvision's, but {net.label} at {net.image_shape} is the field's "
                "network; leave them out or use images of at least 128 pixels"
            )

    def backbone_recipe(self, usual: training.Recipe) -> training.Recipe:
        """The squeeze."""
        recipe = usual if self.squeeze == "short" else training.sre2l_squeeze(self.squeeze)
        return recipes.shortened(recipe, self.squeeze_epochs) if self.squeeze_epochs else recipe

    def backbone_variables(self, net: zoo.Architecture) -> Any:
        """Those of the file ``weights``."""
        return zoo.torchvision.load(net, self.weights) if self.weights else None

    def prepare(
        self,
        net: zoo.Architecture,
        dataset: Dataset,
        trained: training.Trained,
        cache: pathlib.Path,
        *,
        progress: Progress,
    ) -> Any:
        """Takes the trained backbone as the teacher.

        Args:
          net, dataset, cache, progress: see ``Method.prepare``; not needed here.
          trained: the backbone.
        """
        del net, dataset, cache, progress
        return trained.variables

    def stand_in(self, net: zoo.Architecture, variables: Any) -> Any:
        """Takes a teacher of random weights.

        Args:
          net: the backbone.
          variables: random ones of it.
        """
        del net
        return variables

    def describe(self) -> str:
        """Where the teacher comes from."""
        return f"teacher {self.weights or f'trained by {self.squeeze!r}'}"


registry.register("sre2l", SqueezeRecover)


def sre2l(
    teacher_net: zoo.Architecture,
    teacher_variables: Any,
    *,
    ipc: int | Sequence[int],
    settings: SqueezeRecover | None = None,
    **changes: Any,
) -> Distiller:
    """SRe2L's recovery as a ``Distiller``; give it the optimiser that ``recover_optimiser`` makes.

    As published, a group is up to ``group_size`` different classes of one pass over the classes (the k-th image of
    each); ``group_ipc`` passes can share one. The groups' losses are added, so each image's gradient, and with Adam its
    whole course, is that of its group alone.

    One update therefore works on all groups, one after the other, each with its gradient: it needs the memory of one
    group's activations and of the set (images, gradient, Adam's two moments and copies on the way). ImageNet at 224
    pixels and IPC 50 is 30 GB of images, so more than 120 GB; since groups do not touch each other (unless MetaDD ties
    them), distil it as several sets of few images per class with different seeds and join them. Several devices share
    the groups.

    A teacher may be trained here (``training.pretrain`` with ``recipes.sre2l_squeeze``) or come from torchvision:

    >>> teacher = zoo.create("resnet18", 1000, (224, 224, 3))
    >>> method = sre2l(teacher, zoo.torchvision.load(teacher, "resnet18-f37072fd.pth"), ipc=1)
    >>> tx = recover_optimiser(0.25, 4000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    Args:
      teacher_net: a trained network with batch norm for the set's images.
      teacher_variables: its ``params`` and ``batch_stats``.
      ipc: images per class, one number for all classes or one a class: a pass over the classes then leaves out those
        that have had all of theirs. No real images are read, so it may be above what a class has of them.
      settings: the method's settings; None for the defaults. What makes the teacher plays no part here.
      changes: fields of ``SqueezeRecover`` to be other than in ``settings``: ``crop=False, roll=(0, 4)``.

    Raises:
      ValueError: for a setting out of range or a teacher without batch norm; in ``init``, for a data set of another
        shape or number of classes than the teacher's.
    """
    counts = sampling.per_class(ipc, networks.single(teacher_net).num_classes)
    return dataclasses.replace(settings or SqueezeRecover(), **changes).make(teacher_net, counts, teacher_variables)


def recover_optimiser(
    learning_rate: float, steps: int, mean: ArrayLike, std: ArrayLike
) -> optax.GradientTransformation:
    """SRe2L's optimiser: Adam (betas .5 and .9, eps 1e-8), cosine from ``learning_rate`` to 0 over ``steps`` updates.

    After each update every pixel is clipped to what a picture can hold, [-mean / std, (1 - mean) / std]; latents that
    are no images ([n, H, W, C] with the data's C) are not.

    Args:
      mean, std: [C], the constants that the set is standardised by.

    Raises:
      ValueError: if the rate is not above 0 or there is no step.
    """
    ranges.require("learning_rate", learning_rate, Real(0, above=True))
    ranges.require("steps", steps, Whole(1))
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    # To 0, not to half the rate as in RDED's schedule of the same name; and without warm-up.
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps), b1=0.5, b2=0.9, eps=1e-8)
    # After Adam: the clip belongs to the pixel and must not enter the moments.
    return optax.chain(adam, _stay_within(-mean / std, (1 - mean) / std))


def _stay_within(low: jax.Array, high: jax.Array) -> optax.GradientTransformation:
    """Changes updates so that updated images lie in [low, high]; latents that are no images have no such range."""

    def within(u: jax.Array, p: jax.Array) -> jax.Array:
        # An update that ends on the border, for optax adds updates and cannot clip parameters.
        return jnp.clip(p + u, low, high) - p if p.ndim == 4 and p.shape[-1] == len(low) else u

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(within, updates, params)

    return optax.stateless(update)


def _distiller(
    settings: SqueezeRecover, net: zoo.Architecture, counts: class_images.Counts, given: Any, repeat: bool
) -> Distiller:
    def init(key: jax.Array, dataset: Dataset) -> tuple[dict[str, jax.Array], tuple]:
        return class_images.initial(key, dataset, net, counts=counts, init=settings.start, repeat=repeat), ()

    def loss(
        key: jax.Array, synthetic: dict, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        del batch
        images, labels = synthetic["images"], class_images.labels_of(counts)
        at_once = parallel.mesh_size()  # each device has a group, so all of one size

        def some(part: tuple, weights: jax.Array, variables: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            values, found = parts.alone(
                lambda group: group_loss(group[0], group[1], group[2], variables),
                parallel.divide(part),
                at_once=at_once,
            )
            return (values * weights).sum(keepdims=True), jax.tree.map(lambda value: value[None], found)

        values, found = [], []
        # Groups of one size share a compiled loop; a class that has had its images leaves smaller groups behind.
        for number, places in groups(counts, settings.group_size, settings.group_ipc):
            # One draw of crop, flip and roll for each group, as published: the statistics are of one view.
            keys = jax.random.split(jax.random.fold_in(key, number), len(places))
            items = (keys, images[places], labels[places])
            (value,), facts = parts.total(some, items, frozen, size=at_once, axis_name=axis_name)
            values.append(value)
            found.append(facts)
        return sum(values), (aux, jax.tree.map(lambda *facts: jnp.concatenate(facts, axis=1).mean(), *found))

    def group_loss(
        key: jax.Array, x: jax.Array, y: jax.Array, variables: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Gives the loss [] of one group, and its two main parts.

        Args:
          key: draws the group's view.
          x: [b, H, W, C] images.
          y: [b] int32 labels.
          variables: the teacher's ``params`` and ``batch_stats``; constants.
        """
        chex.assert_rank([x, y], [4, 1])
        x = _view(key, x, settings)
        # At the input of each norm, biased over batch and space, the teacher in evaluation mode
        # (the trap of re-implementations).
        logits, layers = zoo.batch_norm_inputs(net, variables, x)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        multipliers = [settings.first_multiplier, *[1.0] * (len(layers) - 1)]
        # Norms and no squares; ``norm`` has gradient 0 where they are 0, and the root's own is infinite there.
        statistics = sum(
            w * (norm(layer.variance - layer.running_variance) + norm(layer.mean - layer.running_mean))
            for w, layer in zip(multipliers, layers, strict=True)
        )
        value = entropy + settings.r_bn * statistics
        # Published runs have no such terms: a term of weight 0 would still cost its gradient.
        if settings.tv:
            value += settings.tv * _total_variation(x)
        if settings.l2:
            value += settings.l2 * jax.vmap(norm)(x).mean()
        return value, {"cross_entropy": entropy, "statistics": statistics}

    return Distiller(
        name="sre2l",
        init=init,
        sample=lambda key, data, step, *, axis_name=None: (),
        loss=loss,
        refresh=lambda key, synthetic, aux, step, frozen: aux,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
        frozen=given,
    )


def groups(counts: class_images.Counts, group_size: int, group_ipc: int) -> list[tuple[int, np.ndarray]]:
    """The images whose statistics are taken together.

    A pass takes the next ``group_ipc`` images of every class that has images left.

    Args:
      counts: images of each class of the set, class-major.
      group_size: most images of a group.
      group_ipc: images of one class in a group.

    Returns:
      For each size b of a group a number of its own, and the places in the set of its groups' images, [G, b].
    """
    classes, together = len(counts), group_ipc
    # The set is class-major, a group is not: it has one image of each class (``group_ipc``), by their places.
    size, offsets = min(group_size // together, classes), np.cumsum(counts) - counts
    found: dict[int, list] = {}
    for first in range(0, max(counts), together):
        left = np.flatnonzero(np.array(counts) > first)
        for start in range(0, len(left), size):
            places = offsets[left[start : start + size]] + np.arange(first, first + together)[:, None]
            found.setdefault(places.shape[1], []).append(places.ravel())
    # The number enters the key of the groups' views.
    return [(0 if width == size else classes - width, np.array(places)) for width, places in found.items()]


def _view(key: jax.Array, images: jax.Array, settings: SqueezeRecover) -> jax.Array:
    """One draw of crop, flip and roll for the whole group."""
    # The order of the released program: crop, flip, then the roll on the cropped pixels.
    crop_key, flip_key, roll_key = jax.random.split(key, 3)
    if settings.crop:
        _, height, width, _ = images.shape
        images = transforms.resized_crop(images, transforms.draw_resized_crop(crop_key, 1, (height, width)))
    if settings.flip:
        images = augment.flip(images, jax.random.bernoulli(flip_key))
    if settings.roll == (0, 0):
        return images
    # Toroidal, so no pixel is lost: the teacher sees the image under every shift.
    return jnp.roll(images, jax.random.randint(roll_key, (2,), settings.roll[0], settings.roll[1] + 1), axis=(1, 2))


def _total_variation(x: jax.Array) -> jax.Array:
    """Norms of the differences to the neighbours to the right, below, and on both diagonals, added."""
    right, below = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    falling, rising = x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]
    return norm(right) + norm(below) + norm(falling) + norm(rising)
