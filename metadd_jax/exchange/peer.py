"""What a file of another program holds, before its numbers are brought into the value space of real data.

Such a file rarely says how its numbers were scaled, so that three things are kept apart here: what it holds (``Peer``),
what its format or its content fixes (``space``, ``label_kind``: None where neither does), and what the caller says.
``settle`` joins them, and refuses where nobody knows: no value space is ever guessed.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from metadd_jax import structs
from metadd_jax.data import catalog
from metadd_jax.exchange import checks, pixels

SPACES = ("pixels", "standardised", "zca", "zca_frepo")
"""Value spaces that numbers of a peer's file may be in: [0, 1], (x - mean) / std, whitened as MTT does or as FRePo."""

LABELS = ("classes", "hard", "probabilities", "logits")
"""What labels may be: whole numbers; of [N, K] the largest entry, distributions, or what a softmax is taken of."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Peer:
    """A set as a peer's file holds it.

    Attributes:
      source: the file or folder, for errors.
      format: the format's name, "mtt".
      images: [N, H, W, C] float32, in the order of the file.
      labels: [N] whole numbers, or [N, K] floats.
      label_kind: one of ``LABELS``, or "targets" (one-hot labels less 1 / K, as trained by kernel regression), or None
        where neither format nor content tells.
      space: one of ``SPACES`` where the format fixes it, else None.
      packed: whether each image holds several at a lower resolution (IDC, NCFM).
      factor: how many cells a side a packed image has, where the file says.
      soft_labels: [N, K] probabilities beside labels [N], or None.
      learning_rate: the step size that was learned with the set, or None.
      said: what the file says of itself: ``mean``, ``std``, ``class_names``, ``folders`` (names of class folders by
        label), ``zca_mean`` [D] and ``zca_inverse`` [D, D] for a flattened [H, W, C] image.
      mtt_whitening: whether its whitening, where it has one, is MTT's (see ``data.whitening``).
      notes: lines that a user should read.
    """

    source: pathlib.Path
    format: str
    images: np.ndarray
    labels: np.ndarray
    label_kind: str | None = None
    space: str | None = None
    packed: bool = False
    factor: int | None = None
    soft_labels: np.ndarray | None = None
    learning_rate: np.ndarray | None = None
    said: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mtt_whitening: bool = True
    notes: tuple[str, ...] = ()


def space_of(peer: Peer, said: str | None) -> str:
    """Settles the value space of a peer's numbers: what the file fixes, else what the caller says.

    Args:
      peer: what the file holds.
      said: one of ``SPACES`` or "standardised:NAME", of which the constants are those of the data set NAME; None where
        the caller says nothing.

    Returns:
      "pixels", "zca", "zca_frepo", "standardised", or "standardised:NAME".

    Raises:
      ValueError: if nobody says, the caller contradicts the file, or there is no such space.
    """
    if said is not None:
        kind, _, name = said.partition(":")
        if kind not in SPACES or (name and (kind != "standardised" or name not in catalog.CONSTANTS)):
            raise ValueError(
                f"--space {said} is unknown; use {', '.join(SPACES)}, or standardised:NAME with a data set whose "
                "constants are known, such as standardised:imagenet"
            )
    if peer.space is not None:
        if said not in (None, peer.space):
            raise ValueError(f"{peer.source} holds {_told(peer.space)} by its format, not {said}; leave --space out")
        return peer.space
    if said is None:
        checks.check_finite(peer.source, "pixels", peer.images)
        numbers = peer.images.astype(np.float64)  # the deviation of large numbers has no end in float32
        raise ValueError(
            f"{peer.source} does not say how its numbers were scaled ({numbers.min():.3g} to {numbers.max():.3g}"
            f", mean {numbers.mean():.3g}, deviation {numbers.std():.3g}); add --space standardised, zca, zca_frepo or "
            "pixels"
        )
    return said


def settle(
    peer: Peer,
    dataset: structs.Dataset,
    *,
    space: str | None = None,
    labels: str | None = None,
    learning_rate: float | None = None,
) -> tuple[structs.SyntheticSet, dict[str, Any]]:
    """Makes a set in the value space of real data of what a peer's file holds.

    Args:
      peer: what the file holds, decoded where it was packed.
      dataset: the real data that it is to be judged on, whitened where the set is, and alike (``data.whiten``, whose
        ``kind`` is "frepo" for "zca_frepo").
      space: see ``space_of``.
      labels: one of ``LABELS``: how labels are read, in place of what the file tells.
      learning_rate: in place of the file's.

    Returns:
      The set, sorted by class, and its metadata: what ``checks.check_set`` asks for, and ``source``, ``format`` and
      ``constants`` ("file", "format" or "caller": whose word the value space is).

    Raises:
      ValueError: if the value space is not known, or the images, labels or classes are not those of the data.
    """
    settled = space_of(peer, space)
    if peer.images.shape[1:] != dataset.image_shape:
        raise ValueError(
            f"{peer.source} holds images {peer.images.shape[1:]}, but {dataset.name} has {dataset.image_shape}; "
            "give the data that it was made from, or --image-size"
        )
    # Before any arithmetic with them, which would warn in words of NumPy's.
    checks.check_finite(peer.source, "pixels", peer.images)
    metadata = _metadata(peer, dataset, settled)
    images = peer.images
    if settled == "zca" and not peer.mtt_whitening:
        raise ValueError(
            f"{peer.source} is of a program whose whitening is another than MTT's; FRePo's and RCIG's is --space "
            "zca_frepo"
        )
    if settled in ("zca", "zca_frepo") and dataset.whitening is None:
        raise ValueError(f"{peer.source} is whitened and {dataset.name} was loaded as it is; load both the same way")
    if settled == "pixels" or ":" in settled:
        unit = images if settled == "pixels" else pixels.to_pixels(images, _constants(settled))
        images = pixels.from_pixels(unit, dataset)
    hard, soft = _labels(peer, labels, dataset)
    order = np.argsort(hard, kind="stable")  # within a class the images keep their order
    rate = peer.learning_rate if learning_rate is None else np.float32(learning_rate)
    synthetic = structs.SyntheticSet(
        images=jnp.asarray(images[order], jnp.float32),
        labels=jnp.asarray(hard[order]),
        soft_labels=None if soft is None else jnp.asarray(soft[order]),
        learning_rate=None if rate is None else jnp.asarray(rate, jnp.float32),
    )
    checks.check_set(peer.source, synthetic, metadata)
    return synthetic, metadata


def _metadata(peer: Peer, dataset: structs.Dataset, settled: str) -> dict[str, Any]:
    own = pixels.value_space(dataset)
    whose = "file" if {"mean", "std"} <= peer.said.keys() else "format" if peer.space else "caller"
    facts = {
        **own,
        "class_names": list(dataset.class_names),
        "dataset": dataset.name,
        "source": str(peer.source),
        "format": peer.format,
        "constants": whose,
    }
    # What the file says of itself stands, and is held against the data by whoever joins them (``check_belongs``).
    if settled == own["value_space"]:
        facts |= {name: peer.said[name] for name in ("mean", "std", "zca_mean", "zca_inverse") if name in peer.said}
    if "class_names" in peer.said:
        facts["class_names"] = peer.said["class_names"]  # of any type: ``check_set`` refuses what is no list of names
    return facts


def _constants(settled: str) -> dict[str, Any]:
    constants = catalog.CONSTANTS[settled.partition(":")[2]]
    return {"value_space": "standardised", "mean": constants.mean, "std": constants.std}


def _labels(peer: Peer, said: str | None, dataset: structs.Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """Hard labels [N] int32, and soft ones [N, K] float32 where there are any."""
    classes = dataset.num_classes
    labels, soft = np.asarray(peer.labels), peer.soft_labels
    kind = said or peer.label_kind or ("classes" if labels.ndim == 1 else None)
    if labels.ndim == 1:
        if kind not in ("classes", "hard"):
            raise ValueError(f"{peer.source} has labels {labels.shape}, which are no {kind}; leave --file-labels out")
        hard = _by_name(peer, checks.whole(peer.source, labels), dataset)
        return hard, None if soft is None or kind == "hard" else _distributions(peer, soft, classes)
    if labels.shape[1] != classes:
        raise ValueError(
            f"{peer.source} has labels of {labels.shape[1]} classes, but {dataset.name} has {classes}; judge it on "
            "its own data"
        )
    if kind is None:
        raise ValueError(
            f"{peer.source} has labels {labels.shape} that are no distributions, and its format does not say what they "
            "are; add --file-labels logits, or hard for the largest entry"
        )
    if kind == "logits":
        # In float64: half-precision logits of a teacher may be large.
        shifted = labels.astype(np.float64) - labels.max(axis=1, keepdims=True)
        labels = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    hard = labels.argmax(axis=1).astype(np.int32)
    soft = _distributions(peer, labels, classes) if kind in ("logits", "probabilities") else None
    return hard, soft


def _distributions(peer: Peer, soft: np.ndarray, classes: int) -> np.ndarray:
    soft = np.asarray(soft, np.float32)
    if soft.shape != (len(peer.images), classes):
        raise ValueError(f"{peer.source} has soft labels {soft.shape}; they must be ({len(peer.images)}, {classes})")
    checks.check_probabilities(peer.source, soft)
    return soft


def kind_of(labels: np.ndarray, otherwise: str | None) -> str | None:
    """Tells what labels are by their numbers, as far as these decide it.

    Args:
      labels: [N] or [N, K].
      otherwise: what the format says of labels [N, K] that are no distributions.

    Returns:
      "classes" for [N]; "probabilities" where every row is a distribution; "targets" where it is one less 1 / K; else
      ``otherwise``.
    """
    if labels.ndim != 2:
        return "classes"
    if not labels.size:  # [N, 0], of which no number tells anything: refused once the classes of the data are known
        return otherwise
    if _are_distributions(labels):
        return "probabilities"
    return "targets" if _are_distributions(labels + 1 / labels.shape[1]) else otherwise


def _are_distributions(labels: np.ndarray) -> bool:
    labels = np.asarray(labels, np.float64)
    return bool(np.isfinite(labels).all() and labels.min() >= -1e-6 and np.allclose(labels.sum(axis=1), 1, atol=1e-3))


def _by_name(peer: Peer, ranks: np.ndarray, dataset: structs.Dataset) -> np.ndarray:
    """Labels by the names of class folders where these are the data's names, else by their order."""
    folders = peer.said.get("folders")
    if folders is None:
        return ranks
    names = list(dataset.class_names)
    if sorted(folders) == sorted(names):
        return np.array([names.index(name) for name in folders], np.int32)[ranks]
    if len(folders) != len(names):
        raise ValueError(
            f"{peer.source} has {len(folders)} class folders, such as {folders[0]}, but {dataset.name} has "
            f"{len(names)} classes; give the data that it was made from"
        )
    return ranks


def _told(space: str) -> str:
    return {"pixels": "pixels in [0, 1]", "standardised": "standardised numbers", "zca": "whitened numbers"}[space]
