"""What ``metadd evaluate`` judges: a set of ours with its own data, or a peer's file brought to named data."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import metadd_jax as mdd
from metadd_jax import distillers, exchange
from metadd_jax.exchange import peers
from metadd_jax.job import bundle, common


class Source(NamedTuple):
    """Where a set is and what the user says of it.

    Attributes:
      file: the file or folder.
      format: one of ``exchange.peers.FORMATS``, "metadd", or "auto".
      space: the value space of a peer's numbers (see ``exchange.space_of``), or None.
      factor: cells a side of a packed image, or None.
      which: of a file with several sets "last", "all" or a number from 0 on.
      labels: how a peer's labels are read (see ``exchange.settle``), or None.
      learning_rate: the learned step size where the file has none, or None.
      image_size: side that the real images of a peer's set are brought to, or None.
    """

    file: str
    format: str = "auto"
    space: str | None = None
    factor: int | None = None
    which: str = "last"
    labels: str | None = None
    learning_rate: float | None = None
    image_size: int | None = None

    @classmethod
    def of(cls, config: Any, *, format: str) -> Source:
        """Takes what a command's options say of its file.

        Args:
          config: the options of ``metadd evaluate`` or ``metadd export``, which call these alike.
          format: what the command was told that the file is.
        """
        return cls(
            config.file, format, config.space, config.factor, config.set, config.file_labels, config.learning_rate,
            config.image_size,
        )  # fmt: skip

    @property
    def said(self) -> list[str]:
        """The options that speak of a peer's file."""
        given = {
            "--space": self.space,
            "--factor": self.factor,
            "--set": None if self.which == "last" else self.which,
            "--file-labels": self.labels,
            "--learning-rate": self.learning_rate,
            "--image-size": self.image_size,
        }
        return [name for name, value in given.items() if value is not None]


def is_ours(source: Source) -> bool:
    """Tells a set that this package wrote, which says everything itself, from a peer's file.

    Args:
      source: where it is; ``format`` "metadd" or a peer's decides by itself.
    """
    if source.format != "auto":
        return source.format == "metadd"
    path = pathlib.Path(source.file).expanduser()
    if not path.exists():
        return not source.said  # the error then speaks of a missing set
    if path.is_dir():
        ours = (path / "synthetic.npz").exists() or bool(common.sets_inside(path))
        return ours or peers.recognise(path) is None
    return exchange.arrays.is_set_file(path) if path.suffix == ".npz" else bundle.is_bundle(path)


def load(
    source: Source, *, dataset: str | None, data_dir: str | None = None, cache_dir: str | None = None
) -> tuple[list[mdd.SyntheticSet], mdd.Dataset, list[str], dict[str, Any]]:
    """Loads a set, or those of a peer's file, and the real data that it is judged on.

    Args:
      source: where it is and what is said of it.
      dataset: the real data; a peer's file needs it, ours names its own.
      data_dir: where prepared TFDS data lies.
      cache_dir: where decoded images are kept.

    Returns:
      The sets, the data in their value space, lines that a user should read, and what is said beside the sets: ours say
      much; of a peer's set what ``exchange.check_set`` asks for, and "ipc", [K], the images of each class that are
      stored, which are fewer where it was packed.

    Raises:
      ValueError: if the file is missing, damaged or does not belong to the data, or what it does not say is not said.
    """
    if is_ours(source):
        if source.said:
            raise ValueError(f"{source.said[0]} is for files of others; {source.file} says itself what it holds")
        synthetic, metadata = common.load_set(source.file)
        real = common.real_data(metadata, name=dataset, data_dir=data_dir, cache_dir=cache_dir)
        return [synthetic], real, [], metadata
    found = exchange.load_peer(source.file, format=None if source.format == "auto" else source.format)
    chosen = _chosen(found, source.which)
    # Before the data, which takes long to load: what nobody says is refused first.
    space = exchange.space_of(chosen[0], source.space)
    if dataset is None:
        raise ValueError(f"{source.file} does not say which data it was made from; name it by --dataset")
    unpacked = [unpack(peer, factor=source.factor) for peer in chosen]
    real = mdd.data.load(
        dataset, image_size=source.image_size, zca=space == "zca", data_dir=data_dir, cache_dir=cache_dir
    )
    if space == "zca_frepo":
        real = mdd.data.whiten(real, kind="frepo")
    sets = []
    for peer in unpacked:
        synthetic, metadata = exchange.settle(
            peer, real, space=source.space, labels=source.labels, learning_rate=source.learning_rate
        )
        exchange.check_belongs(metadata, real, other_data=True)
        sets.append(synthetic)
    packed = len(unpacked[0].images) // len(chosen[0].images)
    counts = np.bincount(np.asarray(sets[0].labels), minlength=real.num_classes)
    return (
        sets,
        real,
        _told(found, unpacked, space, sets[0]),
        metadata
        | {
            "ipc": (counts // packed).tolist(),
            "image_size": source.image_size,
        },
    )


def _chosen(found: list[exchange.Peer], which: str) -> list[exchange.Peer]:
    if which == "all":
        return found
    if which == "last":
        return found[-1:]
    if not which.isdecimal() or int(which) >= len(found):
        raise ValueError(
            f"--set {which}: {found[0].source} holds {len(found)} sets; give 0..{len(found) - 1}, last or all"
        )
    return [found[int(which)]]


def unpack(peer: exchange.Peer, *, factor: int | None = None) -> exchange.Peer:
    """Decodes the images of a packed set (IDC, NCFM) in pixels, where their programs pad with 0.5.

    Args:
      peer: any set of a peer's; one that is not packed is returned as it is.
      factor: cells a side of each packed image, where the file does not say.

    Returns:
      The set with its images decoded, and labels for each of them.

    Raises:
      ValueError: if nobody says the factor, or the caller contradicts the file.
    """
    if not peer.packed:
        if factor is not None:
            raise ValueError(f"--factor {factor}: {peer.source} is of the format {peer.format}, which packs nothing")
        return peer
    if peer.factor is not None and factor not in (None, peer.factor):
        raise ValueError(f"--factor {factor}: {peer.source} says {peer.factor} itself; leave --factor out")
    size = peer.factor or factor
    if size is None:
        raise ValueError(
            f"{peer.source} does not say how many images each of its holds; add --factor 2 (NCFM's and IDC's usual), "
            "or 1 where they are images"
        )
    packing = distillers.factor(size, pad=0.5)
    images = np.asarray(packing.decode(jnp.asarray(peer.images), ()))
    labels = np.repeat(peer.labels, packing.per_stored, axis=0)
    note = f"{len(peer.images)} packed images give {len(images)} by factor {size}"
    return dataclasses.replace(peer, images=images, labels=labels, packed=False, notes=(*peer.notes, note))


def _told(found: list[exchange.Peer], chosen: list[exchange.Peer], space: str, first: Any) -> list[str]:
    peer = chosen[0]
    kept = f"{len(chosen)} of {len(found)} sets" if len(found) > 1 else "one set"
    rate = "" if first.learning_rate is None else f", learned step size {float(first.learning_rate):.4g}"
    whose = "by its format or its own word" if peer.space else "as told"
    line = f"{peer.source.name}: format {peer.format}, {kept}, {len(first.images)} images, {space} {whose}{rate}"
    return [line, *peer.notes]
