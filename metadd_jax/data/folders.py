"""Reads a data set from folders of pictures: ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val/``)."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from metadd_jax.data import catalog
from metadd_jax.data.cache import RawSet
from metadd_jax.data.decoding import to_array

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_GREY_MODES = frozenset({"1", "L"})
_COLOUR_MODES = frozenset({"LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def list_pictures(root: pathlib.Path, *, classes: Sequence[int] = ()) -> dict[str, dict[str, list[pathlib.Path]]]:
    """Lists the pictures by split and class.

    Classes and files are in the order of their names as text (as in torchvision's ImageFolder), which makes
    the labels: write ``09``, not ``9``, for numbered classes.

    Args:
      root: the folder that holds ``train/`` and ``test/`` or ``val/``.
      classes: ImageNet's indices of the classes to list, in label order; ``root`` is then ImageNet with all its
        1000 class folders, and ``val/`` counts. Empty for all classes of any set.

    Returns:
      ``{"train": {class: [path, ...], ...}, "test": {...}}``; both splits have the same classes.

    Raises:
      ValueError: if a folder is missing or empty, or the splits differ in their classes.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; give one that holds train/CLASS/ and test/CLASS/")
    # ImageNet's own test/ has no labels.
    parts = ("val",) if classes else ("test", "val")
    test = next((root / part for part in parts if (root / part).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise ValueError(f"{root} must hold train/CLASS/*.png and test/CLASS/*.png (or val/, or .jpg); add them")
    splits = {"train": _list_classes(root / "train", classes), "test": _list_classes(test, classes)}
    if lone := sorted(splits["train"].keys() ^ splits["test"].keys()):
        raise ValueError(
            f"{len(lone)} classes of {root} are only in train/ or only in {test.name}/, such as {lone[0]}; "
            "give both the same class folders"
        )
    return splits


def picture_facts(root: pathlib.Path, splits: dict[str, dict[str, list[pathlib.Path]]]) -> list:
    """Path, size and time of change of every picture: what the cache is keyed by."""
    paths = [path for classes in splits.values() for paths in classes.values() for path in paths]
    status = [(path, path.stat()) for path in paths]
    return [[path.relative_to(root).as_posix(), facts.st_size, facts.st_mtime_ns] for path, facts in status]


def read_pictures(splits: dict[str, dict[str, list[pathlib.Path]]], *, image_size: int = 0, progress: bool) -> RawSet:
    """Decodes the pictures: grey ones to one channel if all are grey, else all to RGB (alpha is dropped).

    Sizes and modes are read from the files' heads first, so that a misfit shows before the long work.

    Args:
      splits: from ``list_pictures``.
      image_size: side of the square that pictures are brought to (see ``decoding.to_array``); 0 leaves them.
      progress: whether to show bars.

    Raises:
      ValueError: if a picture is unreadable, not 8-bit, or (left as it is) differs in size from the first.
    """
    every = [path for classes in splits.values() for paths in classes.values() for path in paths]
    mode = _common_mode(every, one_size=not image_size)
    train = _read_split(splits["train"], mode, image_size, progress)
    test = _read_split(splits["test"], mode, image_size, progress)
    return RawSet(*train, *test, class_names=np.array(list(splits["train"])))


def _list_classes(folder: pathlib.Path, classes: Sequence[int]) -> dict[str, list[pathlib.Path]]:
    children = [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    children.sort(key=lambda path: path.name)
    if classes:
        if len(children) != catalog.IMAGENET_CLASSES:
            raise ValueError(
                f"{folder} holds {len(children)} class folders, not ImageNet's {catalog.IMAGENET_CLASSES}, so that "
                "their order does not give ImageNet's indices; give the whole of ImageNet"
            )
        children = [children[index] for index in classes]
    listed = {}
    for child in children:
        paths = [path for path in child.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
        if not paths:
            raise ValueError(f"class folder {child} holds 0 .png or .jpg files; fill it or remove it")
        listed[child.name] = sorted(paths, key=lambda path: path.name)
    if not listed:
        raise ValueError(f"{folder} holds 0 class folders; put the pictures in {folder}/CLASS/")
    return listed


def _common_mode(paths: list[pathlib.Path], *, one_size: bool) -> str:
    """Returns "L" or "RGB", once every picture's mode and, where it matters, size are seen to fit."""
    first, modes = None, set()
    for path in paths:
        size, mode = _open(path, lambda picture: (picture.size, picture.mode))
        if mode not in _GREY_MODES | _COLOUR_MODES:
            raise ValueError(f"{path} has pixels of kind {mode}; save it as 8-bit grey or RGB")
        first = first or size
        if one_size and size != first:
            raise ValueError(
                f"{path} is {size[0]} x {size[1]} pixels but {paths[0]} is {first[0]} x {first[1]}; "
                "resize all pictures to one size, or give image_size"
            )
        modes.add(mode)
    return "L" if modes <= _GREY_MODES else "RGB"


def _read_split(classes: dict[str, list[pathlib.Path]], mode: str, image_size: int, progress: bool):
    from tqdm import tqdm

    counts = [len(paths) for paths in classes.values()]
    images = None
    every = [path for paths in classes.values() for path in paths]
    for i, path in enumerate(tqdm(every, desc=f"decode {every[0].parent.parent.name}", disable=not progress)):
        image = _open(path, lambda picture: to_array(picture, mode, image_size))
        if images is None:
            images = np.empty((len(every), *image.shape), np.uint8)
        images[i] = image
    return images, np.repeat(np.arange(len(counts)), counts)


def _open(path: pathlib.Path, read):
    import PIL.Image

    try:
        with PIL.Image.open(path) as picture:
            return read(picture)
    except (OSError, SyntaxError, ValueError) as error:  # What Pillow raises for damaged files.
        raise ValueError(f"{path} is no readable picture ({error}); replace or remove it") from error
