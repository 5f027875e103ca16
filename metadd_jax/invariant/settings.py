"""The settings of the invariant loss: strengths, the switches of each term, and how the networks are shown images."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

from metadd_jax import augment, features
from metadd_jax.invariant.terms import POSITIVITY, TERMS, Term, as_term, l_ai, l_pos, margin
from metadd_jax.ranges import OneOf, Pairs, Real, Text, Whole, check, nearest

WEIGHTING = ("calibrated", "unsaturated", "per_step", "raw")
FOCUS_MASKS = ("hard", "soft")
PROJECT = ("none", "set", "image")
SCHEDULES = ("constant", "falling", "rising")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvariantConfig:
    """The switches of the loss; hashable. Defaults are argued for in the method notes, or measured.

    Attributes:
      ai, pos, var: strength of L_ai, L_pos and L_var: the size of the term's gradient relative to that of the base
        loss, or with weighting "raw" the plain weight; 0 leaves the term out. By default L_ai stands alone
        (docs/laboratory.md).
      weighting: "calibrated" (once at the start), "unsaturated" (the same, L_ai by its ``margin``, whose gradient
        stays where networks are sure), "per_step" or "raw".
      cap: upper bound of a calibrated weight.
      calibration_steps: how many base steps the mean gradients are measured over.
      project: take out of the added gradient what points against the base method's (PCGrad, ``distillers.conflict``):
        "none", "set" (over the whole set) or "image" (image by image).
      focus: how far the base method's gradient is weighed by where all networks look, 0 (not) to 1 (it moves nothing
        else); the mean weight of an image stays 1 (``focus``). For sets of pixels. It costs a pass of all images
        through all networks.
      focus_mask: "hard", the pixels that are high (``cam.threshold``) in all maps, or "soft", the least of the maps.
      focus_cap: largest weight of a pixel: where the networks share little of an image, its focus is lowered.
      schedule: what becomes of all weights over the run: "constant", "falling" (linearly to 0 after ``schedule_steps``
        updates) or "rising" (from 0 to their full size after so many).
      schedule_steps: see there; None in a job stands for all of its updates.
      kl: s, the sign and size of the KL term in L_ai: +1 towards the reference (the paper's formula as reported),
        -1/2 away from it, 0 without, which did best on validation images (docs/measurements.md).
      kl_reverse: KL(p_m || p_ref) instead of KL(p_ref || p_m).
      kl_cap: upper bound of the KL of one image and network in nats, needed where s < 0 makes it unbounded; None for
        none.
      temperature: softmax temperature T of both sides of the KL.
      positivity: L_pos as "jaccard", "soft_ratio" or "hinge" (see ``positivity``).
      views: DSA tokens joined by "_" (or an ``augment.Strategy``) for the one draw that all auxiliaries share; "none"
        shows the plain image.
      drawn: number of auxiliaries that look at a step, drawn anew without replacement, as in CLoM (1 of a pool); None
        for all. The others are not passed in that step. The ``focus`` is that of all.
      further_lr: step size of the step that each auxiliary takes on the set before each update (``further``); 0 leaves
        them frozen. Not beside terms that compare with real images. It costs a training step of all networks.
      subset: number of synthetic images looked at per step (random, unbiased); None for all.
      micro_batch: largest number of images that pass the auxiliaries at once; None for all, on a CPU for 10.
        Memory is that of one part, whose gradient is taken as it passes by; no work is done twice.
      checkpoint: keep nothing of an auxiliary's forward pass but its input and compute the rest again for the
        gradient: memory of one auxiliary at a time instead of all, for about a third more work in them.
      cam: how maps are made.
      extra: further terms by name (``invariant.register``), each with its strength.
    """

    # The simplest that was never worse than the base method: no map term, no KL (docs/laboratory.md).
    ai: Annotated[float, Real(0)] = 3.0
    pos: Annotated[float, Real(0)] = 0.0
    var: Annotated[float, Real(0)] = 0.0
    weighting: Annotated[str, OneOf(WEIGHTING)] = "unsaturated"
    cap: Annotated[float, Real(0, above=True)] = 1e4
    calibration_steps: Annotated[int, Whole(1)] = 20
    project: Annotated[str, OneOf(PROJECT)] = "none"
    focus: Annotated[float, Real(0, 1)] = 0.0
    focus_mask: Annotated[str, OneOf(FOCUS_MASKS)] = "hard"
    focus_cap: Annotated[float, Real(1, above=True)] = 10.0
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant"
    schedule_steps: Annotated[int | None, Whole(1)] = None
    kl: Annotated[float, Real()] = 0.0
    kl_reverse: bool = False
    kl_cap: Annotated[float | None, Real(0, above=True)] = None
    temperature: Annotated[float, Real(0, above=True)] = 1.0
    positivity: Annotated[str, OneOf(POSITIVITY)] = "jaccard"
    views: Annotated[augment.Augmentation, Text("augment.strategy")] = "color_crop_cutout_flip_scale_rotate"
    drawn: Annotated[int | None, Whole(1)] = None
    further_lr: Annotated[float, Real(0)] = 0.0
    subset: Annotated[int | None, Whole(1)] = None
    micro_batch: Annotated[int | None, Whole(1)] = None
    checkpoint: bool = False
    cam: features.CamConfig = features.CamConfig()
    extra: Annotated[tuple[tuple[str, float], ...], Pairs(Real(0))] = ()

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.cam, features.CamConfig):
            raise ValueError(f"cam={self.cam!r} must be a features.CamConfig; leave it out for the defaults")
        if self.views != "auto":  # the main job's word for "as the data has it"
            augment.strategy(self.views)
        if self.kl < 0 and self.kl_cap is None:
            raise ValueError(f"kl={self.kl} pushes the KL up without bound; give kl_cap > 0 as well")
        for index, (name, _) in enumerate(self.extra):
            if name not in TERMS:
                known = ", ".join(TERMS)
                raise ValueError(f"extra names an unknown term {name!r}{nearest(name, TERMS)}; use one of {known}")
            if name in ("ai", "pos", "var", *dict(self.extra[:index])):
                raise ValueError(f"extra gives a second strength for the term {name!r}; give it one")

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
        every: dict[str, Any] = fields | changes
        return cls(**every)

    @property
    def strengths(self) -> dict[str, float]:
        """The terms in use and their strengths."""
        every = {"ai": self.ai, "pos": self.pos, "var": self.var, **dict(self.extra)}
        return {name: strength for name, strength in every.items() if strength > 0}

    @property
    def terms(self) -> dict[str, Term]:
        """The terms in use, by name, under the switches of these settings."""
        ai = functools.partial(
            l_ai, kl=self.kl, kl_cap=self.kl_cap, kl_reverse=self.kl_reverse, temperature=self.temperature
        )
        pos = functools.partial(l_pos, kind=self.positivity, threshold=self.cam.threshold)
        switched = {
            "ai": Term("ai", ai, needs=("reference",) if self.kl else (), unit=margin),
            "pos": Term("pos", pos, needs=() if self.positivity == "hinge" else ("maps",), compares=True),
        }
        return {name: switched.get(name) or as_term(name) for name in self.strengths}
