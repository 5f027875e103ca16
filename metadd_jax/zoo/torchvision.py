"""Import and export of torchvision's weights: state dict <-> variables of the same network of the zoo.

A state dict is PyTorch's: a flat mapping from names such as "layer1.0.conv1.weight" to arrays. Each family has a
table of rules from the path of a layer here to its name there (``torchvision_names``). Layouts follow from the
kind of the array:

  convolution kernel   [k, k, C, O] (HWIO)   <->  weight [O, C, k, k] (OIHW)
  linear kernel        [I, O]                <->  weight [O, I]; behind a flattened map I runs over h, w, C here
                                                  and over C, h, w there
  norm scale, bias, batch mean, var          <->  weight, bias, running_mean, running_var
  anything else (tokens, position tables)    <->  the same array

Import ignores what has no counterpart here: ``num_batches_tracked`` and Swin's ``relative_position_index`` (export
writes both), and GoogLeNet's auxiliary heads. Export lacks these heads, so build torchvision's network with
``aux_logits=False``. GoogLeNet's published weights need ``googlenet:transform_input=True``. PyTorch's running variance
is unbiased and is imported as it is; training here adds the biased variance to it (``norms.norm``).
"""

from __future__ import annotations

import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from metadd_jax import files
from metadd_jax.zoo import swin
from metadd_jax.zoo import torchvision_names as families
from metadd_jax.zoo.architecture import Architecture, Variables, shapes

State = Mapping[str, np.ndarray]
_SUFFIXES = (".safetensors", ".pth", ".pt")
_SHOWN = 3  # keys named in an error: one line, though a wrong file may lack hundreds


def load(net: Architecture, file: str | os.PathLike) -> Variables:
    """Reads the variables of ``net`` from a file with a state dict of torchvision's network of that name.

    Args:
      net: at ImageNet geometry, with as many classes as the file.
      file: .safetensors (needs safetensors), .pth or .pt (needs torch; read with ``weights_only=True``). The state dict
        may be in {"model": ...} or {"state_dict": ...} beside other things, and its keys may begin with "module.", as
        the programs that train teachers leave it.

    Returns:
      ``params`` (and ``batch_stats``), float32.

    Raises:
      ValueError: if the library is missing, the file is missing, damaged or holds something else, or as
        ``from_state``.
    """
    file = pathlib.Path(file)
    # Before the library: whoever mistyped the path should not install it first.
    if file.suffix in _SUFFIXES and not file.is_file():
        raise ValueError(f"there is no file {file}; give the path of a state dict")
    read, _ = _format(file)
    return from_state(net, read(file))


def dump(net: Architecture, variables: Variables, file: str | os.PathLike) -> None:
    """Writes ``variables`` as a state dict that torchvision's network of that name loads, whole or not at all.

    Args:
      net: at ImageNet geometry.
      variables: of ``net``.
      file: .safetensors, .pth or .pt, as for ``load``. An existing file is never replaced: it may hold weights that
        somebody trained for a week.

    Raises:
      ValueError: if the library is missing, the file exists, or as ``to_state``.
    """
    file = pathlib.Path(file)
    _, write = _format(file)
    if os.path.lexists(file):  # a dangling link counts: writing would go through it
        raise ValueError(f"{file} exists already; choose another path or move it away")
    state = to_state(net, variables)
    with files.atomic_path(file) as temporary:
        write(temporary, state)


def from_state(net: Architecture, state: State) -> Variables:
    """Converts a state dict of torchvision's network to the variables of ``net``.

    Args:
      net: at ImageNet geometry, with as many classes as ``state``.
      state: key -> array. Every key is used exactly once, but for those that import ignores.

    Returns:
      ``params`` (and ``batch_stats``), float32.

    Raises:
      ValueError: if ``net`` is not at ImageNet geometry or has no counterpart, or if keys are missing, unknown
        or of another shape.
    """
    family = families.family(net)
    # All faults are gathered before the error: a file of another network shows itself by all three at once.
    state = {_renamed(key, family.renamed): value for key, value in state.items()}
    leaves = {leaf.key: leaf for leaf in _leaves(net)}
    missing = [key for key in leaves if key not in state]
    unknown = [key for key in state if key not in leaves and not re.fullmatch(family.extras, key)]
    misshaped = [
        f"{key} {np.shape(state[key])} and not {leaf.shape}"
        for key, leaf in leaves.items()
        if key in state and np.shape(state[key]) != leaf.shape
    ]
    faults = {"missing": missing, "unknown": unknown, "of another shape": misshaped}
    if not any(faults.values()):
        faults["not finite"] = [key for key in leaves if not np.isfinite(np.asarray(state[key], np.float32)).all()]
    if any(faults.values()):
        told = "; ".join(f"{len(keys)} keys {fault} ({_some(keys)})" for fault, keys in faults.items() if keys)
        raise ValueError(f"{net.label}: {told}; give the weights of that network with {net.num_classes} classes")
    variables: dict = {}
    for key, leaf in leaves.items():
        place = variables
        for part in leaf.path[:-1]:
            place = place.setdefault(part, {})
        # A copy: the file's library may own the memory, and may change it. NumPy's, or JAX would compile one a shape.
        place[leaf.path[-1]] = jax.device_put(np.array(leaf.read(np.asarray(state[key], np.float32))))
    return variables


