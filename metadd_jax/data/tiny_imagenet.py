"""Tiny-ImageNet for TensorFlow Datasets: reads the original download, writes an ArrayRecord, needs no TensorFlow.

Import this module by name: it needs ``tensorflow_datasets``, which the rest of the library does without.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import tensorflow_datasets as tfds

from metadd_jax import files
from metadd_jax.data import prepared

SIDE = 64
_TOP = "tiny-imagenet-200/"
_FACTS = ("wnids.txt", "words.txt", "val/val_annotations.txt")
_MEND = "download and unpack tiny-imagenet-200.zip again"


class Original(NamedTuple):
    """The original download, its classes and counts checked.

    Attributes:
      class_names: one name a class, such as "n01443537 goldfish", in label order: that of the sorted WordNet ids,
        as torchvision's ImageFolder numbers the folders (the lines of ``wnids.txt`` have another order).
      train: path and label of each training image.
      validation: path and label of each validation image.
      read: gives the bytes of the file at a path; a ValueError names what cannot be read.
    """

    class_names: list[str]
    train: list[tuple[str, int]]
    validation: list[tuple[str, int]]
    read: Callable[[str], bytes]


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny-ImageNet-200 under the TFDS name ``tiny_imagenet``: the JPEGs go over byte for byte.

    ``validation`` is the labelled split to test on, as in the whole field: the labels of the original test images
    are not public, so these are left out. Once prepared, the set is read without this class
    (``metadd_jax.data.load``, ``tfds.builder_from_directory``).
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, original: Original, **options: object) -> None:
        # Before TFDS's own __init__, which asks _info for the class names.
        self._original = original
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=self._original.class_names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny-ImageNet: 64x64 images of 200 ImageNet classes, labels in the order of the WordNet ids.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        splits = {"train": self._original.train, "validation": self._original.validation}
        return {split: self._generate_examples(images) for split, images in splits.items()}

    def _generate_examples(self, images: list[tuple[str, int]]) -> Iterator[tuple[str, dict]]:
        for path, label in images:
            content = self._original.read(path)
            _check_image(content, path)
            # TFDS passes bytes through; only arrays would send it to TensorFlow's encoders.
            yield path, {"image": content, "label": label}


def prepare(source: str | os.PathLike, data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Writes ``tiny_imagenet`` for ``data.load``, whole or not at all; TFDS shows its bars meanwhile.

    Every image is decoded once, so that a damaged one is found here. The original holds 200 classes of 500 training
    and 50 validation images; what counts here is what the source itself lists in ``wnids.txt`` and
    ``val_annotations.txt``, and that every class has equally many images.

    Args:
      source: ``tiny-imagenet-200.zip``, or the folder that it unpacks to (or the one around that).
      data_dir: where TFDS sets lie; None stands for $TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Returns:
      The folder of the prepared set, DATA_DIR/tiny_imagenet/VERSION.

    Raises:
      ValueError: if the source is absent, incomplete or damaged, or the set is there already.
    """
    root = prepared.root(data_dir).absolute()
    folder = root / "tiny_imagenet" / str(TinyImagenet.VERSION)
    # Before the survey, which takes a minute.
    if folder.exists():
        raise ValueError(f"{folder} is there already; load it, move it away, or give another --data-dir")
    with open_original(source) as original, tempfile.TemporaryDirectory() as unused:
        files.require_writable(root)
        builder = TinyImagenet(original=original, data_dir=root, file_format="array_record")
        # TFDS makes a folder for downloads even where there are none.
        builder.download_and_prepare(download_dir=unused)
    return folder


@contextlib.contextmanager
def open_original(source: str | os.PathLike) -> Iterator[Original]:
    """Opens the original download and checks it, all but the images themselves.

    Args:
      source: see ``prepare``.

    Yields:
      The download, readable until the block ends.

    Raises:
      ValueError: if it is absent or no such download, or its lists and its images do not fit together.
    """
    source = pathlib.Path(source).expanduser()
    if source.is_dir():
        yield _survey_folder(source)
    elif source.is_file():
        try:
            archive = zipfile.ZipFile(source)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{source} is no readable zip archive ({error}); {_MEND}") from error
        with archive:
            yield _survey_zip(source, archive)
    else:
        raise ValueError(f"there is no {source}; give tiny-imagenet-200.zip or the folder that it unpacks to")


