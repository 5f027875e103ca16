"""Distilled sets as pictures: one folder a class, as image-folder loaders of every framework read them."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metadd_jax import files, structs
from metadd_jax.data import whitening
from metadd_jax.exchange import checks
from metadd_jax.storage import folder

HALF_STEP = 0.5 / 255  # half of the distance between two of the 256 levels


def to_pixels(images: ArrayLike, metadata: dict[str, Any]) -> np.ndarray:
    """Brings images of a set out of its value space.

    Args:
      images: [N, H, W, C] float.
      metadata: of the set; ``value_space`` "standardised" with ``mean`` and ``std`` ([C]), or "zca" with ``zca_mean``
        [D] and ``zca_inverse`` [D, D], D = H * W * C.

    Returns:
      [N, H, W, C] pixels, float, in [0, 1] but for what distillation pushed beyond; not clipped.

    Raises:
      ValueError: for another value space, or if what undoes it is missing or of another size.
    """
    space = metadata.get("value_space")
    if space == "standardised":
        return np.asarray(images, np.float32) * np.asarray(metadata["std"]) + np.asarray(metadata["mean"])
    if space != "zca":
        raise ValueError(f"value space {space!r} has no pixels; give a standardised or a zca set")
    checks.check_whitening("the set", np.shape(images), metadata)
    return whitening.unwhiten_images(images, metadata["zca_mean"], metadata["zca_inverse"])


def to_value_space(images: ArrayLike, metadata: dict[str, Any], dataset: structs.Dataset) -> np.ndarray:
    """Brings images of a set into the value space of real data: other constants, whitened or not.

    Args:
      images: [N, H, W, C] float, in the value space that ``metadata`` names.
      metadata: of the set (see ``to_pixels``).
      dataset: the real data, of the same H, W and C.

    Returns:
      [N, H, W, C] float32; the very bits where both spaces are one.

    Raises:
      ValueError: as ``to_pixels``.
    """
    arrays, white = dataset.train, dataset.whitening
    # Not through pixels and back where nothing changes: rounding would make other images of them.
    alike = ("zca_mean", white.mean, 1e-5) if white is not None else ("mean", arrays.mean, 1e-4)
    if (metadata.get("value_space") == "zca") == (white is not None) and all(
        np.shape(metadata[name]) == np.shape(theirs) and np.allclose(metadata[name], theirs, atol=atol)
        for name, theirs, atol in (alike, ("std", arrays.std, 1e-4))
    ):
        return np.asarray(images, np.float32)
    return from_pixels(to_pixels(images, metadata), dataset)


def from_pixels(unit: np.ndarray, dataset: structs.Dataset) -> np.ndarray:
    """Brings pixels into the value space of real data.

    Args:
      unit: [N, H, W, C] float, 0 black and 1 white.
      dataset: the real data, of the same H, W and C; whitened or not.

    Returns:
      [N, H, W, C] float32.
    """
    arrays, white = dataset.train, dataset.whitening
    # Numbers near the end of float32 become infinite here; whoever checks the set says so in its own words.
    with np.errstate(over="ignore", invalid="ignore"):
        if white is None:
            return ((unit - np.asarray(arrays.mean)) / np.asarray(arrays.std)).astype(np.float32)
        flat = (unit.reshape(len(unit), -1) - white.mean) @ white.matrix
        return flat.reshape(unit.shape).astype(np.float32)


def share_outside(unit: np.ndarray) -> float:
    """Measures how much of a set no picture can hold: what 8 bits would clip.

    Args:
      unit: [N, H, W, C] from ``to_pixels``.

    Returns:
      The share (0..1) of the values that lie further outside [0, 1] than rounding to 8 bits reaches.
    """
    return float(np.mean(np.abs(unit - 0.5) > 0.5 + HALF_STEP))


def value_space(dataset: structs.Dataset) -> dict[str, Any]:
    """Collects what a set's metadata must say about its value space: how ``to_pixels`` undoes it.

    Args:
      dataset: the real data, in whose value space the set is.

    Returns:
      ``value_space``, ``mean`` and ``std`` ([C] lists); of whitened data also ``zca_mean`` and ``zca_inverse``.
    """
    facts = {name: np.asarray(getattr(dataset.train, name)).tolist() for name in ("mean", "std")}
    if dataset.whitening is None:
        return {"value_space": "standardised", **facts}
    return {
        "value_space": "zca",
        **facts,
        "zca_mean": dataset.whitening.mean,
        "zca_inverse": dataset.whitening.inverse,
    }


def export_png_folder(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> float:
    """Writes 8-bit PNG files ``00000_zero/0000.png``, ``classes.json`` and ``manifest.json``, all or nothing.

    Distilled pixels often lie outside [0, 1]; 8 bits cut them off, which costs accuracy: evaluate the folder
    again rather than quote the accuracy of the float set.

    Args:
      directory: the folder to make; an empty one may exist. Loaders sort folder names as strings, hence the
        zero padding.
      synthetic: the set, 1 or 3 channels.
      metadata: see ``checks.check_set``; it must say how to undo the value space (see ``to_pixels``).
      overwrite: replace a folder that this function wrote, if every file in it is still as it was written.

    Returns:
      The share (0..1) of pixel values further outside [0, 1] than rounding to 8 bits reaches.

    Raises:
      ValueError: if the folder is not empty (with ``overwrite``: holds anything that this function did not write),
        or if the set or its metadata are unfit.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    # An empty folder is nobody's loss: people make one before they name it.
    empty = directory.is_dir() and not any(directory.iterdir())
    if overwrite and not empty and os.path.lexists(directory):
        _refuse_changed(directory)
    pixels, clipped = to_eight_bits(synthetic, metadata)
    names = [_folder_name(label, name) for label, name in enumerate(metadata["class_names"])]
    with folder.whole_folder(directory, overwrite=overwrite or empty) as partial:
        for label, name in enumerate(names):
            (partial / name).mkdir()
            for number, image in enumerate(pixels[np.asarray(synthetic.labels) == label]):
                picture(image).save(partial / name / f"{number:04d}.png")
        files.write_json(partial / "classes.json", dict(zip(names, metadata["class_names"], strict=True)))
        folder.seal(partial)
    return clipped


