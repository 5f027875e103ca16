"""Penalties: any terms over any method, L = L_base + sum_t w_t L_t, with weights that make their pulls comparable.

A term looks at the synthetic images through frozen networks (``invariant.Seen``). Its weight is by default
w_t = min(rho_t ||mean g_base|| / ||mean g_t||, cap) from mean gradient vectors over the first ``calibration_steps``
batches, then frozen and checkpointed: rho_t is how hard the term pulls beside the base method. The base method sees the
very keys and batches that it sees alone, so a run with and one without the penalty are a matched pair.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metadd_jax import augment, features, invariant, keys, parallel
from metadd_jax.distillers.conflict import without_conflict
from metadd_jax.distillers.contract import Distiller, LossTerms, check_method
from metadd_jax.ranges import Real, require
from metadd_jax.structs import Auxiliary, Dataset

Strengths = Mapping[str | invariant.Term | Callable[[invariant.Seen], invariant.Values], float]
VIEWS = invariant.InvariantConfig.views


def penalise(
    base: Distiller,
    auxiliaries: Sequence[Auxiliary],
    terms: Strengths,
    *,
    reference: Auxiliary | None = None,
    weighting: str = "calibrated",
    cap: float = 1e4,
    calibration_steps: int = 20,
    schedule: str = "constant",
    schedule_steps: int | None = None,
    views: augment.Augmentation = VIEWS,
    cam: features.CamConfig = features.CamConfig(),
    subset: int | None = None,
    micro_batch: int | None = None,
    checkpoint: bool = False,
    drawn: int | None = None,
    further_lr: float = 0.0,
    project: str = "none",
    focus: float = 0.0,
    focus_mask: str = "hard",
    focus_cap: float = 10.0,
    name: str = "penalty",
) -> Distiller:
    """Adds terms that frozen networks judge the synthetic images by to the loss of ``base``.

    Args:
      base: any method.
      auxiliaries: M frozen pre-trained networks (see ``features.freeze``).
      terms: the strength of each term, at least 0; 0 leaves it out. A term is a name ("ai", "pos", "var" or one that
        ``invariant.register`` knows), an ``invariant.Term``, or a function ``Seen -> [B]``, one value an image.
      reference: frozen network of the backbone's architecture, for terms that compare with the main network.
      weighting: what a strength is. "calibrated": the size of the term's mean gradient relative to the base method's,
        made a weight once at the start; "unsaturated": the same by the term's ``unit``, if it has one; "per_step": as
        calibrated, anew at every step; "raw": the weight itself.
      cap: upper bound of a weight that is not raw.
      calibration_steps: how many batches mean gradients are taken over.
      schedule: what becomes of all weights over the run: "constant", "falling" (linearly to 0) or "rising" (from 0).
      schedule_steps: after how many updates they have fallen or risen.
      views: DSA tokens joined by "_" (or an ``augment.Strategy``) for the one draw that all networks share; "none"
        shows the plain images.
      cam: how maps are made.
      subset: number of images looked at per step (random, unbiased); None for all.
      micro_batch: most images that pass the networks at once; None for all, on a CPU for 10.
      checkpoint: compute the networks' forward passes again for the gradient: less memory, more time.
      drawn: how many of the networks look at a step, drawn anew; None for all of them.
      further_lr: step size of the step that each network takes on the set before each update, ``invariant.further``; 0
        leaves them frozen. Not beside terms that compare with real images.
      project: take out of the added gradient what points against the base method's: "none", "set" (over the whole set)
        or "image" (image by image); see ``conflict``.
      focus: how far the base method's own gradient is weighed by where all networks look, 0 to 1; see
        ``invariant.focus``. Not for latents.
      focus_mask: "hard" or "soft".
      focus_cap: largest weight of a pixel.
      name: what follows the base method's name and "+".

    Returns:
      A method like ``base``. Its ``aux`` is {"base": the base method's, "weights": {name: []}}, and "networks" where
      they are trained further; its ``frozen`` holds the networks, and its ``terms`` are what ``pulls`` measures.

    Raises:
      ValueError: for an unknown term, two of one name, a setting out of its range, or networks that cannot serve a
        term.
    """
    config = invariant.InvariantConfig(
        ai=0.0, pos=0.0, var=0.0, weighting=weighting, cap=cap, calibration_steps=calibration_steps, views=views,
        cam=cam, subset=subset, micro_batch=micro_batch, checkpoint=checkpoint, drawn=drawn,
        further_lr=further_lr, project=project, focus=focus, focus_mask=focus_mask, focus_cap=focus_cap,
        schedule=schedule, schedule_steps=schedule_steps,
    )  # fmt: skip
    return penalise_by(base, auxiliaries, terms, config, reference=reference, name=name)


def penalise_by(
    base: Distiller,
    auxiliaries: Sequence[Auxiliary],
    terms: Strengths,
    config: invariant.InvariantConfig,
    *,
    reference: Auxiliary | None = None,
    name: str = "penalty",
) -> Distiller:
    """Does what ``penalise`` does, with its switches in one record.

    Args:
      base: any method.
      auxiliaries: M frozen pre-trained networks.
      terms: the strength of each term; those of ``config`` play no part.
      config: how terms are weighted and networks are shown the images.
      reference: see ``penalise``.
      name: what follows the base method's name and "+".

    Raises:
      ValueError: as ``penalise``.
    """
    check_method(base)
    if not isinstance(config, invariant.InvariantConfig):
        raise ValueError(
            f"config={config!r} must be an invariant.InvariantConfig; {{'ai': 1.0}} is InvariantConfig(ai=1.0)"
        )
    if config.views == "auto":
        raise ValueError("views='auto' is for the main job, which knows the data; give DSA tokens such as 'crop_flip'")
    if config.schedule != "constant" and config.schedule_steps is None:
        raise ValueError(f"schedule={config.schedule!r} needs schedule_steps, the updates over which weights change")
    if base.terms is not None and base.terms.name == name:
        raise ValueError(f"{base.name} has a penalty called {name!r} already; give this one another name by name=...")
    known, strengths = _read_terms(terms, name)
    # Now, and not at the first trace after long training.
    invariant.check_networks(known, auxiliaries, reference, config=config)
    invariant.check_further(config, known)
    for one in auxiliaries if config.focus else ():
        features.map_kind(one.net, config.cam)  # refuses a network without maps

    frozen = {"base": base.frozen, "auxiliaries": tuple(auxiliaries), "reference": reference}
    penalty = _Penalty(name, base, known, strengths, config)

    def init(key: jax.Array, dataset: Dataset) -> tuple[Any, Any]:
        synthetic, base_aux = base.init(key, dataset)
        if config.focus and not (isinstance(synthetic, dict) and "images" in synthetic):
            raise ValueError(
                f"focus={config.focus} weighs the gradient of pixels, and {base.name} trains no images; leave it "
                "out, or put the penalty inside of parameterise"
            )
        aux = {"base": base_aux, "weights": {t: jnp.asarray(rho, jnp.float32) for t, rho in strengths.items()}}
        if config.further_lr:
            aux["networks"] = invariant.own_params(auxiliaries)
        # From mean gradient *vectors*: what is random in a single batch cancels.
        if config.weighting in ("calibrated", "unsaturated"):
            # The strengths come in outside of what is compiled: settings that differ in them share the program.
            vectors, _ = penalty.sizes(key, synthetic, aux, dataset.train, frozen)
            aux["weights"] = penalty.relative(vectors)
        # Only where it is asked for: other runs keep the state that their checkpoints have.
        if config.schedule != "constant":
            aux["share"] = jnp.float32(config.schedule == "falling")
        return synthetic, aux

    return Distiller(
        name=f"{base.name}+{name}",
        init=init,
        sample=base.sample,
        loss=penalty.loss,
        refresh=penalty.refresh,
        decode=lambda synthetic, aux, frozen: base.decode(synthetic, aux["base"], frozen["base"]),
        frozen=frozen,
        terms=penalty.apart,
    )


def _read_terms(terms: Strengths, name: str) -> tuple[dict[str, invariant.Term], dict[str, float]]:
    """The terms that count and their strengths, by their names; ``name`` is that of the penalty."""
    if not isinstance(terms, Mapping):
        raise ValueError(f"terms={terms!r} must give each term its strength: {{'ai': 0.3}}")
    strengths: dict[str, float] = {}
    known: dict[str, invariant.Term] = {}
    # A strength of 0 leaves the term out and not in with weight 0: it would still cost its passes.
    for given, strength in terms.items():
        term = invariant.as_term(given)
        require(f"strength of {term.name!r}", strength, Real(0))
        if term.name in ("base", name):  # of the gradients: the base method's, and that of all terms together
            raise ValueError(
                f"a term cannot be called {term.name!r}; give it another name by invariant.Term(name, ...)"
            )
        if term.name in known:
            raise ValueError(f"two terms are called {term.name!r}; give one another name by invariant.Term(name, ...)")
        known[term.name] = term
        if strength > 0:
            strengths[term.name] = strength
    return {term: known[term] for term in strengths}, strengths


@dataclasses.dataclass(frozen=True, eq=False)
class _Penalty:
    """L = L_base + sum_t w_t L_t; ``frozen`` is what ``penalise`` gives its ``Distiller``."""

    name: str
    base: Distiller
    terms: dict[str, invariant.Term]
    strengths: dict[str, float]
    config: invariant.InvariantConfig

    def loss(
        self, key: jax.Array, synthetic: Any, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        w = aux["weights"]  # constants of the run, unless they are made anew here
        if self.config.weighting == "per_step":
            # No gradient flows through the weights: they are constants of the step.
            constant = jax.lax.stop_gradient(synthetic)
            w = self.relative(self.apart.gradients(key, constant, aux, batch, frozen, axis_name=axis_name))
        w = _scaled(w, aux)

        def base(synthetic: Any) -> tuple[jax.Array, tuple[Any, dict, dict]]:
            return self._base(key, synthetic, aux, batch, frozen, axis_name=axis_name)

        def added(synthetic: Any) -> tuple[jax.Array, dict]:
            return self._judge(invariant.invariant_loss, key, synthetic, aux, frozen, self.terms, weights=w)

        if self.config.project == "none":
            loss_base, (base_aux, metrics, focused) = base(synthetic)
            penalty, facts = added(synthetic)
            loss = loss_base + penalty
        else:
            loss, (loss_base, (base_aux, metrics, focused)), facts = self._projected(synthetic, base, added)
        own = {"loss_base": loss_base, **{f"weight_{t}": w[t] for t in w}, **facts, **focused}
        if self.config.further_lr:
            own["network_drift"] = invariant.drift(frozen["auxiliaries"], aux["networks"])
        # A penalty over a penalty: what both call alike is told apart by the inner one's name.
        inner = f"{self.base.terms.name}_" if self.base.terms else ""
        metrics = {(inner + name if name in own else name): value for name, value in metrics.items()} | own
        # ``aux`` keeps the calibrated weights, so a checkpoint has them and a resumed run does not calibrate again.
        return loss, ({**aux, "base": base_aux}, metrics)

    def _projected(self, synthetic: Any, base: Callable, added: Callable) -> tuple[jax.Array, tuple, dict]:
        """L_base + L_added with the gradient g_b + g_a, g_a without what points against g_b; (L_base, ...), facts."""
        # Both gradients are taken here, once: the step needs them apart, and no more than each of them.
        here = jax.lax.stop_gradient(synthetic)
        (loss_base, more), of_base = jax.value_and_grad(base, has_aux=True)(here)
        (penalty, facts), of_added = jax.value_and_grad(added, has_aux=True)(here)
        of_added, conflict = without_conflict(of_added, of_base, by=self.config.project)
        # Linear in the set: pulled back through latents, or under a further penalty, it is what a loss would be.
        slopes = jax.tree.map(jnp.add, of_base, of_added)
        moved = jax.tree.map(lambda x: x - jax.lax.stop_gradient(x), synthetic)
        loss = loss_base + penalty + optax.tree.vdot(jax.lax.stop_gradient(slopes), moved)
        return loss, (loss_base, more), facts | conflict

    def _base(
        self, key: jax.Array, synthetic: Any, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None
    ) -> tuple[jax.Array, tuple[Any, dict, dict]]:
        """The base method's loss, its aux and metrics, and facts of the focus, if its gradient in pixels has one."""
        facts: dict[str, jax.Array] = {}
        if self.config.focus:
            shown = self.base.decode(jax.lax.stop_gradient(synthetic), aux["base"], frozen["base"])
            images, labels = jnp.asarray(shown.images), jnp.asarray(shown.labels)
            w, facts = invariant.focus_on_meta(images, labels, self._networks(aux, frozen), config=self.config)
            synthetic = {**synthetic, "images": invariant.weigh_gradient(synthetic["images"], w)}
        loss, (base_aux, metrics) = self.base.loss(
            key, synthetic, aux["base"], batch, frozen["base"], axis_name=axis_name
        )
        return loss, (base_aux, metrics, facts)

    def refresh(self, key: jax.Array, synthetic: Any, aux: Any, step: jax.Array, frozen: Any) -> Any:
        aux = self._refresh_base(key, synthetic, aux, step, frozen)
        if self.config.further_lr:
            shown = self.base.decode(synthetic, aux["base"], frozen["base"])
            aux["networks"] = invariant.train_further(
                keys.named(key, "further"), jnp.asarray(shown.images), jnp.asarray(shown.labels),
                frozen["auxiliaries"], aux["networks"], config=self.config,
            )  # fmt: skip
        if "share" in aux:
            assert self.config.schedule_steps is not None  # ``penalise_by`` refuses a schedule without
            risen = jnp.minimum(step / self.config.schedule_steps, 1.0).astype(jnp.float32)
            aux["share"] = 1.0 - risen if self.config.schedule == "falling" else risen
        return aux

    def _refresh_base(self, key: jax.Array, synthetic: Any, aux: Any, step: jax.Array, frozen: Any) -> dict[str, Any]:
        return {**aux, "base": self.base.refresh(key, synthetic, aux["base"], step, frozen["base"])}

    def _networks(self, aux: Any, frozen: Any) -> tuple[Auxiliary, ...]:
        """The auxiliaries as they are in this step."""
        moved = self.config.further_lr
        return invariant.with_params(frozen["auxiliaries"], aux["networks"]) if moved else frozen["auxiliaries"]

    @functools.cached_property
    def apart(self) -> LossTerms:
        return self._apart(self.terms, program=functools.partial(self._sums, False) if self._has_units else None)

    @functools.cached_property
    def sizes(self) -> Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
        """``sum_gradients`` of what strengths are measured by: the terms, or their units."""
        return functools.partial(self._sums, True) if self._has_units else self.apart.compiled

    @property
    def _has_units(self) -> bool:
        return self.config.weighting == "unsaturated" and any(term.unit for term in self.terms.values())

    @functools.cached_property
    def _sums(self) -> Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
        """``sum_gradients`` by the units of the terms or by the terms: one program, most of which is the networks."""

        def sum_gradients(by_unit: jax.Array, *arguments: Any) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
            either = {t: _by_either(term, by_unit) for t, term in self.terms.items()}
            return self._apart(either).sum_gradients(*arguments)

        return parallel.jit(sum_gradients)

    def _apart(self, looked: dict[str, invariant.Term], *, program: Callable | None = None) -> LossTerms:
        def base(key: jax.Array, synthetic: Any, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None) -> Any:
            return self._base(key, synthetic, aux, batch, frozen, axis_name=axis_name)[0]

        def terms(key: jax.Array, synthetic: Any, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None) -> Any:
            return self._judge(invariant.invariant_terms, key, synthetic, aux, frozen, looked)[0]

        def weights(aux: Any, gradients: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return _scaled(self.relative(gradients) if self.config.weighting == "per_step" else aux["weights"], aux)

        # Schedule and networks stand still with the set: the batches of a measurement are no steps of the run.
        return LossTerms(
            name=self.name, names=tuple(self.terms), base=base, terms=terms, weights=weights,
            refresh=self._refresh_base, sample=self.base.sample, batches=self.config.calibration_steps, program=program,
        )  # fmt: skip

    def relative(self, gradients: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """w_t = min(rho_t ||g_base|| / ||g_t||, cap); one without gradient gets the cap, which multiplies nothing."""
        base = jnp.linalg.norm(gradients["base"])
        # The cap is for a term whose gradient vanishes, where the ratio blows up.
        return {
            t: jnp.minimum(rho * base / (jnp.linalg.norm(gradients[t]) + 1e-20), self.config.cap)
            for t, rho in self.strengths.items()
        }

    def _judge(
        self, function: Callable, key: jax.Array, synthetic: Any, aux: Any, frozen: Any,
        terms: dict[str, invariant.Term], **given: Any,
    ) -> tuple[Any, dict]:  # fmt: skip
        """What ``invariant.invariant_loss`` or ``invariant_terms`` makes of the images as they stand."""
        # The images, under any parameterisation: networks see no latents.
        shown = self.base.decode(synthetic, aux["base"], frozen["base"])
        # A domain of its own, so that the base method draws what it draws without a penalty.
        return function(
            keys.named(key, "metadd"), shown.images, shown.labels, self._networks(aux, frozen),
            reference=frozen["reference"], config=self.config, terms=terms, **given,
        )  # fmt: skip


def _by_either(term: invariant.Term, by_unit: jax.Array) -> invariant.Term:
    """The term whose value is that of its unit where ``by_unit``: the choice is made behind the networks."""
    if term.unit is None:
        return term

    def value(seen: invariant.Seen) -> jax.Array:
        assert term.unit is not None
        unit, own = (given[0] if isinstance(given := of(seen), tuple) else given for of in (term.unit, term.value))
        return jnp.where(by_unit, unit, own)

    return dataclasses.replace(term, value=value)


def _scaled(weights: dict[str, jax.Array], aux: Any) -> dict[str, jax.Array]:
    """The weights as the schedule has them by now."""
    return {t: aux["share"] * w for t, w in weights.items()} if "share" in aux else weights
