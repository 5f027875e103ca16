"""Training on the real data: the auxiliaries that MetaDD looks through, and the whole-data accuracy of every network.

A trained network is cached under a hash of everything that made it: data, constants, network, recipe, seed.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import files, keys, parallel, storage, zoo
from metadd_jax.structs import Dataset
from metadd_jax.training import recipes
from metadd_jax.training.fit import count_correct, fit

FORMAT = 1  # raise it when training code changes what a cached network would be


class Trained(NamedTuple):
    """A trained network: its variables, its accuracy on the test split (0..1), and whether it came from the cache."""

    net: zoo.Architecture
    variables: Any
    accuracy: float
    cached: bool


def cache_key(net: zoo.Architecture, dataset: Dataset, recipe: recipes.Recipe, seed: int) -> str:
    """Hash (hex) of all that decides the weights."""
    facts = {"net": repr(net), "recipe": recipes.facts(recipe), "seed": seed, "format": FORMAT}
    return files.hash_arrays(text=dataset.fingerprint + json.dumps(facts, sort_keys=True))


def pretrain(
    net: zoo.Architecture,
    dataset: Dataset,
    recipe: recipes.Recipe,
    *,
    seed: int = 0,
    cache_dir: str | pathlib.Path | None = None,
) -> Trained:
    """Trains ``net`` on the training split, or takes it from ``cache_dir``.

    It trains on one device; of several processes each trains the same, and they share ``cache_dir``.

    Raises:
      ValueError: if a cached network is damaged (it is named and left as it is).
    """
    key = keys.root(seed, "pretrain")
    like = jax.eval_shape(lambda: {"variables": net.init(key), "accuracy": jnp.zeros(())})
    folder = None
    if cache_dir is not None:
        folder = pathlib.Path(cache_dir) / "networks" / f"{net.name}-{cache_key(net, dataset, recipe, seed)[:20]}"
        # One answer for all processes, since all of them read, or all of them train and save.
        if parallel.from_main(np.int32(folder.exists())):
            stored = storage.restore_tree(folder, like)
            return Trained(net, stored["variables"], float(stored["accuracy"]), True)

    def train(key: jax.Array, arrays: Any) -> Any:
        return fit(key, net, arrays.images, arrays.labels, recipe, shared_key=key, mean=arrays.mean, std=arrays.std)

    trained = measure(net, parallel.jit(train)(key, dataset.arrays), dataset)
    if folder is not None:
        # A parallel run may have trained the same network meanwhile.
        kept = {"variables": trained.variables, "accuracy": jnp.asarray(trained.accuracy, jnp.float32)}
        storage.save_tree(folder, kept, overwrite=True)
    return trained


def measure(net: zoo.Architecture, variables: Any, dataset: Dataset) -> Trained:
    """A network whose weights come from elsewhere (``zoo.torchvision.load``), with its accuracy on the test split."""
    right, total = parallel.jit(lambda v, arrays: count_correct(net, v, arrays))(variables, dataset.test)
    return Trained(net, variables, float(right / total), False)
