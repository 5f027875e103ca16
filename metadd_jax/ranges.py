"""The range of every setting, written once beside it: ``steps: Annotated[int, Whole(1)]``.

A record of settings checks all of its fields by ``check(self)``, a function one argument by ``require``. NaN is in no
range (it compares False with everything, so ``not value > 0`` is easily forgotten), and a number counts as what it
becomes in float32: 1e39 is infinite and 1e-50 is 0.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import numbers
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

SEEDS = 2**32
"""A seed is from 0 to this less 1: what NumPy and scikit-learn take."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from ``low`` to ``high``, both included; without ``high`` there is no end."""

    low: int
    high: int | None = None

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is one of them."""
        # NumPy's integers are numbers.Integral and no int.
        if not isinstance(value, numbers.Integral):
            return False
        return self.low <= int(value) and (self.high is None or int(value) <= self.high)

    def __str__(self) -> str:
        return f"a whole number{f', at least {self.low}' if self.high is None else f' from {self.low} to {self.high}'}"

    def outside(self) -> list[Any]:
        """Lists values that are none of them, for tests."""
        return [self.low - 1, self.low + 0.5, *([] if self.high is None else [self.high + 1])]


@dataclasses.dataclass(frozen=True)
class Real:
    """Finite numbers from ``low`` to ``high``; ``above`` leaves out ``low`` itself and ``below`` ``high``."""

    low: float = -np.inf
    high: float = np.inf
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is one of them when it is float32."""
        if isinstance(value, str | bytes):  # np.float32("0.1") is a number, but text multiplies nothing
            return False
        try:
            with np.errstate(over="ignore"):
                single = np.float32(value)
        except (TypeError, ValueError, OverflowError):
            return False
        # NaN before the comparisons, which it fails silently; an array passes np.float32 and is no setting.
        if single.shape or not np.isfinite(single):
            return False
        low = single > self.low if self.above else single >= self.low
        return bool(low and (single < self.high if self.below else single <= self.high))

    def __str__(self) -> str:
        ends = []
        if np.isfinite(self.low):
            ends.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if np.isfinite(self.high):
            ends.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        return f"a finite float32 number{', ' if ends else ''}{' and '.join(ends)}"

    def outside(self) -> list[Any]:
        """Lists values that are none of them, for tests."""
        low = [self.low if self.above else self.low - 1] if np.isfinite(self.low) else []
        high = [self.high if self.below else self.high + 1] if np.isfinite(self.high) else []
        return [np.nan, np.inf, -np.inf, 1e39, *low, *high]


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Certain words."""

    words: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is one of them."""
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"

    def outside(self) -> list[Any]:
        """Lists values that are none of them, for tests."""
        return ["", self.words[0] + "x"]


@dataclasses.dataclass(frozen=True)
class Named:
    """The names that a registry holds by now, those that the user's own code gave it among them."""

    names: Callable[[], tuple[str, ...]]

    @property
    def words(self) -> tuple[str, ...]:
        """The names, asked anew each time."""
        return self.names()

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is one of them."""
        return OneOf(self.words).holds(value)

    def __str__(self) -> str:
        return str(OneOf(self.words))

    def outside(self) -> list[Any]:
        """Lists values that are none of them, for tests."""
        return OneOf(self.words).outside()


@dataclasses.dataclass(frozen=True)
class Ordered:
    """A pair of whole numbers (low, high), low at most high."""

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is such a pair."""
        # Any sequence: command lines give tuples, files lists.
        pair = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(x, numbers.Integral) for x in value)
        return pair and value[0] <= value[1]

    def __str__(self) -> str:
        return "two whole numbers, the lower one first"

    def outside(self) -> list[Any]:
        """Lists values that are none of them, for tests."""
        return [(4, 0), (0.5, 1)]


@dataclasses.dataclass(frozen=True)
class Text:
    """Text that something else reads and refuses: ``by`` says what."""

    by: str

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is text."""
        return isinstance(value, str)

    def __str__(self) -> str:
        return "text"

    def outside(self) -> list[Any]:
        """Lists values that are no text, for tests."""
        return [1, ()]


@dataclasses.dataclass(frozen=True)
class Texts:
    """A row of texts that something else reads and refuses: ``by`` says what."""

    by: str

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is such a row; it may be empty."""
        return isinstance(value, tuple) and all(isinstance(word, str) for word in value)

    def __str__(self) -> str:
        return "a row of texts"

    def outside(self) -> list[Any]:
        """Lists values that are none, for tests."""
        return ["text", (1,)]