def to_state(net: Architecture, variables: Variables) -> dict[str, np.ndarray]:
    """Converts ``variables`` to the state dict of torchvision's network.

    Args:
      net: at ImageNet geometry.
      variables: of ``net``; other dtypes are converted to float32.

    Returns:
      Key -> array, float32, with the buffers that follow from the architecture. ``num_batches_tracked`` is 0: PyTorch
      reads it only where its momentum is None.

    Raises:
      ValueError: if ``net`` is not at ImageNet geometry or has no counterpart, or if ``variables`` are not its.
    """
    state: dict[str, np.ndarray] = {}
    for leaf in _leaves(net):
        value: Any = variables
        for part in leaf.path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if np.shape(value) != leaf.own_shape:
            raise ValueError(
                f"{net.label}: {'.'.join(leaf.path)} must have shape {leaf.own_shape}, not {np.shape(value)}; "
                "give the variables of this network"
            )
        state[leaf.key] = np.array(leaf.write(np.asarray(value, np.float32)), order="C")  # a copy, writable
    return state | dict(_buffers(state))


class _Leaf(NamedTuple):
    """One array: its path and shape here, its key and shape there, and the grid of a flattened map (0: none)."""

    path: tuple[str, ...]
    own_shape: tuple[int, ...]
    key: str
    grid: int

    @property
    def shape(self) -> tuple[int, ...]:
        if self.path[-1] != "kernel":
            return self.own_shape
        # Two last axes to the front and swapped: OIHW of HWIO, and [O, I] of [I, O].
        return (*self.own_shape[::-1][:2], *self.own_shape[:-2])

    def write(self, value: np.ndarray) -> np.ndarray:
        if self.path[-1] != "kernel":
            return value
        # Behind a flattened map rows run over h, w, C here and over C, h, w there.
        if self.grid:
            value = value.reshape(self.grid, self.grid, -1, value.shape[-1])
        turned = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        return turned.reshape(self.shape)

    def read(self, value: np.ndarray) -> np.ndarray:
        if self.path[-1] != "kernel":
            return value
        if self.grid:
            value = value.reshape(value.shape[0], -1, self.grid, self.grid)
        turned = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        return turned.reshape(self.own_shape)


def _leaves(net: Architecture) -> Iterator[_Leaf]:
    family = families.family(net)
    rules = family.rules(net)
    # The first name of a path is the collection (``params``), which state dicts do not have.
    for keys, leaf in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(shapes(net)[0])):
        path = tuple(key.key for key in keys)
        grid = family.grids.get(path[1], 0) if path[-1] == "kernel" else 0
        yield _Leaf(path, tuple(leaf.shape), families.key(path[1:], rules), grid)


def _buffers(state: State) -> Iterator[tuple[str, np.ndarray]]:
    # Without them torchvision's ``load_state_dict`` is not strict.
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        if name == "running_mean":
            yield f"{layer}.num_batches_tracked", np.zeros((), np.int64)
        if name == "relative_position_bias_table":
            index = swin.position_index((math.isqrt(len(value)) + 1) // 2)  # (2 w - 1)^2 rows for windows of side w
            yield f"{layer}.relative_position_index", index.reshape(-1).astype(np.int64)


def _renamed(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        key = key.replace(old, new)
    return key


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def _format(file: pathlib.Path) -> tuple[Callable[[pathlib.Path], dict], Callable[[pathlib.Path, State], None]]:
    """How a file of this suffix is read and written; the library is imported here, so it fails before any work."""
    if file.suffix == ".safetensors":
        try:
            import safetensors.numpy
        except ImportError as error:
            raise ValueError(f"{file} needs safetensors; run: pip install safetensors") from error
        return _reader(safetensors.numpy.load_file), lambda path, state: safetensors.numpy.save_file(dict(state), path)
    if file.suffix in {".pth", ".pt"}:
        try:
            import torch
        except ImportError as error:
            raise ValueError(f"{file} needs torch; run: pip install torch") from error

        def read(path: pathlib.Path) -> Any:
            with files.for_torch(path) as whole:
                content = torch.load(whole, map_location="cpu", weights_only=True)
            state, size = _bare(content), path.stat().st_size
            # One number may stand for terabytes until it is copied.
            if large := [key for key, value in state.items() if value.numel() * value.element_size() > size]:
                raise ValueError(f"{large[0]} claims to be larger than the file")
            return {key: value.detach().float().numpy() for key, value in state.items()}

        def write(path: pathlib.Path, state: State) -> None:
            torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)

        return _reader(read), write
    raise ValueError(f"cannot tell the kind of {file}; its name must end in .safetensors, .pth or .pt")


def _bare(content: Any) -> Mapping[str, Any]:
    """A state dict without what training programs put around it."""
    # {"model": ...}: RDED's teachers; {"state_dict": ...}: PyTorch's ImageNet example and most others.
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            return _bare(content[name])
    # DataParallel's networks have everything under one name.
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return content


def _reader(read: Callable[[pathlib.Path], dict]) -> Callable[[pathlib.Path], dict]:
    def checked(file: pathlib.Path) -> dict:
        try:
            return read(file)
        except Exception as error:  # each library has its own for a damaged file
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{file} holds no state dict of arrays ({reason}); export it again") from error

    return checked
