"""Images of a report: each as it is, under each network's map, and split, as PNG in the page's own text."""

from __future__ import annotations

import base64
import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from metadd_jax import exchange, files, pictures

MAPS = "maps.npz"  # in a set's folder: maps of the first image of each class
MOST_IMAGES = 20  # of a set
MOST_SIDE = 96  # pixels; larger images are reduced
BUDGET = 3_200_000  # letters of all pictures together, so that the page stays below 5 MB


@dataclasses.dataclass(frozen=True)
class Figure:
    """One image: the name of its class, and its pictures by view as data URIs."""

    name: str
    views: dict[str, str]

    @property
    def size(self) -> int:
        return sum(map(len, self.views.values()))


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The images of one set that are shown; ``maps_png`` is the picture of its maps where the maps are not stored."""

    title: str
    figures: tuple[Figure, ...]
    in_all: int
    maps_png: str = ""


def write_maps(folder: pathlib.Path, indices: np.ndarray, stack: np.ndarray, networks: Sequence[str]) -> None:
    """Keeps the maps of a few images beside their set, for reports.

    Args:
      folder: of the set.
      indices: [B] which of its images they belong to; the first 20 are kept.
      stack: [M, B, H, W] float32 in [0, 1].
      networks: M names.
    """
    with files.atomic_path(folder / MAPS) as temporary:
        np.savez_compressed(
            temporary,
            indices=np.asarray(indices[:MOST_IMAGES], np.int64),
            maps=np.asarray(stack[:, :MOST_IMAGES], np.float32),
            networks=np.array(list(networks), dtype=np.str_),
        )


def read_maps(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """Reads what ``write_maps`` wrote; None where there is nothing that can be read."""
    try:
        with np.load(folder / MAPS, allow_pickle=False) as content:
            indices, maps, networks = (content[name] for name in ("indices", "maps", "networks"))
    except Exception:  # whatever the file holds: a report goes without it
        return None
    fits = maps.ndim == 4 and maps.shape[:2] == (len(networks), len(indices)) and np.isfinite(maps).all()
    return (indices, maps, [str(name) for name in networks]) if fits else None


def gallery(folder: pathlib.Path, title: str) -> Gallery | None:
    """Draws the first image of each class of a set with its maps.

    Args:
      folder: that holds ``synthetic.npz`` and, of newer runs, ``maps.npz``.
      title: what the set is called.

    Returns:
      At most 20 images; None if they are neither grey nor in colours.

    Raises:
      ValueError: if the set cannot be read.
    """
    synthetic, metadata = exchange.load_npz(folder / "synthetic.npz")
    labels, images = np.asarray(synthetic.labels), np.asarray(synthetic.images)
    if images.shape[-1] not in (1, 3):
        return None
    first = np.unique(labels, return_index=True)[1]
    shown, names = first[:MOST_IMAGES], metadata["class_names"]
    views = {"image": exchange.to_pixels(images[shown], metadata)}
    found = read_maps(folder)
    # Of other images they would be another set's, left by an older run.
    if found and np.array_equal(found[0], shown) and found[1].shape[2:] == images.shape[1:3]:
        _, stack, networks = found
        heads = [f"map: {name}" for name in networks]
        heads += ["meta", *(f"heterogeneous: {name}" for name in networks)]
        views |= dict(zip(["image", *heads], pictures.views(views["image"], stack), strict=True))
    encoded = {view: [_uri(image) for image in drawn] for view, drawn in views.items()}
    figures = tuple(
        Figure(str(names[labels[index]]), {view: every[i] for view, every in encoded.items()})
        for i, index in enumerate(shown)
    )
    whole = folder / "maps.png"
    # Runs from before the maps were kept have a picture of them.
    drawn = "" if len(views) > 1 or not whole.is_file() else _raw(whole.read_bytes())
    return Gallery(title, figures, len(images), drawn)


def fitting(galleries: Sequence[Gallery], *, budget: int = BUDGET) -> list[Gallery]:
    """Leaves out images, the last of every set first, until all fit.

    Args:
      galleries: of all sets.
      budget: letters that all pictures may have together.

    Returns:
      As many galleries, in their order; some may be empty.
    """
    left, kept = budget, [0] * len(galleries)
    most = max((len(one.figures) for one in galleries), default=0)
    # Image by image over all sets, so that each shows the same classes.
    for number in range(most):
        sizes = [one.figures[number].size for one in galleries if number < len(one.figures)]
        if sum(sizes) > left:
            break
        left -= sum(sizes)
        kept = [min(number + 1, len(one.figures)) for one in galleries]
    found = []
    for one, count in zip(galleries, kept, strict=True):
        whole = one.maps_png if len(one.maps_png) <= left else ""
        left -= len(whole)
        found.append(dataclasses.replace(one, figures=one.figures[:count], maps_png=whole))
    return found


def _uri(image: np.ndarray) -> str:
    """An image [H, W, 1 or 3] in [0, 1], clipped, as a PNG of its own pixels."""
    levels = np.rint(255 * np.clip(reduced(image), 0, 1)).astype(np.uint8)
    stream = io.BytesIO()
    exchange.pixels.picture(levels).save(stream, "PNG", optimize=True)
    return _raw(stream.getvalue())


def reduced(image: np.ndarray, *, most: int = MOST_SIDE) -> np.ndarray:
    """Averages blocks of pixels until an image is small enough for a page.

    Args:
      image: [H, W, C].
      most: the longest side that may stay, in pixels.

    Returns:
      [H // k, W // k, C] for the smallest whole k that does; pixels beyond whole blocks are cut.
    """
    factor = -(-max(image.shape[:2]) // most)
    height, width = (side // factor for side in image.shape[:2])
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    return blocks.mean(axis=(1, 3))


def _raw(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
