"""What of the added gradient works against the base method's is taken away: gradient surgery (PCGrad).

Source: Yu et al., "Gradient Surgery for Multi-Task Learning" (NeurIPS 2020, arXiv 2001.06782), algorithm 1. There the
gradients of all tasks are projected onto each other's normal planes, in random order. Here one task is the base method
and stays whole, and the other is the weighted sum of all terms:

    g_a <- g_a - min(0, <g_a, g_b>) / |g_b|^2 g_b,

so that the added gradient never makes the base method's loss worse to first order. Over the whole set, as published
(all parameters of a network), or image by image, where a conflict in one image is no longer hidden by the others.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax.distillers.contract import LABELS
from metadd_jax.ranges import OneOf, require

BY = ("set", "image")


def without_conflict(added: Any, base: Any, *, by: str) -> tuple[Any, dict[str, jax.Array]]:
    """Takes out of ``added`` what points against ``base``.

    Trained labels and scalars (a learned step size) are no part of it, as in all comparisons of gradients: of them
    ``added`` stays as it is.

    Args:
      added: g_a, a gradient in the set: a pytree of float arrays, of a dict without what is called ``LABELS``.
      base: g_b, likewise.
      by: "set", or "image": each item of the arrays' first axis by itself (of latents, each stored item).

    Returns:
      The projected gradient, and metrics: "added_cosine" [], of g_a and g_b over the whole set, and "removed" [], the
      norm of what was taken over that of g_a.

    Raises:
      ValueError: for another word; by "image", if the arrays have not all the same first axis.
    """
    require("by", by, OneOf(BY))
    chosen, of_added = _images_of(added)
    _, of_base = _images_of(base)
    if by == "image" and len({leaf.shape[0] for leaf in of_added}) > 1:
        raise ValueError(
            f"what is trained has arrays {', '.join(str(leaf.shape) for leaf in of_added)} and no image by image in "
            'them; give project="set"'
        )

    def dot(first: list[jax.Array], second: list[jax.Array]) -> jax.Array:  # [], or [n] by image
        of = [a * b for a, b in zip(first, second, strict=True)]
        return sum((x.sum() if by == "set" else x.reshape(len(x), -1).sum(axis=1) for x in of), start=jnp.zeros(()))

    against, size = jnp.minimum(dot(of_added, of_base), 0.0), dot(of_base, of_base)
    # Without a base gradient there is no conflict, and no 0 / 0.
    share = against / jnp.where(size > 0, size, 1.0)
    taken = [share.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf if by == "image" else share * leaf for leaf in of_base]
    leaves, tree = jax.tree.flatten(added)
    for place, part in zip(chosen, taken, strict=True):
        leaves[place] = leaves[place] - part

    def norm(arrays: list[jax.Array]) -> jax.Array:
        return jnp.sqrt(sum((jnp.square(x).sum() for x in arrays), start=jnp.zeros(())))

    # The tiny number: a term without gradient has cosine 0 and not NaN.
    lengths, own = norm(of_added) * norm(of_base) + 1e-20, dot(of_added, of_base).sum()
    return jax.tree.unflatten(tree, leaves), {
        "added_cosine": own / lengths,
        "removed": norm(taken) / (norm(of_added) + 1e-20),
    }


def _images_of(tree: Any) -> tuple[list[int], list[jax.Array]]:
    """The places, among the leaves of ``tree``, of what images are made of, and these leaves."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    chosen = [
        place
        for place, (path, leaf) in enumerate(found)
        if leaf.ndim and not (path and getattr(path[0], "key", None) == LABELS)
    ]
    return chosen, [found[place][1] for place in chosen]
