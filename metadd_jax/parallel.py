"""The one place where functions are compiled and spread over devices.

Everything else is written once with ``axis_name: str | None``; here a step becomes one compiled dispatch of many
steps, under jit on one device and under pmap on several. pmap is the engine on several devices because the
project's user asked for it; its state stays unstacked (in_axes None), so a checkpoint looks the same either way.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
MODES = ("auto", "jit", "pmap")

Update = Callable[[Any, Any, Any], tuple[Any, dict]]


def jit(function: Callable, *, static_argnames: Sequence[str] = (), donate_argnums: Sequence[int] = ()) -> Callable:
    """Compiles a pure function for one device; donated arguments must not be used again by the caller."""
    return jax.jit(function, static_argnames=tuple(static_argnames), donate_argnums=tuple(donate_argnums))


def cache_compilations(folder: str | os.PathLike) -> None:
    """Keeps compiled programs in ``folder``, so that the next process compiles nothing that it compiled before.

    Every program is kept: JAX's own limits (a second of compiling, a minimum size) would leave out the small ones,
    which are many.
    """
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def memory_limit() -> int | None:
    """Bytes of one device: what an accelerator says that programs may use, a CPU's whole memory; None if unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_mode(mode: str) -> str:
    """Returns "jit" or "pmap"; "auto" is pmap where there is more than one local device.

    Raises:
      ValueError: for another word, naming those that exist.
    """
    if mode not in MODES:
        raise ValueError(f"unknown device mode {mode!r}; use one of {', '.join(MODES)}")
    if mode == "auto":
        return "pmap" if jax.local_device_count() > 1 else "jit"
    return mode


def replicate(tree: Any, *, mode: str = "auto") -> Any:
    """Puts arrays where the steps of this mode leave their results: on the device, or whole on each of them.

    Placed once, they are not sent again at every call; and a state that moved would be compiled for twice.
    """
    if choose_mode(mode) == "jit":
        return jax.device_put(tree)
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def compile_steps(make_update: Callable[[str | None], Update], *, steps: int, mode: str = "auto") -> Update:
    """Compiles ``steps`` updates into one dispatch.

    Args:
      make_update: from an axis name (None on one device) to ``update(state, data, frozen) -> (state, metrics)``.
      steps: how many updates one call does (a ``lax.scan``; the state is donated).
      mode: "auto", "jit" or "pmap".

    Returns:
      ``chunk(state, data, frozen) -> (state, metrics)``, metrics stacked [steps]. Under pmap state, data and
      frozen are replicated and every device works on its share of each batch.
    """
    if choose_mode(mode) == "jit":
        return jax.jit(_scanned(make_update(None), steps), donate_argnums=0)
    chunk = _scanned(make_update(AXIS), steps)

    def sharded(index: jax.Array, state: Any, data: Any, frozen: Any) -> tuple[Any, dict]:
        del index  # only there because pmap wants one mapped argument; the step asks for its axis_index itself
        return chunk(state, data, frozen)

    mapped = jax.pmap(sharded, axis_name=AXIS, in_axes=(0, None, None, None), out_axes=(None, None), donate_argnums=1)

    def replicated(state: Any, data: Any, frozen: Any) -> tuple[Any, dict]:
        return mapped(jnp.arange(jax.local_device_count()), *replicate((state, data, frozen), mode="pmap"))

    return replicated


def _scanned(update: Update, steps: int) -> Update:
    def chunk(state: Any, data: Any, frozen: Any) -> tuple[Any, dict]:
        return jax.lax.scan(lambda carry, _: update(carry, data, frozen), state, None, length=steps)

    return chunk


def psum_if(value: Any, axis_name: str | None) -> Any:
    """Sum over the devices of ``axis_name``; the value itself where there is one device (None)."""
    return value if axis_name is None else jax.lax.psum(value, axis_name)


def own_share(size: int, axis_name: str | None) -> tuple[jax.Array | int, int]:
    """(start, length) of this device's part of ``size`` items.

    Raises:
      ValueError: if the devices cannot share the items evenly.
    """
    if axis_name is None:
        return 0, size
    devices = jax.lax.axis_size(axis_name)
    if size % devices:
        raise ValueError(f"a batch of {size} does not split over {devices} devices; use a multiple of {devices}")
    share = size // devices
    return jax.lax.axis_index(axis_name) * share, share


def own_items(items: Any, axis_name: str | None) -> tuple[Any, jax.Array]:
    """This device's part of arrays [n, ...] and weights for it, for independent work that need not divide evenly.

    Returns:
      The part, ceil(n / devices) items, and 1 for each of them or 0 where it only fills up.
    """
    size = len(jax.tree.leaves(items)[0])
    if axis_name is None:
        return items, jnp.ones(size)
    share = -(-size // jax.lax.axis_size(axis_name))
    places = jax.lax.axis_index(axis_name) * share + jnp.arange(share)
    return jax.tree.map(lambda leaf: leaf[jnp.minimum(places, size - 1)], items), (places < size).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_gradient(tree: Any, axis_name: str | None) -> Any:
    """The tree itself; its gradient is the sum of the devices' gradients.

    With ``sum_value`` at the end, a loss whose terms are spread over the devices has on each of them the value and the
    gradient of the whole.
    """
    del axis_name
    return tree


def _sum_gradient_backward(axis_name: str | None, _: None, gradient: Any) -> tuple[Any]:
    return (psum_if(gradient, axis_name),)


sum_gradient.defvjp(lambda tree, axis_name: (tree, None), _sum_gradient_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_value(tree: Any, axis_name: str | None) -> Any:
    """The sum over the devices, whose gradient reaches each device's own part once (see ``sum_gradient``)."""
    return psum_if(tree, axis_name)


sum_value.defvjp(lambda tree, axis_name: (psum_if(tree, axis_name), None), lambda axis_name, _, gradient: (gradient,))
