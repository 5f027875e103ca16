"""Several teachers in SRe2L's recovery: how their losses are put together, and where the teachers come from.

A group of images x with labels y has, of teachers m = 1..K, the loss

    sum_m w_m (mean CE_m(x, y) + r_bn BN_m(x)),

each with its own layers and its own w_1 = ``first_multiplier``. The ways to weigh them:

- "mean": w_m = 1 / K;
- "prior": w = softmax(prior / 5), CV-DD (``training.prior_weights``): where priors differ by ten points it is close to
  one-hot, so it is hardly a committee any more;
- "round_robin": at step t the teacher t mod K alone, G-VBSM.

An update passes K teachers under the first two and one under the last: equal work is K times as many round-robin
updates, or of one teacher.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from metadd_jax import training, zoo
from metadd_jax.distillers.registry import Progress
from metadd_jax.structs import Dataset

WEIGHTINGS = ("mean", "prior", "round_robin")
PRIOR_TEMPERATURE = 5.0  # CV-DD's, where a committee recovers


def check(specs: Sequence[str], weighting: str, priors: Sequence[float]) -> None:
    """Refuses settings of a committee that do not go together.

    Args:
      specs: the networks beside the backbone.
      weighting: one of ``WEIGHTINGS``.
      priors: one number a teacher, the backbone's first; none but for "prior".

    Raises:
      ValueError: naming the setting.
    """
    if weighting != "mean" and not specs:
        raise ValueError(f"weighting={weighting} weighs teachers, and the backbone is alone; name others by committee")
    if (weighting == "prior") != bool(priors):
        wanted = "needs priors" if weighting == "prior" else "has no use for priors"
        raise ValueError(f"weighting={weighting} {wanted}: they are the numbers of 'prior', one a teacher")
    if priors and len(priors) != 1 + len(specs):
        raise ValueError(
            f"priors={tuple(priors)} are {len(priors)} numbers for {1 + len(specs)} teachers; give the backbone's "
            "first, then one for each of committee"
        )


def weights(weighting: str, priors: Sequence[float], count: int) -> tuple[float, ...]:
    """Computes w_m, 1 in all; under "round_robin" the share of the updates that each teacher has.

    Args:
      weighting: one of ``WEIGHTINGS``.
      priors: one number a teacher where it is "prior".
      count: K.
    """
    return training.prior_weights(priors, PRIOR_TEMPERATURE) if priors else (1 / count,) * count


def nets(specs: Sequence[str], backbone: zoo.Architecture) -> tuple[zoo.Architecture, ...]:
    """Makes the teachers: the backbone, then those of ``specs`` for the same images and classes.

    Args:
      specs: as the user writes them, "resnet18_bn:width=8".
      backbone: the first teacher.

    Raises:
      ValueError: for a network that does not exist or does not suit the images, or one that is there twice.
    """
    every = (backbone, *(zoo.parse(spec, backbone.num_classes, backbone.image_shape) for spec in specs))
    labels = [net.label for net in every]
    if len(set(labels)) < len(labels):
        raise ValueError(f"the committee {', '.join(labels)} has a network twice; name different ones")
    return every


def train(
    every: Sequence[zoo.Architecture],
    dataset: Dataset,
    backbone: training.Trained,
    cache: pathlib.Path,
    *,
    progress: Progress,
) -> tuple[Any, ...]:
    """Trains the teachers beside the backbone on the real images as it was trained, or takes them from the cache.

    Args:
      every: the K teachers, the backbone first.
      dataset: the real data.
      backbone: the trained first one.
      cache: the folder of trained networks.
      progress: called as (what, done, in all).

    Returns:
      Of each teacher its ``params`` and ``batch_stats``.

    Raises:
      ValueError: if the backbone's weights come from a file, so that nothing says how the others are trained.
    """
    if backbone.recipe is None:
        raise ValueError("the backbone's weights come from a file, and the committee's others have none; leave one out")
    found = [backbone.variables]
    for number, net in enumerate(every[1:]):
        progress("committee", number, len(every) - 1)
        one = training.pretrain(net, dataset, backbone.recipe, split=backbone.split, cache_dir=cache)
        found.append(one.variables)
    progress("committee", len(every) - 1, len(every) - 1)
    return tuple(found)


def random(key: jax.Array, every: Sequence[zoo.Architecture], variables: Any) -> tuple[Any, ...]:
    """Makes teachers of random weights, for a plan.

    Args:
      key: typed PRNG key.
      every: the K teachers, the backbone first.
      variables: random ones of the backbone.
    """
    return (variables, *(net.init(key) for net in every[1:]))
