"""What a set was decoded from: ``latents.npz`` that NumPy alone opens, with ``latents.json`` beside it.

The set itself, decoded, is what every reader wants (see ``arrays``); the latents are what is stored where a budget is
counted, and what decoding starts from.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax.exchange import pairs

_ROOT = "latents"


def _flaw(described: Mapping[str, np.dtype]) -> str:
    wrong = [name for name in described if name.split("/")[0] != _ROOT]
    return f"it holds {wrong[0]}" if wrong else "" if described else "it is empty"


_LATENTS = pairs.Kind("latents", "export_latents", _ROOT, frozenset({"parameterisation", "stored_values"}), _flaw)


def export_latents(
    file: str | os.PathLike, latents: Any, metadata: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Writes latents for NumPy; the same latents give the same bytes.

    Args:
      file: the ``.npz`` to write; ``<stem>.json`` goes beside it. An array is called "latents", one of a dict
        "latents/NAME".
      latents: a float array or nested dicts of them, such as ``state.synthetic["latents"]``; packed images [n, H, W, C]
        are in the set's value space.
      metadata: facts for the JSON, which gets versions and hashes besides. Those of ``distillers.budget`` are required,
        and those of the set usual, of which the matrices of a whitened one are left out: they lie beside the images.
      overwrite: replace an existing pair that this function wrote; any other file stays.

    Raises:
      ValueError: if a file exists that may not be replaced, or if the latents are of another kind or not finite.
    """
    file = pairs.path_of(file)
    # Without them nobody can decode the file or count what a budget of images per class is compared with.
    missing = sorted(_LATENTS.facts - metadata.keys())
    if missing:
        raise ValueError(f"the metadata of the latents lacks {', '.join(missing)}; add what distillers.budget gives")
    arrays = dict(_named(latents, _ROOT))
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype}{array.shape} or not finite; latents are finite float arrays")
    facts = {name: value for name, value in metadata.items() if name not in pairs.WHITENING}
    pairs.write(file, _LATENTS, arrays, facts, overwrite=overwrite)


def load_latents(file: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """Reads what ``export_latents`` wrote and proves it whole; ``decode`` then gives the images.

    Args:
      file: the ``.npz``; its JSON must lie beside it.

    Returns:
      The latents, an array or nested dicts of them, and the content of the JSON.

    Raises:
      ValueError: if a file is missing, truncated, foreign or changed; files stay as they are.
    """
    arrays, metadata = pairs.read(pathlib.Path(file).expanduser().absolute(), _LATENTS)
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *way, last = name.split("/")
        inside = tree
        for step in way:
            inside = inside.setdefault(step, {})
        inside[last] = jnp.asarray(array)
    return tree[_ROOT], metadata


def _named(latents: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    # "/" joins the names as in paths, so it may be in none of them. Other containers would come back as dicts, which no
    # decoder of theirs takes.
    if isinstance(latents, Mapping) and latents:
        for key, value in latents.items():
            if not isinstance(key, str) or "/" in key or not key:
                raise ValueError(f"{name} has the key {key!r}; latents are arrays in dicts of words without '/'")
            yield from _named(value, f"{name}/{key}")
    elif isinstance(latents, jax.Array | np.ndarray | np.generic):
        yield name, np.asarray(latents)
    else:
        raise ValueError(f"{name} is a {type(latents).__name__}; latents are arrays in dicts, none of them empty")
