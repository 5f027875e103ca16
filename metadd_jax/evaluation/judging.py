"""Cross-architecture evaluation: networks trained on distilled sets, and their accuracy on real images.

All sets of one size and all training seeds of one architecture train in one program, divided over all devices: one
compilation and one dispatch per architecture (``parallel.spread``: under ``vmap``, on a CPU a training on each core).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import cores, parallel, ranges, zoo
from metadd_jax.data.splits import split_of
from metadd_jax.exchange import checks
from metadd_jax.structs import Dataset, ImageArrays, SyntheticSet
from metadd_jax.training import recipes, relabel, together
from metadd_jax.training.fitting import count_correct, fit
from metadd_jax.training.guidance import Guidance

LABELS = ("own", "hard")


@dataclasses.dataclass(frozen=True)
class Row:
    """Accuracy of one architecture trained on one set.

    Attributes:
      network: label of the architecture.
      accuracies: one per training seed, in [0, 1], at the last epoch. NaN where the training diverged (a weight or a
        logit of the network is not finite): such a network has no accuracy.
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
    teacher: relabel.Teacher | None = None,
    guidance: Guidance | None = None,
    guides: Any = None,
) -> np.ndarray:
    """Trains ``net`` from scratch ``seeds`` times on each set and tests it.

    Args:
      key: typed PRNG key. Set s and training seed j start from ``fold_in(fold_in(key, draws[s]), j)``.
      sets: S sets of the same shape.
      net: the architecture.
      arrays: real images to test on.
      seeds: number of trainings on each set.
      recipe: how to train.
      draws: S integers from 0 on. Sets with the same integer share the randomness of training seed j (initial weights,
        shuffles, augmentation), which pairs them for a comparison; others share none of it. Default: all 0.
      at_once: networks that train together on one device (one after the other where ``training.together`` says so);
        fewer need less memory.
      teacher: labels every batch of every set in place of the sets' own labels (see ``training.relabel``).
      guidance: how a network that was trained on the same set guides each training beside the labels, or None.
      guides: the variables of those networks, stacked [S, seeds, ...].

    Returns:
      [S, seeds] float32 accuracies in [0, 1]; NaN where a training diverged.
    """
    return _train(
        key, sets, net, arrays, seeds=seeds, recipe=recipe, draws=draws, at_once=at_once, teacher=teacher,
        guidance=guidance, guides=guides,
    )[0]  # fmt: skip


def _train(
    key: jax.Array,
    sets: Sequence[SyntheticSet],
    net: zoo.Architecture,
    arrays: ImageArrays,
    *,
    seeds: int,
    recipe: recipes.Recipe,
    draws: Sequence[int] | None,
    at_once: int,
    teacher: relabel.Teacher | None,
    guidance: Guidance | None = None,
    guides: Any = None,
    keep: bool = False,
) -> tuple[np.ndarray, Any]:
    """The accuracies of ``train_and_test`` and, to ``keep`` them, the trained variables [S, seeds, ...] on the host."""
    draws = [0] * len(sets) if draws is None else list(draws)
    # Stacked on the device once; a training picks its set by index, so all sets share one program.
    images = jnp.stack([jnp.asarray(s.images) for s in sets])
    labels = _labels(sets, net.num_classes)
    rates = _learning_rates(sets, recipe)
    batch = min(recipe.batch_size, images.shape[1])
    train = _accuracies(net, recipe, together.at_once(net, batch), guidance, keep)
    found, done, kept = np.zeros((len(sets), seeds), np.float32), [], []
    # One draw after the other: networks that train together share their augmentation tokens (see ``fit``), and sets of
    # different draws must share no randomness.
    for draw in dict.fromkeys(draws):
        own = [index for index, other in enumerate(draws) if other == draw]
        jobs = np.array([(index, seed) for index in own for seed in range(seeds)])
        for group, padded in _groups(jobs, at_once * parallel.device_count()):
            pairs = (jnp.asarray(padded[:, 1]), jnp.asarray(padded[:, 0]))
            # Those of the group alone: all of them might not fit on a device.
            own_guides = jax.tree.map(lambda leaf, at=padded: leaf[at[:, 0], at[:, 1]], guides)
            values, variables = train(
                *pairs, own_guides, jax.random.fold_in(key, draw), images, labels, rates, arrays, teacher
            )
            found[group[:, 0], group[:, 1]] = values[: len(group)]
            done.append(group)
            kept.append(jax.tree.map(lambda leaf, own=group: leaf[: len(own)], variables))
    jobs = np.concatenate(done)
    order = np.lexsort((jobs[:, 1], jobs[:, 0]))  # by set, then by seed
    return found, jax.tree.map(lambda *parts: _stacked(parts, order, found.shape), *kept)


