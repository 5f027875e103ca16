"""Distilled sets as pictures: one folder a class, as image-folder loaders of every framework read them."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import numpy as np

from metadd_jax import files, structs
from metadd_jax.exchange import checks
from metadd_jax.storage import folder

HALF_STEP = 0.5 / 255  # Half of one of the 256 grey levels.


def export_png_folder(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> float:
    """Writes 8-bit PNG files ``00000_zero/0000.png`` and ``classes.json``, all or nothing.

    Distilled pixels often lie outside [0, 1]; 8 bits cut them off, which costs accuracy: evaluate the folder
    again rather than quote the accuracy of the float set.

    Args:
      directory: the folder to make; an empty one may exist. Loaders sort folder names as strings, hence the
        zero padding.
      synthetic: the set, 1 or 3 channels, standardised.
      metadata: see ``checks.check_set``; ``value_space`` must be "standardised".
      overwrite: replace a folder that is not empty.

    Returns:
      The share (0..1) of pixel values further outside [0, 1] than rounding to 8 bits reaches.

    Raises:
      ValueError: if the folder is not empty, or if the set or its metadata are unfit.
    """
    from PIL import Image

    directory = pathlib.Path(directory).expanduser().absolute()
    empty = directory.is_dir() and not any(directory.iterdir())
    checks.check_set("the set", synthetic, metadata)
    if metadata["value_space"] != "standardised":
        raise ValueError(f"value space {metadata['value_space']!r} has no pixels; export a standardised set")
    if synthetic.images.shape[-1] not in (1, 3):
        raise ValueError(f"PNG files hold 1 or 3 channels, the set has {synthetic.images.shape[-1]}; export an npz")
    unit = np.asarray(synthetic.images) * np.asarray(metadata["std"]) + np.asarray(metadata["mean"])
    pixels = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    names = [_folder_name(label, name) for label, name in enumerate(metadata["class_names"])]
    with folder.whole_folder(directory, overwrite=overwrite or empty) as partial:
        for label, name in enumerate(names):
            (partial / name).mkdir()
            for number, image in enumerate(pixels[np.asarray(synthetic.labels) == label]):
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                picture.save(partial / name / f"{number:04d}.png")
        files.write_json(partial / "classes.json", dict(zip(names, metadata["class_names"], strict=True)))
    return float(np.mean(np.abs(unit - 0.5) > 0.5 + HALF_STEP))


def _folder_name(label: int, name: str) -> str:
    return f"{label:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}"
