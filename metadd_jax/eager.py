"""What a function costs outside of ``jit``: one program, where JAX would compile one for each of its operations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import jax

_Function = TypeVar("_Function", bound=Callable)


def one_program(*, static_argnames: tuple[str, ...] = ()) -> Callable[[_Function], _Function]:
    """Makes a decorator for a pure function that is called alone as often as within a larger program.

    Alone it is compiled as a whole: drawing a ResNet18 would else be two hundred programs. Within a larger program it
    is written in line, so that nothing changes there, to the bit.

    Args:
      static_argnames: arguments that select a program and must be hashable.
    """
    compiled = functools.partial(jax.jit, static_argnames=static_argnames, inline=True)
    return cast(Callable[[_Function], _Function], compiled)
