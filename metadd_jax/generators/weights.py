"""A generator's weights in a file of safetensors: flat names, arrays, and nothing that could be run.

Pickles (.pkl, .pt, .pth and the like) are refused by name, and by their first bytes: to load one is to run whatever
code its author put in, and the published generators come as such files.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import files

_SUFFIX = ".safetensors"
# A zip (PyTorch's files since 1.6, .npz), a pickle of protocol 2 and later, and NumPy's own.
_MAGIC = {b"PK\x03\x04": "a zip, as PyTorch writes", b"\x80": "a pickle", b"\x93NUMPY": "an array of NumPy"}

_WHY = (
    ": loading a pickle runs its author's code, so none is opened; convert it where you trust it, and give a file of "
    "safetensors"
)


def dump(weights: Any, file: str | os.PathLike) -> None:
    """Writes weights as a new file of safetensors, whole or not at all.

    Args:
      weights: arrays in nested dicts; "a/b/c" is the name of ``weights["a"]["b"]["c"]``.
      file: ends in .safetensors. An existing file is never replaced: it may hold weights of a long training.

    Raises:
      ValueError: if the library is missing, the file has another name or exists.
    """
    file, library = _checked(file), _library(file)
    if os.path.lexists(file):
        raise ValueError(f"{file} exists already; choose another path or move it away")
    with files.atomic_path(file) as temporary:
        library.save_file({name: np.array(leaf, np.float32, order="C") for name, leaf in _named(weights)}, temporary)


def load(file: str | os.PathLike, like: Any, *, name: str = "the generator") -> Any:
    """Reads weights in the structure of ``like``.

    Args:
      file: of safetensors, with the names of ``dump``; "." in place of "/" serves too.
      like: arrays, or their shapes, in nested dicts.
      name: what messages call the generator.

    Returns:
      The weights, float32.

    Raises:
      ValueError: if the library or the file is missing, the file is a pickle, damaged, or holds other names, shapes or
        values that are not finite; the first wrong one is named.
    """
    file = _checked(file)
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give the path of the weights")
    with file.open("rb") as stream:
        head = stream.read(9)
    for magic, kind in _MAGIC.items():
        # Its own files begin with a length of eight bytes, which may look like anything, and then a brace.
        if head.startswith(magic) and not head.endswith(b"{"):
            raise ValueError(f"{file} is {kind}, whatever its name says{_WHY}")
    library = _library(file)
    try:
        held = library.load_file(file)
    except Exception as error:  # the library has its own for a damaged file
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} is no whole file of safetensors ({reason}); write it again") from error
    held = {key.replace(".", "/"): value for key, value in held.items()}
    wanted = dict(_named(like))
    for key, leaf in wanted.items():
        if key not in held:
            raise ValueError(f"{file} lacks {key} {tuple(leaf.shape)} of {name}{_first(held.keys() - wanted.keys())}")
        if held[key].shape != tuple(leaf.shape):
            raise ValueError(f"{file} has {key} of shape {held[key].shape}, but that of {name} is {tuple(leaf.shape)}")
        if not np.isfinite(np.asarray(held[key], np.float32)).all():
            raise ValueError(f"{file} has numbers in {key} that are not finite; write it again")
    if unknown := sorted(held.keys() - wanted.keys()):
        raise ValueError(f"{file} has {unknown[0]}, which {name} has not; give the weights of that generator")
    # Copies: the library may own the memory.
    leaves = [jnp.array(held[key], jnp.float32) for key in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _checked(file: str | os.PathLike) -> pathlib.Path:
    file = pathlib.Path(file).expanduser()
    if file.suffix in {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin"}:
        raise ValueError(f"{file} is a pickle by its name{_WHY}")
    if file.suffix != _SUFFIX:
        raise ValueError(f"cannot tell the kind of {file}; its name must end in {_SUFFIX}")
    return file


def _library(file: pathlib.Path) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ValueError(f"{file} needs safetensors; run: pip install safetensors") from error
    return safetensors.numpy


def _named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves in the order of ``jax.tree``, each with its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _first(unknown: Any) -> str:
    return f" and has {sorted(unknown)[0]}, which it has not" if unknown else ""
