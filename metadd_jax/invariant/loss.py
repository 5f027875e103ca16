"""The architecture-invariant loss: raises what every network sees (meta), lowers what one alone sees.

    L = w_ai L_ai + w_pos L_pos + w_var L_var,

added to a base method's loss and minimised over the synthetic images; no gradient reaches an auxiliary. Source: MetaDD
(arXiv 2410.05103), section 2 of the project's method notes. The same sum holds of any other terms.

Shapes: M auxiliaries, B images [H, W, C], maps [M, B, H, W] in [0, 1], logits [M, B, K].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from metadd_jax import augment, keys, parallel, parts, split
from metadd_jax.invariant.looking import check_networks, draw_networks, look
from metadd_jax.invariant.settings import InvariantConfig
from metadd_jax.invariant.terms import Seen, Term
from metadd_jax.structs import Auxiliary

_CPU_PART = 10


def invariant_loss(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    *,
    reference: Auxiliary | None = None,
    config: InvariantConfig | None = None,
    terms: Mapping[str, Term] | None = None,
    weights: Mapping[str, jax.Array | float] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes L = w_ai L_ai + w_pos L_pos + w_var L_var of a set of images, each L_t a mean over them.

    The gradient goes to the images and to ``weights`` (it is the term's mean, so weights can be learned). All else is
    a constant whatever ``config.micro_batch`` is: the networks with their ``map_eps``, the reference, the metrics.

    Args:
      key: draws the shared view and the random subset.
      images: [B, H, W, C] in the set's value space.
      labels: [B] int.
      auxiliaries: M frozen networks; at least two for terms that compare networks (L_pos and L_var).
      reference: the frozen main network that KL compares with; needed where ``config.kl`` is not 0.
      config: the switches.
      terms: what to weigh in place of the config's terms, by name (``distillers.penalise`` gives its own).
      weights: w_t [] for each term; None takes the config's strengths as plain weights.

    Returns:
      The loss [], and metrics, which are constants: the mean of each term and the facts that guard its reading.

    Raises:
      ValueError: see ``check_networks``; a subset larger than the set; or weights of other terms than those in use.
    """
    chex.assert_rank([images, labels], [4, 1])
    config = config or InvariantConfig()
    terms = config.terms if terms is None else terms
    w = config.strengths if weights is None else weights
    check_weights(terms, w)
    check_networks(terms, auxiliaries, reference, config=config)

    def weighted_sum(images: jax.Array, items: tuple, shares: jax.Array, w: dict, networks: tuple) -> tuple:
        (labels, draws), (auxiliaries, reference, drawn) = items, networks
        seen = look(images, labels, auxiliaries, reference, terms=terms, config=config, draws=draws, drawn=drawn)
        L, facts = values_of(terms, seen)  # {t: L_t of each image [B]}
        # Each image has its share of the mean, 1 / B, so that the images can pass the networks in parts.
        loss = sum((w[t] * (L[t] @ shares) for t in terms), start=jnp.zeros(()))
        return loss[None], facts

    images, labels = shared_view(key, images, labels, config)
    w = {t: jnp.asarray(w[t], jnp.float32) for t in terms}
    # An argument of the parts and not closed over: there the engine makes constants of the networks.
    networks = (tuple(auxiliaries), reference, draw_networks(key, len(auxiliaries), config))
    items, size = (labels, _draws(key, labels, terms)), part_size(images, config, terms)
    (loss,), facts = parts.means(weighted_sum, images, items, w, networks, size=size)
    return loss, _metrics(facts, config)


