"""Training of experts for MTT and TESLA, in groups that are spread over the devices; resumable.

Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (CVPR 2022). The folder is whole or
absent: it grows as ``<folder>.unfinished`` and is renamed when the last shard is written. One run at a time works on
it. Other runs that need the same experts wait, and continue if the first is killed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import augment, files, keys, parallel, provenance, ranges, storage, zoo
from metadd_jax.storage import folder as folders
from metadd_jax.structs import Dataset, ImageArrays
from metadd_jax.training import recipes, together
from metadd_jax.training.fitting import fit
from metadd_jax.training.pretrained import cache_key
from metadd_jax.training.trajectories import (
    FORMAT,
    Trajectories,
    encode,
    flatten,
    load_experts,
    refuse_difference,
    shard_names,
)

# Whatever else lies in an unfinished folder is a user's, and is left alone.
_OURS = re.compile(rf"{re.escape(folders.MANIFEST)}|shard_\d{{5,}}(_start|_steps)?\.npy")


def expert_training(
    epochs: int, *, augmentation: augment.Augmentation, rho: float = 0.0, rho_alpha: float = 0.0
) -> recipes.Recipe:
    """Returns the training of MTT's and TESLA's experts: plain SGD at 0.01, batch 256; with ``rho`` that of DATM's.

    Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (CVPR 2022), and its released program.
    DATM's experts (and FTD's, Du et al., CVPR 2023) go towards flat minima by GSAM.

    Args:
      epochs: 50 as published; DATM 100.
      augmentation: DSA's tokens as published.
      rho: 0; DATM 0.01.
      rho_alpha: 0; DATM 0.3.
    """
    # No momentum and no decay, because the student that imitates an expert has neither.
    return recipes.Recipe(
        epochs=epochs, momentum=0.0, weight_decay=0.0, augmentation=augmentation, rho=rho, rho_alpha=rho_alpha
    )


def train_experts(
    folder: str | os.PathLike,
    net: zoo.Architecture,
    dataset: Dataset,
    recipe: recipes.Recipe,
    *,
    experts: int,
    seed: int = 0,
    at_once: int = 10,
    half: bool = False,
    ends: bool = False,
    on_shard: Callable[[int], None] | None = None,
) -> Trajectories:
    """Trains experts on the training split, or takes them from ``folder`` if they are there.

    All processes of a run must call it, with one shared ``folder``.

    Args:
      folder: the folder to make. It takes 4 experts (T + 1) P bytes for T epochs and P parameters (100 experts of 50
        epochs, ConvNet on CIFAR-10: 6.5 GB), half of it for long trajectories in half precision.
      net: the architecture, without batch norm.
      dataset: the real data; the training split is used.
      recipe: usually ``expert_training``.
      experts: number of networks, at least 1.
      seed: expert e is initialised and trained from ``fold_in(keys.root(seed, "experts"), e)``. All experts share the
        augmentation token of a step.
      at_once: networks that train together, divided over all devices, and are stored in one shard; at least 1. A device
        holds all snapshots of its networks, 4 (T + 1) P bytes each.
      half: store the start in float32, and of each epoch the step from the snapshot before *as stored*, in float16. So
        rounding errors do not add up over epochs: each number of a snapshot is off by at most 2^-11 of its step in that
        epoch, plus 2^-25, plus float32's own rounding.
      ends: keep the start and the end of each expert alone, 2 snapshots and not T + 1 (NCFM's networks).
      on_shard: called with the number of experts done after each group.

    Returns:
      The experts, memory-mapped.

    Raises:
      ValueError: if a number is below 1, the network has batch norm (an expert is its parameters alone), a weight is
        not finite, or what lies in ``folder`` is damaged, foreign or of another request.
    """
    ranges.require("experts", experts, ranges.Whole(1))
    ranges.require("at_once", at_once, ranges.Whole(1))
    if net.has_batch_stats:
        raise ValueError(f"{net.label} has batch norm, whose statistics an expert does not keep; use its instance norm")
    folder = pathlib.Path(folder).expanduser().absolute()
    facts = _facts(net, dataset, recipe, experts=experts, seed=seed, at_once=at_once, half=half)
    if ends:  # a fact of its own, so that folders made before it keep their meaning
        facts["ends"] = True
    if not _is_there(folder):
        # Experts take hours, so a second run waits for the first instead of training the same.
        with _alone(folder):
            if not _is_there(folder):  # else another run has made it while this one waited
                _make(folder, facts, _trainer(net, dataset, recipe, keys.root(seed, "experts"), ends), on_shard)
    # Read back, also just after training: what is used is what lies on the disk.
    trajectories = load_experts(folder, net, dataset)
    refuse_difference(folder, trajectories.manifest, facts)
    return trajectories


def expert_folder(
    cache: pathlib.Path, net: zoo.Architecture, dataset: Dataset, recipe: recipes.Recipe, **settings: int | bool
) -> pathlib.Path:
    """Names the folder of a cache in which the experts of one request lie, by a hash of all that decides them.

    Args:
      cache: the folder of what need not be made twice.
      net: as for ``train_experts``.
      dataset: as for ``train_experts``.
      recipe: as for ``train_experts``.
      **settings: its further arguments that decide the weights: ``experts``, ``at_once``, ``half``, ``ends``.
    """
    return cache / "experts" / f"{net.name}-{cache_key(net, dataset, recipe, seed=0, **settings)[:20]}"


def _is_there(folder: pathlib.Path) -> bool:
    """Whether the folder exists: one answer for all processes, since they must train together or not at all."""
    return bool(parallel.from_main(np.int32(os.path.lexists(folder))))


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other run trains these experts; process 0 holds the lock for all processes of its run."""
    if not parallel.is_main():
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    say = functools.partial(logging.getLogger(__name__).warning, "%s: %s; waiting for it", folder)
    with storage.waiting(folder.with_name(f".{folder.name}{storage.LOCK}"), on_wait=say):
        yield


def _make(folder: pathlib.Path, facts: dict[str, Any], train: Callable, on_shard: Callable[[int], None] | None) -> None:
    """Trains what is not in the unfinished folder yet; all processes train, process 0 reads and writes the folder."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    experts, at_once, half = facts["experts"], facts["at_once"], facts["half"]
    groups = [(first, min(first + at_once, experts)) for first in range(0, experts, at_once)]
    names = [shard_names(number, half) for number in range(len(groups))]
    # Which groups are whole already: process 0 knows, and tells the others.
    whole = np.zeros(len(groups), np.int32)
    manifest: dict[str, Any] = {}
    if parallel.is_main():
        manifest = _begin(unfinished, facts)
        whole = np.array([_is_whole(unfinished, manifest, files_of) for files_of in names], np.int32)
    # ``from_main``, because all processes must skip the same groups.
    for (first, last), files_of, is_there in zip(groups, names, parallel.from_main(whole), strict=True):
        arrays = [] if is_there else encode(train(first, last), half)
        # The manifest follows each shard, so that a killed run loses one group at most.
        if arrays and parallel.is_main():
            manifest["files"] |= _write(unfinished, files_of, arrays)
            files.write_json(unfinished / folders.MANIFEST, manifest)
        if on_shard:
            on_shard(last)
    if parallel.is_main():
        os.rename(unfinished, folder)
    parallel.barrier("the experts are whole")


def _trainer(net: zoo.Architecture, dataset: Dataset, recipe: recipes.Recipe, key: jax.Array, ends: bool) -> Callable:
    """``(first, last) -> [last - first, T + 1 or 2, P]`` float32: the trajectories of these experts, on the host."""

    def one(number: jax.Array, key: jax.Array, arrays: ImageArrays) -> jax.Array:
        own = jax.random.fold_in(key, number)
        constants: dict[str, Any] = {"shared_key": key, "mean": arrays.mean, "std": arrays.std}
        if ends:
            start = net.init(keys.named(own, "weights"))
            end = fit(own, net, arrays.images, arrays.labels, recipe, variables=start, **constants)
            return jnp.stack([flatten(start["params"]), flatten(end["params"])])

        def record(variables: Any) -> jax.Array:
            return flatten(variables["params"])

        return fit(own, net, arrays.images, arrays.labels, recipe, record=record, **constants)[1]

    # Key and data are arguments: closed over, they would be constants of the compiled program.
    train_all = parallel.spread(one, at_once=together.at_once(net, recipe.batch_size))

    def train(first: int, last: int) -> np.ndarray:
        snapshots = train_all(jnp.arange(first, last), key, dataset.train)
        # Before anything is written: MTT would match a NaN for the rest of a run.
        broken = np.flatnonzero(~np.isfinite(snapshots).all(axis=(1, 2)))
        if broken.size:
            raise ValueError(
                f"expert {first + broken[0]} does not stay finite; lower the learning rate {recipe.learning_rate}"
            )
        return snapshots

    return train


def _facts(net: zoo.Architecture, dataset: Dataset, recipe: recipes.Recipe, **settings: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "label": net.label,
        "network": repr(net),
        "parameters": net.num_params(),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "recipe": recipes.facts(recipe),
        **settings,  # ``at_once`` too: it decides which experts share a shard
        "code": provenance.code_of(net),
        **provenance.facts(*provenance.TRAINING),
    }


def _begin(unfinished: pathlib.Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the folder in which the same request was interrupted, or that of a new one."""
    place = unfinished / folders.MANIFEST
    files.require_writable(unfinished)
    for path in unfinished.iterdir():
        if files.is_temporary(path):  # of a killed process: nobody else works here while this run holds the lock
            files.discard(path)
        elif not _OURS.fullmatch(path.name):
            raise ValueError(f"{path} was not written by metadd_jax; move it away")
    if place.is_file():
        manifest = files.read_json(place)
        refuse_difference(unfinished, manifest, facts)
        return manifest
    if any(unfinished.iterdir()):
        raise ValueError(f"{unfinished} was not written by metadd_jax (no {folders.MANIFEST}); move it away")
    manifest = facts | {"files": {}}
    files.write_json(place, manifest)
    return manifest


def _write(unfinished: pathlib.Path, names: list[str], arrays: list[np.ndarray]) -> dict[str, Any]:
    """Writes one shard; returns its entries of the manifest."""
    entries = {}
    for name, array in zip(names, arrays, strict=True):
        with files.atomic_path(unfinished / name) as temporary:
            np.save(temporary, array)
        entries[name] = {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "bytes": (unfinished / name).stat().st_size,
            "sha256": files.hash_file(unfinished / name),
        }
    return entries


def _is_whole(unfinished: pathlib.Path, manifest: dict[str, Any], names: list[str]) -> bool:
    """Whether a shard was finished before, byte for byte."""
    # By hash and not by name: a kill may leave a file of the right name from another start.
    return all(
        name in manifest["files"]
        and (unfinished / name).is_file()
        and files.hash_file(unfinished / name) == manifest["files"][name]["sha256"]
        for name in names
    )
