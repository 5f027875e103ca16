"""RDED: crops of real images that a teacher is sure of, several of them stitched into an image; nothing is trained.

Sun, Shi, Yu and Lin, "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm"
(CVPR 2024), and its released program. Of each class c ``candidates`` real images are drawn, and of each of them
``crops`` square crops are brought to a patch of (H // factor) x (W // factor) pixels. With p(c | x) of the teacher, who
sees a patch in the middle of an image of the mean colour,

    score(patch) = -log p(c | patch),    of each image the crop of the lowest score is kept,

and the ipc factor^2 patches of the lowest scores make the set: the patch of rank r goes to image r mod ipc, there to
place r // ipc (row by row). So the best patches all lie top left, which ``Recipe.shuffle`` undoes in training.

The set is whole at the start. The one update of a run has no gradient and moves nothing: it is there so that a run is
logged, checkpointed and gone on with as every other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import parallel, parts, transforms, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, networks, registry
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.teachers import Taught
from metadd_jax.ranges import Whole
from metadd_jax.structs import Dataset, ImageArrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class RDED(Taught):
    """Settings of RDED: those of ``Taught`` and these.

    Published: factor 1 below 128 pixels and 2 from there on, 300 candidates, 5 crops.

    Attributes:
      factor: patches along a side of an image.
      candidates: real images of a class that are looked at; a class with fewer gives all of its images.
      crops: random crops of each of them.
      micro_batch: images whose crops pass the teacher at once; less needs less memory.
    """

    factor: Annotated[int, Whole(1)] = 1
    candidates: Annotated[int, Whole(1)] = 300
    crops: Annotated[int, Whole(1)] = 5
    micro_batch: Annotated[int, Whole(1)] = 20

    group: ClassVar[str] = "rded"
    trains: ClassVar[bool] = False
    scratch_fields: ClassVar[tuple[str, ...]] = ("micro_batch",)

    def make(
        self, net: zoo.Architecture, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the teacher's network.
          counts: images of each of the K classes of the set.
          given: the teacher's ``params`` (and ``batch_stats``).
          repeat: whether a class with too few real images gives its patches again.

        Raises:
          ValueError: if more patches are wanted than candidates looked at, or a patch would have no pixel.
        """
        self.check_network(net)
        wanted = max(counts) * self.factor**2
        if wanted > self.candidates and not repeat:
            raise ValueError(
                f"candidates={self.candidates} give one patch each, and ipc={max(counts)} at factor={self.factor} "
                f"takes {wanted}; raise candidates"
            )
        return _distiller(self, net, counts, given, repeat)

    def check_pixels(self, *, zca: bool) -> None:
        """Refuses whitened images."""
        if zca:
            raise ValueError("rded crops pictures, and a crop of a whitened image is no whitened crop; leave zca out")

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses several networks, images smaller than the patches, and torchvision's weights for another network."""
        side = min(networks.single(net).image_shape[:2])
        if self.factor > side:
            raise ValueError(f"factor={self.factor} patches do not fit into {side} pixels; lower factor")
        super().check_network(net)

    def flops(self, forward: float, counts: class_images.Counts) -> float:
        """Counts f K candidates crops, once: all that the method computes.

        Args:
          forward: f, FLOPs of the backbone's forward pass of one image.
          counts: images of each of the K classes of the set.
        """
        return forward * len(counts) * self.candidates * self.crops

    def describe(self) -> str:
        """How the patches are chosen."""
        return f"{self.crops} crops of {self.candidates} real images a class, factor {self.factor}"


registry.register("rded", RDED)


