"""Sets as named arrays: plain npz, KIP's, safetensors, and the Flax checkpoints of FRePo and RCIG.

KIP: npz with ``images`` [N, H, W, C] and ``labels`` [N, K]. FRePo: npz with ``image`` and ``label``, or a checkpoint
with ``params/x_proto``, ``params/y_proto``; RCIG: a checkpoint with ``ema_average/x_proto``, ``ema_average/y_proto``.
Their labels are targets of a kernel regression: one-hot less 1 / K, trained.
"""

from __future__ import annotations

import json
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from metadd_jax.data import npz
from metadd_jax.data.cache import UNREADABLE
from metadd_jax.exchange.peer import Peer, kind_of

HEADER = "metadd_jax"
"""The name in a safetensors file's header under which ``export_safetensors`` says in JSON what a set is."""
_PAIRS = (("images", "labels"), ("image", "label"), ("x", "y"), ("x_train", "y_train"))
_TARGETS = "its labels are targets of a kernel regression: the largest entry counts as the class"
_KEPT = ("soft_labels", "learning_rate", "zca_mean", "zca_inverse")


def read_npz(file: pathlib.Path) -> Peer:
    """Reads a plain npz: ``images`` and ``labels``, or KIP's or FRePo's; also ``x`` and ``y``.

    Args:
      file: the npz. 8-bit images are pixels; of others the value space is not known.

    Raises:
      ValueError: if it is damaged, claims more than it holds, or holds no such arrays.
    """
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            names = _pair(file, members)
            images, labels = (npz.read_array(file, archive, members[name], name) for name in names)
    except UNREADABLE as error:
        if isinstance(error, ValueError) and str(file) in str(error):
            raise
        raise ValueError(f"{file} is no readable .npz of plain arrays ({error!s:.200}); restore it") from error
    return _named(file, "npz", images, labels, regression=names[0] == "image")


def read_safetensors(file: pathlib.Path) -> Peer:
    """Reads a safetensors file with ``images`` and ``labels``; one of ``export_safetensors`` says what they are.

    Args:
      file: the file.

    Raises:
      ValueError: if safetensors is missing, or the file is damaged or holds no such arrays.
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ValueError(f"{file} needs safetensors; run: pip install safetensors") from error
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            header = opened.metadata() or {}
            names = list(opened.keys())
            kept = [name for name in (*_pair(file, names), *_KEPT) if name in names]
            arrays = {name: opened.get_tensor(name) for name in kept}
        facts = json.loads(header.get(HEADER, "{}"))
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f"{file} has no readable header ({error!s:.100}); restore it") from error
    except Exception as error:  # the library has errors of its own
        raise ValueError(f"{file} is no readable safetensors file ({error!s:.100}); restore it") from error
    fields: dict[str, Any] = {name: arrays[name] for name in ("soft_labels", "learning_rate") if name in arrays}
    if isinstance(facts, dict) and facts.get("value_space") in ("standardised", "zca"):
        said = {name: facts[name] for name in ("mean", "std", "class_names") if name in facts}
        said |= {name: arrays[name] for name in ("zca_mean", "zca_inverse") if name in arrays}
        fields |= {"space": facts["value_space"], "said": said}
    first, second = _pair(file, arrays)
    return _named(file, "safetensors", arrays[first], arrays[second], **fields)


def read_checkpoint(place: pathlib.Path) -> Peer:
    """Reads a Flax checkpoint of FRePo's or RCIG's: MessagePack, which holds arrays and runs nothing.

    Args:
      place: the file, or the folder whose newest ``checkpoint_STEP`` is taken.

    Raises:
      ValueError: if it is damaged or holds no prototypes.
    """
    from flax import serialization

    file = place
    if place.is_dir():
        steps = [
            (int(match[1]), path) for path in place.iterdir() if (match := re.fullmatch(r"checkpoint_(\d+)", path.name))
        ]
        if not steps:
            raise ValueError(f"{place} holds no checkpoint_STEP; give the file")
        file = max(steps)[1]
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    try:
        content = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # MessagePack and NumPy have many for damaged bytes
        raise ValueError(f"{file} is no readable Flax checkpoint ({error!s:.100}); restore it") from error
    # RCIG judges the average over its steps, and keeps the last state beside it.
    for name in ("ema_average", "params"):
        held = content.get(name) if isinstance(content, Mapping) else None
        if isinstance(held, Mapping) and {"x_proto", "y_proto"} <= held.keys():
            return _named(file, "frepo", held["x_proto"], held["y_proto"], regression=True)
    raise ValueError(f"{file} holds no x_proto and y_proto of FRePo's or RCIG's; give their checkpoint")


def _pair(file: pathlib.Path, names: Any) -> tuple[str, str]:
    for pair in _PAIRS:
        if set(pair) <= set(names):
            return pair
    shown = ", ".join(map(str, sorted(names)[:6])) or "nothing"
    raise ValueError(f"{file} holds {shown}, and not images and labels; save both under these names")


def _named(file: pathlib.Path, kind: str, images: Any, labels: Any, *, regression: bool = False, **fields: Any) -> Peer:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not images.size or labels.shape[:1] != images.shape[:1] or labels.ndim not in (1, 2):
        raise ValueError(f"{file} has images {images.shape} and labels {labels.shape}; need [N, H, W, C] and [N]")
    if images.dtype.kind not in "fu" or labels.dtype.kind not in "fiu":
        raise ValueError(f"{file} has images {images.dtype} and labels {labels.dtype}; save numbers")
    last, second = images.shape[3] in (1, 3), images.shape[1] in (1, 3)
    if last == second:
        raise ValueError(f"{file} has images {images.shape}, whose channels cannot be found; save [N, H, W, C]")
    if second:
        images = images.transpose(0, 2, 3, 1)
    if images.dtype == np.uint8:
        images, fields = images / np.float32(255), {**fields, "space": "pixels"}
    elif images.dtype.kind == "u":
        raise ValueError(f"{file} has images {images.dtype}; save 8-bit pixels, or floats")
    found = "classes" if labels.ndim == 1 else "targets" if regression else kind_of(labels, None)
    notes = (_TARGETS,) if found == "targets" else ()
    if found == "probabilities":
        notes = ("its labels are distributions, and taken as such",)
    return Peer(
        source=file, format=kind, images=images.astype(np.float32), labels=labels, label_kind=found, notes=notes,
        mtt_whitening=found != "targets", **fields,
    )  # fmt: skip
