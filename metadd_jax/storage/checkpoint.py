"""Orbax checkpoints of distilled sets, network variables and running distillations, exact to the bit.

A tree is stored flat: the leaves as host arrays under their paths (one Orbax checkpoint), and their names,
shapes and types in ``tree.json``. The structure itself comes from the code that restores. So a state saved
from many devices loads on one, typed keys and optimiser states come back as they were, and a checkpoint of
another run is recognised leaf by leaf before it is used. On several processes all of them call these
functions, with the same replicated values and one shared file system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from metadd_jax import files, structs
from metadd_jax.storage import folder

_ARRAYS, _TREE, _METADATA = "arrays", "tree.json", "metadata.json"
_ROOM = 1 << 18  # bytes of Orbax's own files and of ours, beside the arrays
_STEP_NAME = re.compile(r"step_(\d{8,})")


def save(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Saves a distilled set and what must be known to use it, whole or not at all.

    Args:
      directory: the folder to make; parents are made too.
      synthetic: the set; fields that are None stay None.
      metadata: JSON-serialisable facts (mean, std, class names, value space, method, seed ...).
      overwrite: replace a folder that this function wrote, which is removed only after the new one is complete.

    Raises:
      ValueError: if ``directory`` exists and ``overwrite`` is False, or if it holds anything else than such a folder.
      OSError: if the disk is full.
    """
    _save(directory, synthetic, metadata, overwrite=overwrite)


def restore(directory: str | os.PathLike) -> tuple[structs.SyntheticSet, dict[str, Any]]:
    """Loads what ``save`` wrote, once every file of it is seen to be whole.

    Args:
      directory: the folder.

    Returns:
      The set, as arrays on the default device, and its metadata.

    Raises:
      ValueError: if the folder is missing, damaged or holds something else than a distilled set.
    """
    directory = folder.check(directory)
    # By name, before Orbax reads: a folder of network weights is a whole checkpoint too.
    description = _read_description(directory)
    names = {entry["name"] for entry in description["leaves"]}
    fields = {field.name for field in dataclasses.fields(structs.SyntheticSet)}
    if not {"images", "labels"} <= names <= fields or not (directory / _METADATA).is_file():
        raise ValueError(f"{directory} is no distilled set (it holds {len(names)} other arrays); give a set's folder")
    arrays = _read_arrays(directory, description["leaves"])
    synthetic = structs.SyntheticSet(**{name: jnp.asarray(array) for name, array in arrays.items()})
    return synthetic, files.read_json(directory / _METADATA)


def save_tree(directory: str | os.PathLike, tree: Any, *, overwrite: bool = False, keep: bool = False) -> None:
    """Saves any pytree of arrays, typed keys and numbers; see ``save`` for the promises and errors.

    Args:
      directory: the folder to make.
      tree: the leaves; the structure is not stored (see ``restore_tree``).
      overwrite: replace a folder that this function wrote.
      keep: if another process has made ``directory`` meanwhile, leave that one and no error: the first writer wins.
    """
    _save(directory, tree, None, overwrite=overwrite, keep=keep)