def rded(
    teacher_net: zoo.Architecture,
    teacher_variables: Any,
    *,
    ipc: int | Sequence[int],
    settings: RDED | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """RDED as a ``Distiller``, whose set is whole after ``init``.

    Args:
      teacher_net: a trained network for the set's images.
      teacher_variables: its ``params`` (and ``batch_stats``).
      ipc: images per class, one number for all classes or one a class.
      settings: the method's settings; None for the defaults.
      repeat: whether a class with fewer real images than ipc factor^2 gives its patches again.
      changes: fields of ``RDED`` to be other than in ``settings``: ``factor=2``.

    Raises:
      ValueError: for a setting out of range, more patches than candidates; in ``init``, for a class with fewer real
        images than patches (without ``repeat``) or data of another shape or number of classes than the teacher's.
    """
    counts = sampling.per_class(ipc, networks.single(teacher_net).num_classes)
    return dataclasses.replace(settings or RDED(), **changes).make(
        teacher_net, counts, teacher_variables, repeat=repeat
    )


def choose(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Keeps of each image the crop of the lowest score, and of the images those of the lowest.

    Args:
      scores: [n, R] of R crops of n images of one class.
      count: images to keep, at most n.

    Returns:
      images: [count] int32, the best one first.
      crops: [count] int32, the kept crop of each of them.
    """
    # The lowest: a high loss is what the teacher does not take for the class.
    crops = scores.argmin(axis=1)
    images = jnp.argsort(scores.min(axis=1), stable=True)[:count]
    return images.astype(jnp.int32), crops[images].astype(jnp.int32)


def stitch(patches: jax.Array, counts: class_images.Counts, factor: int, size: tuple[int, int]) -> jax.Array:
    """Puts ranked patches together to images.

    Args:
      patches: [K, R, h, w, C], of each class from the best one on; at least ``factor``^2 times its count.
      counts: images of each of the K classes.
      factor: patches along a side.
      size: (H, W) of an image. Its first H mod factor rows of patches are one pixel larger than the others; a patch of
        another size than its place is enlarged by the nearest pixel.

    Returns:
      [N, H, W, C], class-major.
    """
    lines, sources = zip(
        *(_places(side, factor, length) for side, length in zip(size, patches.shape[2:4], strict=True)), strict=True
    )
    label, place = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(count) for count in counts])
    # Rank r: image r mod ipc, place r // ipc. Turned around: image j shows at place p the patch of rank p ipc + j.
    position = lines[0][:, None] * factor + lines[1][None, :]
    rank = position * np.repeat(counts, counts)[:, None, None] + place[:, None, None]  # [N, H, W]
    return patches[label[:, None, None], rank, sources[0][:, None], sources[1][None, :]]


def _places(side: int, factor: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """[side] each: the patch that a line of an image lies in, and the line of that patch, of ``length``, it shows."""
    sizes = [side // factor + (number < side % factor) for number in range(factor)]
    within = np.concatenate([np.arange(size) * length // size for size in sizes])
    return np.repeat(np.arange(factor), sizes), within


def _distiller(
    settings: RDED, net: zoo.Architecture, counts: class_images.Counts, given: Any, repeat: bool
) -> Distiller:
    factor, (height, width, _) = settings.factor, net.image_shape
    size = (height // factor, width // factor)
    wanted = max(counts) * factor**2
    micro_batch = min(settings.micro_batch, settings.candidates)

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        class_images.check_data(dataset, net)
        for label, (count, real) in enumerate(zip(counts, np.asarray(dataset.train.counts), strict=True)):
            if real < count * factor**2 and not repeat:
                raise ValueError(
                    f"class {label} has {real} images, and ipc={count} at factor={factor} takes {count * factor**2} "
                    "patches, one an image; lower ipc, or set short_class: repeat"
                )
        # For the shapes of a state alone nothing is compiled.
        alone = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))
        images, score = (select if alone else compiled())(key, dataset.train, given)
        return {"images": images}, {"cross_entropy": score}

    def select(key: jax.Array, arrays: ImageArrays, variables: Any) -> tuple[jax.Array, jax.Array]:
        def one(item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            """The best patches of a class, and their scores."""
            key, label = item
            image_key, crop_key = jax.random.split(key)
            rows, present = sampling.class_indices(image_key, arrays, label, settings.candidates)
            boxes = transforms.draw_resized_crop(
                crop_key, settings.candidates * settings.crops, (height, width), ratio=(1.0, 1.0)
            )
            boxes = jax.tree.map(lambda leaf: leaf.reshape(settings.candidates, settings.crops), boxes)

            def patches(rows: jax.Array, boxes: transforms.Box) -> jax.Array:  # [b], [b, r] -> [b, r, h, w, C]
                images = sampling.standardise(jnp.asarray(arrays.images)[rows], arrays.mean, arrays.std)
                return jax.vmap(lambda x, box: transforms.resized_crop_to(x, box, size))(images, boxes)

            def scored(part: tuple[jax.Array, transforms.Box]) -> jax.Array:
                seen = patches(*part)
                shown = _centred(seen.reshape(-1, *seen.shape[2:]), (height, width))
                logits, _ = net.apply(variables, shown)
                return -jax.nn.log_softmax(logits)[:, label].reshape(seen.shape[:2])

            scores = parts.map_parts(scored, (rows, boxes), size=micro_batch)
            # A class with fewer images is filled up with images that are looked at and never taken.
            chosen, crops = choose(jnp.where(present[:, None] > 0, scores, jnp.inf), settings.candidates)
            ranks = jnp.arange(wanted) % jnp.minimum(present.sum().astype(jnp.int32), settings.candidates)
            chosen, crops = chosen[ranks], crops[ranks]
            best = jax.tree.map(lambda leaf: leaf[chosen, crops][:, None], boxes)
            return patches(rows[chosen], best)[:, 0], scores[chosen, crops]

        found, scores = jax.lax.map(one, (jax.random.split(key, len(counts)), jnp.arange(len(counts))))
        shown = np.arange(wanted) < factor**2 * np.array(counts)[:, None]  # a class of fewer images takes fewer patches
        return stitch(found, counts, factor, (height, width)), scores[shown].mean()

    compiled = functools.cache(lambda: parallel.jit(select))  # once for all seeds

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        del key, synthetic, batch, frozen, axis_name
        # What the selection came to; no function of the images, so their gradient is 0.
        return aux["cross_entropy"], (aux, {})

    return Distiller(
        name="rded",
        init=init,
        sample=lambda key, data, step, *, axis_name=None: (),
        loss=loss,
        refresh=lambda key, synthetic, aux, step, frozen: aux,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
        trains=False,
    )


def _centred(patches: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Patches [n, h, w, C] in the middle of images of the mean colour (0); an odd remainder is right and below."""
    chex.assert_rank(patches, 4)
    free = [side - length for side, length in zip(size, patches.shape[1:3], strict=True)]
    return jnp.pad(patches, ((0, 0), *((space // 2, space - space // 2) for space in free), (0, 0)))
