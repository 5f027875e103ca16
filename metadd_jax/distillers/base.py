"""The contract of every distillation method, and the one update that serves them all.

A ``Distiller`` is a NamedTuple of pure functions, like an optax transformation, and a wrapper such as ``metadd``
takes one and returns one. Method, plug-in, parameterisation and architecture are independent choices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metadd_jax import keys
from metadd_jax.structs import Dataset, DistillState, SyntheticSet


class Distiller(NamedTuple):
    """A distillation method.

    Attributes:
      name: what tables and folders call it, e.g. "dm" or "dm+metadd".
      init: ``(key, dataset) -> (synthetic, aux)``: the trained parameterisation and what the method keeps beside it.
      sample: ``(key, data, step, *, axis_name) -> batch``: the real side of one step, drawn on the device; with an
        axis name, this device's share of the very same draw.
      loss: ``(key, synthetic, aux, batch, frozen, *, axis_name) -> (scalar, (aux, metrics))``.
      refresh: ``(key, synthetic, aux, step, frozen) -> aux``: what changes before the loss without a gradient: a new
        random network, a network trained on the set as it stands, the next expert.
      decode: ``(synthetic, aux) -> SyntheticSet``.
      frozen: a pytree that never changes (auxiliaries, teacher): an argument of the update, never in a checkpoint.
      report: ``(key, synthetic, aux, arrays) -> facts``, numbers by name that a run notes at its start and its end, or
        None. Not pure: it may compile.
    """

    name: str
    init: Callable[..., tuple[Any, Any]]
    sample: Callable[..., Any]
    loss: Callable[..., tuple[jax.Array, tuple[Any, dict]]]
    refresh: Callable[..., Any]
    decode: Callable[[Any, Any], SyntheticSet]
    frozen: Any = ()
    report: Callable[..., dict[str, jax.Array]] | None = None

    def synthetic(self, state: DistillState) -> SyntheticSet:
        """The distilled set as it stands in ``state``."""
        return self.decode(state.synthetic, state.aux)


def init_state(key: jax.Array, method: Distiller, tx: optax.GradientTransformation, dataset: Dataset) -> DistillState:
    """The state before the first update. ``key`` decides everything that is random in the run.

    Raises:
      ValueError: if the data cannot serve the method (see its factory).
    """
    synthetic, aux = method.init(keys.named(key, "init"), dataset)
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
    """The pure step ``update(state, data, frozen) -> (state, metrics)``.

    It draws its own batch by ``fold_in(key, step)``, so the same state gives the same next state wherever a run was
    interrupted. ``method`` is closed over; ``frozen`` is an argument (a captured array becomes a compile-time
    constant). With ``axis_name`` the step runs inside pmap: real-side statistics are summed over the devices, the
    synthetic set is replicated, and every device computes the same update.
    """

    def update(state: DistillState, data: Any, frozen: Any) -> tuple[DistillState, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(state.key, state.step)
        refresh_key, sample_key, loss_key = (keys.named(step_key, part) for part in ("refresh", "sample", "loss"))
        aux = method.refresh(refresh_key, state.synthetic, state.aux, state.step, frozen)
        batch = method.sample(sample_key, data, state.step, axis_name=axis_name)
        gradient_of = jax.value_and_grad(method.loss, argnums=1, has_aux=True)
        (loss, (aux, metrics)), gradient = gradient_of(
            loss_key, state.synthetic, aux, batch, frozen, axis_name=axis_name
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.synthetic)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **metrics}
        return (
            state.replace(
                step=state.step + 1,
                synthetic=optax.apply_updates(state.synthetic, updates),
                opt_state=opt_state,
                aux=aux,
            ),
            metrics,
        )

    return update
