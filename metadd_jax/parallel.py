"""Compilation, and distribution over devices and processes: the only file that says pmap or mesh.

Everything else is written once with ``axis_name: str | None``. Here a step becomes one compiled dispatch of many
steps: under jit on one device, under pmap on all devices of all processes, or under jit with a mesh, where the
compiler divides what ``divide`` names. pmap is the engine on several devices because the project's user asked for it.
Its state stays unstacked (in_axes None), so that a checkpoint is the same for every number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metadd_jax import cores, files

AXIS = "devices"
MODES = ("auto", "jit", "pmap", "sharded")

Update = Callable[[Any, Any, Any], tuple[Any, dict]]


def initialize(*, coordinator: str | None = None, num_processes: int | None = 1, process_id: int | None = None) -> None:
    """Connects this process with the others of the same run. Call it before anything else of JAX.

    Args:
      coordinator: "host:port" of process 0, which every process can reach.
      num_processes: number of processes; 1 does nothing, None asks the cluster (SLURM, Open MPI, TPU pods) for all
        three.
      process_id: the number of this process, from 0.

    Raises:
      ValueError: if the three do not go together, or the cluster cannot be found or joined.
    """
    if num_processes == 1 and coordinator is None and process_id is None:
        return
    settings: dict[str, Any]
    if num_processes is None and coordinator is None and process_id is None:
        settings = {}
    elif coordinator and process_id is not None and num_processes and 0 <= process_id < num_processes > 1:
        settings = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    else:
        raise ValueError(
            f"coordinator={coordinator}, num_processes={num_processes} and process_id={process_id} do not go together; "
            "give host:port, a number of at least 2 and one below it, or num_processes=None alone to ask the cluster"
        )
    try:
        jax.distributed.initialize(**settings)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the processes cannot be joined: {error}") from error


def device_count() -> int:
    """Returns the number of devices of all processes together."""
    return len(jax.devices())


def is_main() -> bool:
    """Tells whether this is process 0, which alone prints and writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier called ``name``."""
    multihost_utils.sync_global_devices(name)


def from_main(value: chex.ArrayTree) -> Any:
    """Sends ``value`` of process 0, a tree of arrays, to every process, as NumPy arrays.

    All processes must call it, with the same shapes: a decision that depends on the host (does a file exist?) must be
    made once, or processes that should train together wait for each other forever.
    """
    return multihost_utils.broadcast_one_to_all(value)


def require_agreement(tree: chex.ArrayTree, *, text: str = "") -> None:
    """Checks that every process holds the same arrays (to the bit) and the same text.

    Args:
      tree: arrays, typed keys included.
      text: whatever else must agree.

    Raises:
      ValueError: on every process, if one of them differs.
    """
    if jax.process_count() == 1:
        return
    # A hash travels, not the arrays: 32 bytes for any size.
    digest = files.hash_arrays(*(_plain(leaf) for leaf in jax.tree.leaves(tree)), text=text)
    own = np.frombuffer(bytes.fromhex(digest), np.uint8)
    others = np.flatnonzero((multihost_utils.process_allgather(own) != from_main(own)).any(axis=1))
    if others.size:
        raise ValueError(
            f"process {others[0]} would start from other data, networks or checkpoints than process 0; all of them "
            "need the same settings, shared folders and the same kind of machine"
        )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def jit(
    function: Callable, *, static_argnames: Sequence[str] = (), donate_argnums: Sequence[int] = ()
) -> jax.stages.Wrapped:
    """Compiles a pure function for one device.

    Args:
      function: the function.
      static_argnames: arguments that select a program and must be hashable.
      donate_argnums: arguments whose memory the results may take; the caller must not use them again.
    """
    return jax.jit(function, static_argnames=tuple(static_argnames), donate_argnums=tuple(donate_argnums))


def call_once(function: Callable, *arguments: Any) -> Any:
    """Compiles a pure function for one device and calls it, once, and not within another: a whole training, say.

    Args:
      function: the function.
      *arguments: of the call.
    """
    return jax.jit(function, compiler_options=cores.quick_options())(*arguments)


def memory_limit() -> int | None:
    """Returns the memory of one device in bytes: what programs may use of an accelerator's, a CPU's whole; or None."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return files.memory() if jax.default_backend() == "cpu" else None


def choose_mode(mode: str) -> str:
    """Returns "jit", "pmap" or "sharded" for ``mode``; "auto" is pmap where there is more than one device.

    Raises:
      ValueError: for another word, naming those that exist.
    """
    if mode not in MODES:
        raise ValueError(f"unknown device mode {mode!r}; use one of {', '.join(MODES)}")
    if mode == "auto":
        return "pmap" if device_count() > 1 else "jit"
    return mode


