"""The terms of the invariant loss, one by one, and own terms by name.

A term is a function of ``Seen``, what all networks see of the images, and gives one value an image. Tags: [Q] reported
by readers of the paper (MetaDD, arXiv 2410.05103), [I] inferred, [U] unknown and therefore a switch; they are those of
section 2 of the project's method notes.

Shapes: M auxiliaries, B images [H, W, C], maps [M, B, H, W] in [0, 1], logits [M, B, K].
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metadd_jax import registries
from metadd_jax.ranges import listed, nearest
from metadd_jax.structs import RealSide

POSITIVITY = ("jaccard", "soft_ratio", "hinge")
NEEDS = ("maps", "reference", "real", "untrained", "draws", "real_maps")


class Seen(NamedTuple):
    """What all networks see of one view of the images: everything that a term may read.

    Attributes:
      images: [B, H, W, C] float32 in the set's value space, under the view that all networks share.
      labels: [B] int.
      logits: [M, B, K].
      maps: [M, B, H, W] class activation maps in [0, 1]; None where no term needs them or a network can make none.
      embeddings: M arrays [B, D_m], what each network's last linear layer sees.
      reference: [B, K] logits of the main network; None where there is none.
      real: M records of what each network makes of the real images; None where they have none (``equip``).
      untrained: [M, B, H, W] maps of the same networks with random weights; None where no term needs them.
      draws: [B] uint32, a random number of each image and step; None where no term needs them.
      real_maps: [M, K, H, W] mean map of the real images of each class, by each network; None likewise.
    """

    images: jax.Array
    labels: jax.Array
    logits: jax.Array
    maps: jax.Array | None
    embeddings: tuple[jax.Array, ...]
    reference: jax.Array | None
    real: tuple[RealSide, ...] | None = None
    untrained: jax.Array | None = None
    draws: jax.Array | None = None
    real_maps: jax.Array | None = None


Values = jax.Array | tuple[jax.Array, dict[str, jax.Array]]
"""What a term gives: [B], or that and facts, arrays [B] or [N, B] by name whose means are logged."""


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the loss and what it must be given; hashable.

    Attributes:
      name: what weights and metrics call it.
      value: ``Seen -> [B]``, one value an image, or ``([B], facts)`` (see ``Values``).
      needs: what of ``NEEDS`` it cannot do without; None: it is given whatever the networks can make.
      compares: whether it compares networks, so that one alone says nothing.
      joint: whether it is no mean of what each image gives alone, so that all images must pass the networks at once;
        it then gives each image the value of them all.
      unit: ``Seen -> [B]``, what a strength is measured by under weighting "unsaturated", where the gradient of
        ``value`` itself may all but vanish; None: by ``value``.
    """

    name: str
    value: Callable[[Seen], Values]
    needs: tuple[str, ...] | None = None
    compares: bool = False
    joint: bool = False
    unit: Callable[[Seen], Values] | None = None


