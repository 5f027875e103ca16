"""Command lines from frozen dataclasses: what an option is called, how it is read, how ``--help`` shows it.

tyro reads the values. The names are settled here, before tyro sees them, because which options there are depends on the
method: a method's own settings lie in a record of its own, and those of another method are refused by its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import inspect
import io
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from metadd_jax import ranges

# Where the text of an option begins in --help, and the widest line that reads well.
_COLUMN, _WIDEST = 30, 118


class Mark(enum.Enum):
    """How an option stands on the command line, said in its type: ``Annotated[str, Mark.POSITIONAL]``."""

    POSITIONAL = "without a name"
    REPEATED = "once for each value"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which options a command has beside its plain fields, and how ``--help`` arranges them.

    Attributes:
      prefixes: for each field that holds a record of settings, what its options begin with ("mtt" for
        ``--mtt.epochs``); a record that is not named here keeps its values and has no options.
      short: the field whose options may do without what they begin with, as long as no other option is called so.
      auto: the word for None in the options of ``short``, in whose record None means "as published" or "all".
      foreign: options of other commands or methods, by name without the dashes, and whose they are.
      groups: title -> fields, in the order of ``--help``; what is in none stands at the end.
      first: the fields that ``--help`` shows ("metadd.ai" for one of a record); the others only ``--help-all``. Empty
        for all.
    """

    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    short: str | None = None
    auto: str = "auto"
    foreign: Mapping[str, str] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    first: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Option:
    """One option: its name ("mtt.syn-steps"), its type with what is annotated there, its text and its default."""

    name: str
    hint: Any
    text: str
    default: Any
    path: tuple[str, ...]  # of fields, from the command's own record

    @property
    def rules(self) -> tuple[Any, ...]:
        return getattr(self.hint, "__metadata__", ())

    @property
    def may_be_none(self) -> bool:
        return type(None) in typing.get_args(self._bare)

    @property
    def kind(self) -> Any:
        """The type without annotations and without None."""
        others = [kind for kind in typing.get_args(self._bare) if kind is not type(None)]
        return others[0] if self.may_be_none else self._bare

    @property
    def _bare(self) -> Any:
        return typing.get_args(self.hint)[0] if self.rules else self.hint

    @property
    def spellings(self) -> list[str]:
        """Every name under which it can be set: a switch can be turned off too."""
        if self.kind is not bool:
            return [self.name]
        head, _, last = self.name.rpartition(".")
        return [self.name, f"{head}.no-{last}" if head else f"no-{last}"]


def parse(
    config_type: type,
    arguments: Sequence[str],
    *,
    default: Any = None,
    program: str,
    description: str,
    layout: Layout | None = None,
) -> Any:
    """Reads a command line into a frozen dataclass; ``--help`` explains each option and ends the program.

    Args:
      config_type: the dataclass. The ranges of its fields are checked.
      arguments: the words of the command line.
      default: values of the options that are not given, where they are not the class's own.
      program: what stands before ``arguments``: "metadd distill [PRESET]", or a script's file.
      description: what the command does; its examples are shown as the user called it.
      layout: of the options, where there is more to say than their names.

    Returns:
      A ``config_type``.

    Raises:
      ValueError: one line for what cannot be read, is not known, belongs to another method or is out of its range.
    """
    layout = layout or Layout()
    options = _options(config_type, default, layout)
    # Before tyro sees a word: its own page would show the options of every record.
    if any(word in ("-h", "--help", "--help-all") for word in arguments):
        print(_help(options, layout, program, description, everything="--help-all" in arguments))
        raise SystemExit(0)
    # Names first, values then: an unknown option gets a hint of ours and not tyro's box.
    values = _read(config_type, _spelt(arguments, options, layout), options)
    config = _with(config_type if default is None else default, values, layout)
    ranges.check(config, spell=lambda path: f"--{_name(path.split('.'), layout)}")
    return config


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """Reads what the last ``--name VALUE`` or ``--name=VALUE`` gives, before anything is parsed.

    Args:
      name: of the option, without the dashes.
      arguments: the words of the command line.

    Returns:
      The word, or None where the option is not given.
    """
    values = values_of(name, arguments)
    return values[-1] if values else None


