"""The architecture-invariant loss: raises what every network sees (meta), lowers what one alone sees.

    L = L_dd + w_ai L_ai + w_pos L_pos + w_var L_var,

minimised over the synthetic images; no gradient reaches an auxiliary. Source: MetaDD (arXiv 2410.05103), section 2
of the project's method notes, whose tags stand at each term: [Q] reported by readers of the paper, [U] unknown and
therefore a switch of ``InvariantConfig``.

Shapes: M auxiliaries, B images [H, W, C], maps [M, B, H, W] in [0, 1], logits [M, B, K].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp

from metadd_jax import augment, features, parallel, parts, split
from metadd_jax.ranges import OneOf, Real, Text, Whole, check
from metadd_jax.structs import Auxiliary

TERMS = ("ai", "pos", "var")
POSITIVITY = ("jaccard", "soft_ratio", "hinge")
WEIGHTING = ("calibrated", "per_step", "raw")
_CPU_PART = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvariantConfig:
    """The switches of the loss; hashable. Defaults are argued for in the method notes, or measured.

    Attributes:
      ai, pos, var: strength of L_ai, L_pos and L_var; 0 leaves the term out and skips its work. With weighting
        "calibrated" or "per_step" a strength is rho, the size of the term's gradient relative to that of the base
        loss; with "raw" it is the plain weight.
      weighting: "calibrated" (once at the start, then frozen), "per_step" (rescaled at every step) or "raw".
      cap: upper bound of a calibrated weight.
      calibration_steps: how many base steps the mean gradients are measured over.
      kl: s, the sign and size of the KL term in L_ai: +1 towards the reference (the paper's formula as reported),
        -1/2 away from it, 0 without, which did best on validation images (docs/measurements.md).
      kl_reverse: KL(p_m || p_ref) instead of KL(p_ref || p_m).
      kl_cap: upper bound of the KL of one image, needed where s < 0 makes it unbounded; 0 means no cap.
      temperature: softmax temperature T of both sides of the KL.
      positivity: L_pos as "jaccard", "soft_ratio" or "hinge" (see ``positivity``).
      views: DSA tokens joined by "_" (or an ``augment.Strategy``) for the one draw that all auxiliaries share; "none"
        shows the plain image.
      subset: number of synthetic images looked at per step (random, unbiased); 0 means all.
      micro_batch: largest number of images that pass the auxiliaries at once; 0 means all, on a CPU 10. Memory is that
        of one part, whose gradient is taken as it passes by; no work is done twice.
      checkpoint: keep nothing of an auxiliary's forward pass but its input and compute the rest again for the
        gradient: memory of one auxiliary at a time instead of all, for about a third more work in them.
      cam: how maps are made.
    """

    ai: Annotated[float, Real(0)] = 0.3
    pos: Annotated[float, Real(0)] = 0.1
    var: Annotated[float, Real(0)] = 0.1
    weighting: Annotated[str, OneOf(WEIGHTING)] = "calibrated"
    cap: Annotated[float, Real(0, above=True)] = 1e4
    calibration_steps: Annotated[int, Whole(1)] = 20
    kl: Annotated[float, Real()] = 0.0
    kl_reverse: bool = False
    kl_cap: Annotated[float, Real(0)] = 0.0
    temperature: Annotated[float, Real(0, above=True)] = 1.0
    positivity: Annotated[str, OneOf(POSITIVITY)] = "jaccard"
    views: Annotated[augment.Augmentation, Text("augment.strategy")] = "color_crop_cutout_flip_scale_rotate"
    subset: Annotated[int, Whole(0)] = 0
    micro_batch: Annotated[int, Whole(0)] = 0
    checkpoint: bool = False
    cam: features.CamConfig = features.CamConfig()

    def __post_init__(self) -> None:
        check(self)
        if self.kl < 0 and self.kl_cap <= 0:
            raise ValueError(f"kl={self.kl} pushes the KL up without bound; give kl_cap > 0 as well")

    @classmethod
    def paper(cls, **changes: Any) -> InvariantConfig:
        """The paper's own reading, as far as those who read it report; the defaults differ where ours did better.

        - L_ai = sum_m [CE + KL(p_ref || p_m)], so s = +1 [I]: a reader describes a divergence that is minimised (the
          terms are [Q], direction and T are [U]: the same direction, T = 1);
        - the three terms 1:1:1 with plain weights [I]: no proportions are given, and a reviewer asks whether it is so;
        - convolutional networks by Grad-CAM, alpha the mean of the derivatives [Q];
        - transformers with a class token by their attention and not by derivatives [I]: that of the last layer.

        What nobody reports stays as in the default and is a switch: L_pos ("positivity", [U]), the shared views (ours)
        and the low-confidence area, which the paper takes away [Q] at a level that is not known [U]
        (``cam.low_confidence`` "hard" is at 0.5). Its readers found each term alone to help on CIFAR-10; all three at
        once stand in no table (method notes, sections 1, 2 and 4).

        Args:
          **changes: fields that shall differ, such as ``views="none"``.

        Raises:
          ValueError: as the constructor.
        """
        cam = features.CamConfig(alpha="mean", transformer_method="attention")
        fields = {"ai": 1.0, "pos": 1.0, "var": 1.0, "weighting": "raw", "kl": 1.0, "temperature": 1.0, "cam": cam}
        return cls(**fields | changes)

    @property
    def strengths(self) -> dict[str, float]:
        """The terms in use and their strengths."""
        return {term: getattr(self, term) for term in TERMS if getattr(self, term) > 0}


def variance(maps: jax.Array) -> jax.Array:
    """L_var per image [B]: variance over the networks of each pixel's map value, averaged over pixels. [Q]

    Zero when all maps agree, also when all are dead: read it beside the share of dead maps.
    """
    chex.assert_rank(maps, 4)
    return jnp.var(maps, axis=0).mean(axis=(1, 2))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """CE(f_m(x), y) of logits [M, B, K] and labels [B], per network and image [M, B]. [Q]"""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, jnp.broadcast_to(labels[None, :, None], (*logits.shape[:2], 1)), axis=2)[..., 0]


def divergence(
    logits: jax.Array, reference: jax.Array, *, temperature: float = 1.0, reverse: bool = False
) -> jax.Array:
    """KL(p_ref || p_m) of logits [M, B, K] from reference logits [B, K], per network and image [M, B], in nats.

    The reference is a constant. At T = 1 the gradient of CE + s KL in the logits is (1 + s) p - y - s p_ref.
    """
    log_m = jax.nn.log_softmax(logits / temperature)
    log_ref = jax.nn.log_softmax(jax.lax.stop_gradient(reference) / temperature)[None]
    if reverse:
        return jnp.sum(jnp.exp(log_m) * (log_m - log_ref), axis=2)
    return jnp.sum(jnp.exp(log_ref) * (log_ref - log_m), axis=2)


def positivity(maps: jax.Array, logits: jax.Array, labels: jax.Array, *, kind: str = "jaccard") -> jax.Array:
    """L_pos per image [B]: small where the networks share much ("positivity" itself is [U] in the paper).

    Kinds:
      jaccard: 1 - sum_ij min_m c / (sum_ij max_m c + eps), in [0, 1]; dead maps are its worst case.
      soft_ratio: 1 - mean_ij prod_m sigmoid((c - 0.5) / 0.1), the meta ratio made smooth.
      hinge: mean over networks of max(0, 1 - (logit_y - largest other logit)).

    Raises:
      ValueError: for another kind.
    """
    if kind not in POSITIVITY:
        raise ValueError(f"positivity {kind!r} must be one of {', '.join(POSITIVITY)}")
    if kind == "jaccard":
        shared = maps.min(axis=0).sum(axis=(1, 2))
        total = maps.max(axis=0).sum(axis=(1, 2))
        return 1.0 - shared / (total + 1e-6)
    if kind == "soft_ratio":
        return 1.0 - jnp.prod(jax.nn.sigmoid((maps - 0.5) / 0.1), axis=0).mean(axis=(1, 2))
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)[None]
    other = jnp.where(own, -jnp.inf, logits).max(axis=2)
    mine = jnp.where(own, logits, 0.0).sum(axis=2)
    return jax.nn.relu(1.0 - (mine - other)).mean(axis=0)


def invariant_terms(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    *,
    reference: Auxiliary | None = None,
    config: InvariantConfig | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The terms in use, each a scalar (mean over images), and the facts that guard their reading.

    Args:
      key: draws the shared view and the random subset.
      images: [B, H, W, C] in the set's value space.
      labels: [B] int.
      auxiliaries: M frozen networks; at least two for L_pos and L_var.
      reference: the frozen main network that KL compares with; needed where ``config.kl`` is not 0.

    Returns:
      terms {"ai", "pos", "var"} as far as their strength is not 0, differentiable in the images alone, and metrics,
      which are constants.

    Raises:
      ValueError: too few auxiliaries, a missing reference, or a subset larger than the set.
    """
    config = config or InvariantConfig()
    _check(images, labels, auxiliaries, reference, config)
    seen, labels = _seen(key, images, labels, config)
    names = tuple(config.strengths)
    values, (_, found) = _weigh(jnp.eye(len(names)), seen, labels, (tuple(auxiliaries), reference), config)
    return dict(zip(names, values, strict=True)), _metrics(found, labels, config)


def invariant_loss(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    auxiliaries: Sequence[Auxiliary],
    *,
    reference: Auxiliary | None = None,
    config: InvariantConfig | None = None,
    weights: Mapping[str, jax.Array | float] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """w_ai L_ai + w_pos L_pos + w_var L_var of images [B, H, W, C]: a scalar and its metrics.

    The gradient goes to the images and to ``weights`` (it is the term's mean, so weights can be learned). All else is
    a constant whatever ``config.micro_batch`` is: the networks with their ``map_eps``, the reference, the metrics.

    ``weights``, one for each term in use, default to the strengths of the config taken as plain weights;
    ``distillers.metadd`` passes the calibrated ones. See ``invariant_terms`` for the other arguments.

    Raises:
      ValueError: see ``invariant_terms``; or for weights of other terms than those in use.
    """
    config = config or InvariantConfig()
    _check(images, labels, auxiliaries, reference, config)
    names, weights = tuple(config.strengths), config.strengths if weights is None else weights
    if set(weights) != set(names):
        raise ValueError(
            f"weights are for {', '.join(sorted(weights))}, but the terms in use are {', '.join(names)} (strengths of "
            "the config above 0); give one weight for each"
        )
    seen, labels = _seen(key, images, labels, config)
    row = jnp.stack([jnp.asarray(weights[name], jnp.float32) for name in names])[None] if names else jnp.zeros((1, 0))
    (loss,), (terms, found) = _weigh(row, seen, labels, (tuple(auxiliaries), reference), config)
    means = {f"loss_{name}": value for name, value in zip(names, terms.mean(axis=1), strict=True)}
    return loss, {**means, **_metrics(found, labels, config)}


def _check(images, labels, auxiliaries, reference, config) -> None:
    chex.assert_rank([images, labels], [4, 1])
    if not auxiliaries:
        raise ValueError("the invariant loss needs at least 1 auxiliary network, got 0")
    if len(auxiliaries) < 2 and ("var" in config.strengths or "pos" in config.strengths):
        raise ValueError("L_pos and L_var compare networks: give at least 2 auxiliaries, or set pos=0 and var=0")
    if config.kl and config.ai and reference is None:
        raise ValueError("kl != 0 needs reference=..., a frozen network of the backbone's architecture; or set kl=0")
    if config.subset > images.shape[0]:
        raise ValueError(f"subset={config.subset} is larger than the {images.shape[0]} synthetic images")


def _seen(key: jax.Array, images: jax.Array, labels: jax.Array, config: InvariantConfig) -> tuple[jax.Array, jax.Array]:
    """The images of this step under the view that all networks share, and their labels."""
    view_key, subset_key = jax.random.split(key)
    if config.subset:
        chosen = jax.random.choice(subset_key, images.shape[0], (config.subset,), replace=False)
        images, labels = images[chosen], labels[chosen]
    images = parallel.divide(images)
    # One shared draw: frozen networks shown the bare pixels invite adversarial patterns, and maps of different
    # views could not be compared.
    return augment.transform(view_key, images, augment.strategy(config.views), siamese=True), labels


def _weigh(
    rows: jax.Array, images: jax.Array, labels: jax.Array, frozen: tuple, config: InvariantConfig
) -> tuple[jax.Array, tuple[jax.Array, dict]]:
    """Rows [R, T] of weights times the means of the T terms: [R]; and what they come from, without gradient.

    Every term is a mean over images, so the images can pass the networks in parts.
    """

    def part(
        images: jax.Array, labels: jax.Array, shares: jax.Array, rows: jax.Array, frozen: tuple
    ) -> tuple[jax.Array, tuple]:
        values, found = _look(images, labels, frozen, config)
        return rows @ (values @ shares), (values, found)

    size = config.micro_batch or (_CPU_PART if jax.default_backend() == "cpu" else len(images))
    return parts.means(part, images, labels, rows, frozen, size=size)


def _look(images: jax.Array, labels: jax.Array, frozen: tuple, config: InvariantConfig) -> tuple[jax.Array, dict]:
    """The terms of each image [T, B], and what they were made from: logits, maps, kl [M, B, ...]."""
    (auxiliaries, reference), strengths = frozen, config.strengths
    needs_maps = "var" in strengths or ("pos" in strengths and config.positivity != "hinge")

    def look(auxiliary: Auxiliary, images: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        if needs_maps:
            return features.observe(auxiliary, images, labels, config=config.cam)
        return None, features.logits_of(auxiliary, images)

    view = jax.checkpoint(look) if config.checkpoint else look
    maps, logits = zip(*[view(auxiliary, images) for auxiliary in auxiliaries], strict=True)
    found = {"logits": jnp.stack(logits), **({"maps": jnp.stack(maps)} if needs_maps else {})}
    terms = {}
    if "ai" in strengths:
        terms["ai"] = cross_entropy(found["logits"], labels).sum(axis=0)
        if config.kl:
            found["kl"] = _reference_divergence(found["logits"], images, reference, config)
            terms["ai"] += config.kl * found["kl"].sum(axis=0)
    if "pos" in strengths:
        terms["pos"] = positivity(found.get("maps"), found["logits"], labels, kind=config.positivity)
    if "var" in strengths:
        terms["var"] = variance(found["maps"])
    return jnp.stack([terms[name] for name in strengths]) if terms else jnp.zeros((0, len(images))), found


def _reference_divergence(logits, images, reference, config) -> jax.Array:
    target = features.logits_of(reference, images)
    kl = divergence(logits, target, temperature=config.temperature, reverse=config.kl_reverse)
    return jnp.minimum(kl, config.kl_cap) if config.kl_cap else kl


def _metrics(found: dict[str, jax.Array], labels: jax.Array, config: InvariantConfig) -> dict[str, jax.Array]:
    facts = {}
    if config.ai:
        facts["cross_entropy"] = cross_entropy(found["logits"], labels).mean()
        facts["auxiliary_accuracy"] = (found["logits"].argmax(axis=2) == labels[None]).mean()
    if "kl" in found:
        facts["kl"] = found["kl"].mean()
    return facts | (_map_facts(found["maps"]) if "maps" in found else {})


def _map_facts(maps: jax.Array) -> dict[str, jax.Array]:
    # L_var alone is zero when every map is dead, so these stand beside it in every log.
    facts = split.measure(maps)
    return {
        "meta_ratio": facts["meta_ratio"],
        "chance_corrected": facts["chance_corrected"],
        "high_area": facts["high_area"].mean(),
        "dead_share": facts["dead_share"].mean(),
        "map_entropy": facts["entropy"].mean(),
    }
