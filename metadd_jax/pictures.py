"""Pictures of sets, class activation maps and curves: arrays in, PNG files out.

Files are written whole or not at all, and only replace pictures of this module. Names are drawn literally: "$" starts
no formula. matplotlib is imported where it is used and needs no screen.
"""

from __future__ import annotations

import importlib
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from metadd_jax import files
from metadd_jax.exchange import checks

_MAX_COLUMNS = 10  # Images of one class.
_MAX_ROWS = 100  # Classes below each other; PNG writers stop at 65,536 pixels.
_MAX_MAPS = 10
_DPI = 100
_CELL = 96  # About the side of one image on the paper, in pixels.
_GAP = 6  # Pixels between images.
_LINE = 18  # Pixels of a line of text.
_LONGEST = 60  # Letters of a name that are drawn.
_SIGN = {"Software": "metadd_jax"}  # Written into each picture.
_META = (0.10, 0.45, 0.95)  # Blue: what every network sees.
_HETEROGENEOUS = (1.00, 0.50, 0.05)  # Orange: what one network sees and not all.


def grid(
    file: str | os.PathLike,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    class_names: Sequence[str],
    scores: ArrayLike | None = None,
) -> None:
    """Draws a set: one row per class with its name at the left; if each class has one image, a near-square.

    Args:
      file: the PNG to write.
      images: [N, H, W, C] pixels in [0, 1] (see ``exchange.to_pixels``; values outside are clipped), C = 1 or 3. At
        most 10 images of a class and, in rows, the first 100 classes are drawn.
      labels: [N] in [0, K).
      class_names: K names.
      scores: [N] a number under each image (a loss, a confidence), or None.

    Raises:
      ValueError: if the shapes do not fit together, or a file stands there that this module did not draw.
    """
    images, labels, class_names = _checked(images, labels, class_names)
    members = [np.flatnonzero(labels == label)[:_MAX_COLUMNS] for label in range(len(class_names))]
    # Rows of one image would make a long, empty picture.
    named_above = max(map(len, members)) == 1
    if named_above:
        columns = _near_square(len(members))
        cells = [(*divmod(label, columns), index) for label, own in enumerate(members) for index in own]
    else:
        members = members[:_MAX_ROWS]
        columns = max(map(len, members))
        cells = [(row, column, index) for row, own in enumerate(members) for column, index in enumerate(own)]
    paper = _Paper(
        rows=1 + max(row for row, _, _ in cells),
        columns=columns,
        shape=(images.shape[1], images.shape[2]),
        left=0 if named_above else _text_width(class_names),
        above=_LINE if named_above else 0,
        below=_LINE if scores is not None else 0,
    )
    pixels = np.clip(images, 0, 1)
    for row, column, index in cells:
        paper.put(row, column, pixels[index])
        if named_above:
            paper.name_above(row, column, class_names[labels[index]])
        if scores is not None:
            paper.name_below(row, column, f"{np.asarray(scores)[index]:.3g}")
    if not named_above:
        for row in range(len(members)):
            paper.name_left(row, class_names[row])
    paper.save(file)


def maps(
    file: str | os.PathLike,
    images: ArrayLike,
    labels: ArrayLike,
    stack: ArrayLike,
    *,
    class_names: Sequence[str],
    network_names: Sequence[str],
    threshold: float = 0.5,
    title: str = "",
) -> None:
    """Draws images with the maps of each network, the meta mask and the heterogeneous masks.

    Args:
      file: the PNG to write.
      images: [B, H, W, C] pixels in [0, 1]; the first 10 are drawn, one per row.
      labels: [B] in [0, K).
      stack: [M, B, H, W] class activation maps in [0, 1].
      class_names: K names.
      network_names: M names.
      threshold: a pixel is high where the map reaches this (0..1).
      title: a line above the picture.

    Raises:
      ValueError: if the shapes do not fit together, or a file stands there that this module did not draw.
    """
    images, labels, class_names = _checked(images, labels, class_names)
    stack = np.asarray(stack, np.float32)
    networks, network_names = len(network_names), [_printable(name) for name in network_names]
    if stack.shape != (networks, *images.shape[:3]):
        raise ValueError(
            f"maps {stack.shape} do not fit {networks} networks and images {images.shape}; need [M, B, H, W]"
        )
    pixels, stack = np.clip(images, 0, 1)[:_MAX_MAPS], stack[:, :_MAX_MAPS]
    heads = ["image", *network_names, "meta", *network_names]
    names = [class_names[label] for label in labels[:_MAX_MAPS]]
    paper = _Paper(
        len(pixels),
        len(heads),
        (images.shape[1], images.shape[2]),
        left=_text_width(names),
        top=2 * _LINE,
        title=_printable(title),
    )
    drawn = views(pixels, stack, threshold=threshold)
    for row in range(len(pixels)):
        for column, picture in enumerate(drawn):
            paper.put(row, column, picture[row])
        paper.name_left(row, names[row])
    for column, head in enumerate(heads):
        paper.name_above(0, column, head)
    for column, group in (
        (1, "maps"),
        (1 + networks, "seen by all"),
        (2 + networks, "not by all"),
    ):
        paper.name_group(column, group)
    paper.save(file)


