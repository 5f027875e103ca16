"""Training on the real data: the auxiliaries that MetaDD looks through, and the whole-data accuracy of every network.

A trained network is cached under a hash of everything that made it: data, constants, network and its code, recipe,
seed, this package's code, the libraries and the device (docs/caches.md).
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
from metadd_jax.structs import Dataset
from metadd_jax.training import recipes
from metadd_jax.training.fitting import count_correct, fit


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      net: its architecture.
      variables: ``params`` (+ ``batch_stats``).
      accuracy: share of the images of ``split`` that it gets right, 0..1.
      cached: whether it came from the cache.
      split: what ``accuracy`` was measured on: "test" or "validation".
    """

    net: zoo.Architecture
    variables: Any
    accuracy: float
    cached: bool
    split: str = "test"


def cache_key(
    net: zoo.Architecture, dataset: Dataset, recipe: recipes.Recipe, seed: int, **settings: int | bool
) -> str:
    """Hash (hex) of all that decides the weights.

    Args:
      settings: what else decides them, by name (of experts: how many, how many at once, in which precision).

    Raises:
      UnknownCodeError: (a ValueError) if it cannot be told what the network's module is made of.
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

    It trains on one device; of several processes each trains the same, and they share ``cache_dir``. A network whose
    module cannot be told from another one (``provenance.code_of``) is trained at every call, with a warning.

    Args:
      net: what to train, for the images and classes of ``dataset``.
      dataset: the real data, standardised or whitened.
      recipe: how to train.
      seed: decides initial weights, shuffles and augmentation.
      split: where the reported accuracy comes from: "test", or "validation" while settings are chosen.
      cache_dir: keeps the network under ``cache_key``; None keeps nothing.

    Raises:
      ValueError: if a cached network is damaged (it is named and left as it is), if there is no such split, or if the
        training diverges (nothing is kept then).
    """
    split_of(dataset, split)
    key = keys.root(seed, "pretrain")
    like = jax.eval_shape(
        lambda: {"variables": net.init(key), "accuracies": _each_split(dataset, lambda _: jnp.zeros(()))}
    )
    folder = _folder(net, dataset, recipe, seed, cache_dir)
    # One answer for all processes, since all of them read, or all of them train and save.
    if folder is not None and parallel.from_main(np.int32(folder.exists())):
        stored = storage.restore_tree(folder, like)
        return Trained(net, stored["variables"], float(stored["accuracies"][split]), True, split)

    def train(key: jax.Array, arrays: Any) -> Any:
        return fit(key, net, arrays.images, arrays.labels, recipe, shared_key=key, mean=arrays.mean, std=arrays.std)

    variables = parallel.jit(train)(key, dataset.train)
    accuracies = _each_split(dataset, lambda name: measure(net, variables, dataset, split=name).accuracy)
    if folder is not None:
        kept = {"variables": variables, "accuracies": jax.tree.map(jnp.float32, accuracies)}
        storage.save_tree(folder, kept, keep=True)
        # A parallel run, perhaps on another machine, may have been first: the next start takes what lies there, and so
        # does this one.
        stored = storage.restore_tree(folder, like)
        variables, accuracies = stored["variables"], jax.tree.map(float, stored["accuracies"])
    return Trained(net, variables, accuracies[split], False, split)


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
    return pathlib.Path(cache_dir) / "networks" / f"{net.name}-{key[:20]}"


def measure(net: zoo.Architecture, variables: Any, dataset: Dataset, *, split: str = "test") -> Trained:
    """A network whose weights come from elsewhere (``zoo.torchvision.load``), with its accuracy on ``split``.

    Raises:
      ValueError: if there is no such split, or if a weight, or a logit on the split, is not finite.
    """
    right, total = parallel.jit(lambda v, arrays: count_correct(net, v, arrays))(variables, split_of(dataset, split))
    if not np.isfinite(right):
        raise ValueError(
            f"{net.label} has weights, or logits on the {split} images of {dataset.name}, that are not finite: its "
            "training diverged; lower the learning rate, or restore the weights if they come from a file"
        )
    return Trained(net, variables, float(right / total), False, split)


def _each_split(dataset: Dataset, function: Callable[[str], Any]) -> dict[str, Any]:
    """``function`` of every split that accuracy can be measured on: the cached network serves all of them."""
    return {name: function(name) for name in SPLITS if name == "test" or dataset.validation is not None}
