"""SRe2L, the recover step: images that a trained network classifies and whose statistics are those of its training.

Yin, Xing and Shen, "Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective"
(NeurIPS 2023, arXiv 2306.13092). A group of images x with labels y, seen through one draw of crop, flip and roll, has
the loss

    mean CE(teacher(x), y) + r_bn sum_l w_l (|var_l - running_var_l|_2 + |mean_l - running_mean_l|_2)
        + tv TV(x) + l2 mean_i |x_i|_2,

with the statistics at the input of every batch norm l of the teacher in evaluation mode, w_1 = ``first_multiplier`` and
all others 1; ``committee`` says what it is with several teachers. Squeeze is the training of the teacher
(``training.recipes.sre2l_squeeze``, or published weights); relabelling and post-training are ``fit`` and
``cross_architecture`` with ``teacher=``.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import optax

from metadd_jax import augment, parallel, parts, training, transforms, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, networks, registry
from metadd_jax.distillers import committee as committees
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.distances import norm
from metadd_jax.distillers.pixel_updates import recover_optimiser
from metadd_jax.distillers.registry import Progress
from metadd_jax.distillers.teachers import Taught
from metadd_jax.ranges import Each, OneOf, Ordered, Real, Texts, Whole
from metadd_jax.structs import Dataset
from metadd_jax.training import recipes

SQUEEZES = ("cifar", "tiny", "short")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeRecover(Taught):
    """Settings of SRe2L: of its loss, and of how its teacher comes about (``Taught``).

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
      squeeze: how the teacher is trained: "cifar" or "tiny" (published), or "short" (as the auxiliaries).
      squeeze_epochs: passes over the real data; None for the published number ("short": that of the auxiliaries).
      committee: further teachers beside the backbone, trained as it is ("vgg11_bn:width=8").
      weighting: how their losses are put together: "mean", "prior" or "round_robin" (one teacher an update, in turn).
      priors: for "prior" one number a teacher, the backbone's first: weights softmax(prior / 5), as CV-DD's.
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
    squeeze: Annotated[str, OneOf(SQUEEZES)] = "cifar"
    squeeze_epochs: Annotated[int | None, Whole(1)] = None
    committee: Annotated[tuple[str, ...], Texts("zoo.check")] = ()
    weighting: Annotated[str, OneOf(committees.WEIGHTINGS)] = "mean"
    priors: Annotated[tuple[float, ...], Each(Real())] = ()

    group: ClassVar[str] = "sre2l"
    published_init: ClassVar[str] = "noise"
    scratch_fields: ClassVar[tuple[str, ...]] = ("group_size",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_ipc > self.group_size:
            raise ValueError(f"group_ipc={self.group_ipc} must be at most group_size={self.group_size}")
        committees.check(self.committee, self.weighting, self.priors)
        if self.committee and self.weights:
            raise ValueError(f"weights={self.weights} are of the backbone alone; leave them or committee out")

    def make(
        self, net: zoo.Architecture, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the teacher's network, with batch norm.
          counts: images of each of the K classes of the set.
          given: the teacher's ``params`` and ``batch_stats``; of a committee a tuple of them, the backbone's first.
          repeat: whether a class with fewer real images than it starts from gives them again and again.

        Raises:
          ValueError: for a teacher without batch norm, or a ``group_ipc`` that does not divide an ipc.
        """
        self.check_network(net)
        nets = committees.nets(self.committee, net)
        each = given if self.committee else (given,)
        if not isinstance(each, tuple) or len(each) != len(nets):
            raise ValueError(f"{len(nets)} teachers need as many variables, in a tuple; give the backbone's first")
        for one, variables in zip(nets, each, strict=True):
            # A teacher from elsewhere may lack them; without them the loss would be the cross-entropy alone.
            if "batch_stats" not in variables:
                raise ValueError(f"{one.label} is given without its batch_stats, which the images are to match")
        # Groups take ``group_ipc`` images of a class at a time; a remainder would make groups of another meaning.
        uneven = [count for count in counts if count % self.group_ipc]
        if uneven:
            raise ValueError(f"group_ipc={self.group_ipc} must divide ipc={uneven[0]}")
        return _distiller(self, nets, counts, given, repeat)

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

    def check_prepare(self) -> None:
        """Finds a typo in the committee before any data is read."""
        for spec in self.committee:
            zoo.check(spec)

    def check_pixels(self, *, zca: bool) -> None:
        """Refuses whitened images."""
        # The clip is per channel; whitening mixes pixels, so its range is no box.
        if zca:
            raise ValueError("sre2l clips to what a picture can hold, which a whitened image has not; leave zca out")

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses a teacher without batch norm, or weights of torchvision for a network that is not."""
        for one in committees.nets(self.committee, net):
            if not one.has_batch_stats:
                raise ValueError(
                    f"{one.label} has no batch-norm statistics to match; use a teacher with them, such as resnet18_bn"
                )
        super().check_network(net)

    def backbone_recipe(self, usual: training.Recipe) -> training.Recipe:
        """The squeeze."""
        recipe = usual if self.squeeze == "short" else training.sre2l_squeeze(self.squeeze)
        return recipes.shortened(recipe, self.squeeze_epochs) if self.squeeze_epochs else recipe

    def prepare(
        self,
        net: zoo.Architecture,
        dataset: Dataset,
        trained: training.Trained,
        cache: pathlib.Path,
        *,
        progress: Progress,
    ) -> Any:
        """Takes the trained backbone as the teacher, and trains the others of a committee.

        Args:
          net: the backbone's architecture.
          dataset: the real data.
          cache: the folder of what need not be made twice.
          progress: called as (what, done, in all).
          trained: the backbone.
        """
        if not self.committee:
            return super().prepare(net, dataset, trained, cache, progress=progress)
        return committees.train(committees.nets(self.committee, net), dataset, trained, cache, progress=progress)

    def stand_in(self, net: zoo.Architecture, variables: Any) -> Any:
        """Takes teachers of random weights.

        Args:
          net: the backbone.
          variables: random ones of it.
        """
        if not self.committee:
            return super().stand_in(net, variables)
        return committees.random(jax.random.key(0), committees.nets(self.committee, net), variables)

    def passes(self, net: zoo.Architecture) -> tuple[tuple[zoo.Architecture, float], ...]:
        """All teachers once, or in turn."""
        nets = committees.nets(self.committee, net)
        return tuple((one, 1 / len(nets) if self.weighting == "round_robin" else 1.0) for one in nets)

    def describe(self) -> str:
        """Where the teacher comes from."""
        if not self.committee:
            return f"teacher {self.weights or f'trained by {self.squeeze!r}'}"
        count = 1 + len(self.committee)
        passed = 1 if self.weighting == "round_robin" else count
        others = ", ".join(self.committee)
        return (
            f"{count} teachers (the backbone, {others}) trained by {self.squeeze!r}, put together by "
            f"{self.weighting!r}: {passed} teacher(s) pass in an update"
        )


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


def _distiller(
    settings: SqueezeRecover,
    nets: Sequence[zoo.Architecture],
    counts: class_images.Counts,
    given: Any,
    repeat: bool,
) -> Distiller:
    net, in_turn = nets[0], settings.weighting == "round_robin"

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict[str, jax.Array], tuple]:
        return class_images.initial(key, dataset, net, counts=counts, init=settings.start, repeat=repeat), ()

    def sample(key: jax.Array, data: Any, step: jax.Array, *, axis_name: str | None = None) -> Any:
        del key, data, axis_name
        return {"turn": jnp.asarray(step, jnp.int32) % len(nets)} if in_turn else ()

    def loss(
        key: jax.Array, synthetic: dict, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        images, labels = synthetic["images"], class_images.labels_of(counts)
        at_once = parallel.mesh_size()  # each device has a group, so all of one size

        def some(part: tuple, weights: jax.Array, shared: tuple) -> tuple[jax.Array, dict[str, jax.Array]]:
            values, found = parts.alone(
                lambda group: group_loss(*group, *shared),
                parallel.divide(part),
                at_once=at_once,
            )
            return (values * weights).sum(keepdims=True), jax.tree.map(lambda value: value[None], found)

        values, found = [], []
        # Groups of one size share a compiled loop; a class that has had its images leaves smaller groups behind.
        for number, places in class_images.groups(counts, settings.group_size, settings.group_ipc):
            # One draw of crop, flip and roll for each group, as published: the statistics are of one view.
            keys = jax.random.split(jax.random.fold_in(key, number), len(places))
            items = (keys, images[places], labels[places])
            (value,), facts = parts.total(some, items, (frozen, batch), size=at_once, axis_name=axis_name)
            values.append(value)
            found.append(facts)
        return sum(values), (aux, jax.tree.map(lambda *facts: jnp.concatenate(facts, axis=1).mean(), *found))

    def group_loss(
        key: jax.Array, x: jax.Array, y: jax.Array, variables: Any, batch: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Gives the loss [] of one group, and its two main parts.

        Args:
          key: draws the group's view, the same for all teachers.
          x: [b, H, W, C] images.
          y: [b] int32 labels.
          variables: the teacher's ``params`` and ``batch_stats``, or a tuple of them; constants.
          batch: of ``sample``.
        """
        chex.assert_rank([x, y], [4, 1])
        x = _view(key, x, settings)
        if len(nets) == 1:
            value, facts = taught(net, variables, x, y)
        elif in_turn:
            each = [functools.partial(taught, one, of) for one, of in zip(nets, variables, strict=True)]
            value, facts = jax.lax.switch(batch["turn"], each, x, y)
        else:
            w = committees.weights(settings.weighting, settings.priors, len(nets))
            found = [taught(one, of, x, y) for one, of in zip(nets, variables, strict=True)]
            value, facts = jax.tree.map(lambda *each: jnp.dot(jnp.asarray(w), jnp.stack(each)), *found)
        # Published runs have no such terms: a term of weight 0 would still cost its gradient.
        if settings.tv:
            value += settings.tv * _total_variation(x)
        if settings.l2:
            value += settings.l2 * jax.vmap(norm)(x).mean()
        return value, facts

    def taught(
        net: zoo.Architecture, variables: Any, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """CE + r_bn BN of one teacher, and both."""
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
        return entropy + settings.r_bn * statistics, {"cross_entropy": entropy, "statistics": statistics}

    return Distiller(
        name="sre2l",
        init=init,
        sample=sample,
        loss=loss,
        refresh=lambda key, synthetic, aux, step, frozen: aux,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
        frozen=given,
    )


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
