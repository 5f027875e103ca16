"""PyTorch files of the peers: the DC family's result file out and in, MTT's pairs of bare tensors in.

DC, DSA, DM, DataDAM: one dictionary whose ``data`` is a list over runs of [images, labels].
MTT, TESLA, DD-Ranking: ``images*.pt`` and ``labels*.pt``, one tensor each.
Images are [N, C, H, W] float32 in training space there, [N, H, W, C] here. torch is optional.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import types
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import files, structs
from metadd_jax.exchange import checks

_SMALL = 1 << 26  # bytes that a tensor may always take: one number repeated is a legitimate way to store few


def export_torch(
    file: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes the DC family's file: ``{"data": [[images, labels]], "accs_all_exps": {}, ...}``.

    Args:
      file: the ``.pt`` to write.
      synthetic: the set; ``soft_labels`` and ``learning_rate`` are added under these names where present.
      metadata: see ``checks.check_set``; ``mean``, ``std`` and ``class_names`` are written too. A whitened set brings
        ``zca_mean`` [D] and ``zca_inverse`` [D, D], D in the order of a flattened [C, H, W] image: its pixels in [0, 1]
        are ``images.flatten(1) @ zca_inverse + zca_mean``.
      overwrite: replace an existing file that this function wrote; any other stays.

    Raises:
      ValueError: if a file exists that may not be replaced, torch is missing, or the set or its metadata are unfit.
    """
    torch = require_torch()
    file = pathlib.Path(file).expanduser().absolute()
    checks.refuse_existing(file, overwrite=overwrite, is_ours=_is_ours)
    checks.check_set("the set", synthetic, metadata)
    height, width, channels = np.shape(synthetic.images)[1:]
    # A copy, also of grey images, whose transpose counts as contiguous with strides that DC's ``view`` refuses.
    images = np.asarray(synthetic.images, np.float32).transpose(0, 3, 1, 2).copy(order="C")
    content: dict[str, Any] = {
        "data": [[torch.tensor(images), torch.tensor(np.asarray(synthetic.labels, np.int64))]],
        "accs_all_exps": {},  # part of DC's format; accuracies are in results.json
        "mean": np.asarray(metadata["mean"]).tolist(),
        "std": np.asarray(metadata["std"]).tolist(),
        "class_names": list(metadata["class_names"]),
    }
    for name in ("soft_labels", "learning_rate"):
        if getattr(synthetic, name) is not None:
            content[name] = torch.tensor(np.asarray(getattr(synthetic, name), np.float32))
    if metadata["value_space"] == "zca":
        # The transform is made for flattened [H, W, C], and whoever reads this file flattens [C, H, W].
        order = _channels_first_order((height, width, channels))
        content["zca_mean"] = torch.tensor(np.asarray(metadata["zca_mean"], np.float32)[order])
        content["zca_inverse"] = torch.tensor(np.asarray(metadata["zca_inverse"], np.float32)[np.ix_(order, order)])
    with files.atomic_path(file) as temporary:
        torch.save(content, temporary)


def load_torch(
    file: str | os.PathLike,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    logits: bool = False,
) -> tuple[structs.SyntheticSet, dict[str, Any]]:
    """Reads a peer's file; only tensors, NumPy's numbers and plain containers are unpickled (``weights_only=True``).

    Args:
      file: a DC-family file (the last run is taken) or ``images*.pt`` with ``labels*.pt`` beside it.
      mean: [C], what the peer's standardisation subtracted; their files do not say. Nor do they say that a set is
        whitened: then update the metadata by ``pixels.value_space`` of the whitened data set. A file of
        ``export_torch`` says all this, and what it says must agree.
      std: [C], what it divided by.
      class_names: K names in label order.
      logits: whether labels [N, K] are logits, as in DATM's ``labels_best.pt``; their softmax is then taken.

    Returns:
      The set, sorted by class, and its metadata, whose ``constants`` say whether they stand in the "file" or are the
      "caller"'s word. Labels [N, K] that are probabilities become ``soft_labels``
      (``labels`` is then their argmax); the soft labels and the learning rate of a file of ``export_torch`` are kept.

    Raises:
      ValueError: if torch is missing, or if the file is missing, damaged or holds something else.
    """
    file = pathlib.Path(file).expanduser().absolute()
    # The DC family writes one dictionary, MTT's line bare tensors in two files; the content tells, not the name.
    content, extra = read(file), {}
    if isinstance(content, dict):
        try:
            images, labels = content["data"][-1]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{file} has no data list of [images, labels]; give a DC-family file") from error
        extra = content
    else:
        images, labels = content, read(file.with_name(file.name.replace("images", "labels", 1)))
    # What the caller says stands, and is checked against whatever the file says itself.
    metadata: dict[str, Any] = {
        "value_space": "standardised",
        "mean": list(mean),
        "std": list(std),
        "class_names": list(class_names),
        "source": str(file),
        "constants": "file" if {"mean", "std"} <= extra.keys() else "caller",
    }
    _check_said(file, extra, metadata)
    fields = {name: to_numpy(file, extra[name]) for name in ("soft_labels", "learning_rate") if name in extra}
    labels = to_numpy(file, labels)
    if logits and labels.ndim == 2:
        labels = np.asarray(jax.nn.softmax(labels.astype(np.float32)))
    synthetic = from_channels_first(file, to_numpy(file, images), labels, **fields)
    if "zca_inverse" in extra:
        height, width, channels = synthetic.images.shape[1:]
        metadata |= {"value_space": "zca", **whitening_from(file, extra, (height, width, channels))}
    checks.check_set(file, synthetic, metadata)
    return synthetic, metadata


