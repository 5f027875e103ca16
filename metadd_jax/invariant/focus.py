"""Where all networks look, as a weight of the base method's gradient: no penalty, but a say in what it may change.

Ours, made of MetaDD's split of maps (arXiv 2410.05103; ``split.split_maps``): the gradient of the base method in the
pixel ij of an image is multiplied by

    w_ij = (1 - f) + f m_ij / mean_ij m,    m_ij = 1[c_m,ij >= t for all m]  or  min_m c_m,ij,

c_m the image's class activation map by network m, t = 0.5 by default. The mean of w over an image is 1, so that the
step size keeps its meaning. The largest w is at most ``cap``: where it would be more, as in an image in which the
networks share one pixel (1-epoch networks on digits: w = 784), f is lowered for that image to
(cap - 1) / (max m / mean m - 1). An image without meta features (dead maps) has w = 1 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from metadd_jax import features, parallel, parts, split
from metadd_jax.invariant.loss import part_size
from metadd_jax.invariant.settings import FOCUS_MASKS, InvariantConfig
from metadd_jax.ranges import OneOf, require
from metadd_jax.structs import Auxiliary


def focus_weights(
    maps: jax.Array, *, focus: float, mask: str = "hard", cap: float = 10.0, threshold: float = 0.5
) -> jax.Array:
    """Computes w [B, H, W] of the module's formula; its mean over each image is 1.

    Args:
      maps: [M, B, H, W] in [0, 1].
      focus: f in [0, 1]; at 1 nothing outside of the mask moves.
      mask: m as "hard", the meta features, or "soft", the least of the maps.
      cap: largest w, above 1.
      threshold: t, from which value on a map is high for a hard mask.

    Raises:
      ValueError: for another mask.
    """
    require("mask", mask, OneOf(FOCUS_MASKS))
    chex.assert_rank(maps, 4)
    m = split.split_maps(maps, threshold=threshold).meta.astype(maps.dtype) if mask == "hard" else maps.min(axis=0)
    share = m.mean(axis=(1, 2), keepdims=True)
    # The division is kept from 0 before the choice: of two branches both are computed.
    above = jnp.where(share > 0, m / jnp.where(share > 0, share, 1.0), 1.0) - 1.0
    peak = above.max(axis=(1, 2), keepdims=True)
    return 1.0 + above * jnp.minimum(focus, (cap - 1.0) / jnp.where(peak > 0, peak, 1.0))


def focus_on_meta(
    images: jax.Array, labels: jax.Array, auxiliaries: Sequence[Auxiliary], *, config: InvariantConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Looks at the plain images through all networks and computes w: constants, without a gradient.

    Args:
      images: [N, H, W, C] in the set's value space.
      labels: [N] int.
      auxiliaries: M frozen networks with spatial maps.
      config: ``focus``, ``focus_mask``, ``focus_cap``, ``cam`` and ``micro_batch`` count.

    Returns:
      w [N, H, W], and metrics: "focus_area" [], the share of pixels with w above 1, and "focus_largest" [], the
      largest w.

    Raises:
      ValueError: see ``features.observe``.
    """
    # The plain images and not a view: the weights lie over the pixels that are trained.
    images = parallel.divide(jax.lax.stop_gradient(images))

    def look(part: tuple[jax.Array, jax.Array]) -> Any:
        maps = features.stack_maps(auxiliaries, *part, config=config.cam)
        return focus_weights(
            maps, focus=config.focus, mask=config.focus_mask, cap=config.focus_cap, threshold=config.cam.threshold
        )

    w = jax.lax.stop_gradient(parts.map_parts(look, (images, labels), size=part_size(images, config, {})))
    return w, {"focus_area": (w > 1).mean(), "focus_largest": w.max()}


def weigh_gradient(images: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns ``images`` as they are, to the bit, whose gradient is multiplied by w on its way back.

    Args:
      images: [N, H, W, C].
      weights: w [N, H, W]; constants.
    """
    return images + (weights - 1.0)[..., None] * (images - jax.lax.stop_gradient(images))
