"""The contract of every distillation method, and the one update that serves them all.

A ``Distiller`` is a NamedTuple of pure functions, like an optax transformation, and a wrapper such as ``metadd`` or
``parameterise`` takes one and returns one. Method, penalty, parameterisation and networks are independent choices.

Rules for all of them, under which the same functions run under jit, pmap and jit with a sharding:

1. Pure: arrays in, arrays out; all randomness comes from ``key``; nothing is drawn from the clock or kept outside.
2. ``aux`` keeps its structure, shapes and types from ``init`` on, so nothing is compiled twice.
3. Under pmap every device holds the whole synthetic set and computes the whole gradient of it. Only the real side is
   shared: with an ``axis_name``, ``sample`` gives this device's share of the very same draw, and ``loss`` adds up the
   real side's *sums* over that axis (``parallel.psum_if``) before anything nonlinear is done to them: a mean of losses
   of shares is not the loss. The sum stands under a ``stop_gradient``: the gradient of a collective is wrong.
4. What cannot be shared so (batch statistics over all real images) refuses an ``axis_name`` by a ValueError.
5. A loss that shares out its *synthetic* side instead gives ``parts.total`` the ``axis_name``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from metadd_jax import keys, parallel
from metadd_jax.structs import Dataset, DistillState, ImageArrays, SyntheticSet


class Init(Protocol):
    """Starts a set."""

    def __call__(self, key: jax.Array, dataset: Dataset, /) -> tuple[Any, Any]:
        """Returns the set's trained parameterisation and ``aux``, what the method keeps beside it.

        Args:
          key: typed PRNG key.
          dataset: the real data; it is only read where the set starts from real images.

        Returns:
          synthetic: a pytree of float arrays, all of them trained (for pixels ``{"images": [N, H, W, C]}``).
          aux: a pytree of arrays, () if there is nothing to keep.

        Raises:
          ValueError: if the data cannot serve the method.
        """


class Sample(Protocol):
    """Draws the real side of one step."""

    def __call__(self, key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None) -> Any:
        """Returns the batch, any pytree of arrays; () for a method that reads no real images.

        Args:
          key: typed PRNG key of this step.
          data: the training split, on the device.
          step: [] int32, updates done so far.
          axis_name: under pmap, the axis of the devices: the batch is then this device's share of the same draw.
        """


class Loss(Protocol):
    """What the set is trained to make small."""

    def __call__(
        self, key: jax.Array, synthetic: Any, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Returns the loss [], and (aux, metrics): the new ``aux`` and scalars by name, for reading.

        One of them is more than that: where ``metrics`` has "kept" [] and it is 0, the step is skipped: the set and its
        optimiser stay as they are, whatever the gradient is. The loss must be finite then too.

        Args:
          key: typed PRNG key of this step, another than that of ``sample`` and ``refresh``.
          synthetic: as from ``init``; the loss is differentiated in it.
          aux: as from ``refresh``; a constant.
          batch: as from ``sample``; a constant.
          frozen: the method's ``frozen``; a constant.
          axis_name: under pmap, the axis of the devices (rule 3).
        """


class Refresh(Protocol):
    """Changes ``aux`` before the loss, without a gradient."""

    def __call__(self, key: jax.Array, synthetic: Any, aux: Any, step: jax.Array, frozen: Any, /) -> Any:
        """Returns the ``aux`` of this step: with a new network, one trained on the set as it stands, the next expert.

        Args:
          key: typed PRNG key of this step.
          synthetic: the set before the step's update.
          aux: as the last step left it.
          step: [] int32, updates done so far.
          frozen: the method's ``frozen``.
        """