def l_ai(
    seen: Seen, *, kl: float = 0.0, kl_cap: float | None = None, kl_reverse: bool = False, temperature: float = 1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_ai = sum_m [ CE(f_m(x), y) + s KL(p_ref(x) || p_m(x)) ]. Its parts [Q]; the KL's direction, s and T [U].

    Args:
      seen: what the networks see; with its ``reference`` where ``kl`` is not 0.
      kl: s, the sign and size of the KL term.
      kl_cap: upper bound of the KL of one image and network, in nats; None for none.
      kl_reverse: KL(p_m || p_ref) instead.
      temperature: T of both softmaxes.

    Returns:
      [B], and the facts "cross_entropy", "auxiliary_accuracy" and, where it is in use, "kl", each [M, B].
    """
    chex.assert_rank([seen.logits, seen.labels], [3, 1])
    ce = cross_entropy(seen.logits, seen.labels)
    # CE and KL are logged apart: in their sum one can hide what the other does.
    facts = {"cross_entropy": ce, "auxiliary_accuracy": seen.logits.argmax(axis=2) == seen.labels[None]}
    if not kl:
        return ce.sum(axis=0), facts
    assert seen.reference is not None  # where kl is not 0 the term needs it (see ``InvariantConfig.terms``)
    chex.assert_shape(seen.reference, seen.logits.shape[1:])
    distance = divergence(seen.logits, seen.reference, temperature=temperature, reverse=kl_reverse)
    if kl_cap is not None:  # pushed up (s < 0) it has no bound of its own
        distance = jnp.minimum(distance, kl_cap)
    return ce.sum(axis=0) + kl * distance.sum(axis=0), facts | {"kl": distance}


def l_pos(seen: Seen, *, kind: str = "jaccard", threshold: float = 0.5) -> jax.Array:
    """L_pos [B], by default 1 - sum_ij min_m c_ij / (sum_ij max_m c_ij + eps). Its definition is [U].

    Args:
      seen: what the networks see; with its maps, but for the kind "hinge".
      kind: see ``positivity``.
      threshold: likewise.

    Raises:
      ValueError: for another kind.
    """
    return positivity(seen.maps, seen.logits, seen.labels, kind=kind, threshold=threshold)


def l_var(seen: Seen) -> jax.Array:
    """L_var [B] = 1/(HW) sum_ij 1/M sum_m (mean_m c_ij - c^m_ij)^2, see ``variance``. [Q]

    Args:
      seen: what the networks see, with its maps.
    """
    assert seen.maps is not None  # the term needs them (see ``TERMS``)
    return variance(seen.maps)


def variance(maps: jax.Array) -> jax.Array:
    """Computes L_var [B]: the variance over the networks of each pixel's map value, averaged over pixels. [Q]

    Zero when all maps agree, also when all are dead: read it beside the share of dead maps.

    Args:
      maps: [M, B, H, W] in [0, 1].

    Example:
      >>> maps = jnp.array([[[[0.9, 0.8, 0.1]]], [[[0.7, 0.2, 0.6]]]])  # two networks, one image of 1 x 3 pixels
      >>> round(float(variance(maps)[0]), 4)  # (0.01 + 0.09 + 0.0625) / 3
      0.0542
    """
    chex.assert_rank(maps, 4)
    return jnp.var(maps, axis=0).mean(axis=(1, 2))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes CE(f_m(x), y), per network and image [M, B], in nats. [Q]

    Args:
      logits: [M, B, K].
      labels: [B] int.

    Example:
      >>> round(float(cross_entropy(jnp.zeros((1, 1, 10)), jnp.array([3]))[0, 0]), 4)  # log 10: any class is as likely
      2.3026
    """
    chex.assert_rank([logits, labels], [3, 1])
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, jnp.broadcast_to(labels[None, :, None], (*logits.shape[:2], 1)), axis=2)[..., 0]


def margin(seen: Seen) -> jax.Array:
    """Computes sum_m [ log sum_{k != y} exp z_k - z_y ], [B]: how far the other classes' logits lie above the label's.

    The cross-entropy is softplus of one network's summand, and its gradient (1 - p_y) times the summand's: that
    vanishes where a network is sure, and this does not.

    Args:
      seen: what the networks see.

    Example:
      >>> logits = jnp.array([[[2.0, 0.0, 0.0]]])  # one network, one image: log 2 - 2
      >>> round(float(margin(Seen(None, jnp.array([0]), logits, None, (), None))[0]), 4)
      -1.3069
    """
    chex.assert_rank([seen.logits, seen.labels], [3, 1])
    own = jax.nn.one_hot(seen.labels, seen.logits.shape[-1], dtype=bool)[None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, seen.logits), axis=2)
    return (others - jnp.where(own, seen.logits, 0.0).sum(axis=2)).sum(axis=0)


def divergence(
    logits: jax.Array, reference: jax.Array, *, temperature: float = 1.0, reverse: bool = False
) -> jax.Array:
    """Computes KL(p_ref || p_m), per network and image [M, B], in nats.

    The reference is a constant. At T = 1 the gradient of CE + s KL in the logits is (1 + s) p - y - s p_ref.

    Args:
      logits: [M, B, K] of the networks.
      reference: [B, K] of the main network.
      temperature: T of both softmaxes.
      reverse: KL(p_m || p_ref) instead, which lets a network be sure of what the reference doubts.
    """
    chex.assert_rank([logits, reference], [3, 2])
    log_m = jax.nn.log_softmax(logits / temperature)
    log_ref = jax.nn.log_softmax(jax.lax.stop_gradient(reference) / temperature)[None]
    if reverse:
        return jnp.sum(jnp.exp(log_m) * (log_m - log_ref), axis=2)
    return jnp.sum(jnp.exp(log_ref) * (log_ref - log_m), axis=2)


