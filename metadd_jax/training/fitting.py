"""Training of one network from scratch, and its accuracy: pure functions.

Many seeds or many sets train at once by ``jax.vmap`` over ``fit`` (see ``evaluation.cross_architecture``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from metadd_jax import keys, parts, transforms, zoo
from metadd_jax.data import sampling
from metadd_jax.structs import Array, ImageArrays
from metadd_jax.training import batches, recipes, relabel, sharpness
from metadd_jax.training.guidance import Guidance
from metadd_jax.zoo.architecture import Variables


def fit(
    key: jax.Array,
    net: zoo.Architecture,
    images: Array,
    labels: Array,
    recipe: recipes.Recipe,
    *,
    shared_key: jax.Array,
    mean: Array | None = None,
    std: Array | None = None,
    learning_rate: jax.Array | None = None,
    variables: Variables | None = None,
    record: Callable[[Variables], chex.ArrayTree] | None = None,
    teacher: relabel.Teacher | relabel.StoredLogits | None = None,
    guidance: tuple[Guidance, Variables] | None = None,
) -> Any:
    """Trains a network and returns its variables.

    Args:
      key: decides initial weights, order of the images and augmentation parameters of this network.
      net: the architecture.
      images: [N, H, W, C]; float32 as the network takes them, or uint8 with ``mean`` and ``std`` to standardise by.
      labels: [N] int, or [N, K] float probabilities.
      recipe: how to train.
      shared_key: chooses the augmentation token of each step. It is apart from ``key``, so that under ``vmap`` over
        keys all networks use the same token at the same step, and only that one is computed.
      mean: [C], for uint8 images, of pixels in [0, 1].
      std: [C], for uint8 images, of pixels in [0, 1].
      learning_rate: [] the step size learned with a set; None takes the recipe's. The schedule stays the recipe's. An
        optax transformation as optimiser has a step size of its own and takes none.
      variables: ``params`` (+ ``batch_stats``) to start from, with a new optimiser state; None draws new ones.
      record: function of the variables whose value is stored before the first and after each epoch, or None.
      teacher: labels every batch, and ``labels`` is not used (see ``relabel``). Stored labels bring the keys that
        decide order and views; ``key`` then decides the initial weights alone.
      guidance: how another network guides this one beside the labels (knowledge distillation), and its variables; None
        for no guide.

    Returns:
      ``params`` (+ ``batch_stats``) after the last epoch; with ``record`` a pair of them and the records, stacked
      [epochs + 1, ...].

    Raises:
      ValueError: if a learning rate is given beside an optax transformation.
    """
    is_own = not isinstance(recipe.optimiser, str)
    if is_own and learning_rate is not None:
        raise ValueError(
            "learning_rate is given, and the recipe's optimiser is an optax transformation, which has its own step "
            "size; pass learning_rate=None, or optimiser='sgd'"
        )
    images, labels = jnp.asarray(images), jnp.asarray(labels)  # NumPy arrays cannot be indexed in a scan
    chex.assert_rank([images, labels], [4, {1, 2}])
    count, height, width, _ = images.shape
    batch_size = min(recipe.batch_size, count)
    steps = -(-count // batch_size)
    tx, rate = recipes.direction(recipe), recipes.learning_rate(recipe, steps)
    # A learned step size replaces the recipe's at the start; the schedule then lowers both alike.
    scale = 1.0 if learning_rate is None else learning_rate / recipe.learning_rate
    restart = recipes.restart_step(recipe, steps)
    ragged = count % batch_size > 0  # else there is no padding, and no norm has to look at the weights
    variables = net.init(keys.named(key, "weights")) if variables is None else variables
    # After the weights are drawn: students of one set of labels differ in them alone.
    if isinstance(teacher, relabel.StoredLogits):
        key, shared_key = teacher.key, teacher.shared_key

    def train_step(carry: tuple, item: tuple) -> tuple[tuple, None]:
        variables, opt_state = carry
        step, indices, weights = item
        batch = images[indices]
        # Batch by batch: the whole data set as float32 would take four times its memory.
        if images.dtype == jnp.uint8:
            batch = sampling.standardise(batch, mean, std)
        present = weights if ragged else None
        batch = batches.view(key, step, batch, recipe, shared_key=shared_key, weights=present)
        if teacher is None:
            targets = _own_labels(
                labels[indices], net, batches.mixture(key, step, batch_size, (height, width), recipe, weights=present)
            )
        else:
            targets = _opinion(teacher, net, step, batch, recipe, present)
        losses_of = functools.partial(_losses, recipe=None if teacher is None else recipe)
        if guidance is not None:
            how, guide = guidance
            losses_of = functools.partial(_guided_losses, how=how, epoch=step // steps, losses_of=losses_of)
            aims: Any = (targets, jax.lax.stop_gradient(how.net.apply(guide, batch)[0]))  # of the very same views
        else:
            aims = targets
        gradient, batch_stats = _slope(recipe, net, variables, batch, aims, weights, losses_of, ragged)
        if not is_own:  # an optax transformation never restarts, and its state may hold keys
            opt_state = jax.tree.map(lambda x: jnp.where(step == restart, jnp.zeros_like(x), x), opt_state)
        updates, opt_state = tx.update(gradient, opt_state, variables["params"])
        params = jax.tree.map(lambda p, u: p - scale * rate(step) * u, variables["params"], updates)
        return ({**variables, "params": params, **_as_collection(batch_stats)}, opt_state), None

    # Scans within a scan: the program is as long as one step, however many epochs.
    def epoch(carry: tuple, number: jax.Array) -> tuple[tuple, Any]:
        indices, weights = batches.epoch_order(key, number, count, batch_size)
        carry, _ = jax.lax.scan(train_step, carry, (number * steps + jnp.arange(steps), indices, weights))
        return carry, record and record(carry[0])

    start = (variables, tx.init(variables["params"]))
    (trained, _), records = jax.lax.scan(epoch, start, jnp.arange(recipe.epochs))
    if record is None:
        return trained
    return trained, jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), record(variables), records)


def _own_labels(labels: jax.Array, net: zoo.Architecture, how: transforms.Mix | None) -> jax.Array:
    """The set's own labels [B] or [B, K] of a batch; of a mixture the mixed ones [B, K]."""
    if how is None:
        return labels
    return transforms.mix_labels(jax.nn.one_hot(labels, net.num_classes) if labels.ndim == 1 else labels, how)