def replicate(tree: chex.ArrayTree, *, mode: str = "auto") -> Any:
    """Puts arrays where the steps of a mode leave their results: on the device, or whole on each of them.

    Arrays that are placed once are not sent again at every call. And a state that moves between the first call and the
    second would be compiled for twice. All processes must call it with the same values.

    Args:
      tree: arrays.
      mode: one of ``MODES``.
    """
    mode = choose_mode(mode)
    if mode == "jit":
        return jax.device_put(tree)
    # pmap speaks of this process's devices, the mesh of all.
    devices = jax.local_devices() if mode == "pmap" else jax.devices()
    sharding = NamedSharding(_mesh(devices), PartitionSpec())
    if jax.process_count() == 1 or mode == "pmap":
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _everywhere(leaf, sharding), tree)


def _everywhere(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """One array on the devices of all processes, each of which holds its value."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    # Keys travel as their numbers: a typed key has no shards to be made from.
    value = _plain(leaf)
    placed = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else placed


def local(tree: chex.ArrayTree) -> Any:
    """Returns replicated arrays of ``tree`` as arrays on the first device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def compile_steps(make_update: Callable[[str | None], Update], *, steps: int, mode: str = "auto") -> Update:
    """Compiles ``steps`` updates into one dispatch.

    Args:
      make_update: from an axis name (None except under pmap) to ``update(state, data, frozen) -> (state, metrics)``.
      steps: updates per call (a ``lax.scan``; the state is donated).
      mode: "auto", "jit", "pmap" or "sharded".

    Returns:
      ``chunk(state, data, frozen) -> (state, metrics)``, metrics stacked [steps]. On several devices state, data and
      frozen are replicated and every device works on its share of each batch: under pmap of what ``own_share`` and
      ``parts.total`` give it, under sharded jit of what ``divide`` names.
    """
    mode = choose_mode(mode)
    if mode == "jit":
        return jax.jit(_scanned(make_update(None), steps), donate_argnums=0)
    if mode == "sharded":
        return _sharded(_scanned(make_update(None), steps))
    chunk = _scanned(make_update(AXIS), steps)

    def mapped(
        index: jax.Array, state: chex.ArrayTree, data: chex.ArrayTree, frozen: chex.ArrayTree
    ) -> tuple[Any, dict]:
        del index  # pmap needs one mapped argument; the step asks for its axis_index itself
        return chunk(state, data, frozen)

    # ``out_axes=None``: state and metrics come out replicated and unstacked, as they went in.
    compiled = _pmap(mapped, arguments=3, out_axes=(None, None), donate_argnums=1)
    return lambda state, data, frozen: compiled(*replicate((state, data, frozen), mode="pmap"))


def _sharded(chunk: Update) -> Update:
    # Replicated outputs, or the compiler might leave the state divided, which a checkpoint must not depend on.
    mesh = _mesh(jax.devices())
    compiled = jax.jit(chunk, donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def replicated(state: chex.ArrayTree, data: chex.ArrayTree, frozen: chex.ArrayTree) -> tuple[Any, dict]:
        with jax.set_mesh(mesh):  # where ``divide`` finds it
            return compiled(*replicate((state, data, frozen), mode="sharded"))

    return replicated


def _pmap(function: Callable, *, arguments: int, **options: Any) -> Callable:
    """``function(index, *arguments)`` on all devices; the arguments are replicated."""
    compiled = jax.pmap(function, axis_name=AXIS, in_axes=(0, *[None] * arguments), devices=jax.devices(), **options)
    return lambda *values: compiled(jnp.arange(len(jax.local_devices())), *values)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    # ``Mesh`` has Auto axes; ``jax.make_mesh`` has Explicit ones, under which optax's cross-entropy has no derivative.
    return Mesh(np.array(devices), (AXIS,))


def _scanned(update: Update, steps: int) -> Update:
    def chunk(state: chex.ArrayTree, data: chex.ArrayTree, frozen: chex.ArrayTree) -> tuple[Any, dict]:
        # One dispatch for all steps: the host would otherwise wait for each of them.
        return jax.lax.scan(lambda carry, _: update(carry, data, frozen), state, None, length=steps)

    return chunk


def spread(function: Callable, *, mapped: int = 1, at_once: bool = True) -> Callable[..., Any]:
    """Compiles many independent runs of one function, divided over all devices; on one CPU, over its cores.

    Of a CPU each core has a run of its own: 1.2 to 1.6 times as many trainings a second on two cores (docs/costs.md).

    Args:
      function: takes ``mapped`` arguments that differ from run to run, then arguments that all runs share.
      mapped: number of arguments with a leading axis [n].
      at_once: whether the runs of an accelerator go together (see ``each``).

    Returns:
      A function of the same arguments whose results are NumPy arrays [n, ...], on every process. n need not divide
      evenly: devices without a run of their own repeat the last one, and the copies are dropped.
    """
    if cores.is_alone():
        return _over_cores(function, mapped)

    def runs(over: chex.ArrayTree, shared: chex.ArrayTree) -> Any:
        return each(lambda own: function(*own, *shared), over, at_once=at_once)

    if device_count() == 1:
        # ``device_get``, so that the results are NumPy arrays as on several devices.
        alone = jax.jit(runs)
        return lambda *arguments: jax.device_get(alone(arguments[:mapped], arguments[mapped:]))

    def share(index: jax.Array, over: chex.ArrayTree, shared: chex.ArrayTree) -> Any:
        del index
        return runs(own_items(over, AXIS)[0], shared)

    compiled = _pmap(share, arguments=2, out_axes=0)

    # Whole on every device, and each takes its part there: the parts of independent runs are small.
    def divided(*arguments: Any) -> Any:
        over, shared = replicate((arguments[:mapped], arguments[mapped:]), mode="pmap")
        size = len(jax.tree.leaves(over)[0])
        # Devices of other processes cannot be read, so all results are gathered.
        results = multihost_utils.process_allgather(compiled(over, shared), tiled=True)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], results)

    return divided


