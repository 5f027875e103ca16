"""PyTorch files of peers as they hold their sets: DC's results, MTT's and DD-Ranking's tensors, IDC's packed images.

DC, DSA, DM, DataDAM: a dictionary whose ``data`` is a list over runs of [images, labels], or one such pair.
MTT, TESLA, DATM, EDF, GLaD: ``images_*.pt`` and ``labels_*.pt``, a tensor each, ``lr_*.pt`` where a step size was kept.
DD-Ranking: ``images.pt``, ``labels.pt``, ``lr.pt``. IDC, NCFM: ``data.pt``, a list of packed images and labels.
"""

from __future__ import annotations

import math
import pathlib
import re
from typing import Any

import numpy as np

from metadd_jax import files
from metadd_jax.exchange import pytorch
from metadd_jax.exchange.peer import Peer, kind_of

FOLDER = ("images_best.pt", "images_best_0.pt", "images.pt", "data.pt")
"""The files by which a folder of tensors is known, the first that is there."""
_VIEWABLE = "images_zca"  # the misleading beginning of what MTT turned back from whitening to look at


def read(place: pathlib.Path, wanted: str | None) -> list[Peer]:
    """Reads the sets of a peer's PyTorch file; only tensors, numbers and plain containers are unpickled.

    Args:
      place: the file, or the folder that holds ``images_best.pt``, ``images.pt`` or ``data.pt``.
      wanted: "dc", "mtt", "ddranking", "idc" or "tensordataset"; None takes what is there.

    Returns:
      The sets: several of a file of DC's with several runs.

    Raises:
      ValueError: if torch is missing, or the file is missing, damaged or of another format.
    """
    file = place
    if place.is_dir():
        found = [place / name for name in FOLDER if (place / name).is_file()]
        if not found:
            raise ValueError(f"{place} holds none of {', '.join(FOLDER)}; give the file with the images")
        file = found[0]
    content = pytorch.read(file)
    kind, peers = _understand(file, content)
    if wanted not in (None, kind):
        raise ValueError(f"{file} is of the format {kind}, not {wanted}; give --format {kind}, or auto")
    return peers


def _understand(file: pathlib.Path, content: Any) -> tuple[str, list[Peer]]:
    torch = pytorch.require_torch()
    if isinstance(content, torch.utils.data.TensorDataset):
        # A damaged file may have lost the attribute, or hold anything under it: PyTorch fills it unseen.
        held = getattr(content, "tensors", ())
        count = len(held) if isinstance(held, list | tuple) else 0
        if count < 2:
            raise ValueError(f"{file} is a TensorDataset of {count} tensors; it must hold images, labels")
        return "tensordataset", [_peer(file, "tensordataset", *held[:2])]
    if isinstance(content, torch.Tensor):
        kind = "ddranking" if file.stem == "images" else "mtt"
        return kind, [_bare(file, content, kind)]
    if isinstance(content, dict) and "data" in content:
        return "dc", _runs(file, content)
    if isinstance(content, dict) and {"images", "labels"} <= content.keys():
        return "dc", [_peer(file, "dc", content["images"], content["labels"])]
    if isinstance(content, list | tuple) and content and _is_images(content[0]):
        if len(content) < 2:
            raise ValueError(f"{file} holds images without labels; give IDC's or NCFM's list of both")
        return "idc", [_packed(file, content)]
    raise ValueError(f"{file} holds no distilled set ({_guess(content)})")


def _guess(content: Any) -> str:
    """What a file that holds no set seems to be, and what to do with it."""
    if isinstance(content, dict):
        if "model" in content or "state_dict" in content or any("weight" in str(key) for key in content):
            return "it looks like the weights of a network: zoo.torchvision.load reads those"
        return f"a dictionary of {', '.join(map(str, list(content)[:4]))}; give the file with images and labels"
    if isinstance(content, list) and content and isinstance(content[0], list):
        return "it looks like MTT's replay buffer: metadd distill --mtt.buffers reads those"
    if isinstance(content, list) and len(content) == 6:
        return "it looks like a batch of SRe2L's stored labels; give the folder of its pictures"
    return f"a {type(content).__name__}; give the file with images and labels"


def _is_images(value: Any) -> bool:
    return getattr(value, "ndim", None) == 4


def _runs(file: pathlib.Path, content: dict[str, Any]) -> list[Peer]:
    data = content["data"]
    # DataDAM keeps one pair, the others a list of pairs.
    pairs = [data] if isinstance(data, list | tuple) and len(data) == 2 and _is_images(data[0]) else data
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ValueError(f"{file} has no data list of [images, labels]; give a DC-family file")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"{file} has no data list of [images, labels]; give a DC-family file")
    # What export_torch adds says everything; it keeps one set.
    said: dict[str, Any] = {name: content[name] for name in ("mean", "std", "class_names") if name in content}
    extra: dict[str, Any] = {}
    if {"mean", "std", "class_names"} <= said.keys():
        extra["space"] = "zca" if "zca_inverse" in content else "standardised"
    for name in ("soft_labels", "learning_rate"):
        if name in content:
            extra[name] = pytorch.to_numpy(file, content[name])
    peers = []
    for images, labels in pairs:
        whole: dict[str, Any] = dict(said)
        if "zca_inverse" in content:
            shape = pytorch.to_numpy(file, images).shape[1:]
            whole |= pytorch.whitening_from(file, content, (*shape[1:], shape[0]))
        peers.append(_peer(file, "dc", images, labels, said=whole, **extra))
    return peers


