"""Sets that are pictures: folders of classes (SRe2L, RDED, CV-DD, imagefolder, ours) and WebDataset's tars.

A picture's numbers are pixels in [0, 1] whoever wrote it, so these formats fix their value space; the constants that a
network then sees are those of the real data (``tiny_imagenet_sre2l``, ``cifar10_rded`` have those of their programs).
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import pathlib
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from metadd_jax import files
from metadd_jax.data import decoding, folders
from metadd_jax.exchange.peer import Peer

_LARGEST = 1 << 26  # bytes of a picture's file within an archive
_MOST = 10_000_000  # pictures of an archive

Picture = tuple[str, Callable[[], Any]]
"""What to call a picture in an error, and what gives its bytes or path."""


def read_folder(folder: pathlib.Path) -> Peer:
    """Reads a folder with a folder of pictures a class, or with such a folder called ``train``.

    Classes are numbered by their names as text, as torchvision's and Hugging Face's loaders do; ``settle`` goes by the
    names where they are those of the data.

    Args:
      folder: the folder; stored labels beside it (FKD) are not read.

    Raises:
      ValueError: if it holds no such folders, names of numbers sort as text in another order than as numbers, or a
        picture is unreadable or of another size.
    """
    top = folder / "train" if (folder / "train").is_dir() and not _classes(folder, but="train") else folder
    classes = _classes(top)
    if not classes:
        raise ValueError(f"{folder} holds no folders of pictures, one a class; give the folder that does")
    names = [place.name for place in classes]
    _refuse_unpadded(folder, names)
    listed = [_pictures(place) for place in classes]
    pictures = [(str(path), functools.partial(pathlib.Path, path)) for paths in listed for path in paths]
    ranks: Sequence[int] = range(len(names))
    said: dict[str, Any] = {"folders": names}
    if (top / "classes.json").is_file():
        said, ranks = _described(top / "classes.json", names)
    notes = []
    stored = sorted(place.name for place in {*folder.glob("FKD*"), *folder.parent.glob("FKD*")} if place.is_dir())
    if stored:
        notes.append(
            f"the stored labels in {stored[0]} are not replayed (they belong to one order of PyTorch's sampler); "
            "--labels teacher:NET makes such labels batch by batch"
        )
    labels = np.repeat(np.array(ranks), [len(paths) for paths in listed])
    images = _decode(pictures)
    return Peer(
        source=folder, format="images", images=images, labels=labels, space="pixels", said=said, notes=tuple(notes)
    )


def read_webdataset(place: pathlib.Path) -> Peer:
    """Reads a WebDataset: tar archives whose members ``KEY.png`` and ``KEY.cls`` are an image and its class.

    Args:
      place: a ``.tar``, or a folder of such.

    Raises:
      ValueError: if an archive is damaged, holds something else, or more than can be opened.
    """
    archives = sorted(place.glob("*.tar")) if place.is_dir() else [place]
    pictures: list[Picture] = []
    labels: list[int] = []
    for archive in archives:
        if not archive.is_file():
            raise ValueError(f"{archive} has an archive's name and is no file; remove it")
        for key, image, label in _samples(archive):
            pictures.append((key, functools.partial(io.BytesIO, image)))
            labels.append(label)
    if not pictures:
        raise ValueError(f"{place} holds no pair of a picture and a .cls; give a WebDataset of images and classes")
    return Peer(source=place, format="webdataset", images=_decode(pictures), labels=np.array(labels), space="pixels")


def _classes(folder: pathlib.Path, *, but: str = "") -> list[pathlib.Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != "." and path.name != but)
    # Folders of something else (FKD labels, teachers) hold no pictures, and are no classes.
    return sorted((path for path in found if _pictures(path)), key=lambda path: path.name)


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    found = []
    for path in folder.iterdir():
        if path.suffix.lower() in folders.SUFFIXES and path.name[0] != ".":
            if not path.is_file():
                raise ValueError(f"{path} has a picture's name and is no file; remove it")
            found.append(path)
    return sorted(found, key=lambda path: path.name)


def _refuse_unpadded(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Refuses numbered folders whose order as text is not their order as numbers: every label would be another's."""
    numbers = [re.fullmatch(r"(\D*)(\d+)", name) for name in names]
    heads = {match[1] for match in numbers if match}
    if not all(numbers) or len(heads) != 1:
        return
    values = [int(match[2]) for match in numbers if match]
    if values != sorted(values):
        first = next(i for i, pair in enumerate(itertools.pairwise(values)) if pair[0] > pair[1])
        raise ValueError(
            f"the class folders of {folder} are numbered without zeros in front ({names[first]} sorts before "
            f"{names[first + 1]}), so that loaders permute the labels; rename them, {names[first + 1]!r} to "
            f"{next(iter(heads))}{values[first + 1]:05d}"
        )