def from_channels_first(
    source: object,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    soft_labels: np.ndarray | None = None,
    learning_rate: np.ndarray | None = None,
) -> structs.SyntheticSet:
    """Makes a set, sorted by class, from PyTorch's layout.

    Args:
      source: what an error names.
      images: [N, C, H, W].
      labels: [N] whole numbers (integers, or floats without a fraction), or [N, K] probabilities.
      soft_labels: [N, K] probabilities beside labels [N], or None.
      learning_rate: [] that comes with the set, or None.

    Raises:
      ValueError: if the shapes do not fit, two-dimensional labels are not probabilities, or others are not whole.
    """
    if images.ndim != 4 or labels.shape[:1] != images.shape[:1] or labels.ndim not in (1, 2):
        raise ValueError(f"{source} has images {images.shape} and labels {labels.shape}; need [N, C, H, W] and [N]")
    soft = labels if labels.ndim == 2 else soft_labels
    if soft is not None:
        if soft.ndim != 2 or len(soft) != len(images):
            raise ValueError(f"{source} has {len(images)} images and soft labels {soft.shape}; need [N, K]")
        soft = soft.astype(np.float32)
        checks.check_probabilities(source, soft)
    hard = checks.whole(source, labels) if soft is None or labels.ndim == 1 else soft.argmax(axis=1).astype(np.int32)
    # Stable: within a class the images keep their order.
    order = np.argsort(hard, kind="stable")
    return structs.SyntheticSet(
        images=jnp.asarray(images.astype(np.float32).transpose(0, 2, 3, 1)[order]),
        labels=jnp.asarray(hard[order]),
        soft_labels=None if soft is None else jnp.asarray(soft[order]),
        learning_rate=None if learning_rate is None else jnp.asarray(learning_rate, jnp.float32),
    )


def _check_said(file: pathlib.Path, content: dict[str, Any], metadata: dict[str, Any]) -> None:
    """What a file of ``export_torch`` says about itself must be what the caller says."""
    # A peer's file says none of it, so the caller must; here a slip of the caller's can be seen.
    for name in ("class_names", "mean", "std"):
        said, given = content.get(name), metadata[name]
        if said is None:
            continue
        same = list(said) == given if name == "class_names" else np.shape(said) == np.shape(given)
        if not same or (name != "class_names" and not np.allclose(said, given, atol=1e-4)):
            raise ValueError(f"{file} says {name} {said}, but {given} was given; give what the file says")


def _channels_first_order(shape: tuple[int, int, int]) -> np.ndarray:
    """Where each number of a flattened [C, H, W] image stands in the flattened [H, W, C] image of ``shape``."""
    return np.arange(np.prod(shape)).reshape(shape).transpose(2, 0, 1).ravel()


