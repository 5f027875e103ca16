"""IDC's packing: several images of one class in each stored image, at a lower resolution, under any method.

Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (ICML 2022), there called
multi-formation. A stored image of H x W pixels is cut into f x f cells of ceil(H / f) x ceil(W / f) pixels, and each is
enlarged to H x W: bilinear, half-pixel centres (``align_corners=False``), no antialiasing. Types: "single" gives the
f^2 cells of one factor f, "multi" the cells of every factor 1, ..., f: what is seen whole is seen in parts as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import ranges
from metadd_jax.ranges import OneOf, Real, Whole
from metadd_jax.structs import Dataset

KINDS = ("single", "multi")


def factor(size: int, *, pad: float | tuple[float, ...] = 0.0, kind: str = "single") -> Factor:
    """Packs ``size``^2 images of one class into each stored image, which keeps the shape [H, W, C].

    The images of stored image i follow each other, cell by cell, row by row (top left, top right, ...), so sets stay
    class-major: of "single" they are images i ``size``^2 + k; of "multi" the stored image itself, the 2 x 2 cells, and
    so on up to ``size``. IDC's files have all images' cell 0 first, then all cells 1: ``exchange.cells_first``.

    The start is the base method's images, each reduced (bilinear, antialiased) into its cell; of "multi" those that
    stand where the smallest cells do.

    Args:
      size: f, at least 1; 1 changes nothing.
      pad: where a factor does not divide a side, the stored image is enlarged by this value at the bottom and at the
        right: one number, or one a channel, in the set's value space (0 = the data's mean colour; IDC's is ``grey``).
      kind: "single" or "multi".

    Raises:
      ValueError: if ``size`` is no whole number from 1, for another kind, or (in ``init``) if it does not suit the
        images.
    """
    return Factor(size, pad, kind)


def grey(dataset: Dataset) -> float | tuple[float, ...]:
    """The value that IDC pads with, 0.5 of a pixel in [0, 1], for ``factor``: one number a channel.

    Args:
      dataset: the real data; of whitened images, where one pixel has no value of its own, it is their mean 0.
    """
    if dataset.whitening is not None:
        return 0.0
    return tuple(float(value) for value in (0.5 - np.asarray(dataset.train.mean)) / np.asarray(dataset.train.std))


@dataclasses.dataclass(frozen=True)
class Factor:
    """See ``factor``."""

    size: Annotated[int, Whole(1)]
    pad: float | tuple[float, ...] = 0.0
    kind: Annotated[str, OneOf(KINDS)] = "single"
    frozen: tuple[()] = ()
    stores_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ranges.check(self)
        numbers = self.pad if isinstance(self.pad, tuple) else (self.pad,)
        if not all(map(Real().holds, numbers)):
            raise ValueError(f"pad={self.pad!r} must be a number, or a tuple of one a channel")

    @property
    def name(self) -> str:
        return f"factor{self.size}" + ("_multi" if self.kind == "multi" else "")

    @property
    def _factors(self) -> tuple[int, ...]:
        return tuple(range(1, self.size + 1)) if self.kind == "multi" else (self.size,)

    @property
    def per_stored(self) -> int:
        return sum(size**2 for size in self._factors)

    @property
    def facts(self) -> Mapping[str, Any]:
        # What decoding needs to know; the usual is left unsaid.
        kind = {"factor_kind": self.kind} if self.kind != "single" else {}
        return {"factor": self.size} | kind | ({"factor_pad": self.pad} if self.pad else {})

    def has_border(self, dataset: Dataset) -> bool:
        """Whether a factor does not divide a side of the images of ``dataset``, so that ``pad`` is seen."""
        return any(side % size for side in dataset.image_shape[:2] for size in self._factors)

    def init(self, key: jax.Array, images: jax.Array, /) -> jax.Array:
        """Puts images [N, H, W, C] into the cells of stored ones [N / ``per_stored``, H, W, C]."""
        del key
        count, height, width, channels = images.shape
        if count % self.per_stored or self.size > min(height, width):
            raise ValueError(
                f"factor {self.size} needs a multiple of {self.per_stored} images of at least {self.size} pixels a "
                f"side; got {count} of {height} x {width}"
            )
        if isinstance(self.pad, tuple) and len(self.pad) != channels:
            raise ValueError(f"pad={self.pad} has {len(self.pad)} numbers for {channels} channels; give one each")
        # Those of the smallest cells stand last; the larger cells lie over them.
        images = images.reshape(-1, self.per_stored, height, width, channels)[:, -(self.size**2) :]
        images = images.reshape(-1, height, width, channels)
        rows, columns = -(-height // self.size), -(-width // self.size)
        # Antialiased, which ``resize`` is by default: a smaller image without it would fold high frequencies.
        cells = jax.image.resize(images, (len(images), rows, columns, channels), "bilinear")
        cells = cells.reshape(-1, self.size, self.size, rows, columns, channels)
        stored = cells.swapaxes(2, 3).reshape(-1, self.size * rows, self.size * columns, channels)
        return stored[:, :height, :width]

    def decode(self, latents: jax.Array, frozen: Any, /) -> jax.Array:
        """Cuts stored images [n, H, W, C] into cells and enlarges each: [n ``per_stored``, H, W, C]."""
        del frozen
        if self.kind == "single":
            return self._cells(latents, self.size)
        shape = (len(latents), -1, *latents.shape[1:])
        # By the stored image and not by the factor: an item's images follow each other.
        each = [self._cells(latents, size).reshape(shape) for size in self._factors]
        return jnp.concatenate(each, axis=1).reshape(-1, *latents.shape[1:])

    def _cells(self, stored: jax.Array, size: int) -> jax.Array:
        """The ``size``^2 cells of each stored image, enlarged."""
        count, height, width, channels = stored.shape
        rows, columns = -(-height // size), -(-width // size)
        # Padded at the bottom and the right, as IDC does.
        canvas = jnp.broadcast_to(jnp.asarray(self.pad, stored.dtype), (count, size * rows, size * columns, channels))
        canvas = canvas.at[:, :height, :width].set(stored)
        cells = canvas.reshape(count, size, rows, size, columns, channels).swapaxes(2, 3)
        cells = cells.reshape(-1, rows, columns, channels)
        return jax.image.resize(cells, (len(cells), height, width, channels), "bilinear", antialias=False)
