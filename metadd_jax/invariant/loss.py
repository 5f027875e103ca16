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

from metadd_jax import augment, features, keys, parallel, parts, split
from metadd_jax.invariant.equipment import map_way
from metadd_jax.invariant.settings import InvariantConfig
from metadd_jax.invariant.terms import Seen, Term
from metadd_jax.structs import Auxiliary

_CPU_PART = 10
_EQUIPMENT = {
    "real": "the real embeddings",
    "untrained": "the random weights",
    "real_maps": "the mean maps of real images (by the cam of the loss)",
}


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
    check_networks(terms, auxiliaries, reference, cam=config.cam)

    def weighted_sum(images: jax.Array, items: tuple, shares: jax.Array, w: dict, networks: tuple) -> tuple:
        labels, draws = items
        seen = look(images, labels, *networks, terms=terms, config=config, draws=draws)
        L, facts = values_of(terms, seen)  # {t: L_t of each image [B]}
        # Each image has its share of the mean, 1 / B, so that the images can pass the networks in parts.
        loss = sum((w[t] * (L[t] @ shares) for t in terms), start=jnp.zeros(()))
        return loss[None], facts

    images, labels = shared_view(key, images, labels, config)
    w = {t: jnp.asarray(w[t], jnp.float32) for t in terms}
    # An argument of the parts and not closed over: there the engine makes constants of the networks.
    networks = (tuple(auxiliaries), reference)
    items, size = (labels, _draws(key, labels, terms)), part_size(images, config, terms)
    (loss,), facts = parts.means(weighted_sum, images, items, w, networks, size=size)
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
    check_networks(terms, auxiliaries, reference, cam=config.cam)

    def one_by_one(images: jax.Array, items: tuple, shares: jax.Array, _: Any, networks: tuple) -> tuple:
        labels, draws = items
        seen = look(images, labels, *networks, terms=terms, config=config, draws=draws)
        L, facts = values_of(terms, seen)
        return jnp.stack([L[t] @ shares for t in terms]) if terms else jnp.zeros(0), facts

    images, labels = shared_view(key, images, labels, config)
    networks = (tuple(auxiliaries), reference)
    items, size = (labels, _draws(key, labels, terms)), part_size(images, config, terms)
    means, facts = parts.means(one_by_one, images, items, (), networks, size=size)
    # The means are the terms themselves here, and those have gradients.
    own = {name: fact for name, fact in _metrics(facts).items() if name.removeprefix("loss_") not in terms}
    return dict(zip(terms, means, strict=True)), own


def check_networks(
    terms: Mapping[str, Term],
    auxiliaries: Sequence[Auxiliary],
    reference: Auxiliary | None,
    *,
    cam: features.CamConfig | None = None,
) -> None:
    """Refuses networks that cannot serve the terms.

    Args:
      terms: the terms by name.
      auxiliaries: the networks that shall look at the images.
      reference: the main network, or None.
      cam: how maps are made; None for the defaults.

    Raises:
      ValueError: what is no frozen network, no auxiliary, one where a term compares networks, or no reference where a
        term needs it.
    """
    if not isinstance(auxiliaries, Sequence):
        raise ValueError(f"auxiliaries is a {type(auxiliaries).__name__}; give a list of what features.freeze returns")
    for one in auxiliaries if reference is None else (*auxiliaries, reference):
        if not isinstance(one, Auxiliary):
            raise ValueError(f"an auxiliary or reference is a {type(one).__name__}; give what features.freeze returns")
    if not auxiliaries:
        raise ValueError("the invariant loss needs at least 1 auxiliary network, got 0")
    for word, how in _EQUIPMENT.items():
        lacking = [one.net.name for one in auxiliaries if not _has(one, word, cam or features.CamConfig())]
        asking = [name for name, term in terms.items() if word in (term.needs or ())]
        if asking and lacking:
            raise ValueError(
                f"L_{asking[0]} needs {how} of {lacking[0]}; give what invariant.equip(auxiliaries, dataset, terms) "
                "returns"
            )
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


def look(
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    reference: Auxiliary | None,
    *,
    terms: Mapping[str, Term],
    config: InvariantConfig,
    draws: jax.Array | None = None,
) -> Seen:
    """Shows images to every network, and keeps what the terms need of it.

    Args:
      images: [B, H, W, C] in the set's value space.
      labels: [B] int.
      auxiliaries: M frozen networks.
      reference: the frozen main network, or None.
      terms: those that will read what is seen.
      config: its ``cam`` and ``checkpoint`` count.
      draws: [B] uint32, see ``Seen``.

    Raises:
      ValueError: see ``features.observe``.
    """
    asked = {need for term in terms.values() for need in term.needs or ()}
    if any(term.needs is None for term in terms.values()):
        # Whatever there is: a compiled program drops what its terms do not read.
        asked |= {"reference", "maps"} if all(_has_map(one, config.cam) for one in auxiliaries) else {"reference"}
        asked |= {word for word in _EQUIPMENT if all(_has(one, word, config.cam) for one in auxiliaries)}

    def observe(auxiliary: Auxiliary, images: jax.Array) -> features.Sight:
        return features.observe(auxiliary, images, labels, maps="maps" in asked, config=config.cam)

    def observe_untrained(twin: Auxiliary, images: jax.Array) -> Any:
        return features.observe(twin, images, labels, config=config.cam).maps

    if config.checkpoint:  # one network at a time: its activations are made anew on the way back
        observe, observe_untrained = jax.checkpoint(observe), jax.checkpoint(observe_untrained)
    sights = [observe(auxiliary, images) for auxiliary in auxiliaries]
    main = None
    if reference is not None and "reference" in asked:
        main = features.observe(reference, images, labels, maps=False).logits
    return Seen(
        images=images,
        labels=labels,
        logits=jnp.stack([sight.logits for sight in sights]),
        maps=jnp.stack([sight.maps for sight in sights if sight.maps is not None]) if "maps" in asked else None,
        embeddings=tuple(sight.embedding for sight in sights),
        reference=main,
        real=tuple(one.real for one in auxiliaries if one.real is not None) if "real" in asked else None,
        untrained=jnp.stack([observe_untrained(one.untrained, images) for one in auxiliaries])
        if "untrained" in asked
        else None,
        draws=draws,
        real_maps=jnp.stack(
            [one.real_maps[map_way(one.net, config.cam)] for one in auxiliaries if one.real_maps is not None]
        )
        if "real_maps" in asked
        else None,
    )


def _has_map(auxiliary: Auxiliary, cam: features.CamConfig) -> bool:
    return auxiliary.net.has_map and features.map_kind(auxiliary.net, cam) in auxiliary.map_eps


def _has(auxiliary: Auxiliary, word: str, cam: features.CamConfig) -> bool:
    """Whether a network was equipped with what ``word`` of ``_EQUIPMENT`` says."""
    if word != "real_maps":
        return getattr(auxiliary, word) is not None
    # Maps of another kind would be another target: rollout and HiResCAM lie at other places.
    return auxiliary.net.has_map and map_way(auxiliary.net, cam) in (auxiliary.real_maps or {})


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


def _metrics(facts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means of the facts; the maps are measured together, as their agreement is no mean over images."""
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
