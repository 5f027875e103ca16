"""DM: match the mean embedding of each class under a fresh random network at every step.

Zhao and Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023). Per class the squared distance of the
mean embeddings of real and synthetic images, summed (not averaged) over the feature dimension and over classes; both
sides pass the same Siamese augmentation; the real side is a constant; the network is never trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax import augment, keys, parallel, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images
from metadd_jax.distillers.contract import Distiller
from metadd_jax.structs import ImageArrays
from metadd_jax.training import batches


def dm(
    net: zoo.Architecture,
    *,
    ipc: int | Sequence[int],
    batch_size: int = 256,
    augmentation: str = "color_crop_cutout_flip_scale_rotate",
    init: str = "real",
    class_batch: int = 1,
    micro_batch: int | None = None,
    repeat: bool = False,
) -> Distiller:
    """Distribution matching as a ``Distiller``.

    Args:
      net: the backbone, drawn anew at every step; with batch norm all classes share one embedding pass, so that its
        statistics are over all of them.
      ipc: images per class, one number for all classes or one a class.
      batch_size: real images per class and step; a class with fewer gives all of its images.
      augmentation: DSA tokens joined by "_", or "none".
      init: "real" (random real images) or "noise" (standard normal).
      class_batch: how many classes are embedded at once: memory grows with it, and so does speed on accelerators.
      micro_batch: how many real images of a class are embedded at once, see ``training.batches.sum_in_parts``; without
        effect on a batch-norm network.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.

    Raises:
      ValueError: for a setting out of range, or (in ``init``, from real images without ``repeat``) a class with fewer
        than ``ipc`` images.
    """
    class_images.check_settings(batch_size=batch_size, class_batch=class_batch, micro_batch=micro_batch, init=init)
    counts = sampling.per_class(ipc, net.num_classes)
    matching = _Matching(net, counts, batch_size, augment.strategy(augmentation), class_batch, micro_batch)
    return Distiller(
        name="dm",
        init=lambda key, dataset: (
            class_images.initial(key, dataset, net, counts=counts, init=init, repeat=repeat),
            (),
        ),
        sample=matching.sample,
        loss=matching.loss,
        refresh=lambda key, synthetic, aux, step, frozen: aux,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
    )


@dataclasses.dataclass(frozen=True)
class _Matching:
    """The settings of ``dm`` and the functions that they close over."""

    net: zoo.Architecture
    counts: class_images.Counts
    batch_size: int
    strategy: augment.Strategy
    class_batch: int
    micro_batch: int | None

    def sample(
        self, key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None
    ) -> dict[str, Any]:
        del step
        if self.net.has_batch_stats and axis_name is not None:
            raise ValueError(f"dm with batch-norm network {self.net.name} runs on one device; use its instance norm")
        return class_images.draw(
            key, data, num_classes=self.net.num_classes, batch_size=self.batch_size, axis_name=axis_name
        )

    def loss(
        self, key: jax.Array, synthetic: dict, aux: Any, batch: dict, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        del frozen
        variables = self.net.init(keys.named(key, "network"))
        view_keys = jax.random.split(keys.named(key, "views"), self.net.num_classes)
        distances_of = self._all_classes_together if self.net.has_batch_stats else self._class_by_class
        return distances_of(variables, view_keys, batch, synthetic["images"], axis_name), (aux, {})

    def _class_by_class(
        self, variables: Any, keys: jax.Array, batch: dict, images: jax.Array, axis_name: str | None
    ) -> jax.Array:
        def class_distance(synthetic: jax.Array, item: tuple, shared: tuple) -> jax.Array:
            (view_key, real, weights, share), (variables, constants) = item, shared

            def weighted_sum(part: tuple) -> jax.Array:
                real, weights = part
                return weights @ self._embed(variables, self._real_view(view_key, real, constants))

            total = batches.sum_in_parts(weighted_sum, (real, weights), micro_batch=self.micro_batch)
            own = class_images.mean(self._embed(variables, self._view(view_key, synthetic)), share)
            return _distance(total, weights.sum(), own, axis_name)

        constants = {name: batch[name] for name in ("mean", "std")}
        items = (keys, batch["images"], batch["weights"], class_images.shares(self.counts))
        own, shared = class_images.by_class(images, self.counts), (variables, constants)
        return class_images.sum_over_classes(class_distance, own, items, shared, class_batch=self.class_batch)

    def _all_classes_together(
        self, variables: Any, keys: jax.Array, batch: dict, images: jax.Array, axis_name: str | None
    ) -> jax.Array:
        real = jax.vmap(lambda key, x: self._real_view(key, x, batch))(keys, batch["images"])
        seen = jax.vmap(self._view)(keys, class_images.by_class(images, self.counts))
        # What fills up a small class must not enter the statistics.
        real = self._embed(variables, real.reshape(-1, *self.net.image_shape), batch["weights"].ravel())
        seen = self._embed(variables, class_images.in_a_row(seen, self.counts))
        totals = jnp.einsum("kb,kbd->kd", batch["weights"], real.reshape(*batch["weights"].shape, -1))
        own = class_images.by_class(seen, self.counts)
        means = jax.vmap(class_images.mean)(own, class_images.shares(self.counts))
        distance = jax.vmap(lambda *items: _distance(*items, axis_name))
        return distance(totals, batch["weights"].sum(axis=1), means).sum()

    def _view(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """The same for real and synthetic images, whole batches and parts: one draw for all."""
        return augment.transform(key, images, self.strategy, siamese=True)

    def _real_view(self, key: jax.Array, images: jax.Array, constants: dict) -> jax.Array:
        return self._view(key, sampling.standardise(images, constants["mean"], constants["std"]))

    def _embed(self, variables: Any, images: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return self.net.apply_batch(variables, images, weights)[1]["embedding"]


def _distance(total: jax.Array, count: jax.Array, own: jax.Array, axis_name: str | None) -> jax.Array:
    """|total / count - own|^2: the sum [D] of the real embeddings of all devices, and the synthetic mean [D]."""
    total, count = parallel.psum_if((total, count), axis_name)
    target = jax.lax.stop_gradient(total / count)
    return jnp.sum((target - own) ** 2)
