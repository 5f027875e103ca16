"""Folders of bare PyTorch tensors, as the peers' programs read them: those of MTT's line, and IDC's packed images.

MTT, TESLA, DATM: ``images_best.pt`` [N, C, H, W] in training space, ``labels_best.pt``, ``lr_best.pt``; DD-Ranking the
same without ``_best``.
IDC, NCFM: ``data.pt``, a list of packed images [n, C, H, W] in [0, 1] and their labels [n].
A bare tensor says nothing of itself, so ``facts.json`` lies beside them. torch is optional.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metadd_jax import files, ranges, structs
from metadd_jax.exchange import checks, ddranking, pixels, pytorch
from metadd_jax.storage import folder

_SUFFIX = {"mtt": "_best", "ddranking": ""}
_LEAST = float(np.finfo(np.float32).tiny)  # of a probability, so that its logarithm is a number


def export_tensors(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    names: str = "mtt",
    overwrite: bool = False,
) -> None:
    """Writes the folder that MTT's and DATM's evaluations read, or DD-Ranking's, whole or not at all.

    Soft labels are written as logits: whoever reads them takes a softmax (temperature 1), which of probabilities would
    be flat. They are the logarithms of the probabilities, which are the trained logits but for a number an image.

    Args:
      directory: the folder to make.
      synthetic: the set. Without a learned step size there is no ``lr_best.pt``.
      metadata: see ``checks.check_set``; it goes into ``facts.json``.
      names: "mtt" (``images_best.pt``, ``labels_best.pt``, ``lr_best.pt``) or "ddranking" (``images.pt`` and so on, and
        ``config.json`` where DD-Ranking knows the data, see ``ddranking.config``).
      overwrite: replace a folder that this function wrote.

    Raises:
      ValueError: if torch is missing, the folder exists, or the set is unfit.
    """
    torch = pytorch.require_torch()
    ranges.require("names", names, ranges.OneOf(tuple(_SUFFIX)))
    suffix = _SUFFIX[names]
    checks.check_set("the set", synthetic, metadata)
    labels = np.asarray(synthetic.labels, np.int64)
    if synthetic.soft_labels is not None:
        labels = np.log(np.maximum(np.asarray(synthetic.soft_labels, np.float32), _LEAST))
    facts = {name: value for name, value in metadata.items() if not name.startswith("zca_")}
    kind = "classes" if synthetic.soft_labels is None else "logits, temperature 1"
    with folder.whole_folder(directory, overwrite=overwrite) as partial:
        torch.save(_channels_first(torch, synthetic.images), partial / f"images{suffix}.pt")
        torch.save(torch.tensor(labels), partial / f"labels{suffix}.pt")
        if synthetic.learning_rate is not None:
            torch.save(torch.tensor(float(synthetic.learning_rate)), partial / f"lr{suffix}.pt")
        files.write_json(partial / "facts.json", files.plain(facts | {"labels": kind}))
        if names == "ddranking" and (settings := ddranking.config(synthetic, metadata)) is not None:
            files.write_json(partial / "config.json", settings)
        folder.seal(partial)


def export_tensor_dataset(
    file: str | os.PathLike, synthetic: structs.SyntheticSet, metadata: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a ``torch.utils.data.TensorDataset`` of images [N, C, H, W] float32 and labels, for a ``DataLoader``.

    Args:
      file: the ``.pt`` to write. ``torch.load`` takes it, without running anything else, where
        ``torch.serialization.add_safe_globals([TensorDataset])`` was called.
      synthetic: the set; labels are [N] int64, or [N, K] probabilities of a set with soft ones.
      metadata: see ``checks.check_set``. A TensorDataset has no place for it: keep the set's JSON beside it.
      overwrite: replace an existing file that holds a TensorDataset.

    Raises:
      ValueError: if torch is missing, a file exists that may not be replaced, or the set is unfit.
    """
    torch = pytorch.require_torch()
    file = pathlib.Path(file).expanduser().absolute()

    def is_ours(path: pathlib.Path) -> bool:
        try:
            return isinstance(pytorch.read(path), torch.utils.data.TensorDataset)
        except ValueError:
            return False

    checks.refuse_existing(file, overwrite=overwrite, is_ours=is_ours)
    checks.check_set("the set", synthetic, metadata)
    labels = np.asarray(synthetic.labels, np.int64)
    if synthetic.soft_labels is not None:
        labels = np.asarray(synthetic.soft_labels, np.float32)
    content = torch.utils.data.TensorDataset(_channels_first(torch, synthetic.images), torch.tensor(labels))
    with files.atomic_path(file) as temporary:
        torch.save(content, temporary)


