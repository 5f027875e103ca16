"""What all registries of the package share: how a name is taken."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from typing import Any

RESERVED = ("none", "auto", "all")  # words that options already read otherwise


def claim(table: dict[str, Any], name: str, thing: Any, *, kind: str, taken: Collection[str] = ()) -> None:
    """Enters ``thing`` into ``table`` under ``name``.

    What is defined again replaces itself: a function of the same name in the same module, as when the cell of a
    notebook is run once more. Whatever else has the name keeps it, so that no old word means something new.

    Args:
      table: the registry.
      name: a Python identifier, so that it can stand in every option, label and file name.
      thing: a function or a class.
      kind: what the table holds, for the error ("network").
      taken: further names that are not free: those of the package.

    Raises:
      ValueError: if the name is no identifier, is the package's, or is taken by something else.
    """
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        raise ValueError(f"no {kind} can be named {name!r}; give letters, digits and underscores, and no digit first")
    if name in taken:
        raise ValueError(f"the {kind} {name!r} is one of metadd_jax; register yours under another name")
    if name in table and origin(table[name]) != origin(thing):
        raise ValueError(
            f"the {kind} {name!r} is {origin(table[name])} already, not {origin(thing)}; register one of them under "
            "another name"
        )
    table[name] = thing


def origin(thing: Any) -> str:
    """Where a function or a class was defined: module and name, and of a lambda, which has none, its line."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    line = f":{thing.__code__.co_firstlineno}" if "<lambda>" in named.__qualname__ and inspect.isfunction(thing) else ""
    return f"{named.__module__}.{named.__qualname__}{line}"