def _over_cores(function: Callable, mapped: int) -> Callable[..., Any]:
    """``spread`` on one CPU: one program, of one run."""

    def own_run(number: jax.Array, over: chex.ArrayTree, shared: chex.ArrayTree) -> Any:
        return function(*jax.tree.map(lambda leaf: leaf[number], over), *shared)

    jitted = jax.jit(own_run, compiler_options=cores.quick_options())

    def run_all(*arguments: Any) -> Any:
        over, shared = arguments[:mapped], arguments[mapped:]
        # In this thread, whose settings count; a second call with the same shapes finds it compiled.
        program = jitted.lower(np.int32(0), over, shared).compile()
        calls = [(np.int32(number), over, shared) for number in range(len(jax.tree.leaves(over)[0]))]
        results = cores.run_each(program, calls, memory=files.memory())
        return jax.tree.map(lambda *leaves: np.stack(leaves), *results)

    return run_all


def each(function: Callable[[Any], Any], items: chex.ArrayTree, *, at_once: bool = True) -> Any:
    """Applies a function to every item, by vmap, on a CPU one after the other (docs/costs.md), and stacks the results.

    Args:
      function: of one item.
      items: pytree of arrays [n, ...].
      at_once: False: one after the other on an accelerator too.

    Returns:
      Pytree of arrays [n, ...].
    """
    mapped = at_once and jax.default_backend() != "cpu"
    return jax.vmap(function)(items) if mapped else jax.lax.map(function, items)


def divide(tree: chex.ArrayTree, *, axis: int = 0) -> Any:
    """Divides arrays over the devices under sharded jit, and returns them unchanged elsewhere.

    The values are the same; each device holds and works on its part. Items that do not divide evenly stay whole on
    every device.

    Args:
      tree: arrays.
      axis: the axis to divide.
    """
    devices = mesh_size()

    def place(leaf: jax.Array) -> jax.Array:
        if devices == 1 or leaf.shape[axis] % devices:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(place, tree)


def mesh_size() -> int:
    """Returns the number of devices of a sharded step that is being traced; 1 elsewhere, also in a user's own mesh."""
    # By the axis name: inside a user's mesh nothing must ask for an axis that is not there.
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size if (mesh.axis_names, mesh.axis_types) == ((AXIS,), (AxisType.Auto,)) else 1


def psum_if(value: chex.ArrayTree, axis_name: str | None) -> Any:
    """Sums ``value`` over the devices of ``axis_name``; returns it as it is where there is one device (None)."""
    # Never differentiate through it under pmap: grad(psum(x)) there is not psum(grad(x)).
    return value if axis_name is None else jax.lax.psum(value, axis_name)


def own_share(count: int, axis_name: str | None) -> tuple[jax.Array | int, int]:
    """Returns (start, length) of this device's part of a batch.

    Args:
      count: number of items in the batch.
      axis_name: of pmap, or None: all items.

    Raises:
      ValueError: if the devices cannot share the items evenly.
    """
    # Refused and not padded: a mean over a batch that differs from device to device would weigh images unequally.
    devices = mesh_size() if axis_name is None else jax.lax.axis_size(axis_name)
    if count % devices:
        raise ValueError(f"a batch of {count} does not split over {devices} devices; use a multiple of {devices}")
    if axis_name is None:
        return 0, count  # under sharded jit the compiler divides
    share = count // devices
    return jax.lax.axis_index(axis_name) * share, share


def own_items(items: chex.ArrayTree, axis_name: str | None) -> tuple[Any, jax.Array]:
    """Returns this device's part of arrays and weights for it, for independent work that need not divide evenly.

    Args:
      items: pytree of arrays [n, ...].
      axis_name: of pmap, or None on one device.

    Returns:
      The part, ceil(n / devices) items, and 1 for each of them or 0 for padding.
    """
    size = len(jax.tree.leaves(items)[0])
    if axis_name is None:
        return items, jnp.ones(size)
    share = -(-size // jax.lax.axis_size(axis_name))
    places = jax.lax.axis_index(axis_name) * share + jnp.arange(share)
    return jax.tree.map(lambda leaf: leaf[jnp.minimum(places, size - 1)], items), (places < size).astype(jnp.float32)
