"""Sets for other people's loaders: folders of pictures by several conventions, WebDataset tars, safetensors, Flax.

Pictures hold 8 bits a number: distilled pixels outside [0, 1] are cut off, and soft labels and step sizes are not in
them. Each writer says by its return value how much is cut.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import re
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np

from metadd_jax import files, structs
from metadd_jax.exchange import checks, peer_arrays, pixels
from metadd_jax.exchange.cards import data_card
from metadd_jax.storage import folder

_SHARD = 1000  # samples of a tar


@dataclasses.dataclass(frozen=True)
class _Style:
    """Where a picture lies, from its class, the class's name and its number within the class; and how it is packed."""

    place: Callable[[int, str, int], str]
    options: dict[str, Any]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:200]


# JPEG at its finest: SRe2L's and RDED's programs write Pillow's default, quality 75 with halved colours.
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
STYLES: dict[str, _Style] = {
    "sre2l": _Style(lambda label, name, number: f"new{label:03d}/class{label:03d}_id{number:03d}.jpg", _JPEG),
    "rded": _Style(lambda label, name, number: f"{label:05d}/class{label:05d}_id{number:05d}.jpg", _JPEG),
    "huggingface": _Style(
        lambda label, name, number: f"train/{label:05d}_{_plain(name)}/{number:05d}.png", {"format": "PNG"}
    ),
}
"""Conventions of folders of pictures, by name."""