class Decode(Protocol):
    """Makes images of a parameterisation."""

    def __call__(self, synthetic: Any, aux: Any, frozen: Any, /) -> SyntheticSet:
        """Returns the set, differentiable in ``synthetic``.

        Args:
          synthetic: as from ``init``.
          aux: what the method keeps, such as soft labels.
          frozen: the method's ``frozen``, where a generator's weights lie.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class LossTerms:
    """A loss taken apart, L = L_base + sum_t w_t L_t: what a method gives so that ``pulls`` can compare its parts.

    Attributes:
      name: what the sum of the weighted terms is called.
      names: the terms.
      base: L_base [], from the arguments of ``Loss``.
      terms: {t: L_t []}, from the same arguments; together, because they share forward passes.
      weights: ``(aux, gradients) -> {t: w_t []}``, the weights of a step whose gradients are those of ``gradients``.
      refresh: the method's (``Refresh``).
      sample: the method's (``Sample``).
      batches: how many batches a mean gradient is taken over.
      program: ``sum_gradients``, compiled, where other terms share the program; None: one of these terms' own.
    """

    name: str
    names: tuple[str, ...]
    base: Callable[..., jax.Array]
    terms: Callable[..., dict[str, jax.Array]]
    weights: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]
    refresh: Refresh
    sample: Sample
    batches: int = 20
    program: Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]] | None = None

    def gradients(
        self, key: jax.Array, synthetic: Any, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> dict[str, jax.Array]:
        """Returns the gradient vectors of L_base ("base") and of each term, by name.

        Args:
          key: as in ``Loss``.
          synthetic: as in ``Loss``.
          aux: as in ``Loss``.
          batch: as in ``Loss``.
          frozen: as in ``Loss``.
          axis_name: as in ``Loss``.
        """

        def base(synthetic: Any) -> jax.Array:
            return self.base(key, synthetic, aux, batch, frozen, axis_name=axis_name)

        def terms(synthetic: Any) -> dict[str, jax.Array]:
            return self.terms(key, synthetic, aux, batch, frozen, axis_name=axis_name)

        # Reverse mode for all terms over one forward pass; the base method is not passed through once more for each.
        of_terms = jax.jacrev(terms)(synthetic) if self.names else {}
        return {"base": _vector(jax.grad(base)(synthetic)), **{name: _vector(tree) for name, tree in of_terms.items()}}

    def sum_gradients(
        self, key: jax.Array, synthetic: Any, aux: Any, arrays: ImageArrays, frozen: Any
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Adds up ``gradients`` over ``batches`` batches while the set stands still.

        Args:
          key: draws the batches and all that is random in the loss.
          synthetic: the set.
          aux: what the method keeps; it is refreshed before every batch, as in a run.
          arrays: the real images.
          frozen: the method's ``frozen``.

        Returns:
          {"base": vector, t: vector}, sums whose common factor 1 / ``batches`` cancels in every ratio; and the mean
          weight of each term.
        """

        # The set stands still, but ``aux`` moves: a method's networks are those of a run's first steps.
        def body(carry: tuple[dict, dict, Any], step: jax.Array) -> tuple[tuple[dict, dict, Any], None]:
            total, weights, aux = carry
            step_key = jax.random.fold_in(keys.named(key, "calibrate"), step)
            refresh_key, sample_key, loss_key = (keys.named(step_key, part) for part in ("refresh", "sample", "loss"))
            aux = self.refresh(refresh_key, synthetic, aux, step, frozen)
            batch = self.sample(sample_key, arrays, step)
            gradients = self.gradients(loss_key, synthetic, aux, batch, frozen)
            # A running mean: of equal numbers it is that number, to the bit.
            now = self.weights(aux, gradients)
            weights = {t: mean + (now[t] - mean) / (step + 1) for t, mean in weights.items()}
            return (jax.tree.map(jnp.add, total, gradients), weights, aux), None

        # Vectors are added, not norms: what is random in single batches cancels.
        zeros = {name: jnp.zeros_like(_vector(synthetic)) for name in ("base", *self.names)}
        weights = {name: jnp.zeros(()) for name in self.names}
        return jax.lax.scan(body, (zeros, weights, aux), jnp.arange(self.batches))[0][:2]

    @functools.cached_property
    def compiled(self) -> Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
        """``sum_gradients``, compiled once: calibration and ``pulls`` of all seeds of a method share it."""
        return self.program or parallel.jit(self.sum_gradients)


LABELS = "label_logits"
"""The name of trained labels in a set that is a dict: [N, K] logits, no part of its images."""


def _vector(tree: Any) -> jax.Array:
    # The images alone: no term pulls at labels. Nor at a learned step size, whose gradient dwarfs theirs (MTT: 25
    # times).
    tree = {name: part for name, part in tree.items() if name != LABELS} if isinstance(tree, dict) else tree
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree) if leaf.ndim])


