"""Every peer's file by one call: tells the format by what is there, and reads it.

Formats: "dc" (DC, DSA, DM, DataDAM), "mtt" (MTT, TESLA, DATM, GLaD), "ddranking", "idc" (IDC, NCFM), "tensordataset"
(PyTorch); "images" (SRe2L, RDED, CV-DD, imagefolder), "webdataset"; "npz" (plain, KIP), "frepo" (FRePo, RCIG),
"safetensors", "tfds" (ArrayRecord). Nothing of a file is run, and no room is made for what it merely claims to hold.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from metadd_jax import ranges
from metadd_jax.exchange import peer_arrays, peer_pictures, peer_records, peer_torch
from metadd_jax.exchange.peer import Peer
from metadd_jax.exchange.peer_records import records_of

_TORCH = ("dc", "mtt", "ddranking", "idc", "tensordataset")
_READERS: dict[str, Callable[[pathlib.Path], Peer]] = {
    "images": peer_pictures.read_folder,
    "webdataset": peer_pictures.read_webdataset,
    "npz": peer_arrays.read_npz,
    "safetensors": peer_arrays.read_safetensors,
    "frepo": peer_arrays.read_checkpoint,
    "tfds": peer_records.read,
}
FORMATS = (*_TORCH, *_READERS)
"""The formats that ``load_peer`` reads, by name."""


def load_peer(place: str | os.PathLike, *, format: str | None = None) -> list[Peer]:
    """Reads the sets of a peer's file, as the file holds them; ``settle`` brings them to a data set.

    Args:
      place: the file or folder.
      format: one of ``FORMATS``; None tells it by what is there.

    Returns:
      The sets: one, or several of a file of DC's with several runs.

    Raises:
      ValueError: if a library is missing, or the file is missing, damaged, of no known format or not of ``format``.
    """
    path = pathlib.Path(place).expanduser().absolute()
    if format is not None:
        ranges.require("format", format, ranges.OneOf(FORMATS))
    if not path.exists():
        raise ValueError(f"no file at {path}; check the path")
    if not (path.is_file() or path.is_dir()):  # whoever opened it would wait for what never comes
        raise ValueError(f"{path} is a pipe or a device; give a file or a folder")
    found = recognise(path)
    if found is None and format is None:
        raise ValueError(f"{path} is of no format that is read here ({', '.join(FORMATS)}); name one by --format")
    if format is not None and format not in _TORCH:
        if found not in (None, format) and found in _READERS:
            raise ValueError(f"{path} is of the format {found}, not {format}; give --format {found}, or auto")
        if found == "torch":
            raise ValueError(f"{path} is a PyTorch file, not {format}; give --format auto")
        return [_READERS[format](path)]
    if found is None or found == "torch":
        return peer_torch.read(path, format)
    if format is not None:
        raise ValueError(f"{path} is of the format {found}, not {format}; give --format {found}, or auto")
    return [_READERS[found](path)]


def recognise(path: pathlib.Path) -> str | None:
    """Tells the kind of a peer's file by what is there: one of ``FORMATS``, "torch" for any of PyTorch's, or None.

    Args:
      path: a file or folder that exists.
    """
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_folder(folder: pathlib.Path) -> str | None:
    if any((folder / name).is_file() for name in peer_torch.FOLDER):
        return "torch"
    if records_of(folder) is not None:
        return "tfds"
    if any(folder.glob("checkpoint_*")):
        return "frepo"
    if any(folder.glob("*.tar")):
        return "webdataset"
    return "images" if any(entry.is_dir() for entry in folder.iterdir()) else None


def _of_file(file: pathlib.Path) -> str | None:
    by_name = {".safetensors": "safetensors", ".npz": "npz", ".pt": "torch", ".pth": "torch"}
    if file.suffix in by_name:
        return by_name[file.suffix]
    with open(file, "rb") as stream:
        head = stream.read(512)
    # A .tar may be PyTorch's archive (SRe2L's labels), and checkpoints have no suffix: the first bytes tell.
    if head[:2] == b"PK":
        return "torch"
    if head[257:262] == b"ustar":
        return "webdataset"
    # MessagePack's map of a few entries, as Flax writes states.
    return "frepo" if head[:1] and (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)) else None
