"""DM: match the mean embedding of each class under a fresh random network at every step.

Zhao and Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023). Per class the squared distance of the
mean embeddings of real and synthetic images, summed (not averaged) over the feature dimension and over classes; both
sides pass the same Siamese augmentation; the real side is a constant; the network is never trained.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax import augment, parallel, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers.base import Distiller
from metadd_jax.structs import Dataset, ImageArrays, SyntheticSet

INITS = ("real", "noise")


def dm(
    net: zoo.Architecture,
    *,
    ipc: int,
    batch_size: int = 256,
    augmentation: str = "color_crop_cutout_flip_scale_rotate",
    init: str = "real",
    class_batch: int = 1,
) -> Distiller:
    """Distribution matching as a ``Distiller``.

    Args:
      net: the backbone, drawn anew at every step; with batch norm all classes share one embedding pass, so that its
        statistics are over all of them.
      ipc: images per class.
      batch_size: real images per class and step; a class with fewer gives all of its images.
      augmentation: DSA tokens joined by "_", or "none".
      init: "real" (random real images) or "noise" (standard normal).
      class_batch: how many classes are embedded at once: memory grows with it, and so does speed on accelerators.

    Raises:
      ValueError: for a setting out of range, or (in ``init``) a class with fewer than ``ipc`` images.
    """
    strategy = augment.strategy(augmentation)
    if ipc < 1 or batch_size < 1 or class_batch < 1:
        raise ValueError(f"ipc={ipc}, batch_size={batch_size} and class_batch={class_batch} must be at least 1")
    if init not in INITS:
        raise ValueError(f"init {init!r} must be one of {', '.join(INITS)}")
    shared_pass = net.has_batch_stats

    def sample(key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None) -> dict[str, Any]:
        del step
        if shared_pass and axis_name is not None:
            raise ValueError(f"dm with the batch-norm network {net.name} runs on one device; use its instance norm")
        start, share = parallel.own_share(batch_size, axis_name)

        def draw(class_key: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
            indices, weights = sampling.class_indices(class_key, data, label, batch_size)
            indices = jax.lax.dynamic_slice_in_dim(indices, start, share)
            return jnp.asarray(data.images)[indices], jax.lax.dynamic_slice_in_dim(weights, start, share)

        images, weights = jax.vmap(draw)(jax.random.split(key, net.num_classes), jnp.arange(net.num_classes))
        # Pixels stay uint8 until their class is embedded: a quarter of the memory.
        return {"images": images, "weights": weights, "mean": data.mean, "std": data.std}

    def loss(
        key: jax.Array, synthetic: dict, aux: Any, batch: dict, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        del frozen
        net_key, view_key = jax.random.split(key)
        variables = net.init(net_key)
        images = synthetic["images"].reshape(net.num_classes, ipc, *net.image_shape)
        keys = jax.random.split(view_key, net.num_classes)

        def views(view_key: jax.Array, real: jax.Array, synthetic_images: jax.Array) -> tuple[jax.Array, jax.Array]:
            real = sampling.standardise(real, batch["mean"], batch["std"])
            return tuple(augment.augment(view_key, x, strategy, siamese=True) for x in (real, synthetic_images))

        def class_distance(items: tuple) -> jax.Array:
            view_key, real, weights, synthetic_images = items
            real, synthetic_images = views(view_key, real, synthetic_images)
            embedded = net.apply_batch(variables, real)[1]["embedding"]
            return _distance(embedded, weights, net.apply_batch(variables, synthetic_images)[1]["embedding"], axis_name)

        if shared_pass:
            real, seen = jax.vmap(views)(keys, batch["images"], images)
            embedded = [
                net.apply_batch(variables, x.reshape(-1, *net.image_shape))[1]["embedding"].reshape(*x.shape[:2], -1)
                for x in (real, seen)
            ]
            distances = jax.vmap(lambda r, w, s: _distance(r, w, s, None))(embedded[0], batch["weights"], embedded[1])
        else:
            items = (keys, batch["images"], batch["weights"], images)
            # A plain scan runs only the drawn augmentation of each class; under vmap all of them run.
            distances = jax.lax.map(class_distance, items, batch_size=class_batch if class_batch > 1 else None)
        return distances.sum(), (aux, {})

    return Distiller(
        name="dm",
        init=lambda key, dataset: (_init_images(key, dataset, net, ipc, init), ()),
        sample=sample,
        loss=loss,
        refresh=lambda key, aux, step: aux,
        decode=lambda synthetic, aux: SyntheticSet(
            images=synthetic["images"], labels=jnp.repeat(jnp.arange(net.num_classes, dtype=jnp.int32), ipc)
        ),
    )


def _distance(real: jax.Array, weights: jax.Array, synthetic: jax.Array, axis_name: str | None) -> jax.Array:
    """|mean real - mean synthetic|^2 of embeddings [b, D] (weighted, over all devices) and [ipc, D]."""
    total, count = parallel.psum_if(((real * weights[:, None]).sum(axis=0), weights.sum()), axis_name)
    target = jax.lax.stop_gradient(total / count)
    return jnp.sum((target - synthetic.mean(axis=0)) ** 2)


def _init_images(key: jax.Array, dataset: Dataset, net: zoo.Architecture, ipc: int, init: str) -> dict[str, jax.Array]:
    if dataset.image_shape != net.image_shape or dataset.num_classes != net.num_classes:
        raise ValueError(
            f"{net.name} takes {net.image_shape} images of {net.num_classes} classes, but {dataset.name} has "
            f"{dataset.image_shape} and {dataset.num_classes}; create the network for this data set"
        )
    if init == "noise":
        return {"images": jax.random.normal(key, (ipc * net.num_classes, *net.image_shape))}
    return {"images": sampling.random_per_class(key, dataset.arrays, ipc)[0]}