def export_packed(
    directory: str | os.PathLike,
    stored: ArrayLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a packed set as IDC's and NCFM's programs read it, whole or not at all, and decoded for those that do not.

    ``data.pt`` is the list [packed images, labels], ``decoded.pt`` the list [decoded images, labels] in IDC's order
    (``cells_first``); pixels of both are in [0, 1] but for what distillation pushed beyond.

    Args:
      directory: the folder to make.
      stored: [n, H, W, C] packed images in the set's value space, class-major (``latents`` of ``distillers.factor``).
      synthetic: the decoded set, images [N, H, W, C], n of which N is a multiple.
      metadata: see ``checks.check_set``; it goes into ``facts.json``.
      overwrite: replace a folder that this function wrote.

    Raises:
      ValueError: if torch is missing, the folder exists, the set is whitened, or the two do not belong together.
    """
    torch, stored = pytorch.require_torch(), np.asarray(stored)
    checks.check_set("the set", synthetic, metadata)
    if metadata["value_space"] != "standardised":
        raise ValueError("IDC's file holds pixels, and a whitened packed image has none; distil without zca")
    if stored.ndim != 4 or stored.shape[1:] != synthetic.images.shape[1:] or len(synthetic.images) % len(stored):
        raise ValueError(
            f"packed images {stored.shape} do not give the set's {synthetic.images.shape}; give what it was decoded "
            "from"
        )
    per = len(synthetic.images) // len(stored)
    order = cells_first(synthetic.labels, per)
    labels = np.asarray(synthetic.labels, np.int64)
    with folder.whole_folder(directory, overwrite=overwrite) as partial:
        for name, images, own in (
            ("data.pt", stored, labels[::per]),
            ("decoded.pt", np.asarray(synthetic.images)[order], labels[order]),
        ):
            pair = [_channels_first(torch, pixels.to_pixels(images, metadata)), torch.tensor(own)]
            torch.save(pair, partial / name)
        files.write_json(partial / "facts.json", files.plain(metadata | {"images_of_a_stored_one": per}))
        folder.seal(partial)


def load_packed(
    file: str | os.PathLike, *, mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads IDC's or NCFM's ``data.pt``; ``distillers.factor(f).decode`` then gives its images.

    Args:
      file: the list [packed images [n, C, H, W] in [0, 1], labels [n]].
      mean: [C], what the pixels in [0, 1] are standardised by: subtracted.
      std: [C], divided by.

    Returns:
      Packed images [n, H, W, C] float32 in the set's value space, sorted by class, and labels [n] int32.

    Raises:
      ValueError: if torch is missing, or if the file is missing, damaged or holds something else.
    """
    file = pathlib.Path(file).expanduser().absolute()
    content = pytorch.read(file)
    if not isinstance(content, list | tuple) or len(content) < 2:
        raise ValueError(f"{file} is no list of images and labels; give IDC's or NCFM's data.pt")
    made = pytorch.from_channels_first(file, *(pytorch.to_numpy(file, one) for one in content[:2]))
    images = (np.asarray(made.images) - np.asarray(mean)) / np.asarray(std)
    return images.astype(np.float32), np.asarray(made.labels)


def cells_first(labels: ArrayLike, per_stored: int) -> np.ndarray:
    """Gives IDC's order of a decoded set: of each class all stored images' cell 0, then all cells 1, and so on.

    Args:
      labels: [N] of the decoded images, class-major, those of a stored image one after the other.
      per_stored: how many one stored image gives.

    Returns:
      [N] positions: ``images[cells_first(labels, 4)]`` is the set as IDC decodes it.
    """
    counts = np.bincount(np.asarray(labels))
    starts = np.cumsum(counts) - counts
    places = [
        start + np.arange(count).reshape(-1, per_stored).T.ravel()
        for start, count in zip(starts, counts, strict=True)
        if count
    ]
    return np.concatenate(places)


def _channels_first(torch: Any, images: ArrayLike) -> Any:
    return torch.tensor(np.asarray(images, np.float32).transpose(0, 3, 1, 2).copy(order="C"))
