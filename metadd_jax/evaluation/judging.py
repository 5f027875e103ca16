"""Training many networks on distilled sets: the accuracy of every set under every architecture.

All sets of one size and all training seeds of one architecture train in one program, divided over all devices: one
compilation and one dispatch per architecture (``parallel.each``: under ``vmap``, on a CPU one after the other).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import parallel, ranges, zoo
from metadd_jax.data.splits import split_of
from metadd_jax.exchange import checks
from metadd_jax.structs import Auxiliary, Dataset, ImageArrays, SyntheticSet
from metadd_jax.training import recipes
from metadd_jax.training.fitting import count_correct, fit


@dataclasses.dataclass(frozen=True)
class Row:
    """Accuracy of one architecture trained on one set.

    Attributes:
      network: label of the architecture.
      accuracies: one per training seed, in [0, 1], at the last epoch; NaN where the training diverged, so that a weight
        or a logit of the network is not finite: no number stands for that.
    """

    network: str
    accuracies: tuple[float, ...]


def train_and_test(
    key: jax.Array,
    sets: Sequence[SyntheticSet],
    net: zoo.Architecture,
    arrays: ImageArrays,
    *,
    seeds: int,
    recipe: recipes.Recipe,
    draws: Sequence[int] | None = None,
    at_once: int = 32,
    teacher: Auxiliary | None = None,
) -> np.ndarray:
    """Trains ``net`` from scratch ``seeds`` times on each set; accuracies [S, seeds] on ``arrays`` (NaN: diverged).

    Args:
      key: typed PRNG key. Set s and training seed j start from ``fold_in(fold_in(key, draws[s]), j)``.
      sets: S sets of the same shape.
      draws: S counts. Sets of the same count share the luck of training seed j (initial weights, shuffles,
        augmentation) and are compared in pairs; sets of different counts share none of it. Default: all of count 0.
      at_once: networks that train together on a device; less needs less memory.
      teacher: labels every batch of every set in place of the sets' own labels (see ``training.relabel``).
    """
    draws = [0] * len(sets) if draws is None else list(draws)
    images = jnp.stack([jnp.asarray(s.images) for s in sets])
    labels = _labels(sets, net.num_classes)
    rates = _learning_rates(sets, recipe)
    train = _accuracies(net, recipe)
    found = np.zeros((len(sets), seeds), np.float32)
    # One draw after the other: networks that train together share their augmentation tokens (see ``fit``), and that is
    # luck too.
    for draw in dict.fromkeys(draws):
        own = [index for index, other in enumerate(draws) if other == draw]
        jobs = np.array([(index, seed) for index in own for seed in range(seeds)])
        for group, padded in _groups(jobs, at_once * parallel.device_count()):
            pairs = (jnp.asarray(padded[:, 1]), jnp.asarray(padded[:, 0]))
            values = train(*pairs, jax.random.fold_in(key, draw), images, labels, rates, arrays, teacher)
            found[group[:, 0], group[:, 1]] = values[: len(group)]
    return found


def _groups(jobs: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Even groups of at most ``most`` jobs, each also filled up so that all have one compiled shape."""
    size = -(-len(jobs) // -(-len(jobs) // most))
    for start in range(0, len(jobs), size):
        group = jobs[start : start + size]
        yield group, np.concatenate([group, np.repeat(group[-1:], size - len(group), axis=0)])


@functools.lru_cache(maxsize=64)
def _accuracies(net: zoo.Architecture, recipe: recipes.Recipe) -> Callable[..., np.ndarray]:
    """Kept, so that judging again (another seed's set, another split) compiles nothing."""

    def one(
        seed: jax.Array, index: jax.Array, key: Any, images: Any, labels: Any, rates: Any, arrays: Any, teacher: Any
    ) -> jax.Array:
        settings = {"learning_rate": None if rates is None else rates[index], "teacher": teacher}
        own = jax.random.fold_in(key, seed)
        variables = fit(own, net, images[index], labels[index], recipe, shared_key=key, **settings)
        right, total = count_correct(net, variables, arrays)
        return right / total

    return parallel.spread(one, mapped=2)


def _labels(sets: Sequence[SyntheticSet], num_classes: int) -> jax.Array:
    """[S, N] int32, or [S, N, K] probabilities as soon as one set has soft labels."""
    if all(s.soft_labels is None for s in sets):
        return jnp.stack([jnp.asarray(s.labels) for s in sets])
    soft = [jax.nn.one_hot(s.labels, num_classes) if s.soft_labels is None else s.soft_labels for s in sets]
    return jnp.stack([jnp.asarray(labels) for labels in soft])


def _learning_rates(sets: Sequence[SyntheticSet], recipe: recipes.Recipe) -> jax.Array | None:
    """[len(sets)] step sizes: the learned one of a set that has it, else the recipe's; None if all are the recipe's."""
    learned = [s.learning_rate for s in sets]
    if recipe.optimiser != "sgd" or all(rate is None for rate in learned):
        return None
    return jnp.asarray([recipe.learning_rate if rate is None else rate for rate in learned], jnp.float32)


def cross_architecture(
    key: jax.Array,
    synthetic: SyntheticSet | Sequence[SyntheticSet],
    dataset: Dataset,
    networks: Sequence[zoo.Architecture],
    *,
    seeds: int = 5,
    recipe: recipes.Recipe | None = None,
    draws: Sequence[int] | None = None,
    split: str = "test",
    at_once: int = 32,
    teacher: Auxiliary | None = None,
    on_network: Callable[[str], None] | None = None,
) -> list[Row] | list[list[Row]]:
    """The cross-architecture table of one set (a list of rows) or of several (a list of lists).

    Args:
      synthetic: a set, or a sequence of sets of the same shape that are evaluated together.
      networks: architectures, each trained from scratch ``seeds`` times.
      recipe: default: the DC family's protocol at 300 epochs without augmentation. A set with a learned step size (MTT,
        TESLA) trains with it in place of an SGD recipe's, as published; AdamW keeps its own.
      draws: a count for each set, e.g. its distillation seed: sets of the same count share the luck of their trainings,
        which pairs them; sets of different counts must not, or their spread lacks it (see ``train_and_test``). Default:
        all sets share it.
      split: "test", or "validation" for choosing settings.
      teacher: labels every batch of every set in place of the sets' own labels, baselines included (SRe2L's
        post-training, with ``recipes.sre2l_evaluation``).
      on_network: called with each architecture's label when it is done.

    Raises:
      ValueError: if a set is unfit (not finite, labels out of range, soft labels that are no probabilities, a learning
        rate that is not above 0; see ``exchange.checks.check_arrays``), if a network does not take its images or
        classes, or ``split`` is not there.
    """
    arrays = split_of(dataset, split)
    recipe = recipe or recipes.dc_evaluation(300)
    sets = [synthetic] if isinstance(synthetic, SyntheticSet) else list(synthetic)
    if not sets:
        raise ValueError("nothing to evaluate: no sets; give at least 1")
    ranges.require("seeds", seeds, ranges.Whole(1))
    ranges.require("at_once", at_once, ranges.Whole(1))
    sizes = {candidate.images.shape for candidate in sets}
    if len(sizes) > 1:
        raise ValueError(f"sets of shapes {sorted(sizes)} cannot train together; evaluate each shape in its own call")
    if draws is not None and (len(draws) != len(sets) or min(draws) < 0):
        raise ValueError(f"draws are {list(draws)} for {len(sets)} sets; give one count from 0 on for each set")
    for number, candidate in enumerate(sets):
        name = "the set" if len(sets) == 1 else f"set {number}"
        checks.check_arrays(name, candidate, dataset.num_classes)
    for net in networks:
        for candidate in sets:
            _check(net, candidate, dataset)
    tables: list[list[Row]] = [[] for _ in sets]
    for net in networks:
        accuracies = train_and_test(
            key, sets, net, arrays, seeds=seeds, recipe=recipe, draws=draws, at_once=at_once, teacher=teacher
        )
        for table, row in zip(tables, accuracies, strict=True):
            table.append(Row(net.label, tuple(float(value) for value in row)))
        if on_network:
            on_network(net.label)
    return tables[0] if isinstance(synthetic, SyntheticSet) else tables


def _check(net: zoo.Architecture, synthetic: SyntheticSet, dataset: Dataset) -> None:
    shape = tuple(synthetic.images.shape[1:])
    if shape != tuple(net.image_shape) or shape != dataset.image_shape:
        raise ValueError(
            f"the set holds {shape} images, {net.label} takes {tuple(net.image_shape)} and {dataset.name} has "
            f"{dataset.image_shape}; they must agree"
        )
    if net.num_classes != dataset.num_classes:
        raise ValueError(
            f"{net.label} has {net.num_classes} classes, {dataset.name} {dataset.num_classes}; they must agree"
        )