def whitening_from(source: object, content: dict[str, Any], shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Reads the transform that ``export_torch`` keeps with a whitened set.

    Args:
      source: what the error names.
      content: the file's dictionary, with ``zca_mean`` [D] and ``zca_inverse`` [D, D] for a flattened [C, H, W] image.
      shape: (H, W, C).

    Returns:
      Both for a flattened [H, W, C] image.

    Raises:
      ValueError: if they are of another size.
    """
    order = np.argsort(_channels_first_order(shape))  # argsort inverts a permutation
    zca_mean, zca_inverse = (to_numpy(source, content[name]) for name in ("zca_mean", "zca_inverse"))
    if zca_mean.shape != order.shape or zca_inverse.shape != 2 * order.shape:
        raise ValueError(f"{source} has zca_inverse {zca_inverse.shape}, not ({order.size}, {order.size}); restore it")
    return {"zca_mean": zca_mean[order], "zca_inverse": zca_inverse[np.ix_(order, order)]}


def _is_ours(file: pathlib.Path) -> bool:
    """Whether ``export_torch`` wrote ``file``: a peer's file lacks the constants."""
    try:
        content = read(file)
    except ValueError:
        return False
    return isinstance(content, dict) and {"data", "accs_all_exps", "mean", "std", "class_names"} <= content.keys()


def to_numpy(source: object, value: Any) -> np.ndarray:
    """Makes an array of a tensor (also one that requires a gradient, or of half precision), or of numbers.

    Args:
      source: what an error names.
      value: out of ``read``.

    Raises:
      ValueError: if it is no array of real numbers.
    """
    torch = require_torch()
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_complex() or value.is_quantized:
            raise ValueError(
                f"{source} holds a tensor that is no plain one of real numbers ({value.layout}, {value.dtype}, "
                f"{value.device.type}); save tensor.detach().float().cpu()"
            )
        # NumPy refuses tensors with a gradient, which MTT's line saves, and has no bfloat16.
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
    try:
        found = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{source} holds what is no array ({_reason(error):.100}); save tensors") from error
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{source} holds a {type(value).__name__} where an array of numbers belongs; save tensors")
    return found


def read(file: pathlib.Path) -> Any:
    """Reads tensors, numbers and plain containers; a ValueError for a file that holds more or is damaged."""
    torch = require_torch()
    if not file.is_file():
        raise ValueError(f"no file at {file}; check the path")
    _refuse_packed(file)
    try:
        # weights_only: a pickle from the net may run any code; NumPy's numbers, which DC's files hold, are let through.
        with (
            torch.serialization.safe_globals([*_numbers(), torch.utils.data.TensorDataset]),
            files.for_torch(file) as whole,
        ):
            content = torch.load(whole, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors and numbers, or is damaged ({_reason(error)}); restore it, or load it in "
            "its own program and save {'data': [[images, labels]]}"
        ) from error
    except Exception as error:  # of damaged bytes PyTorch makes whatever its steps stumble over
        raise ValueError(f"{file} is not a readable PyTorch file ({_reason(error)}); restore it") from error
    try:
        _refuse_claims(file, content, max(file.stat().st_size, _SMALL))
    except RecursionError as error:  # a list may hold itself
        raise ValueError(f"{file} nests its content without end; restore it") from error
    return content


def _reason(error: Exception) -> str:
    """The first line of an error, which may have none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _refuse_packed(file: pathlib.Path) -> None:
    """Refuses an archive whose members unpack to more than the file holds: PyTorch stores them as they are."""
    try:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return  # an older PyTorch's file, or none: torch.load tells
    if claimed > file.stat().st_size:
        raise ValueError(f"{file} claims {claimed:,} bytes and holds {file.stat().st_size:,}; PyTorch packs nothing")


def _refuse_claims(file: pathlib.Path, content: Any, limit: int) -> None:
    """Refuses tensors that are larger than the file: one number may stand for terabytes until it is copied."""
    if isinstance(content, require_torch().utils.data.TensorDataset):
        content = getattr(content, "tensors", ())
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        for value in content:
            _refuse_claims(file, value, limit)
    elif isinstance(content, require_torch().Tensor) and content.numel() * content.element_size() > limit:
        raise ValueError(f"{file} claims a tensor {tuple(content.shape)}, larger than the file; restore it")


def _numbers() -> list[Any]:
    """What pickles of NumPy's numbers call, which PyTorch does not know as harmless: DC's accuracies are np.float64."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    # NumPy 1 wrote the same function under another name, and PyTorch goes by names.
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *kinds]


def require_torch() -> types.ModuleType:
    """Gives the module ``torch``, or says in a ValueError how to get it."""
    try:
        import torch
    except ImportError as error:
        raise ValueError("PyTorch files need torch; run: pip install torch") from error
    if not hasattr(torch.serialization, "safe_globals"):
        raise ValueError(
            f"PyTorch files need torch 2.6 or later, this is {torch.__version__}; run: pip install -U torch"
        )
    return torch
