"""The student of trajectory matching: which expert it follows, what it sees at each step, and where it goes.

What MTT and TESLA share; they differ in how they differentiate it (see ``trajectory_matching``).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from metadd_jax import augment, parallel, ranges, zoo
from metadd_jax.distillers import class_images
from metadd_jax.ranges import Real, Text, Whole
from metadd_jax.structs import Dataset, SyntheticSet
from metadd_jax.training.trajectories import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class Student:
    """What MTT and TESLA share; the attributes are the arguments of ``trajectory_matching.mtt`` and ``tesla``."""

    net: zoo.Architecture
    counts: class_images.Counts
    syn_steps: Annotated[int, Whole(1)]
    expert_epochs: Annotated[int, Whole(1)]
    max_start_epoch: Annotated[int, Whole(1)]
    lr_teacher: Annotated[float, Real(0, above=True)]
    batch_syn: Annotated[int, Whole(0)]
    augmentation: Annotated[str, Text("augment.strategy")]
    raw_lr: bool
    soft_labels: bool = False
    repeat: bool = False

    @property
    def count(self) -> int:
        """N, the images of the set."""
        return sum(self.counts)

    @property
    def labels(self) -> jax.Array:
        """[N] int32, class-major."""
        return class_images.labels_of(self.counts)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses settings out of range and experts of a shape [E, T + 1, P] that does not go with them.

        Raises:
          ValueError: with the numbers.
        """
        ranges.check(self)
        net, last = self.net, self.max_start_epoch - 1 + self.expert_epochs
        if self.batch_syn > self.count:
            raise ValueError(
                f"batch_syn={self.batch_syn} must be from 1 to the set's {self.count} images, or 0 for all"
            )
        augment.strategy(self.augmentation)
        if net.has_batch_stats:
            raise ValueError(f"{net.label} has batch norm, whose statistics no trajectory holds; use its instance norm")
        if len(shape) != 3 or shape[2] != net.num_params():
            raise ValueError(
                f"experts have shape {shape}, but {net.label} needs [experts, snapshots, {net.num_params()}]; train "
                "experts of this network"
            )
        if last >= shape[1]:
            raise ValueError(
                f"max_start_epoch={self.max_start_epoch} and expert_epochs={self.expert_epochs} reach epoch {last}, "
                f"but the experts hold {shape[1] - 1} epochs; lower one of them or train longer experts"
            )

    def init(self, key: jax.Array, dataset: Dataset) -> tuple[dict, dict]:
        """Random real images and alpha; and the state beside them.

        Raises:
          ValueError: if the network was made for other data, or a class has too few images and may not repeat them.
        """
        image_key, order_key = jax.random.split(key)
        images = class_images.initial(image_key, dataset, self.net, counts=self.counts, init="real", repeat=self.repeat)
        lr = jnp.asarray(self.lr_teacher, jnp.float32)
        aux = {"order_key": order_key, "expert": jnp.zeros((), jnp.int32), "start": jnp.zeros((), jnp.int32)}
        if self.soft_labels:
            aux["soft_labels"] = jax.nn.one_hot(self.labels, self.net.num_classes)  # until the first expert labels them
        return {**images, **({"lr": lr} if self.raw_lr else {"log_lr": jnp.log(lr)})}, aux

    def refresh(self, key: jax.Array, synthetic: dict, aux: dict, step: jax.Array, frozen: jax.Array) -> dict:
        """The next expert of this round, an epoch to start from, and what the expert calls the images."""
        round_, place = jnp.divmod(step, frozen.shape[0])
        order = jax.random.permutation(jax.random.fold_in(aux["order_key"], round_), frozen.shape[0])
        aux = {**aux, "expert": order[place].astype(jnp.int32)}
        aux["start"] = jax.random.randint(key, (), 0, self.max_start_epoch)
        if self.soft_labels:
            params = unflatten(self.net, self.ends(aux, frozen)[1])

            def label(image: jax.Array) -> jax.Array:
                return jax.nn.softmax(self.net.apply({"params": params}, image[None])[0][0])

            aux["soft_labels"] = jax.lax.map(label, synthetic["images"], batch_size=min(50, self.count))
        return aux

    def ends(self, aux: dict, frozen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """theta_0 and the target, [P] each."""
        return frozen[aux["expert"], aux["start"]], frozen[aux["expert"], aux["start"] + self.expert_epochs]

    def alpha(self, synthetic: dict) -> jax.Array:
        """The step size []."""
        return synthetic["lr"] if self.raw_lr else jnp.exp(synthetic["log_lr"])

    def targets(self, aux: dict) -> jax.Array:
        """[N, K] probabilities."""
        return aux["soft_labels"] if self.soft_labels else jax.nn.one_hot(self.labels, self.net.num_classes)

    def decode(self, synthetic: dict, aux: dict, frozen: Any) -> SyntheticSet:
        """The set, with alpha as its learning rate."""
        del frozen
        return SyntheticSet(
            images=synthetic["images"],
            labels=self.labels,
            soft_labels=aux["soft_labels"] if self.soft_labels else None,
            learning_rate=self.alpha(synthetic),
        )

    def batches(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What each student step draws: keys [steps], indices [steps, batch] and weights [steps, batch]."""
        order_key, view_key = jax.random.split(key)
        chunks = chunk_indices(order_key, self.count, self.batch_syn or self.count, self.syn_steps)
        return jax.random.split(view_key, self.syn_steps), *chunks

    def slope(self, theta: jax.Array, images: jax.Array, targets: jax.Array, batch: tuple) -> jax.Array:
        """Gradient [P] of the mean cross-entropy of one batch at the weights ``theta``."""
        key, indices, weights = batch
        batch_images = parallel.divide(images[indices])
        seen = augment.transform(key, batch_images, augment.strategy(self.augmentation), siamese=False)

        def cross_entropy(params: Any) -> jax.Array:
            logits, _ = self.net.apply_batch({"params": params}, seen)
            return (optax.softmax_cross_entropy(logits, targets[indices]) * weights).sum() / weights.sum()

        return flatten(jax.grad(cross_entropy)(unflatten(self.net, theta)))


def chunk_indices(key: jax.Array, count: int, size: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Chunks of random permutations of ``count`` images, a new permutation when one is used up.

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
