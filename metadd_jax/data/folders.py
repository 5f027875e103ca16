"""Reads a data set from folders of pictures: ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val/``)."""

from __future__ import annotations

import collections
import os
import pathlib
import stat
import warnings
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from metadd_jax.data import catalog, decoding
from metadd_jax.data.cache import RawSet, content

if TYPE_CHECKING:
    import PIL.Image

_Answer = TypeVar("_Answer")
Pictures = dict[str, dict[str, list[pathlib.Path]]]
"""The paths of pictures by split ("train", "test") and class, in label order."""

# torchvision's ImageFolder takes these but for .gif.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
# Beside the class folders: an archive that was not unpacked is said, a README is not.
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
_UNSAID = frozenset({"thumbs.db", "desktop.ini"})  # Windows puts them into folders of pictures by itself


def list_pictures(root: pathlib.Path, *, classes: Sequence[int] = ()) -> Pictures:
    """Lists the pictures by split and class.

    Classes and files are in the order of their names as text (as in torchvision's ImageFolder), which makes the labels:
    write ``09``, not ``9``, for numbered classes. Folders within a class are walked and links followed. Hidden files
    are left out; other files that are no pictures are left out with a warning that counts them.

    Args:
      root: the folder that holds ``train/`` and ``test/`` or ``val/``.
      classes: ImageNet's indices of the classes to list, in label order; ``root`` is then ImageNet with all its
        1000 class folders, and ``val/`` counts. Empty for all classes of any set.

    Returns:
      ``{"train": {class: [path, ...], ...}, "test": {...}}``; both splits have the same classes.

    Raises:
      ValueError: if a folder is missing or empty, the splits differ in their classes, or there is a link to nothing, a
        loop of links, or a picture's name on what is no file.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; give one that holds train/CLASS/ and test/CLASS/")
    # ImageNet's own test/ has no labels.
    parts = ("val",) if classes else ("test", "val")
    test = next((root / part for part in parts if (root / part).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise ValueError(f"{root} must hold train/CLASS/*.png and test/CLASS/*.png (or val/, or .jpg); add them")
    left_out: list[pathlib.Path] = []
    splits = {
        name: _list_classes(place, classes, left_out) for name, place in (("train", root / "train"), ("test", test))
    }
    if lone := sorted(splits["train"].keys() ^ splits["test"].keys()):
        raise ValueError(
            f"{len(lone)} classes of {root} are only in train/ or only in {test.name}/, such as {lone[0]}; "
            "give both the same class folders"
        )
    if left_out:
        kinds = collections.Counter(path.suffix.lower() or "without suffix" for path in left_out).most_common()
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        warnings.warn(
            f"{len(left_out)} files of {root} are left out ({counts}), such as {left_out[0].relative_to(root)}: they "
            f"lie outside class folders or are no {_known()}",
            stacklevel=3,
        )
    return splits


def picture_facts(root: pathlib.Path, splits: Pictures) -> list:
    """Gives what the cache is keyed by: class names, pictures a class, names and content of every picture.

    Args:
      root: the folder that was listed.
      splits: from ``list_pictures``.
    """
    paths = [path for classes in splits.values() for paths in classes.values() for path in paths]
    # How the paths are divided into classes; the content alone would not see a picture moved by a link.
    counts = [[len(paths) for paths in classes.values()] for classes in splits.values()]
    return [list(splits["train"]), counts, content(root, paths)]


def read_pictures(splits: Pictures, *, image_size: int | None = None, upright: bool = True, progress: bool) -> RawSet:
    """Decodes the pictures: to one channel if all are grey, else all to RGB (alpha is dropped).

    Sizes and modes are read from the files' heads first: one picture of another size shows before the long work.

    Args:
      splits: from ``list_pictures``.
      image_size: side of the square that pictures are brought to (see ``decoding.to_array``); None leaves them.
      upright: whether to turn pictures as their EXIF says.
      progress: whether to show bars.

    Raises:
      ValueError: if a picture is unreadable, too large, not 8-bit, or (left as it is) differs in size from the first.
    """
    import PIL.Image

    every = [path for classes in splits.values() for paths in classes.values() for path in paths]
    with warnings.catch_warnings():
        # Large pictures are meant; beyond twice that size Pillow refuses them.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        mode = _common_mode(every, one_size=not image_size, upright=upright)

        def decode(picture: PIL.Image.Image) -> np.ndarray:
            return decoding.to_array(picture, mode, image_size, upright=upright)

        train, test = (_read_split(splits[name], decode, progress) for name in ("train", "test"))
    return RawSet(*train, *test, np.array([_as_text(name) for name in splits["train"]]))


def _as_text(name: str) -> str:
    """A folder's name as text: one that is not UTF-8 (from an old disk) is read as Latin-1, which is never in vain."""
    raw = os.fsencode(name)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _list_classes(
    folder: pathlib.Path, classes: Sequence[int], left_out: list[pathlib.Path]
) -> dict[str, list[pathlib.Path]]:
    children = sorted((child for child in folder.iterdir() if child.name[0] != "."), key=lambda path: path.name)
    # A disk that is not mounted leaves links to nothing: the class would be missing without a word.
    if lost := [child for child in children if not child.exists()]:
        raise ValueError(f"{lost[0]} is a link to nothing; mend or remove it")
    left_out += [child for child in children if child.is_file() and child.suffix.lower() in SUFFIXES | _ARCHIVES]
    children = [child for child in children if child.is_dir()]
    if classes:
        if len(children) != catalog.IMAGENET_CLASSES:
            raise ValueError(
                f"{folder} holds {len(children)} class folders, not ImageNet's {catalog.IMAGENET_CLASSES}, so that "
                "their order does not give ImageNet's indices; give the whole of ImageNet"
            )
        children = [children[index] for index in classes]
    listed = {}
    for child in children:
        paths, others = _walk(child)
        if not paths:
            raise ValueError(
                f"class folder {child} holds 0 pictures ({len(others)} other files; {_known()} are read); fill it or "
                "remove it"
            )
        listed[child.name] = paths
        left_out += others
    if not listed:
        raise ValueError(f"{folder} holds 0 class folders; put the pictures in {folder}/CLASS/")
    return listed