def _described(file: pathlib.Path, there: list[str]) -> tuple[dict[str, Any], list[int]]:
    """What ``classes.json`` of our export says: the class names, and the label of each folder that is there."""
    content = files.read_json(file)
    if not isinstance(content, dict) or not set(there) <= content.keys():
        raise ValueError(f"{file} does not name the folders beside it; restore or remove it")
    # A class without an image has no pictures, and a name all the same.
    order = sorted(content)
    return {"class_names": [str(content[name]) for name in order]}, [order.index(name) for name in there]


def _samples(archive: pathlib.Path) -> Iterator[tuple[str, bytes, int]]:
    # tarfile ends without a word where an archive was cut off; a whole one ends with an empty block.
    with open(archive, "rb") as whole:
        whole.seek(-min(512, archive.stat().st_size), os.SEEK_END)
        if whole.read() != bytes(512):
            raise ValueError(f"{archive} is no whole tar archive (its end is missing); restore it")
    image: tuple[str, bytes] | None = None
    label: tuple[str, int] | None = None
    try:
        with tarfile.open(archive, "r:") as content:
            for count, member in enumerate(content):
                if not member.isfile():
                    continue
                if member.size > _LARGEST or count > _MOST:
                    raise ValueError(f"{member.name} in {archive} is larger than can be opened ({member.size:,} bytes)")
                key, _, kind = member.name.rpartition(".")
                stream = content.extractfile(member)
                data = b"" if stream is None else stream.read()
                if f".{kind.lower()}" in folders.SUFFIXES:
                    image = (key, data)
                elif kind == "cls":
                    label = (key, _class(archive, member.name, data))
                # The members of one sample follow each other, in any order.
                if image and label and image[0] == label[0]:
                    yield f"{image[0]} in {archive}", image[1], label[1]
                    image = label = None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{archive} is no readable tar archive ({error}); restore it") from error


def _class(archive: pathlib.Path, name: str, data: bytes) -> int:
    try:
        return int(data.decode("ascii"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} in {archive} is no class number ({data[:20]!r}); restore it") from error


def _decode(pictures: Sequence[Picture]) -> np.ndarray:
    """[N, H, W, C] float32 pixels in [0, 1], once sizes and modes of all are seen to fit into memory."""
    heads = [_open(picture, lambda opened: decoding.look(opened, upright=False)) for picture in pictures]
    (size, _), names = heads[0], [name for name, _ in pictures]
    for name, (other, _) in zip(names, heads, strict=True):
        if other != size:
            raise ValueError(f"{name} is {other[0]} x {other[1]} pixels but {names[0]} is {size[0]} x {size[1]}")
    mode = "L" if {head[1] for head in heads} <= decoding.GREY_MODES else "RGB"
    pixels = decoding.allocate(len(pictures), (size[1], size[0], 1 if mode == "L" else 3))
    for row, picture in enumerate(pictures):
        pixels[row] = _open(picture, lambda opened: decoding.to_array(opened, mode, None))
    return pixels / np.float32(255)


def _open(picture: Picture, read: Callable[[Any], Any]) -> Any:
    import PIL.Image

    name, source = picture
    with warnings.catch_warnings():
        # Large pictures are meant; beyond twice that size Pillow refuses them.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        return folders.open_picture(source(), read, name=name)
