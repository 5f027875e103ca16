"""What decides a number beside its inputs: the code that computed it, the libraries, the machine.

Every key of the cache holds these (docs/caches.md lists them), so nothing is taken from it that this code, on this
machine, would not have made. Code is compared as it was loaded, compiled, and not as text: a file that was edited
since does not deceive it, a class typed at a prompt has a key too, and comments and docstrings cost nobody a network.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import sys
import types
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

PACKAGE = pathlib.Path(__file__).parent
# Of this package, what decides the weights of a network that is trained, and the arrays that a set is read to.
TRAINING = (
    "zoo", "training", "data/sampling.py", "data/splits.py", "augment.py", "dc_augment.py", "transforms.py", "keys.py",
    "parallel.py", "cores.py", "eager.py", "parts.py", "structs.py",
)  # fmt: skip
READING = ("data",)
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Flags of XLA that decide no number.
_IDLE_FLAGS = ("--xla_force_host_platform_device_count", "--xla_dump")
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")


class UnknownCodeError(ValueError):
    """Something of which it cannot be told whether it is what it was at another start."""


@functools.cache
def sources(*places: str) -> str:
    """Hashes the code of this package under ``places``, without comments and docstrings.

    Args:
      *places: folders ("zoo") and files ("augment.py", "data/decoding.py") of the package.

    Returns:
      SHA-256 (hex).
    """
    # Python's minor version decides what a tree is compiled to.
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for place in places:
        path = PACKAGE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(PACKAGE).as_posix()}\n{_bare(file)}\n".encode())
    return digest.hexdigest()


@functools.cache
def reached(*modules: str) -> tuple[str, ...]:
    """Lists the code of this package that ``modules`` import, however many steps away, for ``sources``.

    Args:
      *modules: dotted names of modules of this package ("metadd_jax.distillers.run").

    Returns:
      Files relative to the package, sorted: the modules' own ones too, and of a package from which a name is taken
      (``from metadd_jax.training import fit``) its ``__init__`` and so all that it shows.
    """
    found: set[pathlib.Path] = set()
    waiting = [file for name in modules for file in _files_of(name)]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            tree = ast.parse(file.read_bytes())
            waiting += [other for node in ast.walk(tree) for name in _imported(node) for other in _files_of(name)]
    return tuple(sorted(file.relative_to(PACKAGE).as_posix() for file in found))


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _files_of(name: str) -> list[pathlib.Path]:
    """The file of a module, or of the one that the name is taken from; [] of another library and of the package."""
    root, *parts = name.split(".")
    for end in (len(parts), len(parts) - 1) if root == PACKAGE.name else ():
        # The package's own face imports everything: whoever writes ``import metadd_jax`` stands above it all.
        if place := PACKAGE.joinpath(*parts[:end]) if end > 0 else None:
            if place.with_suffix(".py").is_file():
                return [place.with_suffix(".py")]
            if (place / "__init__.py").is_file():
                return [place / "__init__.py"]
    return []


@functools.cache
def machine() -> dict[str, Any]:
    """Collects versions and device, as JSON: what else the last bits of a computation depend on."""
    device = jax.devices()[0]
    return {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": [device.platform, device.device_kind, device.client.platform_version, platform.machine()],
    }


def settings() -> dict[str, Any]:
    """Collects the switches of JAX and XLA that decide numbers, as JSON."""
    # Not cached, unlike the machine: a program may turn them while it runs.
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(_IDLE_FLAGS)]
    return {name: str(getattr(jax.config, name)) for name in _SETTINGS} | {"xla_flags": sorted(flags)}


def facts(*places: str) -> dict[str, Any]:
    """Collects ``sources(*places)``, ``machine`` and ``settings`` in one JSON value."""
    return {"sources": sources(*places), **machine(), **settings()}


def code_of(thing: Any) -> str:
    """Hashes what ``thing`` is made of: its class and values, and the functions and classes that these name.

    Code of the user's own is followed, however many steps away. Of this package (see ``sources``) and of installed
    libraries a function counts by its name and by what it closes over, a library other than those of ``LIBRARIES`` by
    its version too. What code reaches by a computed name only (``getattr(module, name)``) is not seen.

    Args:
      thing: a network's module, a function, or any value.

    Returns:
      SHA-256 (hex).

    Raises:
      UnknownCodeError: (a ValueError) for something that cannot be told from another of its kind.
    """
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for word in _words(thing, {}):
        digest.update(f"{len(word)} {word}".encode())
    return digest.hexdigest()


def _bare(file: pathlib.Path) -> str:
    """The code of ``file`` as a tree without texts that stand alone: comments are not in it, docstrings go."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [line for line in body if not _is_text(line)]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# Described by their type and text: equal ones have the same text at every start.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), np.dtype, np.generic, logging.Logger)


def _words(thing: Any, seen: dict[int, Any]) -> Iterable[str]:
    """The description of ``thing``, word by word; what was described before is named by its number."""
    if isinstance(thing, _PLAIN):
        # The type as well: 1, 1.0 and True are equal and trace to different programs.
        yield f"{type(thing).__name__} {thing!r}"
        return
    if id(thing) in seen:
        # Also what ends the walk: a function that calls itself names itself.
        yield f"again {list(seen).index(id(thing))}"
        return
    seen[id(thing)] = thing  # kept, so that its id stays its own
    yield f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, np.ndarray | jax.Array):
        array = np.asarray(thing)
        yield f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    elif isinstance(thing, set | frozenset):
        yield from sorted(code_of(item) for item in thing)  # their order changes from start to start
    elif isinstance(thing, types.ModuleType):
        yield _named(thing.__name__)
    elif isinstance(thing, types.CodeType):
        yield from _code(thing, seen)
    else:
        for part in _parts(thing):
            yield from _words(part, seen)