def _known() -> str:
    return " ".join(sorted(SUFFIXES))


def _walk(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """All pictures at any depth, in torchvision's order, and all other files; neither what is hidden."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"cannot list {error.filename} ({error.strerror}); make it readable or remove it") from error

    found, others = [], []
    # os.walk passes over what it cannot list unless it is told whom to ask.
    for place, inner, names in os.walk(folder, followlinks=True, onerror=refuse):
        # In place: os.walk goes into what is left in this list.
        inner[:] = [name for name in inner if name[0] != "."]
        # It follows a link to a folder around it for ever.
        real = os.path.realpath(place)
        for link in (os.path.join(place, name) for name in inner):
            if os.path.islink(link) and os.path.commonpath([real, os.path.realpath(link)]) == os.path.realpath(link):
                raise ValueError(f"{link} is a link back to a folder around it; remove it")
        for name in names:
            if name[0] == "." or name.lower() in _UNSAID:
                continue
            path = pathlib.Path(place, name)
            if path.suffix.lower() in SUFFIXES:
                _require_file(path)
                found.append(path)
            else:
                others.append(path)
    return sorted(found, key=lambda path: (str(path.parent), path.name)), others


def _require_file(path: pathlib.Path) -> None:
    """Refuses what would never come to an end when it is read, or is not there."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        what = "a link to nothing" if path.is_symlink() else f"not readable ({error.strerror})"
        raise ValueError(f"{path} is {what}; mend or remove it") from error
    if not stat.S_ISREG(kind):
        raise ValueError(f"{path} is no file but a pipe or a device; remove it")


def _common_mode(paths: list[pathlib.Path], *, one_size: bool, upright: bool) -> str:
    """Returns "L" or "RGB", once every picture's mode and, where it matters, size are seen to fit."""
    first, modes = None, set()
    # One mode for both splits: a grey test split of a set in colour would have other channels.
    for path in paths:
        size, mode = _open(path, lambda picture: decoding.look(picture, upright=upright))
        first = first or size
        if one_size and size != first:
            raise ValueError(
                f"{path} is {size[0]} x {size[1]} pixels but {paths[0]} is {first[0]} x {first[1]}; "
                "resize all pictures to one size, or give image_size"
            )
        modes.add(mode)
    return "L" if modes <= decoding.GREY_MODES else "RGB"


def _read_split(
    classes: dict[str, list[pathlib.Path]], decode: Callable[[PIL.Image.Image], np.ndarray], progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    from tqdm import tqdm

    counts = [len(paths) for paths in classes.values()]
    every = [path for paths in classes.values() for path in paths]
    # The first picture gives the shape; all are decoded into one array, since a list of them would take twice the room.
    images = decoding.allocate(len(every), _open(every[0], decode).shape)
    for i, path in enumerate(tqdm(every, desc="decode pictures", disable=not progress)):
        images[i] = _open(path, decode)
    return images, np.repeat(np.arange(len(counts)), counts)


def _open(path: pathlib.Path, read: Callable[[PIL.Image.Image], _Answer]) -> _Answer:
    return open_picture(path, read, name=path)


def open_picture(
    source: pathlib.Path | IO[bytes], read: Callable[[PIL.Image.Image], _Answer], *, name: object
) -> _Answer:
    """Opens a picture, reads it, and calls whatever Pillow raises by the picture's name.

    Args:
      source: the file, or its bytes as a stream.
      read: gives what is wanted of the opened picture.
      name: what an error calls it.

    Returns:
      What ``read`` gives.

    Raises:
      ValueError: if it is unreadable, too large or not 8-bit.
    """
    import PIL.Image

    try:
        with PIL.Image.open(source, formats=decoding.FORMATS) as picture:
            return read(picture)
    except decoding.UnfitError as error:
        raise ValueError(f"{name} {error}") from error
    except (PIL.Image.DecompressionBombError, MemoryError) as error:
        raise ValueError(
            f"{name} is larger than can be opened ({error or 'out of memory'}); make it smaller"
        ) from error
    except (OSError, SyntaxError, ValueError, RecursionError) as error:  # What Pillow raises for damaged files.
        raise ValueError(f"{name} is no readable picture ({error}); replace or remove it") from error
