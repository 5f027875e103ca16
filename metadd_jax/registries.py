"""What all registries of the package share: how a name is taken, and the text that names a thing and its options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from typing import Any

Option = int | float | str  # what the text of an option can say
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


def read(text: str, *, kind: str) -> tuple[str, dict[str, Option]]:
    """Takes text such as "resnet18:width=16,norm=batch" apart.

    Args:
      text: a name, and after a colon its options.
      kind: what is named, for the error ("network").

    Returns:
      The name, and by their names the options as numbers, truth values or words, whichever they look like.

    Raises:
      ValueError: if an option has no value.
    """
    name, _, rest = text.partition(":")
    options = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"cannot read {item!r} in {kind} {text!r}; write name:option=value,option=value")
        options[option.strip()] = _number_or_word(value.strip())
    return name.strip(), options


def require_kind(name: str, option: str, value: Option, default: Option | None) -> None:
    """Refuses an option whose value is of another kind than its default; its range is for whoever it belongs to.

    Args:
      name: whose option it is, for the error.
      option: what it is called.
      value: what was given.
      default: what it is otherwise; None lets every kind pass.

    Raises:
      ValueError: with the value and what may be given.
    """
    # A float may be written as 1, a truth value may not.
    kinds = (int, float) if isinstance(default, float) else type(default)
    if default is not None and not (isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)):
        raise ValueError(f"{name}: {option}={value}; give {_KINDS[type(default)]}, such as {default!r}")


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def _number_or_word(text: str) -> Option:
    # The option's own check decides whether this type is right; here only the shape of the text counts.
    if text in {"True", "False"}:
        return text == "True"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
