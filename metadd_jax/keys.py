"""Random keys by name: what is drawn for one purpose has nothing to do with what is drawn for another.

``jax.random.fold_in(key, i)`` is ``jax.random.split(key, n)[i]``, so two purposes that count from one key meet as soon
as their numbers do: the key of distillation seed 0 once was that of training seed 1. Here a purpose has a name, and its
number is far above whatever is counted. Rule: a key is either split, folded with a count or drawn from *once*, or it is
only ever asked for by name.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np

DOMAINS = (
    # Whole jobs, each from a seed of its own.
    "distil", "judge", "pretrain", "experts", "generator", "random", "kmeans", "stream", "probe", "report",
    # Inside a distillation: its start, its steps, and the parts of one step.
    "init", "latents", "run", "refresh", "sample", "loss", "metadd", "calibrate", "statistics", "network", "views",
    "control", "matched", "frequencies", "subset", "real", "drawn", "further",
    # Inside a training.
    "weights", "order", "view", "token", "crop", "flip", "mix", "mixed", "shuffle",
)  # fmt: skip


def named(key: jax.Array, domain: str) -> jax.Array:
    """Derives the key of one purpose.

    Args:
      key: [] typed PRNG key, which may serve other purposes as well, each under its name.
      domain: one of ``DOMAINS``.

    Raises:
      ValueError: for a purpose without an entry there: its number could be that of another one.
    """
    return jax.random.fold_in(key, number(domain))


def root(seed: int, domain: str) -> jax.Array:
    """Makes the first key of a whole job.

    Args:
      seed: 0 to 2^32 - 1.
      domain: one of ``DOMAINS``: jobs of one seed, such as distilling and judging, then share no draw.
    """
    return named(jax.random.key(seed), domain)


def generator(domain: str, *counts: int) -> np.random.Generator:
    """Makes NumPy's generator, for draws of host code.

    Args:
      domain: one of ``DOMAINS``.
      *counts: seed, step and whatever else tells this stream from others of the purpose; all at least 0.
    """
    return np.random.default_rng([number(domain), *counts])


def number(domain: str) -> int:
    """Gives the number of a purpose, in [0, 2^32).

    Args:
      domain: one of ``DOMAINS``.

    Raises:
      ValueError: if ``domain`` is not one of ``DOMAINS``.
    """
    if domain not in DOMAINS:
        raise ValueError(f"no random domain {domain!r}; use one of {', '.join(DOMAINS)} or add it to keys.DOMAINS")
    # Of the word and not of its place: an entry added to DOMAINS changes no number that was measured. Not Python's own
    # hash, which differs from start to start.
    return zlib.crc32(domain.encode())
