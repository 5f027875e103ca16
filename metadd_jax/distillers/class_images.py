"""What the methods that train pixels class by class share: their start, their labels, the real images of each class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import augment, parallel, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import starts
from metadd_jax.distillers.networks import Networks
from metadd_jax.distillers.registry import Method
from metadd_jax.ranges import Text, Whole
from metadd_jax.structs import Dataset, ImageArrays, SyntheticSet

Counts = tuple[int, ...]  # images of each class


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassWise(Method):
    """Settings that all methods share which match real images class by class.

    Attributes:
      batch_size: real images per class and step; a class with fewer gives all of its images.
      augmentation: DSA tokens joined by "_", "none", or a ``Strategy``; None as published (in a job: those of its data
        set, digits are not flipped).
      class_batch: classes at once; None for all (in a job: as many as half of a device's memory holds). Memory grows
        with it, and on accelerators so does speed.
      micro_batch: real images of a class that pass a network at once, see ``parts.add_up``; None for
        all, on a CPU for 32.
    """

    # 256 as published by DC, DSA and DM, drawn without replacement.
    batch_size: Annotated[int, Whole(1)] = 256
    augmentation: Annotated[augment.Augmentation | None, Text("augment.strategy")] = None
    class_batch: Annotated[int | None, Whole(1)] = 1
    micro_batch: Annotated[int | None, Whole(1)] = None

    published_augmentation: ClassVar[str] = augment.NATURAL
    scratch_fields: ClassVar[tuple[str, ...]] = ("class_batch", "micro_batch", "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.strategy  # refuses unknown tokens

    @property
    def views(self) -> augment.Augmentation:
        """The augmentation, published or chosen."""
        return self.published_augmentation if self.augmentation is None else self.augmentation

    @property
    def strategy(self) -> augment.Strategy:
        """``views`` as the record that ``augment.transform`` takes."""
        return augment.strategy(self.views)

    def view(self, w: jax.Array, images: jax.Array) -> jax.Array:
        """A(images, w): equal for batches of any size, so that real and synthetic images and parts share one draw.

        Args:
          w: [] typed PRNG key of the view.
          images: [n, H, W, C] standardised.
        """
        # Siamese: where the two sides differ in view, the distance would measure the augmentation.
        return augment.transform(w, images, self.strategy, siamese=True)

    def for_data(self, tokens: Callable[[], augment.Augmentation]) -> ClassWise:
        """Takes the data set's own tokens where the published ones depend on it."""
        if self.augmentation is None and self.published_augmentation != "none":
            return dataclasses.replace(self, augmentation=tokens())
        return self

    def for_memory(self, scratch: Callable[[Method], float], limit: float | None, classes: int) -> ClassWise:
        """Takes as many classes at once as half of ``limit`` holds; one where there is no limit.

        Args:
          scratch: the bytes that a step under other settings takes beside the set.
          limit: the bytes of a device, None where more memory would not help.
          classes: K.
        """
        if self.class_batch is not None:
            return self
        one = dataclasses.replace(self, class_batch=1)
        if limit is None:
            return one
        return dataclasses.replace(one, class_batch=min(classes, max(1, int(limit / 2 / scratch(one)))))

    def check_devices(self, net: zoo.Architecture, devices: int, *, pmap: bool) -> None:
        """Refuses a batch that the devices cannot share.

        Args:
          net: the backbone.
          devices: how many share a batch.
          pmap: whether they do it by pmap.

        Raises:
          ValueError: with the numbers and what to do.
        """
        del net, pmap
        if self.batch_size % devices:
            raise ValueError(
                f"batch_size={self.batch_size} does not split over {devices} devices; use a multiple of {devices}, or "
                "device_mode='jit'"
            )

    def describe(self) -> str:
        """How many real images a step reads."""
        return f"{self.batch_size} real images a class"


def initial(
    key: jax.Array,
    dataset: Dataset,
    net: zoo.Architecture | Networks,
    *,
    counts: Counts,
    init: str,
    repeat: bool = False,
) -> dict[str, jax.Array]:
    """The trained parameterisation before the first update: ``images`` [N, H, W, C] float32, class-major.

    Args:
      key: typed PRNG key.
      dataset: the real data.
      net: the backbone, or a pool, which must take the images of ``dataset``.
      counts: images of each class, N in all.
      init: "random" (distinct random real images, standardised) or "noise" (standard normal, which reads no image);
        the method's own word counts for nothing where ``start_from`` gives the images.
      repeat: whether a class with fewer real images gives them again.

    Raises:
      ValueError: if ``net`` was made for other data, (init "random") a class has fewer images than it should give,
        ``start_from`` gives images of another shape, or it gives none where ``init`` is neither word.
    """
    check_data(dataset, net)
    shape = (sum(counts), *net.image_shape)
    if dataset.start is not None:
        return {"images": starts.checked(dataset.start, shape)}
    if starts.called(init) not in starts.DRAWN:
        raise ValueError(starts.refusal(init))
    if init == "noise":
        # Noise in the standardised space: N(0, 1), as DC starts.
        return {"images": jax.random.normal(key, shape)}
    return {"images": sampling.random_per_class(key, dataset.train, counts, repeat=repeat)[0]}


def check_data(dataset: Dataset, net: zoo.Architecture | Networks) -> None:
    """Refuses a network made for other images or classes than those of ``dataset``, by a ValueError."""
    # Here and not at the first trace, which would speak of shapes inside a convolution.
    if dataset.image_shape != net.image_shape or dataset.num_classes != net.num_classes:
        raise ValueError(
            f"{net.name} takes {net.image_shape} images of {net.num_classes} classes, but {dataset.name} has "
            f"{dataset.image_shape} and {dataset.num_classes}; create the network for this data set"
        )


def labels_of(counts: Counts) -> jax.Array:
    """[N] int32: the labels that the class-major order implies."""
    return jnp.asarray(np.repeat(np.arange(len(counts)), counts), jnp.int32)


def as_set(images: jax.Array, counts: Counts) -> SyntheticSet:
    """Makes a set of images [N, H, W, C], with the labels that their order and ``counts`` [K] imply."""
    return SyntheticSet(images=images, labels=labels_of(counts))


def by_class(values: jax.Array, counts: Counts) -> jax.Array:
    """Puts the ``values`` of each class in a row: [N, ...] -> [K, n, ...], n the largest of ``counts``.

    A class with fewer is filled up with its own first value: a real one, so that nothing in it is infinite.
    """
    if _all_equal(counts):
        return values.reshape(len(counts), -1, *values.shape[1:])
    slots, own = np.arange(max(counts)), np.array(counts)[:, None]
    return values[np.cumsum(own)[:, None] - own + np.where(slots < own, slots, 0)]


def in_a_row(values: jax.Array, counts: Counts) -> jax.Array:
    """Undoes ``by_class`` of ``values`` under the same ``counts``: [K, n, ...] -> [N, ...]; what filled up is gone."""
    flat = values.reshape(-1, *values.shape[2:])
    if _all_equal(counts):
        return flat
    return flat[np.flatnonzero(np.arange(max(counts)) < np.array(counts)[:, None])]


def shares(counts: Counts) -> jax.Array | None:
    """[K, n]: what each value of ``by_class`` adds to the mean of its class; None where all of them add the same."""
    if _all_equal(counts):
        return None
    own = np.array(counts)[:, None]
    return jnp.asarray(np.where(np.arange(max(counts)) < own, 1 / own, 0), jnp.float32)


def weights_of(share: jax.Array | None, count: int) -> jax.Array:
    """Writes a class's row of ``shares`` out: [n], which sum to 1; None stands for 1 / n each (n = ``count``)."""
    return jnp.full(count, 1 / count) if share is None else share


def mean(values: jax.Array, share: jax.Array | None) -> jax.Array:
    """Averages one class's own ``values``, [n, ...] -> [...]; ``share`` [n] is its row of ``shares``, or None."""
    return values.mean(axis=0) if share is None else jnp.tensordot(share, values, axes=1)


def _all_equal(counts: Sequence[int]) -> bool:
    return len(set(counts)) == 1


def draw(
    key: jax.Array,
    data: ImageArrays,
    *,
    num_classes: int,
    batch_size: int,
    first: bool = False,
    axis_name: str | None = None,
) -> dict[str, Any]:
    """Draws distinct real images of every class.

    Args:
      key: typed PRNG key.
      data: the real images.
      num_classes: K.
      batch_size: images of a class, over all devices together.
      first: take the first images of each class in place of a draw.
      axis_name: under pmap, the axis of the devices: this device then takes its share of the very same draw.

    Returns:
      ``images`` [K, b, H, W, C] as stored (pixels stay uint8 until their class is used: a quarter of the memory),
      ``weights`` [K, b] float32, 1 for an image and 0 for padding, and the ``mean`` and ``std`` to standardise by.

    Raises:
      ValueError: if the devices cannot share ``batch_size`` evenly.
    """
    # Every device draws all indices and takes its part: the draw is the same on any number of devices.
    start, share = parallel.own_share(batch_size, axis_name)

    def draw_one(class_key: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        if first:
            count, places = jnp.asarray(data.counts)[label], jnp.arange(batch_size)
            weights = (places < count).astype(jnp.float32)
            indices = jnp.asarray(data.offsets)[label] + jnp.where(places < count, places, 0)
        else:
            indices, weights = sampling.class_indices(class_key, data, label, batch_size)
        indices = jax.lax.dynamic_slice_in_dim(indices, start, share)
        return jnp.asarray(data.images)[indices], jax.lax.dynamic_slice_in_dim(weights, start, share)

    images, weights = jax.vmap(draw_one)(jax.random.split(key, num_classes), jnp.arange(num_classes))
    # Along the images and not the classes: classes may pass one by one, and every device then has work.
    images, weights = parallel.divide((images, weights), axis=1)
    return {"images": images, "weights": weights, "mean": data.mean, "std": data.std}


def groups(counts: Counts, group_size: int, group_ipc: int) -> list[tuple[int, np.ndarray]]:
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
