"""DC and DSA: match, class by class, the gradients that real and synthetic images give a network in training.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021); Zhao and Bilen, "Dataset
Condensation with Differentiable Siamese Augmentation" (ICML 2021), which shows both sides of a class under the same
augmentation. The published loop draws a network, matches gradients ``outer`` times, and after each time but the last
trains the network for ``inner`` epochs on the set. Here one step is one matching: before it the network is new
(step 0, ``outer``, 2 ``outer``, ...) or has trained on the set as it stands, which is the same order of things.
Published runs do 1001 ``outer`` steps with ``optax.sgd(0.1, momentum=0.5)`` (MLP: 0.01).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import augment, keys, parallel, ranges, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.distances import DISTANCES, gradient_distance
from metadd_jax.ranges import OneOf, Text, Whole
from metadd_jax.structs import Dataset, ImageArrays
from metadd_jax.training import Recipe, batches, fit

BATCH_NORMS = ("improved", "published")
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # ipc: (outer, inner)
_STATISTICS_PER_CLASS = 16


def dc(
    net: zoo.Architecture,
    *,
    ipc: int | Sequence[int],
    batch_size: int = 256,
    init: str = "noise",
    outer: int | None = None,
    inner: int | None = None,
    distance: str = "ours",
    batch_norm: str = "improved",
    class_batch: int = 1,
    micro_batch: int | None = None,
    repeat: bool = False,
) -> Distiller:
    """Dataset condensation by gradient matching as a ``Distiller``: no augmentation.

    Args:
      net: the backbone.
      ipc: images per class, one number for all classes or one a class.
      batch_size: real images per class and step; a class with fewer gives all of its images.
      init: "noise" (standard normal) or "real" (random real images).
      outer: steps from one new network to the next; default ``loops(ipc)``.
      inner: epochs that the network trains on the set between two steps; default ``loops(ipc)``.
      distance: see ``gradient_distance``.
      batch_norm: where the running statistics under which a batch-norm network is matched come from: 16 real images
        a class (all of a smaller class), drawn anew at every step, in one pass as one batch. "published": that pass
        moves the statistics by a tenth (momentum 0.1), so they stay mostly those of the start or of the inner training.
        "improved": the statistics of this batch replace them. Without effect on other networks.
      class_batch: how many classes are matched at once: memory grows with it; the gradients of several classes to one
        kernel are a grouped convolution, which is slow on a GPU (docs/gpu.md).
      micro_batch: how many real images of a class at once, see ``training.batches.sum_in_parts``.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.

    Raises:
      ValueError: for a setting out of range, or (in ``init``, from real images without ``repeat``) a class with fewer
        than ``ipc`` images.
    """
    method = dsa(
        net,
        ipc=ipc,
        batch_size=batch_size,
        augmentation="none",
        init=init,
        outer=outer,
        inner=inner,
        distance=distance,
        batch_norm=batch_norm,
        class_batch=class_batch,
        micro_batch=micro_batch,
        repeat=repeat,
    )
    return method._replace(name="dc")


def dsa(
    net: zoo.Architecture,
    *,
    ipc: int | Sequence[int],
    batch_size: int = 256,
    augmentation: str = "color_crop_cutout_flip_scale_rotate",
    init: str = "real",
    outer: int | None = None,
    inner: int | None = None,
    distance: str = "ours",
    batch_norm: str = "improved",
    class_batch: int = 1,
    micro_batch: int | None = None,
    repeat: bool = False,
) -> Distiller:
    """Gradient matching under differentiable Siamese augmentation as a ``Distiller``.

    In matching, one op with one set of parameters for all real and synthetic images of a class, drawn per class and
    step; in the inner training, one op a batch with individual parameters for each image.

    Args:
      augmentation: DSA tokens joined by "_" (leave out ``flip`` for digits), or "none".
      net, ipc, batch_size, init, outer, inner, distance, batch_norm, class_batch, micro_batch, repeat: as
        in ``dc``.

    Raises:
      ValueError: as in ``dc``, or for an unknown token.
    """
    class_images.check_settings(batch_size=batch_size, class_batch=class_batch, micro_batch=micro_batch, init=init)
    counts = sampling.per_class(ipc, net.num_classes)
    outer, inner = (usual if given is None else given for given, usual in zip((outer, inner), loops(ipc), strict=True))
    matching = _Matching(
        net, counts, batch_size, augmentation, outer, inner, distance, batch_norm, class_batch, micro_batch
    )

    def start(key: jax.Array, dataset: Dataset) -> tuple[dict, dict]:
        # The first step draws its own network; this one gives ``aux`` its shapes.
        images = class_images.initial(key, dataset, net, counts=counts, init=init, repeat=repeat)
        return images, {"network": net.init(key)}

    return Distiller(
        name="dsa",
        init=start,
        sample=matching.sample,
        loss=matching.loss,
        refresh=matching.refresh,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
    )


def loops(ipc: int | Sequence[int]) -> tuple[int, int]:
    """(outer, inner) for a number of images per class, or for the mean of one a class.

    The published table knows 1, 10, 20, 30, 40 and 50. Between two entries both numbers are interpolated linearly and
    rounded (a half up); above 50 they stay (50, 10), one of the two that the authors advise there.
    """
    outer, inner = np.transpose(list(LOOPS.values()))
    return tuple(int(np.interp(np.mean(ipc), list(LOOPS), values) + 0.5) for values in (outer, inner))


@dataclasses.dataclass(frozen=True)
class _Matching:
    """The settings of ``dc`` and ``dsa`` and the functions that they close over."""

    net: zoo.Architecture
    counts: class_images.Counts
    batch_size: int
    augmentation: Annotated[str, Text("augment.strategy")]
    outer: Annotated[int, Whole(1)]
    inner: Annotated[int, Whole(1)]
    distance: Annotated[str, OneOf(DISTANCES)]
    batch_norm: Annotated[str, OneOf(BATCH_NORMS)]
    class_batch: int
    micro_batch: int | None

    def __post_init__(self) -> None:
        ranges.check(self)
        augment.strategy(self.augmentation)

    def refresh(self, key: jax.Array, synthetic: dict, aux: dict, step: jax.Array, frozen: Any) -> dict:
        """A new network, or the last step's after ``inner`` epochs on the set."""
        del frozen
        if self.outer == 1:
            return {"network": self.net.init(key)}
        recipe = Recipe(
            epochs=self.inner, learning_rate=0.01, momentum=0.0, weight_decay=0.0, augmentation=self.augmentation
        )
        own = class_images.as_set(synthetic["images"], self.counts)

        def train(variables: Any) -> Any:
            return fit(key, self.net, own.images, own.labels, recipe, shared_key=key, variables=variables)

        is_new = step % self.outer == 0
        return {"network": jax.lax.cond(is_new, lambda _: self.net.init(key), train, aux["network"])}

    def sample(
        self, key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None
    ) -> dict[str, Any]:
        del step
        classes = self.net.num_classes
        batch = class_images.draw(key, data, num_classes=classes, batch_size=self.batch_size, axis_name=axis_name)
        if not self.net.has_batch_stats:
            return batch

        def draw_some(class_key: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
            indices, weights = sampling.class_indices(class_key, data, label, _STATISTICS_PER_CLASS)
            return jnp.asarray(data.images)[indices], weights

        # The same images on every device: the network stays the same everywhere.
        statistics_keys = jax.random.split(keys.named(key, "statistics"), classes)
        images, weights = jax.vmap(draw_some)(statistics_keys, jnp.arange(classes))
        return {**batch, "statistics": images, "statistics_weights": weights}

    def loss(
        self, key: jax.Array, synthetic: dict, aux: dict, batch: dict, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        del frozen
        classes = self.net.num_classes
        variables = self._with_statistics(aux["network"], batch) if self.net.has_batch_stats else aux["network"]
        strategy = augment.strategy(self.augmentation)

        def class_distance(own: jax.Array, item: tuple, shared: tuple) -> jax.Array:
            (view_key, label, real, weights, share), (variables, mean, std) = item, shared

            def summed_gradient(part: tuple) -> Any:
                images, weights = part
                images = augment.transform(view_key, sampling.standardise(images, mean, std), strategy, siamese=True)
                return self._summed_gradient(variables, images, label, weights)

            total = batches.sum_in_parts(summed_gradient, (real, weights), micro_batch=self.micro_batch)
            total, count = parallel.psum_if((total, weights.sum()), axis_name)
            target = jax.lax.stop_gradient(jax.tree.map(lambda x: x / count, total))
            own = augment.transform(view_key, own, strategy, siamese=True)
            share = jnp.full(len(own), 1 / len(own)) if share is None else share
            gradient = self._summed_gradient(variables, own, label, share)
            return gradient_distance(target, gradient, kind=self.distance)

        view_keys, share = jax.random.split(key, classes), class_images.shares(self.counts)
        items = (view_keys, jnp.arange(classes), batch["images"], batch["weights"], share)
        own = class_images.by_class(synthetic["images"], self.counts)
        shared = (variables, batch["mean"], batch["std"])
        distance = class_images.sum_over_classes(class_distance, own, items, shared, class_batch=self.class_batch)
        return distance, ({"network": variables}, {})

    def _summed_gradient(self, variables: Any, images: jax.Array, label: jax.Array, weights: jax.Array) -> Any:
        """Gradient of the weighted sum of the cross-entropies, all images being of class ``label``."""

        def total(params: Any) -> jax.Array:
            logits, _ = self.net.apply({**variables, "params": params}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.full(len(images), label))
            return (weights * losses).sum()

        return jax.grad(total)(variables["params"])

    def _with_statistics(self, variables: Any, batch: dict) -> Any:
        images = sampling.standardise(batch["statistics"], batch["mean"], batch["std"])
        images, weights = images.reshape(-1, *self.net.image_shape), batch["statistics_weights"].ravel()
        if self.batch_norm == "published":
            return {**variables, "batch_stats": self.net.apply_train(variables, images, weights)[2]}
        # Started from zero, the pass leaves a tenth of the batch's statistics.
        empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        tenth = self.net.apply_train({**variables, "batch_stats": empty}, images, weights)[2]
        return {**variables, "batch_stats": jax.tree.map(lambda x: 10 * x, tenth)}