def _bare(file: pathlib.Path, images: Any, kind: str) -> Peer:
    parts = [_tensor(file, images)]
    labels_name = file.name.replace(_VIEWABLE, "images", 1).replace("images", "labels", 1)
    if labels_name == file.name:
        raise ValueError(
            f"{file} holds one tensor and is not called images*.pt, so its labels cannot be found beside it"
        )
    notes: list[str] = []
    # Tiny-ImageNet's large set was published in parts, images_best_0.pt and so on.
    numbered = re.fullmatch(r"(images_best_)0(\.pt)", file.name)
    others = _following(file, numbered) if numbered else []
    parts += [_tensor(other) for other in others]
    if len({part.shape[1:] for part in parts}) != 1:
        raise ValueError(f"{file} and its further parts hold images of several shapes; restore them")
    labels = _labels_of(file.with_name(labels_name), [other.name for other in others])
    if others:
        notes.append(f"{file.name} and {len(others)} further parts are one set")
    facts = _facts(file.parent)
    space = facts.pop("space", None)
    if file.name.startswith(_VIEWABLE):
        # They are named for where they come from, and hold the pictures: judged as whitened they give about 10 %.
        space = "pixels"
        notes.append(f"{file.name} holds the whitened images turned back into pixels, as MTT's program writes it")
    rate = _rate(file)
    # DATM's labels are logits and TESLA's probabilities; DD-Ranking takes a softmax of whatever is stored.
    label_kind = facts.pop("label_kind", None) or ("logits" if kind == "ddranking" else kind_of(labels, "logits"))
    if labels.ndim == 2:
        notes.append(f"its labels are taken as {label_kind} (--file-labels says otherwise)")
    return _peer(
        file, kind, np.concatenate(parts), labels, space=space, learning_rate=rate, label_kind=label_kind,
        said=facts, notes=tuple(notes),
    )  # fmt: skip


def _following(file: pathlib.Path, numbered: re.Match) -> list[pathlib.Path]:
    found: list[pathlib.Path] = []
    while (part := file.with_name(f"{numbered[1]}{len(found) + 1}{numbered[2]}")).is_file():
        found.append(part)
    return found


def _labels_of(first: pathlib.Path, others: list[str]) -> np.ndarray:
    whole = first.with_name("labels_best.pt")
    if others and not first.is_file() and whole.is_file():
        return _tensor(whole)
    parts = [_tensor(first), *(_tensor(first.with_name(n.replace("images", "labels", 1))) for n in others)]
    if len({part.shape[1:] for part in parts}) != 1:
        raise ValueError(f"{first} and its further parts hold labels of several shapes; restore them")
    return np.concatenate(parts)


def _rate(file: pathlib.Path) -> np.ndarray | None:
    """The step size beside MTT's images: ``lr_best.pt`` of DATM, ``lr.pt`` of DD-Ranking."""
    suffix = file.stem.replace(_VIEWABLE, "images", 1).removeprefix("images")
    beside = file.with_name(f"lr{suffix}.pt")
    if not beside.is_file():
        return None
    rate = pytorch.to_numpy(beside, pytorch.read(beside))
    if rate.size != 1:
        raise ValueError(f"{beside} holds {rate.shape}, not one step size; restore it")
    return rate.reshape(()).astype(np.float32)


def _packed(file: pathlib.Path, content: Any) -> Peer:
    facts = _facts(file.parent)
    per = facts.pop("per_stored", None)
    if file.stem == "decoded":  # ours, beside data.pt: what a packed set gives
        per = 1
    factor = None if per is None else math.isqrt(per)
    if per is not None and factor is not None and factor**2 != per:
        raise ValueError(f"{file} was packed by several factors; judge decoded.pt beside it")
    for name in ("space", "label_kind"):
        facts.pop(name, None)
    return _peer(file, "idc", content[0], content[1], space="pixels", packed=True, factor=factor, said=facts)


def _facts(folder: pathlib.Path) -> dict[str, Any]:
    """What ``facts.json`` of our exports says; empty beside the tensors of others."""
    path = folder / "facts.json"
    if not path.is_file():
        return {}
    facts = files.read_json(path)
    if not isinstance(facts, dict) or facts.get("value_space") not in ("standardised", "zca"):
        return {}
    found: dict[str, Any] = {name: facts[name] for name in ("mean", "std", "class_names") if name in facts}
    found["space"] = facts["value_space"]
    if str(facts.get("labels", "")).startswith("logits"):
        found["label_kind"] = "logits"
    if isinstance(facts.get("images_of_a_stored_one"), int):
        found["per_stored"] = facts["images_of_a_stored_one"]
    return found


def _tensor(file: pathlib.Path, content: Any = None) -> np.ndarray:
    """What a file holds, which may be read already, as an array that can be joined to others."""
    value = pytorch.to_numpy(file, pytorch.read(file) if content is None else content)
    if value.ndim == 0:
        raise ValueError(f"{file} holds one number where a tensor belongs; restore it")
    return value


def _peer(file: pathlib.Path, kind: str, images: Any, labels: Any, **fields: Any) -> Peer:
    images, labels = pytorch.to_numpy(file, images), pytorch.to_numpy(file, labels)
    if images.ndim != 4 or labels.shape[:1] != images.shape[:1] or labels.ndim not in (1, 2):
        raise ValueError(f"{file} has images {images.shape} and labels {labels.shape}; need [N, C, H, W] and [N]")
    if not images.size:
        raise ValueError(f"{file} holds no image; restore it")
    if images.dtype == np.uint8:
        images, fields = images / np.float32(255), {**fields, "space": "pixels"}
    fields["label_kind"] = ("classes" if labels.ndim == 1 else fields.get("label_kind")) or kind_of(labels, None)
    return Peer(
        source=file,
        format=kind,
        images=images.astype(np.float32).transpose(0, 2, 3, 1),
        labels=labels,
        **fields,
    )
