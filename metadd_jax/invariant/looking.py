"""How images are shown to the networks: to all of them, or to some that are drawn; and what is wanted of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax import features, keys
from metadd_jax.invariant.equipment import map_way
from metadd_jax.invariant.settings import InvariantConfig
from metadd_jax.invariant.terms import Seen, Term
from metadd_jax.structs import Auxiliary

_EQUIPMENT = {
    "real": "the real embeddings",
    "untrained": "the random weights",
    "real_maps": "the mean maps of real images (by the cam of the loss)",
}


def check_networks(
    terms: Mapping[str, Term],
    auxiliaries: Sequence[Auxiliary],
    reference: Auxiliary | None,
    *,
    config: InvariantConfig | None = None,
) -> None:
    """Refuses networks that cannot serve the terms.

    Args:
      terms: the terms by name.
      auxiliaries: the networks that shall look at the images.
      reference: the main network, or None.
      config: its ``cam`` and ``drawn`` count; None for the defaults.

    Raises:
      ValueError: what is no frozen network, no auxiliary, more to draw than there are, one where a term compares
        networks, or no reference where a term needs it.
    """
    config = config or InvariantConfig()
    if not isinstance(auxiliaries, Sequence):
        raise ValueError(f"auxiliaries is a {type(auxiliaries).__name__}; give a list of what features.freeze returns")
    for one in auxiliaries if reference is None else (*auxiliaries, reference):
        if not isinstance(one, Auxiliary):
            raise ValueError(f"an auxiliary or reference is a {type(one).__name__}; give what features.freeze returns")
    if not auxiliaries:
        raise ValueError("the invariant loss needs at least 1 auxiliary network, got 0")
    for word, how in _EQUIPMENT.items():
        lacking = [one.net.name for one in auxiliaries if not _has(one, word, config.cam)]
        asking = [name for name, term in terms.items() if word in (term.needs or ())]
        if asking and lacking:
            raise ValueError(
                f"L_{asking[0]} needs {how} of {lacking[0]}; give what invariant.equip(auxiliaries, dataset, terms) "
                "returns"
            )
    if config.drawn and config.drawn > len(auxiliaries):
        raise ValueError(
            f"drawn={config.drawn} is more than the {len(auxiliaries)} auxiliaries; lower it, or None for all of them"
        )
    compare = [f"L_{name}" for name, term in terms.items() if term.compares]
    they = f"{' and '.join(compare)} {'compare' if len(compare) > 1 else 'compares'} networks"
    if compare and config.drawn == 1:
        raise ValueError(f"{they}, and drawn=1 leaves one a step; draw at least 2")
    if compare and len(auxiliaries) < 2:
        raise ValueError(f"{they}: give at least 2 auxiliaries, or leave out what compares (strength 0)")
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
    draws: jax.Array | None = None,
    drawn: jax.Array | None = None,
) -> Seen:
    """Shows images to every network, and keeps what the terms need of it.

    Args:
      images: [B, H, W, C] in the set's value space.
      labels: [B] int.
      auxiliaries: M frozen networks, or P of which M are drawn.
      reference: the frozen main network, or None.
      terms: those that will read what is seen.
      config: its ``cam`` and ``checkpoint`` count.
      draws: [B] uint32, see ``Seen``.
      drawn: [M] int32, the numbers of those that look in this step; None for all. The others are not passed. Which
        network stands where, and so its width, is then not known before: embeddings end in zeros, up to the widest, and
        so does the real side, which changes no length, cosine or distance.

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

    def each(function: Callable[[Auxiliary, jax.Array], Any], networks: Sequence[Any]) -> list[Any]:
        if drawn is None:
            return [function(one, images) for one in networks]
        return [_if_drawn(function, one, images, (drawn == number).any()) for number, one in enumerate(networks)]

    def stack(arrays: Sequence[Any]) -> jax.Array:
        return jnp.stack(arrays) if drawn is None else jnp.stack(arrays)[drawn]

    sights = each(observe, auxiliaries)
    embeddings: tuple[jax.Array, ...] = tuple(sight.embedding for sight in sights)
    real = tuple(one.real for one in auxiliaries if one.real is not None) if "real" in asked else None
    if drawn is not None:
        embeddings = _chosen(embeddings, drawn)
        real = None if real is None else _chosen(real, drawn)
    main = None
    if reference is not None and "reference" in asked:
        main = features.observe(reference, images, labels, maps=False).logits
    return Seen(
        images=images,
        labels=labels,
        logits=stack([sight.logits for sight in sights]),
        maps=stack([sight.maps for sight in sights]) if "maps" in asked else None,
        embeddings=embeddings,
        reference=main,
        real=real,
        untrained=stack(each(observe_untrained, [one.untrained for one in auxiliaries]))
        if "untrained" in asked
        else None,
        draws=draws,
        real_maps=stack([_real_maps(one, config.cam) for one in auxiliaries]) if "real_maps" in asked else None,
    )


def draw_networks(key: jax.Array, count: int, config: InvariantConfig) -> jax.Array | None:
    """Draws which networks look in a step, all subsets alike: [M] int32 in [0, count); None where all look.

    Args:
      key: typed PRNG key of the step, which may serve other purposes by name.
      count: P, how many there are.
      config: its ``drawn`` counts.
    """
    if config.drawn is None:
        return None
    return jax.random.permutation(keys.named(key, "drawn"), count)[: config.drawn]


def _if_drawn(function: Callable[[Auxiliary, jax.Array], Any], one: Auxiliary, images: jax.Array, is_drawn: Any) -> Any:
    """``function(one, images)``, or zeros: a network that was not drawn is not passed, nor on the way back."""
    shapes = jax.eval_shape(function, one, images)

    def nothing(one: Auxiliary, images: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(is_drawn, function, nothing, one, images)


def _chosen(each: Sequence[Any], drawn: jax.Array) -> tuple[Any, ...]:
    """Of P trees of arrays, whose last axes may differ, the ``drawn`` [M]; shorter axes are filled up with zeros."""

    def stacked(*leaves: jax.Array) -> jax.Array:
        widest = max(leaf.shape[-1] for leaf in leaves) if leaves[0].ndim else 0
        filled = [jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, widest - x.shape[-1])]) if x.ndim else x for x in leaves]
        return jnp.stack(filled)[drawn]

    together = jax.tree.map(stacked, *each)
    return tuple(jax.tree.map(lambda leaf, m=m: leaf[m], together) for m in range(len(drawn)))


def _real_maps(auxiliary: Auxiliary, cam: features.CamConfig) -> Any:
    assert auxiliary.real_maps is not None  # ``check_networks`` has seen to it
    return auxiliary.real_maps[map_way(auxiliary.net, cam)]


def _has_map(auxiliary: Auxiliary, cam: features.CamConfig) -> bool:
    return auxiliary.net.has_map and features.map_kind(auxiliary.net, cam) in auxiliary.map_eps


def _has(auxiliary: Auxiliary, word: str, cam: features.CamConfig) -> bool:
    """Whether a network was equipped with what ``word`` of ``_EQUIPMENT`` says."""
    if word != "real_maps":
        return getattr(auxiliary, word) is not None
    # Maps of another kind would be another target: rollout and HiResCAM lie at other places.
    return auxiliary.net.has_map and map_way(auxiliary.net, cam) in (auxiliary.real_maps or {})
