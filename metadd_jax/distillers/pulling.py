"""How hard each term of a loss pulls at the synthetic images, and whether it pulls with the base method."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metadd_jax.distillers.contract import Distiller
from metadd_jax.structs import DistillState, ImageArrays


def pulls(key: jax.Array, method: Distiller, state: DistillState, data: ImageArrays) -> dict[str, jax.Array]:
    """Measures the mean gradient of every part of a method's loss where a set stands.

    The first call compiles, once for all seeds of the method. Of what is trained arrays count and scalars (a learned
    step size) do not.

    Args:
      key: draws the batches and all that is random in the loss.
      method: a method whose loss is a sum, such as ``penalise`` and ``metadd`` return.
      state: where the set stands; it is not changed.
      data: the real images.

    Returns:
      "gradient_norm_base" [], and for each weighted term and their sum "gradient_norm_NAME" [] and "cosine_NAME" [],
      its cosine with the base method's gradient; {} for a method whose loss is no sum (``Distiller.terms`` is None).
    """
    if method.terms is None:
        return {}
    vectors, weights = method.terms.compiled(key, state.synthetic, state.aux, data, method.frozen)
    # Sums over the batches: the norms are those of the means, and cosines do not care.
    base, batches = vectors["base"], method.terms.batches
    # Weighted: what counts is the pull in the update and not that of the raw term.
    weighted = {name: weights[name] * vectors[name] for name in weights}
    weighted[method.terms.name] = sum(weighted.values(), start=jnp.zeros_like(base))

    def cosine(vector: jax.Array) -> jax.Array:
        # The tiny number lets a term without gradient have cosine 0 and not NaN.
        return base @ vector / (jnp.linalg.norm(base) * jnp.linalg.norm(vector) + 1e-20)

    return {
        "gradient_norm_base": jnp.linalg.norm(base) / batches,
        **{f"gradient_norm_{name}": jnp.linalg.norm(vector) / batches for name, vector in weighted.items()},
        **{f"cosine_{name}": cosine(vector) for name, vector in weighted.items()},
    }