def _survey_folder(source: pathlib.Path) -> Original:
    top = source / _TOP if (source / _TOP).is_dir() else source
    paths = [path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()]
    return _survey(source, paths, lambda path: (top / path).read_bytes())


def _survey_zip(source: pathlib.Path, archive: zipfile.ZipFile) -> Original:
    top = _TOP if any(name.startswith(_TOP) for name in archive.namelist()) else ""
    paths = [name.removeprefix(top) for name in archive.namelist() if name.startswith(top)]
    return _survey(source, paths, lambda path: archive.read(top + path))


def _survey(source: pathlib.Path, paths: Iterable[str], read_bytes: Callable[[str], bytes]) -> Original:
    """Turns the list of all files (paths below the top folder) into labelled images."""
    found = set(paths)
    if missing := [path for path in _FACTS if path not in found]:
        raise ValueError(f"{source} holds no {', '.join(missing)}; give tiny-imagenet-200.zip or its folder")

    def read(path: str) -> bytes:
        try:
            return read_bytes(path)
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} of {source} cannot be read ({error}); {_MEND}") from error

    wnids, words, annotations = (_lines(read(path)) for path in _FACTS)
    # By the sorted ids, as ImageFolder (MTT) numbers the folders; the lines of wnids.txt have another order.
    labels = {wnid: label for label, (wnid, *_) in enumerate(sorted(wnids))}
    names = {wnid: name for wnid, name, *_ in (line for line in words if len(line) > 1)}
    # words.txt names all of WordNet, so a class without a line there has an id that is none.
    if nameless := sorted(labels.keys() - names.keys()):
        raise ValueError(f"words.txt of {source} names {len(nameless)} classes not, such as {nameless[0]}; {_MEND}")
    pictures = sorted(path.split("/") for path in found if path.lower().endswith((".jpeg", ".jpg")))
    # Hidden files are those that macOS adds to what it packs (._n01443537_0.JPEG): no pictures.
    train = [
        ("/".join(parts), parts[1])
        for parts in pictures
        if len(parts) == 4 and (parts[0], parts[2]) == ("train", "images") and not parts[3].startswith(".")
    ]
    validation = [(f"val/images/{file}", wnid) for file, wnid, *_ in annotations]
    present = sum(parts[:2] == ["val", "images"] and parts[-1][0] != "." for parts in pictures)
    # Both ways: an image that no line names has no label, and a line without its image is a download that broke off.
    absent = sum(path not in found for path, _ in validation)
    if absent or present != len(validation):
        raise ValueError(
            f"{source} holds {present} images in val/images but val_annotations.txt lists {len(validation)} of which "
            f"{absent} are absent; {_MEND}"
        )
    _check_counts(source, "training", train, labels)
    _check_counts(source, "validation", validation, labels)
    return Original(
        # WordNet lists synonyms; the first is the usual word.
        class_names=[f"{wnid} {names[wnid].split(',')[0]}" for wnid in labels],
        train=[(path, labels[wnid]) for path, wnid in train],
        validation=[(path, labels[wnid]) for path, wnid in validation],
        read=read,
    )


def _lines(content: bytes) -> list[list[str]]:
    """The tab-separated fields of all lines that are not empty."""
    return [line.split("\t") for line in content.decode(errors="replace").splitlines() if line.strip()]


def _check_counts(source: pathlib.Path, split: str, images: list[tuple[str, str]], labels: dict[str, int]) -> None:
    counts = collections.Counter(wnid for _, wnid in images)
    if counts.keys() != labels.keys():
        odd = min(counts.keys() ^ labels.keys())
        raise ValueError(
            f"{source} lists {len(labels)} classes in wnids.txt but holds {split} images of {len(counts)}, "
            f"the first difference is {odd}; {_MEND}"
        )
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] != counts[most]:
        raise ValueError(
            f"{source} holds {counts[fewest]} {split} images of {fewest} but {counts[most]} of {most}, where all "
            f"classes have equally many; {_MEND}"
        )


def _check_image(content: bytes, path: str) -> None:
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:
            picture.load()  # to open reads the head alone: a picture cut off in the middle would pass
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is no readable picture ({type(error).__name__}); {_MEND}") from error
    if picture.format != "JPEG" or picture.size != (SIDE, SIDE):
        raise ValueError(f"{path} is {picture.format} of {picture.size}, not a JPEG of {(SIDE, SIDE)}; {_MEND}")
