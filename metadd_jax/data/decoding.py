"""From an opened picture to an array: one mode and, where asked for, one size for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image


MODES = ("L", "RGB")


def to_array(picture: PIL.Image.Image, mode: str, image_size: int) -> np.ndarray:
    """Decodes a picture, and brings it to a square as the field does with ImageNet (MTT: Resize, CenterCrop).

    The shorter side is resized to ``image_size`` (bilinear with antialiasing, the longer side rounded down) and the
    middle is cut out, rounded as in torchvision.

    Args:
      picture: an opened picture of any mode with 8-bit pixels.
      mode: "L" or "RGB"; grey becomes RGB by repeating, alpha is dropped.
      image_size: side of the square in pixels; 0 leaves the size as it is.

    Returns:
      [H, W, C] uint8, C = 1 for "L" and 3 for "RGB".

    Raises:
      ValueError: for another mode.
    """
    import PIL.Image

    if mode not in MODES:
        raise ValueError(f"mode {mode!r} must be one of {', '.join(MODES)}")
    picture = picture.convert(mode)
    if image_size:
        shorter = min(picture.size)
        width, height = (image_size * side // shorter for side in picture.size)
        left, top = round((width - image_size) / 2), round((height - image_size) / 2)
        picture = picture.resize((width, height), PIL.Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + image_size, top + image_size))
    pixels = np.asarray(picture, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
