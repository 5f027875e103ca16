"""MetaDD as a wrapper: any ``Distiller`` in, the same kind out, with the invariant loss added to its own.

Source: section 2 of the method notes. The terms join at every update of the synthetic images [Q]; their weights are
[U], by default w_t = min(rho_t ||mean g_dd|| / ||mean g_t||, cap) from mean gradient vectors over the first
``calibration_steps`` batches, then frozen and checkpointed. The wrapped method sees the very keys and batches it sees
without the wrapper, so a run with and one without MetaDD are a matched pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax import features, invariant, keys, parallel, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers.contract import Distiller
from metadd_jax.structs import Auxiliary, Dataset, ImageArrays


def freeze(net: zoo.Architecture, variables: Any, dataset: Dataset) -> Auxiliary:
    """Makes an auxiliary of a network trained on ``dataset``.

    The typical range of each kind of map that it can make is measured on up to 32 real images a class (see
    ``features.make_auxiliary``); a network without a spatial map can still serve as a reference or in L_ai alone.
    """
    if not net.has_map:
        return Auxiliary(variables=variables, map_eps={}, net=net)
    per_class = min(32, int(dataset.train.counts.min()))
    images, labels = sampling.random_per_class(keys.root(0, "probe"), dataset.train, per_class)
    return parallel.jit(lambda v, x, y: features.make_auxiliary(net, v, x, y))(variables, images, labels)


def metadd(
    base: Distiller,
    auxiliaries: Sequence[Auxiliary],
    *,
    reference: Auxiliary | None = None,
    config: invariant.InvariantConfig | None = None,
) -> Distiller:
    """Adds the architecture-invariant loss to ``base``.

    Args:
      auxiliaries: frozen pre-trained networks (see ``features.make_auxiliary``).
      reference: frozen pre-trained network of the backbone's architecture, the main network of the KL term.
      config: the switches of the loss.

    Raises:
      ValueError: from ``invariant.invariant_terms``, at the first trace.
    """
    config = config or invariant.InvariantConfig()
    added = _Added(base, config)
    frozen = {"base": base.frozen, "auxiliaries": tuple(auxiliaries), "reference": reference}
    calibrate = parallel.jit(added.mean_gradients)  # made here once, so that all seeds of this method share it

    def init(key: jax.Array, dataset: Dataset) -> tuple[Any, Any]:
        synthetic, base_aux = base.init(key, dataset)
        if config.weighting == "calibrated":
            # Outside of what is compiled: settings that differ in strength share the program.
            weights = _weights(calibrate(key, synthetic, base_aux, dataset.train, frozen), config)
        else:
            weights = {name: jnp.asarray(value, jnp.float32) for name, value in config.strengths.items()}
        return synthetic, {"base": base_aux, "weights": weights}

    return Distiller(
        name=f"{base.name}+metadd",
        init=init,
        sample=base.sample,
        loss=added.loss,
        refresh=added.refresh,
        decode=lambda synthetic, aux, frozen: base.decode(synthetic, aux["base"], frozen["base"]),
        frozen=frozen,
        report=lambda key, synthetic, aux, arrays: _effect(
            calibrate(key, synthetic, aux["base"], arrays, frozen), aux["weights"], config.calibration_steps
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Added:
    """The wrapped method with the invariant loss on top; ``frozen`` is what ``metadd`` gives its ``Distiller``."""

    base: Distiller
    config: invariant.InvariantConfig

    def loss(
        self, key: jax.Array, synthetic: Any, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        value, (base_aux, metrics) = self.base.loss(
            key, synthetic, aux["base"], batch, frozen["base"], axis_name=axis_name
        )
        weights = aux["weights"]
        if self.config.weighting == "per_step":
            constant = jax.lax.stop_gradient(synthetic)
            weights = _weights(self.gradients(key, constant, aux["base"], batch, frozen, axis_name), self.config)
        own, facts = self._invariant(
            invariant.invariant_loss, keys.named(key, "metadd"), synthetic, aux["base"], frozen, weights=weights
        )
        metrics = {
            **metrics,
            "loss_base": value,
            **{f"weight_{name}": weight for name, weight in weights.items()},
            **facts,
        }
        return value + own, ({"base": base_aux, "weights": aux["weights"]}, metrics)

    def refresh(self, key: jax.Array, synthetic: Any, aux: Any, step: jax.Array, frozen: Any) -> Any:
        return {**aux, "base": self.base.refresh(key, synthetic, aux["base"], step, frozen["base"])}

    def _invariant(
        self, function: Callable, key: jax.Array, synthetic: Any, base_aux: Any, frozen: Any, **given: Any
    ) -> tuple[Any, dict]:
        seen = self.base.decode(synthetic, base_aux, frozen["base"])
        auxiliaries, reference = frozen["auxiliaries"], frozen["reference"]
        return function(key, seen.images, seen.labels, auxiliaries, reference=reference, config=self.config, **given)

    def gradients(
        self, key: jax.Array, synthetic: Any, base_aux: Any, batch: Any, frozen: Any, axis_name: str | None
    ) -> dict[str, jax.Array]:
        """Gradient vectors of the base loss and of each term, flattened."""

        def base_loss(synthetic: Any) -> jax.Array:
            return self.base.loss(key, synthetic, base_aux, batch, frozen["base"], axis_name=axis_name)[0]

        def own_terms(synthetic: Any) -> dict:
            return self._invariant(invariant.invariant_terms, keys.named(key, "metadd"), synthetic, base_aux, frozen)[0]

        of_terms = jax.jacrev(own_terms)(synthetic)
        return {
            "base": _flat(jax.grad(base_loss)(synthetic)),
            **{name: _flat(tree) for name, tree in of_terms.items()},
        }

    def mean_gradients(
        self, key: jax.Array, synthetic: Any, base_aux: Any, arrays: ImageArrays, frozen: Any
    ) -> dict[str, jax.Array]:
        """The sum of ``gradients`` over the calibration's batches: their mean up to a factor that cancels."""

        def body(carry: tuple[dict, Any], step: jax.Array) -> tuple[tuple[dict, Any], None]:
            total, aux = carry
            step_key = jax.random.fold_in(keys.named(key, "calibrate"), step)
            refresh_key, sample_key, loss_key = (keys.named(step_key, part) for part in ("refresh", "sample", "loss"))
            aux = self.base.refresh(refresh_key, synthetic, aux, step, frozen["base"])
            batch = self.base.sample(sample_key, arrays, step)
            gradients = self.gradients(loss_key, synthetic, aux, batch, frozen, None)
            return (jax.tree.map(jnp.add, total, gradients), aux), None

        zeros = {name: jnp.zeros_like(_flat(synthetic)) for name in ("base", *self.config.strengths)}
        return jax.lax.scan(body, (zeros, base_aux), jnp.arange(self.config.calibration_steps))[0][0]