def picture(image: np.ndarray) -> Any:
    """Makes a picture of Pillow's.

    Args:
      image: [H, W, 1 or 3] uint8.
    """
    from PIL import Image

    # Pillow knows grey pictures without a channel only.
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_eight_bits(synthetic: structs.SyntheticSet, metadata: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Makes of a set what pictures hold.

    Args:
      synthetic: the set, 1 or 3 channels.
      metadata: see ``checks.check_set``.

    Returns:
      pixels, clipped: [N, H, W, C] uint8, and the share (0..1) of values further outside [0, 1] than rounding reaches.

    Raises:
      ValueError: if the set or its metadata are unfit, or no picture has as many channels.
    """
    checks.check_set("the set", synthetic, metadata)
    if synthetic.images.shape[-1] not in (1, 3):
        raise ValueError(f"PNG files hold 1 or 3 channels, the set has {synthetic.images.shape[-1]}; export an npz")
    unit = to_pixels(synthetic.images, metadata)
    # Rounded, not cut off: astype alone would darken every pixel by half a level.
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8), share_outside(unit)


def _refuse_changed(directory: pathlib.Path) -> None:
    """A folder to be replaced must be one of ours, down to the bytes: a picture retouched by hand is the user's."""
    folder.refuse_foreign(directory)
    if not (directory / "classes.json").is_file():
        raise ValueError(f"{directory} holds no pictures that export wrote (no classes.json); choose another path")
    folder.check(directory)


def _folder_name(label: int, name: str) -> str:
    # Numbered, since loaders number the classes by the folders' names as text. File systems end at 255 bytes a name;
    # classes.json has the whole one.
    return f"{label:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:200]}"
