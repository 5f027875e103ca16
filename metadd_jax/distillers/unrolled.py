"""The letters of the formula in ``trajectory_matching``: theta_0 and theta_*, alpha, the chunks x_i, y_i, and g_i."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metadd_jax import augment, parallel, zoo
from metadd_jax.training.trajectories import flatten, unflatten


def in_turn(order_key: jax.Array, step: jax.Array, count: int) -> jax.Array:
    """The expert of a step, [] int32: each of ``count`` once a round, in an order that each round draws anew.

    Args:
      order_key: typed PRNG key, the same at every step.
      step: [] int32, updates done so far.
      count: E, the number of experts.
    """
    # Without replacement, as the published program goes through its files: in a round every expert is met once.
    round_, place = jnp.divmod(step, count)
    order = jax.random.permutation(jax.random.fold_in(order_key, round_), count)
    return order[place].astype(jnp.int32)


def ends(experts: jax.Array, aux: dict, ahead: int) -> tuple[jax.Array, jax.Array]:
    """theta_0 and the target, [P] each.

    Args:
      experts: [E, T + 1, P].
      aux: with the ``expert`` and the ``start`` of the step, [] int32.
      ahead: epochs from the start to the target.
    """
    return experts[aux["expert"], aux["start"]], experts[aux["expert"], aux["start"] + ahead]


def first_alpha(lr_teacher: float, *, raw: bool) -> dict[str, jax.Array]:
    """What is trained of alpha, as it is before the first update: ``lr`` [] itself if ``raw``, else ``log_lr`` []."""
    lr = jnp.asarray(lr_teacher, jnp.float32)
    # The published alpha has no bound, which two issues of its program are about; its logarithm keeps it positive.
    return {"lr": lr} if raw else {"log_lr": jnp.log(lr)}


def alpha_of(synthetic: dict) -> jax.Array:
    """alpha [] of a trained set."""
    return synthetic["lr"] if "lr" in synthetic else jnp.exp(synthetic["log_lr"])


def step_gradient(net: zoo.Architecture, strategy: augment.Strategy) -> Callable[[jax.Array, tuple, tuple], jax.Array]:
    """g: ``(theta [P], (images, targets), (key, indices, weights)) -> [P]``, the gradient of one student step.

    Args:
      net: the backbone.
      strategy: what the student sees the images under.
    """

    def g(theta: jax.Array, seen: tuple, chunk: tuple) -> jax.Array:
        (images, targets), (key, indices, weights) = seen, chunk
        # The set is indexed inside g, so the gradient of g in ``seen`` reaches the images of this chunk alone.
        views = augment.transform(key, parallel.divide(images[indices]), strategy, siamese=False)

        def cross_entropy(params: Any) -> jax.Array:
            logits, _ = net.apply_batch({"params": params}, views)
            # Over the weights and not the length: a chunk that is the remainder is a mean over its own images.
            return (optax.softmax_cross_entropy(logits, targets[indices]) * weights).sum() / weights.sum()

        return flatten(jax.grad(cross_entropy)(unflatten(net, theta)))

    return g


def chunk_indices(key: jax.Array, count: int, size: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Draws chunks of random permutations of ``count`` images, a new permutation when one is used up.

    Args:
      key: typed PRNG key.
      count: images of the set.
      size: images of a chunk, at most ``count``.
      steps: how many chunks.

    Returns:
      Indices and weights, [steps, size] each. Where ``size`` does not divide ``count``, the remainder is the first
      chunk of its permutation, as in the published code, and weight 0 marks its padding.
    """
    chunks = -(-count // size)
    rounds, padding = -(-steps // chunks), chunks * size - count
    orders = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, rounds))
    indices = jnp.concatenate([orders[:, :padding], orders], axis=1).reshape(-1, size)[:steps]
    weights = jnp.tile(jnp.arange(chunks * size) >= padding, rounds).reshape(-1, size)[:steps]
    return indices, weights.astype(jnp.float32)