def invariant_terms(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    *,
    reference: Auxiliary | None = None,
    config: InvariantConfig | None = None,
    terms: Mapping[str, Term] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Computes the terms one by one: what ``invariant_loss`` weighs and adds up.

    Args:
      key: draws the shared view and the random subset.
      images: [B, H, W, C] in the set's value space.
      labels: [B] int.
      auxiliaries: M frozen networks.
      reference: the frozen main network, or None.
      config: the switches.
      terms: what to compute in place of the config's terms, by name.

    Returns:
      {name: L_t []}, differentiable in the images alone, and the metrics of ``invariant_loss`` without the means.

    Raises:
      ValueError: as ``invariant_loss``.
    """
    chex.assert_rank([images, labels], [4, 1])
    config = config or InvariantConfig()
    terms = config.terms if terms is None else terms
    check_networks(terms, auxiliaries, reference, config=config)

    def one_by_one(images: jax.Array, items: tuple, shares: jax.Array, _: Any, networks: tuple) -> tuple:
        (labels, draws), (auxiliaries, reference, drawn) = items, networks
        seen = look(images, labels, auxiliaries, reference, terms=terms, config=config, draws=draws, drawn=drawn)
        L, facts = values_of(terms, seen)
        return jnp.stack([L[t] @ shares for t in terms]) if terms else jnp.zeros(0), facts

    images, labels = shared_view(key, images, labels, config)
    networks = (tuple(auxiliaries), reference, draw_networks(key, len(auxiliaries), config))
    items, size = (labels, _draws(key, labels, terms)), part_size(images, config, terms)
    means, facts = parts.means(one_by_one, images, items, (), networks, size=size)
    # The means are the terms themselves here, and those have gradients.
    own = {name: fact for name, fact in _metrics(facts, config).items() if name.removeprefix("loss_") not in terms}
    return dict(zip(terms, means, strict=True)), own


def check_weights(terms: Mapping[str, Term], weights: Mapping[str, Any]) -> None:
    """Refuses weights of other terms than those in use.

    Raises:
      ValueError: with both lists.
    """
    if set(weights) != set(terms):
        raise ValueError(
            f"weights are for {', '.join(sorted(weights))}, but the terms in use are {', '.join(terms)} (strengths of "
            "the config above 0); give one weight for each"
        )


def values_of(terms: Mapping[str, Term], seen: Seen) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Evaluates every term on what is seen.

    Args:
      terms: the terms by name.
      seen: B images and what the networks see in them.

    Returns:
      {t: [B]}, the value of each term for each image; and facts for the log, arrays [F, B, ...]: those values, the
      terms' own facts, and the maps if a term says that it needs them.

    Raises:
      ValueError: for a term that does not give one value an image, or a fact of a name that is taken.
    """
    values: dict[str, jax.Array] = {}
    facts: dict[str, jax.Array] = {}
    for name, term in terms.items():
        given = term.value(seen)
        value, own = given if isinstance(given, tuple) else (given, {})
        if jnp.shape(value) != seen.labels.shape:
            raise ValueError(
                f"the term {name!r} gives an array of shape {jnp.shape(value)} for {len(seen.labels)} images; it must "
                f"give one value an image, shape {seen.labels.shape}"
            )
        values[name] = value
        for fact, array in {f"loss_{name}": value, **own}.items():
            if fact in facts:
                raise ValueError(f"two terms log a fact {fact!r}; give that of {name!r} another name")
            facts[fact] = jnp.atleast_2d(array)
    if seen.maps is not None and any("maps" in (term.needs or ()) for term in terms.values()):
        facts["maps"] = seen.maps
    return values, facts


def shared_view(
    key: jax.Array, images: jax.Array, labels: jax.Array, config: InvariantConfig
) -> tuple[jax.Array, jax.Array]:
    """Draws the images of this step, under the one view in which all networks see them.

    Args:
      key: typed PRNG key.
      images: [N, H, W, C] in the set's value space.
      labels: [N] int.
      config: its ``subset`` and ``views`` count.

    Returns:
      images [B, H, W, C] and their labels [B]; B is ``config.subset``, or N.

    Raises:
      ValueError: for a subset larger than the set.
    """
    if config.subset and config.subset > len(images):
        raise ValueError(f"subset={config.subset} is larger than the {len(images)} synthetic images")
    view_key, subset_key = jax.random.split(key)
    if config.subset:
        # Without replacement, so that the mean over them is an unbiased one over the set.
        chosen = jax.random.choice(subset_key, len(images), (config.subset,), replace=False)
        images, labels = images[chosen], labels[chosen]
    images = parallel.divide(images)
    # One draw for all networks: shown the bare pixels, frozen networks invite adversarial patterns, and maps of
    # different views could not be compared.
    return augment.transform(view_key, images, augment.strategy(config.views), siamese=True), labels


def _draws(key: jax.Array, labels: jax.Array, terms: Mapping[str, Term]) -> jax.Array | None:
    """A random number of each image [B] where a term asks: a key would be one for all images of a part."""
    if not any("draws" in (term.needs or ()) for term in terms.values()):
        return None
    return jax.random.bits(keys.named(key, "control"), labels.shape)


def part_size(images: jax.Array, config: InvariantConfig, terms: Mapping[str, Term]) -> int:
    """Tells how many images pass the networks at once.

    Args:
      images: all of the step, [B, H, W, C].
      config: its ``micro_batch`` counts.
      terms: what looks at them; none where each image is seen alone.

    Raises:
      ValueError: for parts where a term looks at all images at once.
    """
    if joint := [name for name, term in terms.items() if term.joint]:
        # Of all images together: a ratio of sums or a class mean is no mean of what parts give.
        if config.micro_batch and config.micro_batch < len(images):
            raise ValueError(
                f"L_{joint[0]} looks at all {len(images)} images at once; leave micro_batch={config.micro_batch} out"
            )
        return len(images)
    # On a CPU what passes from layer to layer of ten images stays in its caches (docs/costs.md).
    return config.micro_batch or (_CPU_PART if jax.default_backend() == "cpu" else len(images))


def _metrics(facts: dict[str, jax.Array], config: InvariantConfig) -> dict[str, jax.Array]:
    """Means of the facts; the maps are measured together, as their agreement is no mean over images."""
    means = {name: fact.mean() for name, fact in facts.items() if name != "maps"}
    if "maps" not in facts:
        return means
    # L_var alone is zero when every map is dead, so these stand beside it in every log.
    agreed = split.measure(facts["maps"], threshold=config.cam.threshold)
    return means | {
        "meta_ratio": agreed["meta_ratio"],
        "chance_corrected": agreed["chance_corrected"],
        "high_area": agreed["high_area"].mean(),
        "dead_share": agreed["dead_share"].mean(),
        "map_entropy": agreed["entropy"].mean(),
    }
