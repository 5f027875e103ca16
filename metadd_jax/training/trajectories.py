"""Expert trajectories on the disk: the weights of many networks after each epoch on the real data, for MTT and TESLA.

Each group of experts that trained together is a shard of memory-mapped ``.npy`` files. A ``manifest.json`` names the
request and the SHA-256 of every file. ``experts.train_experts`` makes such a folder.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import files, provenance, zoo
from metadd_jax.storage import folder as folders
from metadd_jax.structs import Dataset

FORMAT = 1  # of the folder; a folder of another format is refused and not misread


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """Experts on the disk, memory-mapped; read them with ``read``, or with ``device_experts`` for a method.

    Attributes:
      folder: where they are.
      manifest: the content of ``manifest.json``.
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
        """T: an expert has T + 1 snapshots, its start and one after each epoch."""
        return self.manifest["recipe"]["epochs"]

    @property
    def snapshots(self) -> int:
        """How many snapshots of each there are: T + 1, or 2 where the ends alone were kept."""
        return 2 if self.manifest.get("ends") else self.epochs + 1

    def read(self, expert: int, snapshots: int) -> np.ndarray:
        """Reads the first ``snapshots`` weight vectors of expert number ``expert``: [snapshots, P] float32."""
        shard, row = divmod(expert, self.manifest["at_once"])
        return _decode([array[row] for array in self.shards[shard]], snapshots)


def load_experts(folder: str | os.PathLike, net: zoo.Architecture, dataset: Dataset) -> Trajectories:
    """Opens a folder of ``train_experts`` and checks every byte of it (which reads all files once).

    Args:
      folder: the folder.
      net: the architecture that the experts must have.
      dataset: the data that they must have been trained on.

    Raises:
      ValueError: if the folder is absent, damaged or foreign, or its experts are of another network or other data.
    """
    folder = folders.check(folder)
    manifest = files.read_json(folder / folders.MANIFEST)
    # The label alone would not do: a whitened set, or a module of the same name, gives other weights.
    wanted = {"format": FORMAT, "label": net.label, "network": repr(net), "dataset_fingerprint": dataset.fingerprint}
    wanted |= {"code": provenance.code_of(net)}
    refuse_difference(folder, manifest, wanted)
    # Memory-mapped: 100 experts of a ConvNet are 6.5 GB, and a method reads the first snapshots alone.
    numbers = range(-(-manifest["experts"] // manifest["at_once"]))
    shards = tuple(
        tuple(np.load(folder / name, mmap_mode="r") for name in shard_names(number, manifest["half"]))
        for number in numbers
    )
    return Trajectories(folder, manifest, shards)


def device_experts(
    trajectories: Trajectories, *, experts: int = 0, snapshots: int = 0, last: bool = False
) -> jax.Array:
    """Puts experts on the device, as MTT, TESLA and DATM take them.

    Args:
      trajectories: the experts on the disk.
      experts: number of experts, from the first on; 0 takes all.
      snapshots: number of snapshots of each, from the start on; 0 takes all. A method reads no snapshot beyond
        ``max_start_epoch`` + ``expert_epochs`` - 1, counted from 0, so that sum is enough.
      last: whether the expert's last snapshot follows them (DATM's experts pick and label the images).

    Returns:
      [experts, snapshots, P] float32, or one snapshot more with ``last``.

    Raises:
      ValueError: if there are not as many.
    """
    most = (len(trajectories), trajectories.snapshots)
    if not (0 <= experts <= most[0] and 0 <= snapshots <= most[1]):
        raise ValueError(
            f"experts={experts} and snapshots={snapshots}, but {trajectories.folder} holds {most[0]} experts of "
            f"{most[1]} snapshots; ask for no more, or 0 for all"
        )
    experts, snapshots = experts or most[0], snapshots or most[1]

    def read(expert: int) -> np.ndarray:
        if not last:
            return trajectories.read(expert, snapshots)
        whole = trajectories.read(expert, most[1])
        return np.concatenate([whole[:snapshots], whole[-1:]])

    return jnp.asarray(np.stack([read(expert) for expert in range(experts)]))


def flatten(params: chex.ArrayTree) -> jax.Array:
    """Concatenates all leaves of ``params`` to one vector [P], in the order of ``jax.tree.leaves``."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])


def unflatten(net: zoo.Architecture, vector: jax.Array) -> chex.ArrayTree:
    """Restores the ``params`` of ``net`` from a vector [P]; the inverse of ``flatten``, in any float type.

    Args:
      net: the architecture.
      vector: [P] float.
    """
    shapes, structure = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0))["params"])
    ends = np.cumsum([shape.size for shape in shapes])
    pieces = jnp.split(vector, ends[:-1])
    return jax.tree.unflatten(structure, [x.reshape(s.shape) for x, s in zip(pieces, shapes, strict=True)])


def shard_names(number: int, half: bool) -> list[str]:
    """Names the files of shard ``number``: its snapshots, or if ``half`` the start and the steps from it."""
    stem = f"shard_{number:05d}"
    return [f"{stem}_start.npy", f"{stem}_steps.npy"] if half else [f"{stem}.npy"]


def encode(snapshots: np.ndarray, half: bool) -> list[np.ndarray]:
    """Returns the arrays to store.

    Args:
      snapshots: [e, T + 1, P] float32.
      half: whether to store steps in float16.

    Returns:
      The snapshots themselves, or their start [e, P] float32 and their steps [e, T, P] float16.
    """
    if not half:
        return [snapshots]
    stored = snapshots[:, 0].copy()
    steps = np.empty((len(snapshots), snapshots.shape[1] - 1, snapshots.shape[2]), np.float16)
    # Each step is taken from the snapshot as it will be decoded, so that it corrects the rounding of those before.
    for epoch in range(steps.shape[1]):
        steps[:, epoch] = snapshots[:, epoch + 1] - stored
        stored += steps[:, epoch]
    return [snapshots[:, 0], steps]


def _decode(arrays: list[np.ndarray], snapshots: int) -> np.ndarray:
    """The first snapshots [snapshots, P] float32 of one expert."""
    if len(arrays) == 1:
        return np.array(arrays[0][:snapshots])
    start, steps = arrays
    out = np.empty((snapshots, len(start)), np.float32)
    out[0] = start
    # One by one and not ``cumsum``: the same order of sums as in ``encode``, to the bit.
    for epoch in range(snapshots - 1):
        out[epoch + 1] = out[epoch] + steps[epoch]
    return out


def refuse_difference(folder: pathlib.Path, manifest: Any, wanted: dict[str, Any]) -> None:
    """Checks that the experts of a folder are those that are wanted.

    Args:
      folder: named in the error.
      manifest: what its ``manifest.json`` holds.
      wanted: fact -> value.

    Raises:
      ValueError: at the first fact that differs.
    """
    for name, value in wanted.items():
        there = manifest.get(name, "absent") if isinstance(manifest, dict) else "absent"
        if there != value:
            raise ValueError(
                f"{folder} holds other experts: {name} is {there} there and {value} here; choose another folder"
            )