def values_of(name: str, arguments: Sequence[str]) -> list[str]:
    """Reads what every ``--name VALUE`` and ``--name=VALUE`` gives, in their order.

    Args:
      name: of the option, without the dashes.
      arguments: the words of the command line.
    """
    found = []
    for i, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag == f"--{name}":
            # The next option is no value: where one is missing, ``parse`` says so.
            found += [value] if equals else [after for after in arguments[i + 1 : i + 2] if not after.startswith("--")]
    return found


def option_names(record: type) -> list[str]:
    """What the options of a record of settings are called, without what they begin with."""
    return [name.replace("_", "-") for name in ranges.field_names(record)]


def _options(record: type, value: Any, layout: Layout, path: tuple[str, ...] = ()) -> list[_Option]:
    """The options of a dataclass and of the records in it; ``value`` holds their defaults, None the class's own."""
    found = []
    hints, texts = typing.get_type_hints(record, include_extras=True), _texts(record)
    for field in dataclasses.fields(record):
        own = (*path, field.name)
        now = _now(record if value is None else value, field)
        if not dataclasses.is_dataclass(now):
            text = texts.get(field.name, "")
            found.append(_Option(name=_name(own, layout), hint=hints[field.name], text=text, default=now, path=own))
        elif path or field.name in layout.prefixes:
            found += _options(type(now), now, layout, own)
    return found