def _weights(vectors: dict[str, jax.Array], config: invariant.InvariantConfig) -> dict[str, jax.Array]:
    """w_t = min(rho_t ||g_base|| / ||g_t||, cap); a term without gradient gets the cap, which multiplies nothing."""
    base = jnp.linalg.norm(vectors["base"])
    return {
        name: jnp.minimum(rho * base / (jnp.linalg.norm(vectors[name]) + 1e-20), config.cap)
        for name, rho in config.strengths.items()
    }


def _effect(vectors: dict[str, jax.Array], weights: dict[str, jax.Array], steps: int) -> dict[str, jax.Array]:
    """How much each weighted term pulls and whether it pulls with the base: norms of the mean gradients, cosines."""
    base = vectors["base"]
    terms = {name: weights[name] * vectors[name] for name in weights}
    pulls = {**terms, "metadd": sum(terms.values(), start=jnp.zeros_like(base))}

    def cosine(vector: jax.Array) -> jax.Array:
        return base @ vector / (jnp.linalg.norm(base) * jnp.linalg.norm(vector) + 1e-20)

    return {
        "gradient_norm_base": jnp.linalg.norm(base) / steps,
        **{f"gradient_norm_{name}": jnp.linalg.norm(vector) / steps for name, vector in pulls.items()},
        **{f"cosine_{name}": cosine(vector) for name, vector in pulls.items()},
    }


def _flat(tree: Any) -> jax.Array:
    # Without scalars: a learned step size is no part of the images, and its gradient dwarfs theirs (MTT: 25 times).
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree) if leaf.ndim])