def export_pictures(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    style: str,
    overwrite: bool = False,
) -> float:
    """Writes a folder of 8-bit pictures as a peer's program has it, whole or not at all.

    Args:
      directory: the folder to make. Beside the pictures: ``manifest.json``, which loaders of pictures pass over; for
        Hugging Face ``README.md``, a data card with a head in YAML.
      synthetic: the set, 1 or 3 channels.
      metadata: see ``checks.check_set``.
      style: "sre2l" (``new003/class003_id000.jpg``), "rded" (``00003/class00003_id00000.jpg``), both JPEG of quality
        95 without halved colours, or "huggingface" (``train/00003_cat/00000.png``, lossless).
      overwrite: replace a folder that this function wrote.

    Returns:
      The share (0..1) of pixel values that 8 bits clip; JPEG's own error comes on top.

    Raises:
      ValueError: if the folder exists, a style's digits do not suffice, or the set is unfit.
    """
    eight, clipped = pixels.to_eight_bits(synthetic, metadata)
    labels, names = np.asarray(synthetic.labels), list(metadata["class_names"])
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        raise ValueError(
            f"class {names[int(np.argmin(counts))]} has no image, so that loaders would renumber the others"
        )
    most = max(len(names), int(counts.max()))
    if style == "sre2l" and most > 1000:
        raise ValueError(f"sre2l numbers with three digits, and the set has {most} classes or images a class; use rded")
    chosen = STYLES[style]
    with folder.whole_folder(directory, overwrite=overwrite) as partial:
        for label, name in enumerate(names):
            for number, image in enumerate(eight[labels == label]):
                path = partial / chosen.place(label, name, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels.picture(image).save(path, **chosen.options)
        if style == "huggingface":
            files.write_text(partial / "README.md", data_card(synthetic, metadata, clipped))
        folder.seal(partial)
    return clipped


def export_webdataset(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> float:
    """Writes a WebDataset: ``set-000000.tar`` and so on, of a thousand samples each, whole or not at all.

    A sample is ``KEY.png`` (8 bits), ``KEY.cls`` (the class as text) and, of a set with soft labels, ``KEY.soft.npy``
    (float32 probabilities). Samples are in the set's order, class by class: shuffle across all of them. The same set
    gives the same bytes.

    Args:
      directory: the folder to make; ``facts.json`` has the metadata.
      synthetic: the set, 1 or 3 channels.
      metadata: see ``checks.check_set``.
      overwrite: replace a folder that this function wrote.

    Returns:
      The share (0..1) of pixel values that 8 bits clip.

    Raises:
      ValueError: if the folder exists, or the set is unfit.
    """
    eight, clipped = pixels.to_eight_bits(synthetic, metadata)
    labels = np.asarray(synthetic.labels)
    soft = None if synthetic.soft_labels is None else np.asarray(synthetic.soft_labels, np.float32)
    with folder.whole_folder(directory, overwrite=overwrite) as partial:
        for first in range(0, len(eight), _SHARD):
            with tarfile.open(partial / f"set-{first // _SHARD:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
                for number in range(first, min(first + _SHARD, len(eight))):
                    image, stream = eight[number], io.BytesIO()
                    pixels.picture(image).save(stream, "png")
                    _add(archive, f"{number:08d}.png", stream.getvalue())
                    _add(archive, f"{number:08d}.cls", str(int(labels[number])).encode())
                    if soft is not None:
                        array = io.BytesIO()
                        np.save(array, soft[number])
                        _add(archive, f"{number:08d}.soft.npy", array.getvalue())
        facts = {name: value for name, value in metadata.items() if not name.startswith("zca_")}
        files.write_json(partial / "facts.json", files.plain(facts))
        folder.seal(partial)
    return clipped


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time and no owner: the same set gives the same bytes
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def export_safetensors(
    file: str | os.PathLike, synthetic: structs.SyntheticSet, metadata: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a set as safetensors: the arrays of ``export_npz`` and, in the header, what they are. Exact.

    Args:
      file: the file to write: ``images`` [N, H, W, C] float32, ``labels`` [N] int64, and where the set has them
        ``soft_labels``, ``learning_rate``, ``zca_mean`` and ``zca_inverse``.
      synthetic: the set.
      metadata: see ``checks.check_set``; all but the matrices stands in the header as JSON under "metadd_jax".
      overwrite: replace a file that this function wrote.

    Raises:
      ValueError: if safetensors is missing, a file exists that may not be replaced, or the set is unfit.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ValueError("safetensors is missing; run: pip install safetensors") from error
    path = pathlib.Path(file).expanduser().absolute()
    checks.refuse_existing(path, overwrite=overwrite, is_ours=_is_ours)
    checks.check_set("the set", synthetic, metadata)
    arrays = {"images": np.asarray(synthetic.images, np.float32), "labels": np.asarray(synthetic.labels, np.int64)}
    for name in ("soft_labels", "learning_rate"):
        if getattr(synthetic, name) is not None:
            arrays[name] = np.asarray(getattr(synthetic, name), np.float32)
    if metadata["value_space"] == "zca":
        arrays |= {name: np.asarray(metadata[name], np.float32) for name in ("zca_mean", "zca_inverse")}
    facts = files.plain({name: value for name, value in metadata.items() if not name.startswith("zca_")})
    with files.atomic_path(path) as temporary:
        # Rows as they lie in memory: of a transposed array the library would write what it is a view of.
        plain = {name: np.array(array, order="C") for name, array in arrays.items()}
        safetensors.numpy.save_file(plain, temporary, metadata={peer_arrays.HEADER: json.dumps(facts)})


def _is_ours(path: pathlib.Path) -> bool:
    try:
        return bool(peer_arrays.read_safetensors(path).said)
    except ValueError:
        return False


def export_regression(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a set for the programs of kernel regression, whole or not at all: FRePo, RCIG, KIP.

    ``checkpoint_0`` is a Flax checkpoint with ``params`` (FRePo reads these) and ``ema_average`` (RCIG), each
    ``x_proto`` [N, H, W, C] and ``y_proto`` [N, K]; ``kip.npz`` has the same as ``images`` and ``labels``. Labels are
    probabilities less 1 / K, one-hot ones of a set with hard labels.

    Args:
      directory: the folder to make.
      synthetic: the set.
      metadata: see ``checks.check_set``; it goes into ``facts.json``.
      overwrite: replace a folder that this function wrote.

    Raises:
      ValueError: if the folder exists, the set is whitened (theirs is another whitening), or it is unfit.
    """
    from flax import serialization

    checks.check_set("the set", synthetic, metadata)
    if metadata["value_space"] != "standardised":
        raise ValueError("FRePo, RCIG and KIP whiten in another way than MTT, so a whitened set means nothing to them")
    classes = len(metadata["class_names"])
    soft = np.eye(classes)[np.asarray(synthetic.labels)] if synthetic.soft_labels is None else synthetic.soft_labels
    images, targets = np.asarray(synthetic.images, np.float32), (np.asarray(soft) - 1 / classes).astype(np.float32)
    held = {"x_proto": images, "y_proto": targets}
    with folder.whole_folder(directory, overwrite=overwrite) as partial:
        content = serialization.msgpack_serialize({"step": 0, "params": held, "ema_average": held})
        (partial / "checkpoint_0").write_bytes(content)
        np.savez(partial / "kip.npz", images=images, labels=targets)
        files.write_json(partial / "facts.json", files.plain(metadata))
        folder.seal(partial)