@dataclasses.dataclass(frozen=True)
class Each:
    """A row of values, each of them in a range; it may be empty."""

    rule: Whole | Real

    def holds(self, value: Any) -> bool:
        """Tells whether ``value`` is such a row."""
        return isinstance(value, tuple | list) and all(map(self.rule.holds, value))

    def __str__(self) -> str:
        return f"a row whose every entry is {self.rule}"

    def outside(self) -> list[Any]:
        """Lists values that are none of them, for tests."""
        return [(wrong,) for wrong in self.rule.outside()]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs (name, value), each value in a range; there may be none."""

    rule: Whole | Real

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is a row of such pairs."""
        pairs = isinstance(value, tuple | list) and all(isinstance(x, tuple | list) and len(x) == 2 for x in value)
        return pairs and all(isinstance(name, str) and self.rule.holds(number) for name, number in value)

    def __str__(self) -> str:
        return f"pairs of a name and {self.rule}"

    def outside(self) -> list[Any]:
        """Values that are none of them, for tests."""
        return ["ai", (("ai",),), *((("ai", wrong),) for wrong in self.rule.outside())]


Range = Whole | Real | OneOf | Named | Ordered | Text | Texts | Each | Pairs


@functools.cache
def _hints(record: type, extras: bool) -> dict[str, Any]:
    """The types of a record's fields; kept, since a hundred presets are checked whenever the command starts."""
    return typing.get_type_hints(record, include_extras=extras)


def of(settings: type) -> dict[str, Range]:
    """Collects the ranges that the fields of a dataclass declare.

    Args:
      settings: the class, whose fields may be ``Annotated[type, Range]``.

    Returns:
      The ranges by field; a field without one is left out.
    """
    # Resolved, since annotations are text under "from __future__ import annotations".
    hints = _hints(settings, True)
    declared = {name: getattr(hints[name], "__metadata__", ()) for name in field_names(settings)}
    return {name: rule for name, rules in declared.items() for rule in rules if isinstance(rule, Range)}


def field_names(settings: type) -> list[str]:
    """Lists the fields of ``settings``, a dataclass."""
    return [field.name for field in dataclasses.fields(settings)]


def check(settings: Any, *, spell: Callable[[str], str] = str, path: str = "") -> None:
    """Checks every field of a dataclass that declares a range, and of the dataclasses inside it.

    Args:
      settings: the record. A field may be None, or of a class beside what its range speaks of, where its type says so
        (``Annotated[str | optax.GradientTransformation, OneOf(...)]``).
      spell: how the user writes a field (``"mtt.lr_teacher"``), for the message.
      path: what goes before the names of the fields.

    Raises:
      ValueError: naming the first field outside its range, what it is and what it may be.
    """
    rules = of(type(settings))
    for name in field_names(type(settings)):
        value = getattr(settings, name)
        # By the value: a field that may be None or one of several records says so by what stands in it.
        if dataclasses.is_dataclass(value):
            check(value, spell=spell, path=f"{path}{name}.")
        elif name in rules and not _is_of_another_kind(settings, name, value):
            require(spell(path + name), value, rules[name], optional=_is_of_another_kind(settings, name, None))


def require(name: str, value: Any, rule: Range, *, optional: bool = False) -> None:
    """Refuses a value outside its range.

    Args:
      name: what the message calls it: the argument, or the option as the user writes it.
      value: what was given.
      rule: what may be given.
      optional: whether None was possible too, for the message.

    Raises:
      ValueError: with the name, the value and the range.
    """
    if rule.holds(value):
        return
    # Only where words are known: of a number nobody knows which one was meant.
    hint = nearest(str(value), rule.words) if isinstance(rule, OneOf | Named) else ""
    raise ValueError(f"{name}={value!r} must be {rule}{', or None' if optional else ''}{hint}")


def listed(words: Sequence[str]) -> str:
    """Words as a sentence says them: "dm", "dc and dsa", "mtt, tesla and tesla_code"."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def nearest(word: str, words: Iterable[str]) -> str:
    """Finds what a misspelt word may have meant, for the end of an error's first half.

    Args:
      word: what was given.
      words: what may be given.

    Returns:
      " (did you mean 'dm'?)", or "" where none is near.
    """
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)  # of two letters one may be wrong
    return f" (did you mean {near[0]!r}?)" if near else ""


def _is_of_another_kind(settings: Any, name: str, value: Any) -> bool:
    record: type = type(settings)
    return isinstance(value, _other_kinds(record, name))


@functools.cache
def _other_kinds(record: type, name: str) -> tuple[type, ...]:
    kinds = typing.get_args(_hints(record, False)[name])
    return tuple(kind for kind in kinds if isinstance(kind, type) and kind not in _SPOKEN_OF)


# What the rules above judge.
_SPOKEN_OF = (int, float, str, bool)
