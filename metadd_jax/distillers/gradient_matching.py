"""DC and DSA: match, class by class, the gradients that real and synthetic images give a network in training.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021); Zhao and Bilen, "Dataset
Condensation with Differentiable Siamese Augmentation" (ICML 2021), which shows both sides of a class under the same
augmentation A(., w). With l the cross-entropy of a network of weights theta, T_c the real and S_c the synthetic images
of class c, the set is trained to make small

    sum_c D(grad_theta mean_{x in T_c} l(A(x, w_c), c; theta), grad_theta mean_{s in S_c} l(A(s, w_c), c; theta))

with D as in ``distances.gradient_distance`` and the real side a constant. The published loop draws a network, matches
gradients ``outer`` times, and after each time but the last trains the network for ``inner`` epochs on the set. Here one
step is one matching: before it the network is new (step 0, ``outer``, 2 ``outer``, ...) or has trained on the set as it
stands, which is the same order of things.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import keys, parallel, parts, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, registry
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.distances import DISTANCES, gradient_distance
from metadd_jax.distillers.networks import Networks, as_networks
from metadd_jax.ranges import OneOf, Whole
from metadd_jax.structs import Dataset, ImageArrays
from metadd_jax.training import Recipe, fit

BATCH_NORMS = ("improved", "published")
# As published, where any other number ends the program; ``loops`` fills the gaps.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # ipc: (outer, inner)
# Real images that batch norm's statistics are taken of, as in the released program.
_STATISTICS_PER_CLASS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientMatching(class_images.ClassWise):
    """Settings of gradient matching: those of ``ClassWise`` and these.

    Published runs do 1001 ``outer`` steps with ``optax.sgd(0.1, momentum=0.5)`` (MLP: 0.01).

    Attributes:
      outer: steps (matchings) from one new network to the next; None for ``loops(ipc)``.
      inner: epochs that the network trains on the set between two steps; None for ``loops(ipc)``.
      distance: D: "ours" (the DC paper's, row-wise cosine), "mse", "cos" or "l1", see ``gradient_distance``.
      batch_norm: where the running statistics under which a batch-norm network is matched come from: 16 real images
        a class (all of a smaller class), drawn anew at every step, in one pass as one batch. "published": that pass
        moves the statistics by a tenth (momentum 0.1), so they stay mostly those of the start or of the inner training.
        "improved": the statistics of this batch replace them. Without effect on other networks.
    """

    outer: Annotated[int | None, Whole(1)] = None
    inner: Annotated[int | None, Whole(1)] = None
    distance: Annotated[str, OneOf(DISTANCES)] = "ours"
    batch_norm: Annotated[str, OneOf(BATCH_NORMS)] = "improved"

    name: ClassVar[str]
    group: ClassVar[str] = "dc"
    draws_networks: ClassVar[bool] = True

    def make(
        self, net: zoo.Architecture | Networks, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the backbone, or a pool of them.
          counts: images of each of the K classes of the set.
          given: nothing; gradient matching takes nothing that is made beforehand.
          repeat: whether a class with fewer real images than it starts from gives them again and again.
        """
        del given
        return _distiller(self, as_networks(net), counts, repeat)

    def loops(self, ipc: int | Sequence[int]) -> tuple[int, int]:
        """Returns (outer, inner): the chosen ones, else the published of ``loops``.

        Args:
          ipc: images per class, one number for all classes or one a class.
        """
        outer, inner = loops(ipc)
        return self.outer or outer, self.inner or inner

    def draws(self, steps: int, counts: class_images.Counts) -> int:
        """How many networks a run draws: one in ``outer`` steps."""
        return -(-steps // self.loops(counts)[0])

    def flops(self, forward: float, counts: class_images.Counts) -> float:
        """Counts 3 f K b + 9 f N + 3 f N inner (outer - 1) / outer.

        The gradients of the real images; those of the synthetic ones (3 f) and their derivative (6 f); and what of the
        network's training falls to one step.

        Args:
          forward: f, FLOPs of the backbone's forward pass of one image.
          counts: images of each of the K classes, N in all.
        """
        outer, inner = self.loops(counts)
        images = sum(counts)
        matching = 3 * forward * len(counts) * self.batch_size + 9 * forward * images
        return matching + 3 * forward * images * inner * (outer - 1) / outer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DC(GradientMatching):
    """Settings of DC: a start from noise and no augmentation."""

    name: ClassVar[str] = "dc"
    published_init: ClassVar[str] = "noise"
    published_augmentation: ClassVar[str] = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DSA(GradientMatching):
    """Settings of DSA: a start from real images, and differentiable Siamese augmentation.

    In matching, one op with one set of parameters for all real and synthetic images of a class, drawn per class and
    step; in the inner training, one op a batch with individual parameters for each image.
    """

    name: ClassVar[str] = "dsa"


registry.register("dc", DC)
registry.register("dsa", DSA)


def dc(
    net: zoo.Architecture | Networks,
    *,
    ipc: int | Sequence[int],
    settings: DC | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """Dataset condensation by gradient matching as a ``Distiller``: no augmentation.

    Args:
      net: the backbone, or a pool (``networks.pool``), of which each new network is one.
      ipc: images per class, one number for all classes or one a class.
      settings: the method's settings; None for the defaults.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.
      changes: fields of ``DC`` to be other than in ``settings``: ``batch_size=64, outer=10``.

    Raises:
      ValueError: for a setting out of range, or (in ``init``, from real images without ``repeat``) a class with fewer
        than ``ipc`` images.
    """
    counts = sampling.per_class(ipc, as_networks(net).num_classes)
    return dataclasses.replace(settings or DC(), **changes).make(net, counts, repeat=repeat)


def dsa(
    net: zoo.Architecture | Networks,
    *,
    ipc: int | Sequence[int],
    settings: DSA | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """Gradient matching under differentiable Siamese augmentation as a ``Distiller``.

    Args:
      net: as in ``dc``.
      ipc: as in ``dc``.
      repeat: as in ``dc``.
      settings: the method's settings; None for the defaults.
      changes: fields of ``DSA`` to be other than in ``settings``.

    Raises:
      ValueError: as in ``dc``, or for an unknown token.
    """
    counts = sampling.per_class(ipc, as_networks(net).num_classes)
    return dataclasses.replace(settings or DSA(), **changes).make(net, counts, repeat=repeat)


def loops(ipc: int | Sequence[int]) -> tuple[int, int]:
    """(outer, inner) for a number of images per class, or for the mean of one a class.

    The published table knows 1, 10, 20, 30, 40 and 50. Between two entries both numbers are interpolated linearly and
    rounded (a half up); above 50 they stay (50, 10), one of the two that the authors advise there.

    Args:
      ipc: images per class, one number for all classes or one a class.
    """
    known, mean = list(LOOPS), np.mean(ipc)
    outer, inner = (int(np.interp(mean, known, values) + 0.5) for values in np.transpose(list(LOOPS.values())))
    return outer, inner


def _distiller(settings: GradientMatching, nets: Networks, counts: class_images.Counts, repeat: bool) -> Distiller:
    classes, (outer, inner) = nets.num_classes, settings.loops(counts)

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict, dict]:
        images = class_images.initial(key, dataset, nets, counts=counts, init=settings.start, repeat=repeat)
        # ``aux`` must have its shapes from ``init`` on (rule 2 of the contract); the first step draws its own network.
        return images, {"network": nets.init(key, 0)}

    def refresh(key: jax.Array, synthetic: dict, aux: dict, step: jax.Array, frozen: Any) -> dict:
        """A new network, or the last step's after ``inner`` epochs on the set."""
        del frozen
        # Every network is new, so no inner training and no ``cond`` is compiled (1 image a
        # class: the loops are (1, 1)).
        if outer == 1:
            return {"network": nets.init(key, step)}
        # As published: plain SGD at 0.01 without momentum or decay, and DSA sees the set
        # augmented here too, DC does not.
        recipe = Recipe(epochs=inner, learning_rate=0.01, momentum=0.0, weight_decay=0.0, augmentation=settings.views)
        images, labels = synthetic["images"], class_images.labels_of(counts)

        def train(net: zoo.Architecture, theta: Any) -> tuple[Any, tuple]:
            return fit(key, net, images, labels, recipe, shared_key=key, variables=theta), ()

        def trained(drawn: Any) -> Any:
            return nets.change(drawn, train)[0]

        # Training comes before a matching and not after it: what is published to be left out
        # after the last never happens.
        is_new = step % outer == 0
        return {"network": jax.lax.cond(is_new, lambda _: nets.init(key, step // outer), trained, aux["network"])}

    def sample(key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None) -> dict[str, Any]:
        del step
        size = settings.batch_size
        batch = class_images.draw(key, data, num_classes=classes, batch_size=size, axis_name=axis_name)
        return {**batch, **_draw_statistics(key, data, classes)} if nets.has_batch_stats else batch

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: dict, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        del frozen
        chex.assert_rank([synthetic["images"], batch["images"], batch["weights"]], [4, 5, 2])
        # A fresh w_c for every class and step, as published: it is Siamese between the two
        # sides and not between classes.
        w = jax.random.split(key, classes)

        def match(net: zoo.Architecture, variables: Any) -> tuple[Any, jax.Array]:
            # Once for all classes: the gradients are taken in evaluation mode, under statistics
            # that no class decides alone.
            if net.has_batch_stats:
                variables = _with_statistics(net, variables, batch, settings.batch_norm)

            def distance(item: tuple, shared: tuple) -> jax.Array:
                return class_distance(settings, net, item, shared, kind=settings.distance, axis_name=axis_name)

            own, share = class_images.by_class(synthetic["images"], counts), class_images.shares(counts)
            items = (own, w, jnp.arange(classes), batch["images"], batch["weights"], share)
            shared = (variables, batch["mean"], batch["std"])
            # On a GPU the gradients of several classes at once are grouped convolutions: DC's
            # presets take one (docs/gpu.md).
            at_once = settings.class_batch or classes
            value = parts.sum_each(distance, items, shared, at_once=at_once)
            if settings.distance == "ours" and isinstance(net, zoo.Variants):
                # A unit that the drawn ConvNet has not counts 1 in each class, as one without any gradient does.
                value -= classes * net.idle_units(variables)
            return variables, value

        network, value = nets.change(aux["network"], match)
        return value, ({"network": network}, {})

    return Distiller(
        name=settings.name,
        init=init,
        sample=sample,
        loss=loss,
        refresh=refresh,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
    )


def class_distance(
    settings: class_images.ClassWise,
    net: zoo.Architecture,
    item: tuple,
    shared: tuple,
    *,
    kind: str,
    axis_name: str | None,
    of: Callable[[Any], Any] = lambda gradient: gradient,
) -> jax.Array:
    """D between the mean gradients of one class's real and synthetic images, under one view: [].

    Args:
      settings: the view, and how many real images pass at once.
      net: the architecture.
      item: what the class has: synthetic images [n, H, W, C], the key of its view, its label [], real images
        [b, H, W, C] as stored and their weights [b], and what each synthetic image adds to the mean [n] (None: alike).
      shared: what all classes share: the network's variables, and the mean and std to standardise by. Arguments,
        because ``parts`` takes what a function closes over for a constant.
      kind: D, see ``gradient_distance``.
      axis_name: under pmap, the axis of the devices that share the real images.
      of: the part of a gradient that is compared.
    """
    (own, w, label, real, weights, share), (variables, mean, std) = item, shared

    def summed_gradient(part: tuple) -> Any:
        images, weights = part
        seen = settings.view(w, sampling.standardise(images, mean, std))
        return of(class_gradient(net, variables, seen, label, weights))

    # A gradient is a sum over images, so parts of a class and shares of devices add up to it exactly.
    total = parts.add_up(summed_gradient, (real, weights), size=settings.micro_batch)
    total, count = parallel.psum_if((total, weights.sum()), axis_name)
    # D is not linear: the mean must be complete before it. The real side is a constant of the loss.
    target = jax.lax.stop_gradient(jax.tree.map(lambda x: x / count, total))
    # Each class has its own number of images; the mean is over those alone.
    share = class_images.weights_of(share, len(own))
    gradient = of(class_gradient(net, variables, settings.view(w, own), label, share))
    return gradient_distance(target, gradient, kind=kind)


def class_gradient(
    net: zoo.Architecture, variables: Any, images: jax.Array, label: jax.Array, weights: jax.Array
) -> Any:
    """Takes the gradient in theta of the weighted sum of the cross-entropies of one class: a tree like ``params``.

    Args:
      net: the architecture.
      variables: ``params`` (+ ``batch_stats``, which stand still).
      images: [n, H, W, C] as the network takes them.
      label: [] int, the class of all of them.
      weights: [n], what each adds.
    """

    def total(params: Any) -> jax.Array:
        logits, _ = net.apply({**variables, "params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.full(len(images), label))
        return (weights * losses).sum()

    # ``params`` alone: running statistics are no weights, and D compares what an optimiser would move.
    return jax.grad(total)(variables["params"])


def _draw_statistics(key: jax.Array, data: ImageArrays, classes: int) -> dict[str, jax.Array]:
    """The real images of each class that batch norm's statistics are taken of, and their weights."""

    def draw_some(class_key: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        indices, weights = sampling.class_indices(class_key, data, label, _STATISTICS_PER_CLASS)
        return jnp.asarray(data.images)[indices], weights

    # The same images on every device: the network stays the same everywhere.
    class_keys = jax.random.split(keys.named(key, "statistics"), classes)
    images, weights = jax.vmap(draw_some)(class_keys, jnp.arange(classes))
    return {"statistics": images, "statistics_weights": weights}


def _with_statistics(net: zoo.Architecture, variables: Any, batch: dict, kind: str) -> Any:
    """The network with running statistics of the real images drawn for them, see ``GradientMatching.batch_norm``."""
    images = sampling.standardise(batch["statistics"], batch["mean"], batch["std"])
    # One pass over all classes at once; the weights keep what fills up a small class out of the statistics.
    images, weights = images.reshape(-1, *net.image_shape), batch["statistics_weights"].ravel()
    # PyTorch's momentum of 0.1: a single pass moves the statistics by a tenth, in the released program too.
    if kind == "published":
        return {**variables, "batch_stats": net.apply_train(variables, images, weights)[2]}
    # Started from zero, the pass leaves a tenth of the batch's statistics.
    empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    tenth = net.apply_train({**variables, "batch_stats": empty}, images, weights)[2]
    return {**variables, "batch_stats": jax.tree.map(lambda x: 10 * x, tenth)}