def positivity(
    maps: jax.Array | None, logits: jax.Array, labels: jax.Array, *, kind: str = "jaccard", threshold: float = 0.5
) -> jax.Array:
    """Computes L_pos [B]: small where the networks share much ("positivity" itself is [U] in the paper).

    Args:
      maps: [M, B, H, W] in [0, 1]; the hinge reads none.
      logits: [M, B, K]; the hinge alone reads them and the labels.
      labels: [B] int.
      kind: one of
        jaccard: 1 - sum_ij min_m c / (sum_ij max_m c + eps), in [0, 1]; dead maps are its worst case.
        soft_ratio: 1 - mean_ij prod_m sigmoid((c - threshold) / 0.1), the meta ratio made smooth.
        hinge: mean over networks of max(0, 1 - (logit_y - largest other logit)).
      threshold: from which value on a map counts as high, 0 to 1; the soft ratio alone reads it.

    Raises:
      ValueError: for another kind.

    Example:
      >>> maps = jnp.array([[[[0.9, 0.8, 0.1]]], [[[0.7, 0.2, 0.6]]]])
      >>> round(float(positivity(maps, jnp.zeros((2, 1, 10)), jnp.array([0]))[0]), 4)  # 1 - (0.7 + 0.2 + 0.1) / 2.3
      0.5652
    """
    if kind not in POSITIVITY:
        raise ValueError(f"positivity {kind!r} must be one of {', '.join(POSITIVITY)}")
    if kind == "hinge":
        chex.assert_rank([logits, labels], [3, 1])
        own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)[None]
        # Without the own class the largest logit is that of the strongest rival.
        other = jnp.where(own, -jnp.inf, logits).max(axis=2)
        mine = jnp.where(own, logits, 0.0).sum(axis=2)
        return jax.nn.relu(1.0 - (mine - other)).mean(axis=0)
    assert maps is not None  # all but the hinge compare maps
    chex.assert_rank(maps, 4)
    if kind == "soft_ratio":
        return 1.0 - jnp.prod(jax.nn.sigmoid((maps - threshold) / 0.1), axis=0).mean(axis=(1, 2))
    # A soft intersection over union, bounded; a geometric mean of maps has gradients of 1e3 to 1e5 at dark pixels.
    shared = maps.min(axis=0).sum(axis=(1, 2))
    total = maps.max(axis=0).sum(axis=(1, 2))
    return 1.0 - shared / (total + 1e-6)


TERMS: dict[str, Term] = {
    "ai": Term("ai", l_ai, needs=(), unit=margin),
    "pos": Term("pos", l_pos, needs=("maps",), compares=True),
    "var": Term("var", l_var, needs=("maps",), compares=True),
}
"""The terms by name: MetaDD's own with their default switches, and those that ``register`` added."""
_OWN: dict[str, Callable[[Seen], Values]] = {}


def register(
    name: str,
    value: Callable[[Seen], Values],
    *,
    needs: Sequence[str] | None = None,
    compares: bool = False,
    joint: bool = False,
) -> None:
    """Gives an own term a name, under which settings, scripts and ``distillers.penalise`` know it.

    Args:
      name: what weights and metrics shall call it.
      value: pure function ``Seen -> [B]``, one value an image (see ``Values``); its mean over the images is the term.
      needs: what of ``NEEDS`` (see ``Seen``) it cannot do without: a network that cannot give it is then refused, and
        with "maps" their facts (meta ratio, dead maps) are logged. None: it is given whatever the networks can make.
      compares: whether it wants at least two networks.
      joint: whether it wants all images at once, see ``Term``.

    What is defined again under its name replaces itself, as when the cell of a notebook is run once more.

    Raises:
      ValueError: if the name is no word or taken by another term, or ``needs`` names something else.
    """
    if wrong := [word for word in needs or () if word not in NEEDS]:
        raise ValueError(f"the term {name!r} needs {wrong[0]!r}; a term can ask for {listed(NEEDS)} alone")
    # The function is entered, not the term: a registry compares where things were defined.
    # "base" and "metadd" are the gradients of the base method and of all terms together.
    registries.claim(_OWN, name, value, kind="term", taken=("base", "metadd", *(TERMS.keys() - _OWN.keys())))
    TERMS[name] = Term(name, value, None if needs is None else tuple(needs), compares, joint)


def as_term(term: str | Term | Callable[[Seen], Values]) -> Term:
    """Makes a term of what a user writes: a name from ``TERMS``, a ``Term``, or a function, which keeps its name.

    Raises:
      ValueError: for an unknown name, with the nearest known one, and for what is no function.
    """
    if isinstance(term, str):
        if term not in TERMS:
            raise ValueError(f"unknown term {term!r}{nearest(term, TERMS)}; use one of {', '.join(TERMS)}")
        return TERMS[term]
    if isinstance(term, Term):
        return term
    if not callable(term):
        raise ValueError(f"{term!r} is no term; give a name, an invariant.Term or a function of invariant.Seen")
    named = term.func if isinstance(term, functools.partial) else term
    return Term(getattr(named, "__name__", type(named).__name__), term)