def _opinion(
    teacher: relabel.Teacher | relabel.StoredLogits,
    net: zoo.Architecture,
    step: jax.Array,
    batch: jax.Array,
    recipe: recipes.Recipe,
    weights: jax.Array | None,
) -> jax.Array:
    if isinstance(teacher, relabel.StoredLogits):
        return relabel.stored_logits(teacher, step, (batch.shape[0], net.num_classes))
    return relabel.teacher_logits(teacher, batch, mode=recipe.teacher_mode, weights=weights)


def _losses(targets: jax.Array, logits: jax.Array, *, recipe: recipes.Recipe | None) -> jax.Array:
    """[B] losses; targets are labels [B], probabilities [B, K] or, with a recipe, a teacher's logits [B, K]."""
    if recipe is not None:
        scale = recipe.temperature**2 if recipe.temperature_squared else 1.0
        return scale * relabel.divergence(targets, logits, recipe.temperature)
    if targets.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return optax.softmax_cross_entropy(logits, targets)


def _guided_losses(
    targets: tuple[jax.Array, jax.Array], logits: jax.Array, *, how: Guidance, epoch: jax.Array, losses_of: Callable
) -> jax.Array:
    labels, teacher_logits = targets
    return how.losses(losses_of(labels, logits), teacher_logits, logits, epoch)


def _slope(
    recipe: recipes.Recipe, net: zoo.Architecture, variables: Variables, images: jax.Array, *rest: Any
) -> tuple[Any, Any]:
    """What a step goes along: ``_gradient``, or what GSAM makes of it there and a little uphill."""
    gradient, batch_stats = _gradient(net, variables, images, *rest)
    if not recipe.rho:
        return gradient, batch_stats
    # The same batch under the same views: what differs between the two gradients is the place alone.
    uphill = sharpness.perturbation(variables["params"], gradient, recipe.rho)
    there = {**variables, "params": jax.tree.map(jnp.add, variables["params"], uphill)}
    ahead, _ = _gradient(net, there, images, *rest)
    return sharpness.direction(gradient, ahead, recipe.rho_alpha), batch_stats


def _gradient(
    net: zoo.Architecture,
    variables: Variables,
    images: jax.Array,
    targets: Any,
    weights: jax.Array,
    losses_of: Callable,
    ragged: bool,
) -> tuple[Any, Any]:
    """Gradient of the mean loss with respect to ``params``, and the new ``batch_stats``; weight 0 marks padding."""
    present = weights if ragged and net.has_batch_stats else None  # [B] as a whole: such a batch passes in one part

    def summed_loss(
        params: chex.ArrayTree, images: jax.Array, targets: Any, weights: jax.Array
    ) -> tuple[jax.Array, Variables]:
        logits, _, batch_stats = net.apply_train({**variables, "params": params}, images, present)
        return (losses_of(targets, logits) * weights).sum(), batch_stats

    def of_sum(part: tuple) -> tuple[Any, Any]:
        return jax.grad(summed_loss, has_aux=True)(variables["params"], *part)

    items = (images, targets, weights)
    # In parts, which stay in a CPU's caches (docs/costs.md). Only batch norm looks from one image to another.
    gradient, batch_stats = of_sum(items) if net.has_batch_stats else parts.add_up(of_sum, items)
    return jax.tree.map(lambda x: x / weights.sum(), gradient), batch_stats


def _as_collection(batch_stats: chex.ArrayTree) -> dict[str, Any]:
    return {"batch_stats": batch_stats} if batch_stats else {}


def count_correct(
    net: zoo.Architecture, variables: Variables, arrays: ImageArrays, *, batch_size: int = 250
) -> tuple[jax.Array, jax.Array]:
    """Counts the images of one split that a network classifies correctly.

    Args:
      net: the architecture.
      variables: its ``params`` (+ ``batch_stats``).
      arrays: the split; uint8 images are standardised by its constants.
      batch_size: images per forward pass; fewer need less memory.

    Returns:
      The number of correct images and the number of images, both [] float32. The first is NaN if a weight or a logit
      is not finite: such a network has no accuracy. Without this check ``argmax`` of NaN would count as class 0.
    """
    arrays = jax.tree.map(jnp.asarray, arrays)
    total = arrays.images.shape[0]
    batches = -(-total // batch_size)
    indices = jnp.minimum(jnp.arange(batches * batch_size), total - 1).reshape(batches, batch_size)
    weights = (jnp.arange(batches * batch_size) < total).reshape(batches, batch_size)

    def body(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, weight = item
        images = sampling.standardise(arrays.images[index], arrays.mean, arrays.std)
        logits, _ = net.apply(variables, images)
        right = jnp.where(jnp.isfinite(logits).all(axis=1), logits.argmax(axis=1) == arrays.labels[index], jnp.nan)
        return jnp.where(weight, right, 0).sum()

    right = jax.lax.map(body, (indices, weights)).sum().astype(jnp.float32)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)]).all()
    return jnp.where(finite, right, jnp.nan), jnp.float32(total)
