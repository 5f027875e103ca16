"""Expert trajectories of MTT's program: ``replay_buffer_N.pt``, which take days to train and were published.

A file is a list of experts, each a list of snapshots (the start, then one after each epoch), each a list of a ConvNet's
tensors in PyTorch's order: of every block the convolution's weight [O, I, 3, 3] and bias, the norm's weight and bias;
then the classifier's weight [K, C h w] and bias.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from metadd_jax import zoo
from metadd_jax.exchange import pytorch


def load_buffers(
    place: str | pathlib.Path, net: zoo.Architecture, *, experts: int, snapshots: int, last: bool = False
) -> np.ndarray:
    """Reads experts of MTT's, TESLA's or FTD's buffers, as ``distillers.mtt`` takes them.

    Args:
      place: the folder with ``replay_buffer_0.pt``, ``replay_buffer_1.pt`` and so on, or one such file.
      net: the ConvNet that they are of.
      experts: how many to read, at least 1; as many files are opened as are needed.
      snapshots: how many of each, from the start on, at least 1.
      last: whether the expert's last snapshot follows them (DATM).

    Returns:
      [experts, snapshots, P] float32, or one snapshot more with ``last``.

    Raises:
      ValueError: if torch is missing, a file is missing or damaged, there are fewer, they are of another network, or
        a number is not finite.
    """
    place = pathlib.Path(place).expanduser()
    layers = _layers(net)
    found: list[np.ndarray] = []
    for file in buffer_files(place):
        for number, expert in enumerate(_experts(file)):
            if len(expert) < snapshots:
                raise ValueError(
                    f"expert {number} of {file} has {len(expert)} snapshots, and {snapshots} are wanted; lower "
                    "max_start_epoch or expert_epochs"
                )
            wanted = [*expert[:snapshots], *(expert[-1:] if last else [])]
            found.append(np.stack([_vector(file, net, layers, snapshot) for snapshot in wanted]))
            if len(found) == experts:
                return np.stack(found)
    raise ValueError(f"{place} holds {len(found)} experts, and {experts} are wanted; ask for no more")


def buffer_files(place: str | pathlib.Path) -> list[pathlib.Path]:
    """Lists the files of MTT's buffers at ``place``, in the order of their numbers; opens none.

    Args:
      place: as for ``load_buffers``.

    Raises:
      ValueError: if there are none.
    """
    place = pathlib.Path(place).expanduser()
    if place.is_file():
        return [place]
    numbered = [
        (int(match[1]), path)
        for path in (place.iterdir() if place.is_dir() else ())
        if (match := re.fullmatch(r"replay_buffer_(\d+)\.pt", path.name))
    ]
    if not numbered:
        raise ValueError(f"{place} holds no replay_buffer_0.pt; give the folder of MTT's buffers")
    return [path for _, path in sorted(numbered)]  # by number: as text 10 comes before 2


def _experts(file: pathlib.Path) -> Sequence[Sequence[Any]]:
    content = pytorch.read(file)
    if not isinstance(content, list) or not all(isinstance(one, list) and one for one in content):
        raise ValueError(f"{file} is no list of trajectories; give a file of MTT's buffers")
    return content


def _layers(net: zoo.Architecture) -> list[tuple[tuple[str, str], tuple[int, ...]]]:
    """Module, array and shape of each of our arrays, in the order of PyTorch's parameters."""
    params = jax.eval_shape(net.init, jax.random.key(0))["params"]
    if net.name != "convnet":
        raise ValueError(f"{net.label} is no ConvNet, whose buffers alone are read; use convnet")
    if net.image_shape[0] != net.image_shape[1]:
        raise ValueError(f"{net.label} is for images {net.image_shape}, and buffers are read for square ones")

    def in_order() -> Iterator[tuple[str, str]]:
        for block in range(1, 1 + sum(name.startswith("conv") for name in params)):
            yield from ((f"conv{block}", "kernel"), (f"conv{block}", "bias"))
            yield from ((f"norm{block}", "scale"), (f"norm{block}", "bias"))
        yield from (("head", "kernel"), ("head", "bias"))

    # Without a norm there is none there either; a norm without affine numbers likewise.
    return [(at, params[at[0]][at[1]].shape) for at in in_order() if at[1] in params.get(at[0], {})]


def _vector(file: pathlib.Path, net: zoo.Architecture, layers: list, snapshot: Any) -> np.ndarray:
    """[P] of one snapshot, in the order of ``jax.tree.leaves``."""
    arrays = [pytorch.to_numpy(file, value) for value in snapshot] if isinstance(snapshot, list | tuple) else []
    shapes = [array.shape for array in arrays]
    wanted = [_theirs(at, shape) for at, shape in layers]
    if shapes != wanted:
        differs = next((pair for pair in zip(shapes, wanted, strict=False) if pair[0] != pair[1]), None)
        told = f"first {differs[0]} and not {differs[1]}" if differs else f"{len(shapes)} arrays and not {len(wanted)}"
        raise ValueError(f"{file} holds another network than {net.label} ({told}); name its width, depth and norm")
    channels = next(shape[3] for _, shape in reversed(layers) if len(shape) == 4)
    params: dict[str, dict[str, np.ndarray]] = {}
    for ((layer, name), shape), array in zip(layers, arrays, strict=True):
        params.setdefault(layer, {})[name] = _ours((layer, name), shape, array, channels)
    vector = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ValueError(f"{file} holds weights that are not finite; leave that file out")
    return vector


def _theirs(at: tuple[str, str], shape: tuple[int, ...]) -> tuple[int, ...]:
    if at[1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _ours(at: tuple[str, str], shape: tuple[int, ...], array: np.ndarray, channels: int) -> np.ndarray:
    if at[1] != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    # The classifier sees a map flattened over C, h, w there and over h, w, C here.
    side = math.isqrt(array.shape[1] // channels)
    return array.reshape(array.shape[0], channels, side, side).transpose(2, 3, 1, 0).reshape(shape)