def views(images: ArrayLike, stack: ArrayLike, *, threshold: float = 0.5) -> list[np.ndarray]:
    """Draws images as they are, under the map of each network, and split into meta and heterogeneous features.

    Args:
      images: [B, H, W, 1 or 3] pixels in [0, 1] (values outside are clipped).
      stack: [M, B, H, W] class activation maps in [0, 1].
      threshold: a pixel is high where the map reaches this (0..1).

    Returns:
      2 + 2 M pictures [B, H, W, 1 or 3] in [0, 1]: the images; each network's map in colours; the pixels that are high
      for all networks; for each network those that are high for it and not for all.
    """
    pixels, stack = np.clip(np.asarray(images, np.float32), 0, 1), np.asarray(stack, np.float32)
    # Under the colours a grey image, so that a hue is always the map's.
    grey = pixels.mean(axis=-1)
    high = np.asarray(stack >= threshold)
    meta = np.asarray(high.all(axis=0))
    return [
        pixels,
        *(_heat(grey, heat) for heat in stack),
        _mask(grey, meta, _META),
        *(_mask(grey, own & ~meta, _HETEROGENEOUS) for own in high),
    ]


def curves(
    file: str | os.PathLike,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ylabel: str,
) -> None:
    """Draws named curves over the update step.

    Args:
      file: the PNG to write.
      series: (steps [T], values [T]) by name; values that are not finite leave gaps.
      ylabel: what the values are, with their unit.

    Raises:
      ValueError: if a file stands there that this module did not draw.
    """
    # ``Figure`` and not pyplot, which keeps global state and may open a window.
    figure = _library("matplotlib.figure").Figure(figsize=(7, 4), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, values) in series.items():
        finite = np.where(np.isfinite(values), values, np.nan)
        axes.plot(np.asarray(steps), finite, label=short(name), linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    write_png(file, figure)


class _Paper:
    """Images in rows and columns, each enlarged by a whole factor so that its pixels stay square and crisp.

    Args:
      rows: number of cells from top to bottom.
      columns: number of cells from left to right.
      shape: (H, W) of every image in pixels.
      left: pixels kept free for names at the left.
      top: pixels kept free for names at the top.
      above: pixels kept free over each image.
      below: pixels kept free under each image.
      title: a line above everything; the paper is made wide enough for it.
    """

    # Own pixels and not matplotlib's axes: those resample, and a distilled pixel must be seen as it is.

    def __init__(
        self,
        rows: int,
        columns: int,
        shape: tuple[int, int],
        *,
        left: int = 0,
        top: int = 0,
        above: int = 0,
        below: int = 0,
        title: str = "",
    ) -> None:
        self._scale = max(1, round(_CELL / max(shape)))
        self._height, self._width = shape[0] * self._scale, shape[1] * self._scale
        top += _LINE + _GAP if title else 0
        self._origin = (top + above + _GAP, left + _GAP)
        self._pitch = (above + self._height + below + _GAP, self._width + _GAP)
        height = top + _GAP + rows * self._pitch[0]
        width = max(left + _GAP + columns * self._pitch[1], 9 * len(title))
        self._canvas = np.full((height, width, 3), 255, np.uint8)
        self._texts: list[tuple[float, float, str, dict[str, Any]]] = []
        if title:
            self._write(_GAP, _GAP, title, ha="left", va="top", fontsize=11)

    def put(self, row: int, column: int, pixels: np.ndarray) -> None:
        """Draws [H, W, 1 or 3] pixels in [0, 1] into a cell."""
        y, x = self._corner(row, column)
        large = np.rint(pixels * 255).astype(np.uint8).repeat(self._scale, 0).repeat(self._scale, 1)
        self._canvas[y : y + self._height, x : x + self._width] = large

    def name_left(self, row: int, name: str) -> None:
        y, x = self._corner(row, 0)
        self._write(y + self._height / 2, x - _GAP, name, ha="right", va="center_baseline")

    def name_above(self, row: int, column: int, name: str) -> None:
        y, x = self._corner(row, column)
        self._write(y - 4, x + self._width / 2, self._fitting(name), ha="center", va="baseline")

    def name_below(self, row: int, column: int, name: str) -> None:
        y, x = self._corner(row, column)
        self._write(y + self._height + 3, x + self._width / 2, name, ha="center", va="top", color="0.3")

    def name_group(self, column: int, name: str) -> None:
        """Writes ``name`` over the heads of the columns that start at ``column``."""
        y, x = self._corner(0, column)
        self._write(y - 4 - _LINE, x, name, ha="left", va="baseline", color="0.3")

    def save(self, file: str | os.PathLike) -> None:
        height, width = self._canvas.shape[:2]
        # A hair more than whole pixels: the canvas rounds down.
        figure = _library("matplotlib.figure").Figure(figsize=((width + 0.01) / _DPI, (height + 0.01) / _DPI), dpi=_DPI)
        figure.figimage(self._canvas)
        for y, x, text, style in self._texts:
            literal = {"fontsize": 9, "parse_math": False} | style
            figure.text(x / width, 1 - y / height, text, **literal)
        write_png(file, figure)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        return self._origin[0] + row * self._pitch[0], self._origin[1] + column * self._pitch[1]

    def _fitting(self, name: str) -> str:
        letters = (self._width + _GAP) // 7
        return name if len(name) <= letters else name[: letters - 1] + "…"

    def _write(self, y: float, x: float, text: str, **style: Any) -> None:
        self._texts.append((y, x, text, style))


def _checked(
    images: ArrayLike, labels: ArrayLike, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or labels.shape != images.shape[:1] or not len(images):
        raise ValueError(
            f"cannot draw images {images.shape} with labels {labels.shape}; give [N, H, W, 1 or 3] and [N]"
        )
    if not np.isin(labels, np.arange(len(class_names))).all():
        raise ValueError(f"labels reach {labels.max()} but there are {len(class_names)} class names; name every class")
    return images, labels, [short(name) for name in class_names]


def _printable(name: Any) -> str:
    """A name as one line; bytes of a folder's name that are no text become "?"."""
    return " ".join(str(name).encode(errors="replace").decode().split())


def short(name: Any) -> str:
    """Gives a name as one line of at most 60 letters; bytes of a folder's name that are no text become "?"."""
    text = _printable(name)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def write_png(file: str | os.PathLike, figure: Any) -> None:
    """Writes a figure of matplotlib as every picture here is written: whole or not at all, signed as ours.

    Args:
      file: the PNG to write.
      figure: a ``matplotlib.figure.Figure``.

    Raises:
      ValueError: if a file stands there that this module did not draw.
    """
    checks.refuse_existing(pathlib.Path(file), overwrite=True, is_ours=_is_ours)
    with files.atomic_path(file) as temporary:
        _library("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).print_png(str(temporary), metadata=_SIGN)


def _library(name: str) -> Any:
    """The module ``name`` of matplotlib, which comes with the command and not with the package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError("pictures need matplotlib; run: pip install 'metadd_jax[experiments]'") from error


def _is_ours(file: pathlib.Path) -> bool:
    """Whether a picture was drawn by this module: only such a file may be replaced."""
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as picture:
            return picture.info.get("Software") == _SIGN["Software"]
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def _near_square(count: int) -> int:
    """The number of columns for ``count`` cells: about square, and without gaps where that is possible (10 -> 5)."""
    side = math.isqrt(count - 1) + 1
    return next((columns for columns in range(side, 2 * side) if count % columns == 0), side)


def _text_width(names: Sequence[str]) -> int:
    return _GAP + 8 * max(map(len, names))  # Pixels; a letter of 9 points takes about 7.


def _heat(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Maps [..., H, W] in colours over grey images [..., H, W], less transparent where they are higher; [..., 3]."""
    heat = np.clip(heat, 0, 1)
    # Never opaque: what the network responds to must stay visible.
    opacity = (0.2 + 0.6 * heat)[..., None]
    return (1 - opacity) * grey[..., None] + opacity * _library("matplotlib").colormaps["inferno"](heat)[..., :3]


def _mask(grey: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """Grey images, dimmed, with masks [..., H, W] in ``colour`` through which the image still shows; [..., 3]."""
    tinted = 0.25 * grey[..., None] + 0.75 * np.asarray(colour)
    return np.where(mask[..., None], tinted, 0.6 * grey[..., None])
