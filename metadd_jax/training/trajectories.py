"""Expert trajectories on the disk: the weights of many networks after each epoch on the real data, for MTT and TESLA.

One shard of memory-mapped ``.npy`` files for each group of experts that trained together, beside a ``manifest.json``
that names what was asked for and the SHA-256 of every file. ``experts.train_experts`` makes such a folder.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import files, provenance, zoo
from metadd_jax.storage import folder as folders
from metadd_jax.structs import Dataset

FORMAT = 1  # of the folder


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """Experts on the disk, memory-mapped; read them with ``read``, or ``device_experts`` for a method.

    Attributes:
      folder: where they lie.
      manifest: what was asked for, as ``manifest.json`` says.
      shards: per group of experts either (snapshots [e, T + 1, P] float32,) or, for half precision, (start [e, P]
        float32, steps [e, T, P] float16).
    """

    folder: pathlib.Path
    manifest: dict[str, Any]
    shards: tuple[tuple[np.ndarray, ...], ...]

    def __len__(self) -> int:
        return self.manifest["experts"]

    @property
    def epochs(self) -> int:
        """T: an expert has a snapshot of its start and one after each epoch."""
        return self.manifest["recipe"]["epochs"]

    def read(self, expert: int, snapshots: int) -> np.ndarray:
        """The first ``snapshots`` weight vectors of one expert, [snapshots, P] float32 in memory."""
        shard, row = divmod(expert, self.manifest["at_once"])
        return _decode([array[row] for array in self.shards[shard]], snapshots)


def load_experts(folder: str | os.PathLike, net: zoo.Architecture, dataset: Dataset) -> Trajectories:
    """Opens a folder of ``train_experts`` after proving every byte of it (which reads all files once).

    Raises:
      ValueError: if the folder is absent, damaged or foreign, or its experts are of another network or other data.
    """
    folder = folders.check(folder)
    manifest = files.read_json(folder / folders.MANIFEST)
    wanted = {"format": FORMAT, "label": net.label, "network": repr(net), "dataset_fingerprint": dataset.fingerprint}
    wanted |= {"code": provenance.code_of(net)}
    refuse_difference(folder, manifest, wanted)
    numbers = range(-(-manifest["experts"] // manifest["at_once"]))
    shards = tuple(
        tuple(np.load(folder / name, mmap_mode="r") for name in shard_names(number, manifest["half"]))
        for number in numbers
    )
    return Trajectories(folder, manifest, shards)


def device_experts(trajectories: Trajectories, *, experts: int = 0, snapshots: int = 0) -> jax.Array:
    """Puts experts on the device, as MTT and TESLA take them.

    Args:
      experts: the first so many; 0 takes all.
      snapshots: the first so many of each; 0 takes all. A method reads no snapshot beyond ``max_start_epoch`` +
        ``expert_epochs``, so that many are enough.

    Returns:
      [experts, snapshots, P] float32.

    Raises:
      ValueError: if there are not as many.
    """
    most = (len(trajectories), trajectories.epochs + 1)
    if not (0 <= experts <= most[0] and 0 <= snapshots <= most[1]):
        raise ValueError(
            f"experts={experts} and snapshots={snapshots}, but {trajectories.folder} holds {most[0]} experts of "
            f"{most[1]} snapshots; ask for no more, or 0 for all"
        )
    experts, snapshots = experts or most[0], snapshots or most[1]
    return jnp.asarray(np.stack([trajectories.read(expert, snapshots) for expert in range(experts)]))


def flatten(params: Any) -> jax.Array:
    """All parameters as one vector [P], in the order of ``jax.tree.leaves``."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])


def unflatten(net: zoo.Architecture, vector: jax.Array) -> Any:
    """The ``params`` of ``net`` from a vector [P]; the inverse of ``flatten`` in any float type."""
    shapes, structure = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0))["params"])
    ends = np.cumsum([shape.size for shape in shapes])
    pieces = jnp.split(vector, ends[:-1])
    return jax.tree.unflatten(structure, [x.reshape(s.shape) for x, s in zip(pieces, shapes, strict=True)])


def shard_names(number: int, half: bool) -> list[str]:
    """The files of a shard: its snapshots, or in half precision the start and the steps from it."""
    stem = f"shard_{number:05d}"
    return [f"{stem}_start.npy", f"{stem}_steps.npy"] if half else [f"{stem}.npy"]


def encode(snapshots: np.ndarray, half: bool) -> list[np.ndarray]:
    """The arrays to store of snapshots [e, T + 1, P] float32: themselves, or their start and their steps."""
    if not half:
        return [snapshots]
    stored = snapshots[:, 0].copy()
    steps = np.empty((len(snapshots), snapshots.shape[1] - 1, snapshots.shape[2]), np.float16)
    for epoch in range(steps.shape[1]):
        steps[:, epoch] = snapshots[:, epoch + 1] - stored
        stored += steps[:, epoch]
    return [snapshots[:, 0], steps]


def _decode(arrays: list[np.ndarray], snapshots: int) -> np.ndarray:
    """The first snapshots [snapshots, P] float32 of one expert; adds up in the order in which ``encode`` did."""
    if len(arrays) == 1:
        return np.array(arrays[0][:snapshots])
    start, steps = arrays
    out = np.empty((snapshots, len(start)), np.float32)
    out[0] = start
    for epoch in range(snapshots - 1):
        out[epoch + 1] = out[epoch] + steps[epoch]
    return out


def refuse_difference(folder: pathlib.Path, manifest: Any, wanted: dict[str, Any]) -> None:
    """Raises ValueError, naming the first fact in which the experts of ``folder`` are not those ``wanted``."""
    for name, value in wanted.items():
        there = manifest.get(name, "absent") if isinstance(manifest, dict) else "absent"
        if there != value:
            raise ValueError(
                f"{folder} holds other experts: {name} is {there} there and {value} here; choose another folder"
            )
