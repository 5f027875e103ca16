"""The architecture-invariant loss: raises what every network sees (meta), lowers what one alone sees.

    L = w_ai L_ai + w_pos L_pos + w_var L_var,

added to a base method's loss and minimised over the synthetic images; no gradient reaches an auxiliary. Source: MetaDD
(arXiv 2410.05103), section 2 of the project's method notes. The same sum holds of any other terms.

Shapes: M auxiliaries, B images [H, W, C], maps [M, B, H, W] in [0, 1], logits [M, B, K].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from metadd_jax import augment, features, parallel, parts, split
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
    terms, w = config.terms if terms is None else terms, config.strengths if weights is None else weights
    if set(w) != set(terms):
        raise ValueError(
            f"weights are for {', '.join(sorted(w))}, but the terms in use are {', '.join(terms)} (strengths of the "
            "config above 0); give one weight for each"
        )

    def weighted_sum(images: jax.Array, labels: jax.Array, shares: jax.Array, w: dict, networks: tuple) -> tuple:
        # Each image has its share in the mean, so that the images can pass the networks in parts.
        seen = look(images, labels, *networks, terms=terms, config=config)
        values, facts = values_of(terms, seen)
        return jnp.stack([sum((w[t] * (values[t] @ shares) for t in terms), start=jnp.zeros(()))]), facts

    w = {t: jnp.asarray(w[t], jnp.float32) for t in terms}
    (loss,), facts = _in_parts(weighted_sum, key, images, labels, w, auxiliaries, reference, terms, config)
    return loss, _metrics(facts)


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
    """Computes the terms one by one: what ``invariant_loss``, whose arguments these are, weighs and adds up.

    Returns:
      {name: L_t []}, differentiable in the images alone, and the metrics of ``invariant_loss`` without the means.

    Raises:
      ValueError: as ``invariant_loss``.
    """
    config = config or InvariantConfig()
    terms = config.terms if terms is None else terms

    def one_by_one(images: jax.Array, labels: jax.Array, shares: jax.Array, _: Any, networks: tuple) -> tuple:
        values, facts = values_of(terms, look(images, labels, *networks, terms=terms, config=config))
        return jnp.stack([jnp.zeros(()), *(values[t] @ shares for t in terms)]), facts

    values, facts = _in_parts(one_by_one, key, images, labels, (), auxiliaries, reference, terms, config)
    own = {name: fact for name, fact in _metrics(facts).items() if name.removeprefix("loss_") not in terms}
    return dict(zip(terms, values[1:], strict=True)), own


def check_networks(terms: Mapping[str, Term], auxiliaries: Sequence[Auxiliary], reference: Auxiliary | None) -> None:
    """Refuses networks that cannot serve the terms.

    Raises:
      ValueError: no auxiliary, one where a term compares networks, or no reference where a term needs it.
    """
    if not auxiliaries:
        raise ValueError("the invariant loss needs at least 1 auxiliary network, got 0")
    compare = [f"L_{name}" for name, term in terms.items() if term.compares]
    if compare and len(auxiliaries) < 2:
        raise ValueError(
            f"{' and '.join(compare)} compare networks: give at least 2 auxiliaries, or leave out what compares "
            "(strength 0)"
        )
    lonely = [name for name, term in terms.items() if "reference" in (term.needs or ())]
    if lonely and reference is None:
        off = "; or set kl=0" if lonely == ["ai"] else ""
        raise ValueError(
            f"L_{lonely[0]} needs reference=..., a frozen network of the backbone's architecture to compare with{off}"
        )


def look(
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    reference: Auxiliary | None,
    *,
    terms: Mapping[str, Term],
    config: InvariantConfig,
) -> Seen:
    """Shows images [B, H, W, C] to every network, and keeps what the terms need of it."""
    asked = {need for term in terms.values() for need in term.needs or ()}
    if any(term.needs is None for term in terms.values()):
        kinds = [auxiliary.net.has_map and features.map_kind(auxiliary.net, config.cam) for auxiliary in auxiliaries]
        able = all(kind in auxiliary.map_eps for kind, auxiliary in zip(kinds, auxiliaries, strict=True))
        asked |= {"reference"} | ({"maps"} if able else set())  # a program drops what its terms do not read

    def observe(auxiliary: Auxiliary, images: jax.Array) -> features.Sight:
        return features.observe(auxiliary, images, labels, maps="maps" in asked, config=config.cam)

    sights = [(jax.checkpoint(observe) if config.checkpoint else observe)(one, images) for one in auxiliaries]
    maps, logits, embeddings = zip(*sights, strict=True)
    compared = None
    if reference is not None and "reference" in asked:
        compared = features.observe(reference, images, labels, maps=False).logits
    return Seen(
        images=images,
        labels=labels,
        logits=jnp.stack(logits),
        maps=jnp.stack(maps) if "maps" in asked else None,
        embeddings=embeddings,
        reference=compared,
    )


def values_of(terms: Mapping[str, Term], seen: Seen) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Evaluates every term on what is seen: {name: L_t of each image [B]}; and the facts, arrays [N, B, ...].

    Raises:
      ValueError: for a term that does not give one value an image, or a fact of a name that is taken.
    """
    values, facts = {}, {}
    for name, term in terms.items():
        value = term.value(seen)
        value, own = value if isinstance(value, tuple) else (value, {})
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


def _in_parts(
    function: Callable,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    shared: Any,
    auxiliaries: Sequence[Auxiliary],
    reference: Auxiliary | None,
    terms: Mapping[str, Term],
    config: InvariantConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs ``function`` over this step's images, under the one view, part by part (see ``parts.means``)."""
    check_networks(terms, auxiliaries, reference)
    if config.subset and config.subset > len(images):
        raise ValueError(f"subset={config.subset} is larger than the {len(images)} synthetic images")
    view_key, subset_key = jax.random.split(key)
    if config.subset:
        chosen = jax.random.choice(subset_key, len(images), (config.subset,), replace=False)
        images, labels = images[chosen], labels[chosen]
    images = parallel.divide(images)
    # One shared draw: frozen networks shown the bare pixels invite adversarial patterns, and maps of different
    # views could not be compared.
    images = augment.transform(view_key, images, augment.strategy(config.views), siamese=True)
    size = config.micro_batch or (_CPU_PART if jax.default_backend() == "cpu" else len(images))
    return parts.means(function, images, labels, shared, (tuple(auxiliaries), reference), size=size)


def _metrics(facts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The mean of each fact; the maps are measured together, as their agreement is no mean over images."""
    means = {name: fact.mean() for name, fact in facts.items() if name != "maps"}
    if "maps" not in facts:
        return means
    # L_var alone is zero when every map is dead, so these stand beside it in every log.
    agreed = split.measure(facts["maps"])
    return means | {
        "meta_ratio": agreed["meta_ratio"],
        "chance_corrected": agreed["chance_corrected"],
        "high_area": agreed["high_area"].mean(),
        "dead_share": agreed["dead_share"].mean(),
        "map_entropy": agreed["entropy"].mean(),
    }