def restore_tree(directory: str | os.PathLike, like: Any) -> Any:
    """Loads a tree into the structure of ``like``.

    Args:
      directory: a folder written by ``save_tree``.
      like: a tree of the same structure whose leaves are arrays (which also say on which devices the result lives),
        ``jax.ShapeDtypeStruct`` or numbers; their values are not read.

    Returns:
      The saved tree: JAX arrays where ``like`` has JAX arrays or abstract ones, NumPy arrays and Python
      numbers where it has those.

    Raises:
      ValueError: if the folder is missing or damaged, or if its leaves differ from those of ``like``.
    """
    directory = folder.check(directory)
    description, expected = _read_description(directory), _describe(like)
    # Before any value: JAX would take the leaves of another run where shapes happen to agree.
    if description["leaves"] != expected:
        raise ValueError(
            f"{directory} belongs to another run or configuration: "
            f"{_first_difference(description['leaves'], expected)}; "
            "use the settings it was made with or another folder"
        )
    arrays, generators = _read_arrays(directory, expected, keys=description["keys"]), description["keys"]
    names = [entry["name"] for entry in expected]
    leaves, structure = jax.tree.flatten(like)
    placed = [_place(arrays.get(name), leaf, generators.get(name)) for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(structure, placed)


class Checkpointer:
    """The checkpoints of one running distillation: ``directory/step_00000100/`` and so on.

    Args:
      directory: the folder of the run's checkpoints; made when first needed.
      keep: how many of the latest steps stay, at least 1. Two by default: where the disk damaged the last one, the user
        removes it and the run goes on from the one before.

    Raises:
      ValueError: if ``keep`` is below 1.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep} checkpoints cannot be resumed from; keep at least 1")
        self.directory = pathlib.Path(directory).expanduser().absolute()
        self.keep = keep

    def save(self, step: int, state: Any) -> None:
        """Saves a state; returns when it is complete on the disk.

        Args:
          step: updates done so far.
          state: any pytree (see ``save_tree``).

        Raises:
          ValueError: if ``step`` is there already.
        """
        _save(self._path(step), state, None, overwrite=False)
        # Older ones go only now that the new one is whole, and by one process, where several share the folder.
        if jax.process_index() == 0:
            folder.tidy(self.directory, name="step_*")
            for old in self._steps()[: -self.keep]:
                folder.remove(self._path(old))

    def latest(self) -> int | None:
        """Finds the last complete step, or None where there is none; what a killed save left is not seen."""
        return max(self._steps(), default=None)

    def restore(self, step: int, like_state: Any) -> Any:
        """Loads a state.

        Args:
          step: one that was saved.
          like_state: a state of the same structure, on the devices where the result shall live (see ``restore_tree``).

        Raises:
          ValueError: as ``restore_tree``.
        """
        return restore_tree(self._path(step), like_state)

    def verify(self) -> None:
        """Checks every file of every step.

        Raises:
          ValueError: naming the first damaged file, which is left as it is.
        """
        for step in self._steps():
            folder.check(self._path(step))

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"step_{step:08d}"  # padded: a listing by name is one by step

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        matches = (_STEP_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in matches if match)


def _save(
    directory: str | os.PathLike, tree: Any, metadata: dict | None, *, overwrite: bool, keep: bool = False
) -> None:
    # Imported late: it takes most of a second, and a package that only computes does not need it.
    from orbax.checkpoint import v1 as ocp

    entries = _describe(tree)
    leaves = {entry["name"]: leaf for entry, leaf in zip(entries, jax.tree.leaves(tree), strict=True)}
    # Typed keys are stored as numbers with the generator's name: Orbax stores numbers only.
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if _is_key(leaf)}
    # Orbax refuses arrays without elements; their description in ``entries`` says it all.
    arrays = {name: _to_host(leaf) for name, leaf in leaves.items() if np.size(leaf)}
    with _whole_folder(directory, overwrite=overwrite, keep=keep) as partial:
        if arrays:
            # Before Orbax begins: on a full disk each of its threads prints a traceback of its own.
            files.require_space(partial.parent, sum(array.nbytes for array in arrays.values()) + _ROOM)
            ocp.save(partial / _ARRAYS, arrays)
        if jax.process_index() == 0:
            # The manifest last: it lists everything, and a folder without it is no checkpoint.
            files.write_json(partial / _TREE, {"leaves": entries, "keys": keys})
            if metadata is not None:
                files.write_json(partial / _METADATA, metadata)
            folder.seal(partial)


@contextlib.contextmanager
def _whole_folder(directory: str | os.PathLike, *, overwrite: bool, keep: bool) -> Iterator[pathlib.Path]:
    """``folder.whole_folder`` for all processes together: the first makes and names it, all write into it."""
    if jax.process_count() == 1:
        with folder.whole_folder(directory, overwrite=overwrite, keep=keep) as partial:
            yield partial
        return
    directory = pathlib.Path(directory).expanduser().absolute()
    # The hidden name has a random part, so the first process tells it to all.
    partial = directory.with_name(_same_text(files.temporary_path(directory).name))
    if jax.process_index() == 0:
        with folder.whole_folder(directory, overwrite=overwrite, keep=keep, partial=partial) as partial:
            yield partial
    else:
        yield partial
    # Nobody goes on before it has its name: another process might look for the latest step at once.
    multihost_utils.sync_global_devices("checkpoint complete")


def _same_text(text: str) -> str:
    """What the first process holds, on all of them; at most 255 bytes, as file names are."""
    padded = np.frombuffer(text.encode().ljust(255, b"\0")[:255], np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded)).rstrip(b"\0").decode()


def _read_description(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / _TREE
    if not path.is_file():
        raise ValueError(f"{directory} is no checkpoint of metadd_jax ({_TREE} is missing); check the path")
    found = files.read_json(path)
    leaves, keys = (found.get(name) if isinstance(found, dict) else None for name in ("leaves", "keys"))
    if not isinstance(leaves, list) or not isinstance(keys, dict) or not all(map(_is_entry, leaves)):
        raise ValueError(f"{path} describes no checkpoint of metadd_jax; restore it")
    return found


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("name", "dtype"))
        and isinstance(entry.get("shape"), list)
        and all(type(side) is int and side >= 0 for side in entry["shape"])
    )


def _read_arrays(directory: pathlib.Path, leaves: list[dict], *, keys: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The leaves that have elements, by name, once Orbax's own description is seen to be that of ``leaves``.

    The manifest's hashes say that a folder is whole, and not who wrote it: a few bytes of Orbax's may claim terabytes.

    Args:
      directory: the checkpoint.
      leaves: name and shape of each.
      keys: names of typed keys, which are stored as more numbers than they have elements.
    """
    from orbax.checkpoint import v1 as ocp

    place = directory / _ARRAYS
    # Of a tree whose leaves are all empty there is nothing that Orbax would have stored.
    if not place.is_dir():
        return {}
    wanted = {entry["name"]: tuple(entry["shape"]) for entry in leaves if 0 not in entry["shape"]}
    try:
        held = ocp.metadata(place).metadata
        shapes = {name: tuple(one.shape) for name, one in held.items()}
        chunks = [math.prod(one.storage_metadata.chunk_shape) - max(math.prod(one.shape), 1) for one in held.values()]
        same = shapes.keys() == wanted.keys() and all(
            shapes[name][: len(shape)] == shape and (name in keys or len(shapes[name]) == len(shape))
            for name, shape in wanted.items()
        )
        claimed = sum(math.prod(one.shape) * one.dtype.itemsize for one in held.values())
        if not same or max(chunks, default=0) > 0 or claimed > (files.memory() or sys.maxsize):
            raise ValueError(f"its arrays are not those of {_TREE}")
        return ocp.load(place)
    except Exception as error:  # Orbax and TensorStore have many for what they cannot read
        raise ValueError(f"{place} holds no arrays that can be read ({files.reason(error)}); restore it") from error


def _place(array: np.ndarray | None, like: Any, generator: str | None) -> Any:
    """Brings a loaded leaf to the kind and the devices of ``like``.

    Args:
      array: the values, a key's as plain numbers; None for a leaf without elements.
      like: the leaf in whose place it goes.
      generator: the random generator's name if the leaf is a typed key.
    """
    if isinstance(like, np.ndarray):
        return like if array is None else array
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return type(like)(array)
    if array is None:
        array = np.zeros(like.shape, like.dtype)  # of a leaf without elements
    # An uncommitted array may join others on any device; it must stay free to do so.
    free = isinstance(like, jax.Array) and not like.committed
    placed = jax.device_put(array, None if free else like.sharding)
    return placed if generator is None else jax.random.wrap_key_data(placed, impl=generator)


def _describe(tree: Any) -> list[dict]:
    """Name, shape and type of every leaf, in the order of ``jax.tree.leaves``; JSON-serialisable."""
    entries = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        typed = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        entries.append({"name": name, "shape": list(typed.shape), "dtype": str(typed.dtype)})
    if len({entry["name"] for entry in entries}) < len(entries):
        raise ValueError("two leaves of the tree have the same path; rename keys that contain a dot")
    return entries


def _first_difference(saved: list[dict], expected: list[dict]) -> str:
    def by_name(entries: list[dict]) -> dict[str, str]:
        return {entry["name"]: f"{entry['dtype']}{entry['shape']}" for entry in entries}

    there, here = by_name(saved), by_name(expected)
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
    return "its leaves are in another order"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