def _now(record: Any, field: dataclasses.Field) -> Any:
    """The value of a field of a dataclass's instance, or its default where ``record`` is the class."""
    if not isinstance(record, type):
        return getattr(record, field.name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _name(path: Sequence[str], layout: Layout) -> str:
    """How the user writes a field: ("mtt", "lr_teacher") is "mtt.lr-teacher"."""
    first = layout.prefixes.get(path[0], path[0])
    return ".".join((first, *path[1:])).replace("_", "-")


def _texts(record: type) -> dict[str, str]:
    """What the docstring of a record (and of those it derives from) says of each attribute."""
    found: dict[str, str] = {}
    # From the base record on, so that what a derived one says of the same field holds.
    for kind in reversed(record.__mro__):
        _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
        block = textwrap.dedent(attributes.partition("\n\n")[0])
        for names, text in re.findall(r"^(\w+(?:, \w+)*): (.*(?:\n .*)*)", block, flags=re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _spelt(arguments: Sequence[str], options: Sequence[_Option], layout: Layout) -> list[str]:
    """The words with every option under its full name.

    Raises:
      ValueError: for an option that there is not; whose it is, or what it comes near to.
    """
    full = {spelling: spelling for option in options for spelling in option.spellings}
    for option in options:
        if option.path[0] == layout.short:
            beginning = f"{layout.prefixes[option.path[0]]}."
            full = {spelling.removeprefix(beginning): spelling for spelling in option.spellings} | full
    switches = {spelling for option in options if option.kind is bool for spelling in option.spellings}
    # Elsewhere "auto" stays what the user wrote, so that the error speaks of it and not of None.
    autos = {option.name for option in options if option.path[0] == layout.short and option.may_be_none}
    words: list[str] = []
    for word in arguments:
        if not re.match(r"--[A-Za-z]", word):
            if word in ("True", "False") and words and words[-1].removeprefix("--") in switches:
                raise ValueError(f"{words[-1]} is a switch and takes no {word}; write --NAME or --no-NAME")
            # Only in the method's own settings: elsewhere "auto" is a word of its own (DSA tokens by data set).
            is_none = word == layout.auto and words and words[-1].removeprefix("--") in autos
            words.append("None" if is_none else word)
            continue
        written, equals, value = word[2:].partition("=")
        name = written.replace("_", "-")
        if name not in full:
            positive = re.sub(r"(^|\.)no-", r"\1", name)
            if owner := layout.foreign.get(name) or layout.foreign.get(positive):
                raise ValueError(f"--{written} is an option of {owner}; leave it out, or change --method")
            # Foreign ones too: a near miss of another method's option should be told as such.
            near = difflib.get_close_matches(name, [*full, *layout.foreign], n=1)
            hint = f"did you mean --{near[0]}?" if near else "--help lists the options"
            raise ValueError(f"unknown option --{written}; {hint}")
        value = "None" if value == layout.auto and full[name] in autos else value
        words.append(f"--{full[name]}{equals}{value}")
    return words


def _read(config_type: type, words: list[str], options: Sequence[_Option]) -> dict[tuple[str, ...], Any]:
    """tyro's part: the values, each under the path of its field."""
    try:
        # Late: whoever uses the package in code needs no parser.
        import tyro
    except ImportError as error:
        raise ValueError(
            "the command needs more than the package (here tyro); run: pip install 'metadd_jax[experiments]'"
        ) from error
    marks = {Mark.POSITIONAL: tyro.conf.Positional, Mark.REPEATED: tyro.conf.UseAppendAction}
    given = {word.partition("=")[0].removeprefix("--") for word in words}
    fields: list[tuple[str, Any, Any]] = []
    paths: dict[str, tuple[str, ...]] = {}
    for option in options:
        positional = Mark.POSITIONAL in option.rules
        # tyro takes a millisecond for each field that it is shown, so it sees those alone that there is a word for.
        if not (positional or option.default is dataclasses.MISSING or given.intersection(option.spellings)):
            continue
        hint = option.hint if positional else Annotated[option.hint, tyro.conf.arg(name=option.name)]
        for mark in option.rules:
            if isinstance(mark, Mark):
                hint = marks[mark][hint]
        name = option.path[0] if positional else f"option{len(paths)}"
        fields.append((name, hint, dataclasses.field(default=option.default)))
        paths[name] = option.path
    shown = dataclasses.make_dataclass(config_type.__name__, fields, kw_only=True, frozen=True)
    said = io.StringIO()
    try:
        # tyro prints its error and ends the program; here it must become one line.
        with contextlib.redirect_stderr(said):
            read: Any = tyro.cli(shown, args=words, add_help=False, prog="us")
    except SystemExit as ended:
        raise ValueError(_from_box(said.getvalue())) from ended
    return {path: getattr(read, name) for name, path in paths.items()}


def _with(record: Any, values: Mapping[tuple[str, ...], Any], layout: Layout, path: tuple[str, ...] = ()) -> Any:
    """``record``, a dataclass or an instance of one, with ``values``; its own checks run on them."""
    inner: dict[str, dict[tuple[str, ...], Any]] = {}
    for (first, *rest), value in values.items():
        inner.setdefault(first, {})[tuple(rest)] = value
    fields = {field.name: field for field in dataclasses.fields(record)}
    changed = {
        name: below[()] if () in below else _with(_now(record, fields[name]), below, layout, (*path, name))
        for name, below in inner.items()
    }
    try:
        return record(**changed) if isinstance(record, type) else dataclasses.replace(record, **changed)
    except ValueError as error:
        if not path:
            raise
        # A record of settings checks itself: "lr_teacher=0 must be ..." speaks of --mtt.lr-teacher.
        told = re.sub(r"^([a-z]\w*)=", lambda m: f"--{_name([*path, m[1]], layout)}=", str(error).rstrip("."))
        raise ValueError(f"{told}; --help lists the options") from error


def _from_box(text: str) -> str:
    """tyro's box of several lines as one."""
    lines = [line.strip("│╭╮╰╯─ ") for line in text.splitlines()]
    kept = [line for line in lines if line.strip("-")][1:]  # the title says less than the line below it
    for ending in ("Argument helptext:", "For full helptext", "Perhaps you meant", "Got errors:"):
        kept = kept[: next((i for i, line in enumerate(kept) if line.startswith(ending)), len(kept))]
    what = " ".join(kept).removeprefix("Error parsing ").rstrip(".")
    what = re.sub(r"no type matching (\S+) could be instantiated from \[(.*)\]", r"\2 is no \1", what)
    what = re.sub(r"^Missing from us: (?:STR (\w+))?", lambda m: f"missing: {(m[1] or '').upper()}", what)
    return f"{what}; --help lists the options"


def _help(options: Sequence[_Option], layout: Layout, program: str, description: str, *, everything: bool) -> str:
    """The page of ``--help``."""
    # Terminals get wider than a line that reads well.
    width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)
    if not program.startswith("metadd"):  # a script of a checkout
        description = re.sub(r"\bmetadd (\w+)(?= )", r"python experiments/\1.py", description)
    named = [option for option in options if Mark.POSITIONAL not in option.rules]
    by_place = [option for option in options if Mark.POSITIONAL in option.rules]
    usage = " ".join(["usage:", program, *(option.name.upper() for option in by_place), "[--option value ...]"])
    lines = [usage, "", description.strip()]
    for option in by_place:
        lines += ["", *_wrapped(f"  {option.name.upper()}", option.text, width)]
    shown = [option for option in named if everything or not layout.first or _is_first(option, layout)]
    for title, group in _grouped(shown, layout):
        lines += ["", f"{title}:"]
        for before, option in zip([None, *group], group, strict=False):
            same = before is not None and before.text == option.text  # a line of the docstring that speaks of several
            text = "likewise." if same else option.text
            lines += _wrapped(f"  {_flag(option)}", f"{text} {_shown_default(option)}".strip(), width)
    lines.append("")
    if len(shown) < len(named):
        lines.append(f"{len(named) - len(shown)} further options: --help-all shows every one.")
    return "\n".join(lines).rstrip("\n")


def _is_first(option: _Option, layout: Layout) -> bool:
    return option.path[0] in layout.first or ".".join(option.path) in layout.first


def _grouped(options: Iterable[_Option], layout: Layout) -> list[tuple[str, list[_Option]]]:
    groups = []
    rest = list(options)
    for title, names in layout.groups.items():
        groups.append((title, [option for name in names for option in rest if option.path[0] == name]))
        rest = [option for option in rest if option.path[0] not in names]
    return [(title, group) for title, group in [*groups, ("options", rest)] if group]


def _flag(option: _Option) -> str:
    if option.kind is bool:
        head, dot, last = option.name.rpartition(".")
        return f"--{head}{dot}[no-]{last}"
    return f"--{option.name} {_value(option)}"


def _value(option: _Option) -> str:
    """What stands for the value: the words that it may be, or the kind of thing that it is."""
    words = next((rule.words for rule in option.rules if isinstance(rule, ranges.OneOf | ranges.Named)), ())
    if words and all(isinstance(word, str) for word in words):
        return f"{{{','.join(words)}}}"
    if typing.get_origin(option.kind) is tuple:
        kinds = typing.get_args(option.kind)
        name = _KINDS.get(kinds[0], "VALUE")
        if Mark.REPEATED in option.rules:
            return name
        return f"{name} ..." if kinds[-1] is Ellipsis else " ".join([name] * len(kinds))
    return _KINDS.get(option.kind, "VALUE")


_KINDS = {int: "N", float: "X", str: "TEXT"}


def _shown_default(option: _Option) -> str:
    value = option.default
    if value is dataclasses.MISSING:
        return "[required]"
    if value is None and "default" in option.text:  # the text says what happens
        return ""
    if isinstance(value, tuple):
        return f"[{' '.join(map(str, value)) or 'none'}]"
    return f"[{value}]"


def _wrapped(head: str, text: str, width: int) -> list[str]:
    """``head`` and, from ``_COLUMN`` on, the text; on the next line where ``head`` is longer."""
    lines = textwrap.wrap(text, max(20, width - _COLUMN), break_on_hyphens=False) or [""]
    if len(head) < _COLUMN:
        return [f"{head:<{_COLUMN}}{lines[0]}".rstrip(), *(" " * _COLUMN + line for line in lines[1:])]
    return [head, *(" " * _COLUMN + line for line in lines)]