def _parts(thing: Any) -> Iterable[Any]:
    """What decides ``thing``, of a kind that holds other things: by the first of ``_KINDS`` that fits."""
    return next((parts for kinds, parts in _KINDS if isinstance(thing, kinds)), _object)(thing)


def _function(function: types.FunctionType) -> Iterable[Any]:
    held = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
    settled = [function.__defaults__, function.__kwdefaults__, held]
    home = function.__globals__.get("__name__")  # functools.wraps gives a wrapper the __module__ of what it wraps
    if _is_library(home):
        return [_named(home), function.__code__.co_qualname, *settled]
    # Compiled code says which names it looks up and not where, so each is looked for among the module's values, and
    # then in every module found there: "torch.nn" is the names torch and nn.
    names = sorted(_names(function.__code__))
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for module in [value for value in found.values() if isinstance(value, types.ModuleType)]:
        found |= _reached(module, names)
    code, text = function.__code__, function.__doc__
    if text is not None and code.co_consts[:1] == (text,):  # where the compiler keeps a docstring
        code = code.replace(co_consts=(None, *code.co_consts[1:]))
    return [code, found, *settled]


def _reached(module: types.ModuleType, names: list[str]) -> dict[str, Any]:
    """What code that knows ``module`` and these names takes out of it; nothing of a library."""
    if _is_library(module.__name__):
        return {}
    found = {f"{module.__name__}.{name}": vars(module)[name] for name in names if name in vars(module)}
    for inner in [value for value in found.values() if isinstance(value, types.ModuleType)]:
        if inner.__name__.startswith(f"{module.__name__}."):
            found |= _reached(inner, names)
    return found


def _class(kind: type) -> Iterable[Any]:
    if _is_library(kind.__module__):
        return [_named(kind.__module__), kind.__qualname__]
    parts: list[Any] = [kind.__bases__]
    # Sorted: to move a method within its class changes nothing.
    for name, value in sorted(vars(kind).items()):
        is_made = isinstance(value, types.FunctionType) and value.__code__.co_filename == "<string>"  # by dataclasses
        if name not in _OF_A_CLASS and not (is_made and name.startswith("__")):
            parts += [name, value]
    return parts


# What a class holds beside its own code.
_OF_A_CLASS = frozenset({
    "__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__dataclass_fields__", "__slots__",
    "__dataclass_params__", "__match_args__", "__firstlineno__", "__static_attributes__", "__annotate__",
    "__annotate_func__", "__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl", "__setstate__",
    "__hash__", "scope_name", "_compact_name_scope_methods", "_kw_only_fields",
})  # fmt: skip


def _object(thing: Any) -> Iterable[Any]:
    kind = type(thing)
    held = sorted(getattr(thing, "__dict__", {}).items())
    if hasattr(thing, "__wrapped__"):  # jax.jit, jax.custom_jvp ...: their other values may name files and lines
        return [kind, thing.__wrapped__, [value for _, value in held if isinstance(value, types.FunctionType)]]
    if dataclasses.is_dataclass(thing):
        held = [(field.name, getattr(thing, field.name, None)) for field in dataclasses.fields(thing)]
        return [kind, [item for item in held if item[0] != "parent"]]
    # All that is left is its text, and one that names an address is another at every start.
    if not hasattr(thing, "__dict__") and _ADDRESS in repr(thing):
        raise UnknownCodeError(f"a {kind.__module__}.{kind.__qualname__} tells nothing of what it holds")
    return [kind, held if hasattr(thing, "__dict__") else repr(thing)]


_ADDRESS = " at 0x"  # in the text of what has no better one
# In this order: a property or a bound method has attributes of its own, which say less than the functions in it.
_KINDS = (
    (list | tuple, lambda thing: thing),
    (dict | types.MappingProxyType, lambda thing: [part for item in thing.items() for part in item]),
    (types.MethodType, lambda thing: (thing.__func__, thing.__self__)),
    (functools.partial, lambda thing: (thing.func, thing.args, thing.keywords)),
    (property, lambda thing: (thing.fget, thing.fset)),
    (staticmethod | classmethod, lambda thing: (thing.__func__,)),
    (types.FunctionType, _function),
    (type, _class),
    (types.BuiltinFunctionType, lambda thing: (_named(thing.__module__), thing.__name__)),
    (np.ufunc, lambda thing: ("numpy", thing.__name__)),
)


def _code(code: types.CodeType, seen: dict[int, Any]) -> Iterable[str]:
    # No file names and line numbers: a function that moved down its file is the same.
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {code.co_argcount}"
    for constant in code.co_consts:
        yield from _words(constant, seen)


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # of a function that is still being defined
        return False
    return True


def _is_library(module: str | None) -> bool:
    """Whether a module is Python's own, installed, or of this package; an editable package is its author's."""
    root = (module or "builtins").partition(".")[0]
    if root == "__main__":
        return False
    if root in (*LIBRARIES, "metadd_jax") or root in sys.stdlib_module_names:
        return True
    place = pathlib.Path(getattr(sys.modules.get(root), "__file__", None) or "").parts
    return "site-packages" in place or "dist-packages" in place


def _named(module: str | None) -> str:
    """A library by its name and, where that is not in ``machine`` already, its version."""
    root = (module or "builtins").partition(".")[0]
    if not _is_library(module) or root in (*LIBRARIES, "metadd_jax") or root in sys.stdlib_module_names:
        return str(module)
    return f"{module} {getattr(sys.modules.get(root), '__version__', '')}"