def _stacked(parts: Sequence[np.ndarray], order: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.concatenate(parts)[order]
    return whole.reshape(*shape, *whole.shape[1:])


def _groups(jobs: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Even groups of at most ``most`` jobs, and each padded so that all have one compiled shape."""
    # Even, because padding is work thrown away: 33 jobs in groups of 32 are 17 and 16, not 32 and 1.
    size = -(-len(jobs) // -(-len(jobs) // most))
    for start in range(0, len(jobs), size):
        group = jobs[start : start + size]
        yield group, np.concatenate([group, np.repeat(group[-1:], size - len(group), axis=0)])


@functools.lru_cache(maxsize=64)
def _accuracies(
    net: zoo.Architecture,
    recipe: recipes.Recipe,
    at_once: bool,
    guidance: Guidance | None = None,
    keep: bool = False,
) -> Callable[..., tuple[np.ndarray, Any]]:
    """The compiled trainings of one architecture and recipe: accuracies, and the variables where they are to be kept.

    Cached, so that judging again (the set of another seed, another split) compiles nothing.
    """

    def one(
        seed: jax.Array,
        index: jax.Array,
        guide: Any,
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        rates: jax.Array | None,
        arrays: ImageArrays,
        teacher: relabel.Teacher | None,
    ) -> tuple[jax.Array, Any]:
        rate = None if rates is None else rates[index]
        own = jax.random.fold_in(key, seed)
        # ``shared_key`` is the same for all networks of a group, so that each step computes one augmentation token.
        variables = fit(
            own, net, images[index], labels[index], recipe, shared_key=key, learning_rate=rate, teacher=teacher,
            guidance=None if guidance is None else (guidance, guide),
        )  # fmt: skip
        right, total = count_correct(net, variables, arrays)
        return right / total, variables if keep else ()

    return parallel.spread(one, mapped=3, at_once=at_once)


def _labels(sets: Sequence[SyntheticSet], num_classes: int) -> jax.Array:
    """[S, N] int32, or [S, N, K] probabilities as soon as one set has soft labels."""
    # Under "own" hard labels may stand beside soft ones. They train in one program: one-hot probabilities give the
    # same cross-entropy.
    if all(s.soft_labels is None for s in sets):
        return jnp.stack([jnp.asarray(s.labels) for s in sets])
    soft = [jax.nn.one_hot(s.labels, num_classes) if s.soft_labels is None else s.soft_labels for s in sets]
    return jnp.stack([jnp.asarray(labels) for labels in soft])


def _learning_rates(sets: Sequence[SyntheticSet], recipe: recipes.Recipe) -> jax.Array | None:
    """[len(sets)] step sizes: the learned one of a set that has it, else the recipe's; None if all are the recipe's."""
    learned = [s.learning_rate for s in sets]
    # MTT and TESLA learn a step size of plain SGD; it would mean nothing to another optimiser.
    if recipe.optimiser != "sgd" or all(rate is None for rate in learned):
        return None
    return jnp.asarray([recipe.learning_rate if rate is None else rate for rate in learned], jnp.float32)


# Two signatures for type checkers: one set gives one table, several give a list of tables.
@overload
def cross_architecture(
    key: jax.Array,
    synthetic: SyntheticSet,
    dataset: Dataset,
    networks: Sequence[zoo.Architecture],
    *,
    seeds: int = ...,
    recipe: recipes.Recipe | None = ...,
    draws: Sequence[int] | None = ...,
    split: str = ...,
    at_once: int = ...,
    labels: str = ...,
    teacher: relabel.Teacher | None = ...,
    guidance: Guidance | None = ...,
    on_network: Callable[[str], None] | None = ...,
) -> list[Row]: ...


@overload
def cross_architecture(
    key: jax.Array,
    synthetic: Sequence[SyntheticSet],
    dataset: Dataset,
    networks: Sequence[zoo.Architecture],
    *,
    seeds: int = ...,
    recipe: recipes.Recipe | None = ...,
    draws: Sequence[int] | None = ...,
    split: str = ...,
    at_once: int = ...,
    labels: str = ...,
    teacher: relabel.Teacher | None = ...,
    guidance: Guidance | None = ...,
    on_network: Callable[[str], None] | None = ...,
) -> list[list[Row]]: ...


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
    labels: str = "own",
    teacher: relabel.Teacher | None = None,
    guidance: Guidance | None = None,
    on_network: Callable[[str], None] | None = None,
) -> list[Row] | list[list[Row]]:
    """Trains every architecture on every set from scratch and measures its accuracy on real images.

    Args:
      key: typed PRNG key; see ``train_and_test`` for what is drawn from it.
      synthetic: a set, or a sequence of sets of the same shape that are evaluated together.
      dataset: the real data; its classes and image shape must be those of the sets.
      networks: architectures, each trained ``seeds`` times.
      seeds: number of trainings of each architecture on each set, at least 1.
      recipe: default: the DC family's protocol at 300 epochs without augmentation. A set with a learned step size (MTT,
        TESLA) trains with it in place of an SGD recipe's, as published; AdamW keeps its own.
      draws: an integer from 0 on for each set, such as its distillation seed. Sets with the same integer share the
        randomness of their trainings, which pairs them. Sets of different distillation seeds must not share it:
        otherwise the spread over seeds lacks the spread of trainings. Default: all sets share it.
      split: "test", or "validation" for choosing settings.
      at_once: networks that train together on one device, at least 1; fewer need less memory.
      labels: "own", each set's soft labels where it has them and else its hard ones; or "hard" for every set. Under
        "own" a set with soft labels is not compared under equal labels with one without.
      teacher: a network, or a committee (``training.committee``), that labels every batch, as it is cropped and mixed,
        of every set in place of the sets' own labels, baselines included (SRe2L's post-training, with
        ``recipes.sre2l_evaluation``).
      guidance: knowledge distillation beside the labels: on each set ``guidance.net`` is trained first, as all others
        are, and guides them. Training seed j learns from the guide of training seed j. A row of that very network is
        the guides' own accuracy, as in the paper's table: they learn from nobody.
      on_network: called with each architecture's label when it is done.

    Returns:
      One ``Row`` per network; of a sequence of sets a list of such lists.

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
    ranges.require("labels", labels, ranges.OneOf(LABELS))
    sizes = {candidate.images.shape for candidate in sets}
    if len(sizes) > 1:
        raise ValueError(f"sets of shapes {sorted(sizes)} cannot train together; evaluate each shape in its own call")
    if draws is not None and (len(draws) != len(sets) or min(draws) < 0):
        raise ValueError(f"draws are {list(draws)} for {len(sets)} sets; give one count from 0 on for each set")
    # All checks before the first training, which may take hours.
    for number, candidate in enumerate(sets):
        name = "the set" if len(sets) == 1 else f"set {number}"
        checks.check_arrays(name, candidate, dataset.num_classes)
    for net in (*networks, *([] if guidance is None else [guidance.net])):
        for candidate in sets:
            _check(net, candidate, dataset)
    if labels == "hard":
        sets = [dataclasses.replace(candidate, soft_labels=None) for candidate in sets]
    tables: list[list[Row]] = [[] for _ in sets]
    train = functools.partial(
        _train, key, sets, arrays=arrays, seeds=seeds, recipe=recipe, draws=draws, at_once=at_once, teacher=teacher
    )
    known, guides = {}, None
    if guidance is not None:
        known[guidance.net], guides = train(guidance.net, keep=True)

    def accuracies_of(net: zoo.Architecture) -> np.ndarray:
        return known[net] if net in known else train(net, guidance=guidance, guides=guides)[0]

    for net, accuracies in zip(networks, cores.ahead(accuracies_of, networks), strict=True):
        for table, row in zip(tables, accuracies, strict=True):
            table.append(Row(net.label, tuple(float(value) for value in row)))
        if on_network:
            on_network(net.label)
    return tables[0] if isinstance(synthetic, SyntheticSet) else tables


def _check(net: zoo.Architecture, synthetic: SyntheticSet, dataset: Dataset) -> None:
    # All three, because a set may come from a file and the network from a command line.
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
