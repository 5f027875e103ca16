"""Training on the real data: MetaDD's auxiliaries, teachers, and the whole-data accuracy of every network.

A trained network is cached under a hash of everything that decides its weights: data, constants, network and its code,
recipe, seed, this package's code, the libraries and the device (docs/caches.md).
"""

from __future__ import annotations

import json
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import files, keys, parallel, provenance, storage, zoo
from metadd_jax.data.splits import SPLITS, split_of
from metadd_jax.structs import Dataset, ImageArrays
from metadd_jax.training import recipes
from metadd_jax.training.fitting import count_correct, fit
from metadd_jax.zoo.architecture import Variables


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      net: its architecture.
      variables: ``params`` (+ ``batch_stats``).
      accuracy: share of the images of ``split`` that it classifies correctly, 0..1.
      cached: whether it came from the cache.
      split: the split of ``accuracy``: "test" or "validation".
      recipe: how it was trained; None where its weights come from elsewhere.
    """

    net: zoo.Architecture
    variables: Variables
    accuracy: float
    cached: bool
    split: str = "test"
    recipe: recipes.Recipe | None = None


def cache_key(
    net: zoo.Architecture, dataset: Dataset, recipe: recipes.Recipe, seed: int, **settings: int | bool
) -> str:
    """Computes the hash (hex) of everything that decides the weights.

    Args:
      net: the architecture; its code counts, too.
      dataset: the real data, by its fingerprint.
      recipe: how to train.
      seed: of the training.
      **settings: further settings that decide the weights (of experts: their number, how many at once, precision).

    Raises:
      UnknownCodeError: (a ValueError) if the code of the network's module cannot be found.
    """
    facts = {
        "net": repr(net),
        "code": provenance.code_of(net),
        "recipe": recipes.facts(recipe),
        "seed": seed,
        **settings,
        **provenance.facts(*provenance.TRAINING),
    }
    return files.hash_arrays(text=dataset.fingerprint + json.dumps(facts, sort_keys=True))


def pretrain(
    net: zoo.Architecture,
    dataset: Dataset,
    recipe: recipes.Recipe,
    *,
    seed: int = 0,
    split: str = "test",
    cache_dir: str | pathlib.Path | None = None,
) -> Trained:
    """Trains ``net`` on the training split, or takes it from ``cache_dir``.

    It trains on one device. Of several processes each trains the same network, and they share ``cache_dir``. A network
    whose code cannot be found (``provenance.code_of``) is trained at every call, with a warning.

    Args:
      net: what to train, for the images and classes of ``dataset``.
      dataset: the real data, standardised or whitened.
      recipe: how to train.
      seed: decides initial weights, shuffles and augmentation.
      split: the split of the reported accuracy: "test", or "validation" while settings are chosen.
      cache_dir: stores the network under ``cache_key``; None stores nothing.

    Returns:
      The trained network and its accuracy.

    Raises:
      ValueError: if a cached network is damaged (it is named and left as it is), if there is no such split, or if the
        training diverges (nothing is kept then).
    """
    split_of(dataset, split)  # a split that is not there is refused before the training
    key = keys.root(seed, "pretrain")
    # Shapes and types of what the cache holds: a stored network of another shape is refused.
    like = jax.eval_shape(
        lambda: {"variables": net.init(key), "accuracies": _each_split(dataset, lambda _: jnp.zeros(()))}
    )
    folder = _folder(net, dataset, recipe, seed, cache_dir)
    # One answer for all processes, since all of them read, or all of them train and save.
    if folder is not None and parallel.from_main(np.int32(folder.exists())):
        stored = storage.restore_tree(folder, like)
        return Trained(net, stored["variables"], float(stored["accuracies"][split]), True, split, recipe)

    def train(key: jax.Array, arrays: ImageArrays) -> Variables:
        return fit(key, net, arrays.images, arrays.labels, recipe, shared_key=key, mean=arrays.mean, std=arrays.std)

    variables = parallel.call_once(train, key, dataset.train)
    accuracies = _each_split(dataset, lambda name: measure(net, variables, dataset, split=name).accuracy)
    if folder is not None:
        kept = {"variables": variables, "accuracies": jax.tree.map(jnp.float32, accuracies)}
        storage.save_tree(folder, kept, keep=True)
        # Another run, perhaps on another machine, may have stored its network first. The next start takes that one, so
        # this one does too.
        stored = storage.restore_tree(folder, like)
        variables, accuracies = stored["variables"], jax.tree.map(float, stored["accuracies"])
    return Trained(net, variables, accuracies[split], False, split, recipe)


def _folder(
    net: zoo.Architecture, dataset: Dataset, recipe: recipes.Recipe, seed: int, cache_dir: str | pathlib.Path | None
) -> pathlib.Path | None:
    if cache_dir is None:
        return None
    try:
        key = cache_key(net, dataset, recipe, seed)
    except provenance.UnknownCodeError as error:
        warnings.warn(f"{net.label} is not kept in the cache: {error}", stacklevel=3)
        return None
    return pathlib.Path(cache_dir) / "networks" / f"{net.name}-{key[:20]}"  # 80 bits: no two keys will ever meet


def measure(net: zoo.Architecture, variables: Variables, dataset: Dataset, *, split: str = "test") -> Trained:
    """Measures the accuracy of a network whose weights come from elsewhere (``zoo.torchvision.load``).

    Args:
      net: the architecture.
      variables: its ``params`` (+ ``batch_stats``).
      dataset: the real data.
      split: "test" or "validation".

    Raises:
      ValueError: if there is no such split, or if a weight, or a logit on the split, is not finite.
    """
    right, total = parallel.call_once(
        lambda v, arrays: count_correct(net, v, arrays), variables, split_of(dataset, split)
    )
    if not np.isfinite(right):
        raise ValueError(
            f"{net.label} has weights, or logits on the {split} images of {dataset.name}, that are not finite: its "
            "training diverged; lower the learning rate, or restore the weights if they come from a file"
        )
    return Trained(net, variables, float(right / total), False, split)


def _each_split(dataset: Dataset, function: Callable[[str], Any]) -> dict[str, Any]:
    """``function`` of every split that accuracy can be measured on, so that a cached network serves all of them."""
    return {name: function(name) for name in SPLITS if name == "test" or dataset.validation is not None}
