"""From an opened picture to an array: one mode and, where asked for, one size for all; what cannot be is refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from metadd_jax import files

if TYPE_CHECKING:
    import PIL.Image

GREY_MODES = frozenset({"1", "L"})
COLOUR_MODES = frozenset({"LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What may be in a file of a picture's name, in Pillow's words.

It would open more, whatever a file is called, and for EPS start Ghostscript, which runs what the file says.
"""
# Formats of several pictures; a phone's MPO is one picture with extras, a PNG has its own still one.
_MOVING = frozenset({"GIF", "TIFF", "WEBP"})
_ORIENTATION = 0x0112  # EXIF's tag
_SIDEWAYS = range(5, 9)  # its values whose turn swaps width and height

MODES = ("L", "RGB")


class UnfitError(ValueError):
    """A picture that opens but cannot be taken; the message goes behind its name."""


def look(picture: PIL.Image.Image, *, upright: bool) -> tuple[tuple[int, int], str]:
    """Reads size and mode of an opened picture from its head, without decoding it.

    Args:
      picture: the opened picture.
      upright: whether the size is that after turning as EXIF says.

    Returns:
      size, mode: (width, height) in pixels, and Pillow's name of the kind of pixels.

    Raises:
      UnfitError: for pixels of other than 8 bits, which would be cut off, and for a file of several pictures.
    """
    if picture.mode not in GREY_MODES | COLOUR_MODES:
        raise UnfitError(f"has pixels of kind {picture.mode}; save it as 8-bit grey or RGB")
    if picture.format in _MOVING and getattr(picture, "is_animated", False):
        # Not every picture of Pillow's has n_frames; one that is animated has.
        raise UnfitError(f"holds {getattr(picture, 'n_frames', 2)} pictures in one file; save the one to use")
    turned = upright and _orientation(picture) in _SIDEWAYS
    return (picture.size[::-1] if turned else picture.size), picture.mode


def to_array(picture: PIL.Image.Image, mode: str, image_size: int | None, *, upright: bool = False) -> np.ndarray:
    """Decodes a picture, and brings it to a square as the field does with ImageNet (MTT: Resize, CenterCrop).

    The shorter side is resized to ``image_size`` (bilinear with antialiasing, the longer side rounded down) and the
    middle is cut out, rounded as in torchvision.

    Args:
      picture: an opened picture of any mode with 8-bit pixels.
      mode: "L" or "RGB"; grey becomes RGB by repeating, alpha is dropped.
      image_size: side of the square in pixels; None leaves the size as it is.
      upright: turn it as EXIF says, as viewers show it. The published programs do not.

    Returns:
      [H, W, C] uint8, C = 1 for "L" and 3 for "RGB".

    Raises:
      UnfitError: as ``look``; a plain ValueError for another mode.
    """
    import PIL.Image
    import PIL.ImageOps

    if mode not in MODES:
        raise ValueError(f"mode {mode!r} must be one of {', '.join(MODES)}")
    look(picture, upright=upright)
    if upright and _orientation(picture) != 1:
        picture = PIL.ImageOps.exif_transpose(picture)
    # Before resizing: of a palette's numbers no mean makes sense.
    picture = picture.convert(mode)
    if image_size:
        # Integers throughout: floats would round some sizes to one pixel more than torchvision does.
        shorter = min(picture.size)
        width, height = (image_size * side // shorter for side in picture.size)
        left, top = round((width - image_size) / 2), round((height - image_size) / 2)
        picture = picture.resize((width, height), PIL.Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + image_size, top + image_size))
    pixels = np.asarray(picture, np.uint8)
    # Pillow leaves the channel of grey pictures out.
    return pixels[..., None] if pixels.ndim == 2 else pixels


def allocate(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Makes room for decoded images, unless they cannot fit: the system would kill the process halfway.

    Args:
      count: how many images.
      shape: (H, W, C) of each.

    Returns:
      [count, H, W, C] uint8, not yet filled.

    Raises:
      ValueError: if this machine's memory cannot hold it.
    """
    needed = count * int(np.prod(shape, dtype=np.int64))
    if needed > memory():
        raise ValueError(
            f"{count} images of {shape} take {needed / 1e9:.1f} GB, but this machine has {memory() / 1e9:.1f} GB of "
            "memory; bring them to a smaller square by image_size"
        )
    return np.empty((count, *shape), np.uint8)


def memory() -> int:
    """Tells the bytes that decoded images may take: this machine's memory, or no end where that is unknown."""
    return files.memory() or sys.maxsize


def _orientation(picture: PIL.Image.Image) -> int:
    # Asking a PNG without EXIF decodes all of it.
    has_exif = "exif" in picture.info or picture.format == "TIFF"
    return picture.getexif().get(_ORIENTATION, 1) if has_exif else 1