class Distiller(NamedTuple):
    """A distillation method; the Protocols of this module say what each function takes and gives.

    Attributes:
      name: what tables and folders call it, e.g. "dm" or "dm+metadd".
      init: starts the set (``Init``).
      sample: draws the real side of a step (``Sample``).
      loss: what is made small (``Loss``).
      refresh: changes ``aux`` before the loss (``Refresh``).
      decode: makes images of what is trained (``Decode``).
      frozen: a pytree of arrays that never change (auxiliaries, teacher, generator): an argument of the update and
        never in a checkpoint. An array that a function closed over would become a constant of the program.
      terms: the loss taken apart, for ``pulls``, or None.
      trains: whether the loss has a gradient in the set; a method that chooses real images has its set after ``init``.
    """

    name: str
    init: Init
    sample: Sample
    loss: Loss
    refresh: Refresh
    decode: Decode
    frozen: Any = ()
    terms: LossTerms | None = None
    trains: bool = True

    def synthetic(self, state: DistillState) -> SyntheticSet:
        """The distilled set as it stands in ``state``."""
        return self.decode(state.synthetic, state.aux, self.frozen)


def check_method(base: Any) -> None:
    """Refuses what a wrapper of methods was given in place of one.

    Raises:
      ValueError: if ``base`` is no ``Distiller``.
    """
    if not isinstance(base, Distiller):
        raise ValueError(f"base is a {type(base).__name__}; give a method, such as distillers.dm(net, ipc=1) returns")
    if not base.trains:
        raise ValueError(
            f"{base.name} chooses real images and trains nothing, so there is no gradient to add to or to pull back; "
            "let a method that trains start from its set"
        )


def init_state(key: jax.Array, method: Distiller, tx: optax.GradientTransformation, dataset: Dataset) -> DistillState:
    """Makes the state before the first update.

    Args:
      key: [] typed PRNG key; it decides everything that is random in the run.
      method: what is run.
      tx: what updates the set.
      dataset: the real data.

    Raises:
      ValueError: if the data cannot serve the method (see its factory).
    """
    synthetic, aux = method.init(keys.named(key, "init"), dataset)
    # The run's key is apart from that of the start: another start with the same seed sees the same batches.
    return DistillState(
        step=jnp.zeros((), jnp.int32),
        synthetic=synthetic,
        opt_state=tx.init(synthetic),
        aux=aux,
        key=keys.named(key, "run"),
    )


def make_update(
    method: Distiller, tx: optax.GradientTransformation, *, axis_name: str | None = None
) -> Callable[[DistillState, Any, Any], tuple[DistillState, dict[str, jax.Array]]]:
    """Makes the pure step ``update(state, data, frozen) -> (state, metrics)``.

    It draws its own batch by ``fold_in(key, step)``, so the same state gives the same next state wherever a run was
    interrupted. ``frozen`` is an argument, since a captured array would become a constant of the program.

    Args:
      method: what is run; closed over.
      tx: what updates the set.
      axis_name: inside pmap, the axis of the devices: real-side statistics are summed over them, the synthetic set is
        replicated, and every device computes the same update.

    Returns:
      The step. Its metrics are scalars: "loss", "gradient_norm", and those of the method.
    """

    change = optax.with_extra_args_support(tx).update

    def update(state: DistillState, data: Any, frozen: Any) -> tuple[DistillState, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(state.key, state.step)
        refresh_key, sample_key, loss_key = (keys.named(step_key, part) for part in ("refresh", "sample", "loss"))
        # Before the gradient: inner training and drawn networks are constants of the step.
        aux = method.refresh(refresh_key, state.synthetic, state.aux, state.step, frozen)
        batch = method.sample(sample_key, data, state.step, axis_name=axis_name)
        # Of ``synthetic`` alone; ``frozen`` holds networks, whose gradient would cost as much as they do.
        gradient_of = jax.value_and_grad(method.loss, argnums=1, has_aux=True)
        (loss, (aux, metrics)), gradient = gradient_of(
            loss_key, state.synthetic, aux, batch, frozen, axis_name=axis_name
        )
        # Under pmap every device does this on the same numbers, so the set stays the same without a broadcast.
        # The loss too, for a transformation that asks for it (``reduce_on_plateau``).
        updates, opt_state = change(gradient, state.opt_state, state.synthetic, value=loss)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **metrics}
        made = (optax.apply_updates(state.synthetic, updates), opt_state)
        if "kept" in metrics:
            # Momentum too: of a step that is skipped nothing may be felt in the next one.
            kept = metrics["kept"] > 0
            made = jax.tree.map(functools.partial(jnp.where, kept), made, (state.synthetic, state.opt_state))
            metrics["gradient_norm"] = jnp.where(kept, metrics["gradient_norm"], 0.0)
        synthetic, opt_state = made
        return (
            dataclasses.replace(state, step=state.step + 1, synthetic=synthetic, opt_state=opt_state, aux=aux),
            metrics,
        )

    return update
