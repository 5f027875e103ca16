"""MetaDD: the architecture-invariant terms as a penalty over any method.

    L = L_dd + w_ai L_ai + w_pos L_pos + w_var L_var

Source: MetaDD (arXiv 2410.05103), section 2 of the method notes. The terms join at every update of the synthetic
images [Q]; their weights are [U], by default calibrated (see ``penalty``).
"""

from __future__ import annotations

from collections.abc import Sequence

from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.penalty import Strengths, penalise_by
from metadd_jax.invariant import InvariantConfig
from metadd_jax.structs import Auxiliary


def metadd(
    base: Distiller,
    auxiliaries: Sequence[Auxiliary],
    *,
    reference: Auxiliary | None = None,
    config: InvariantConfig | None = None,
) -> Distiller:
    """Adds the architecture-invariant loss to ``base``.

    Args:
      base: any method.
      auxiliaries: M frozen pre-trained networks (see ``features.freeze``).
      reference: frozen pre-trained network of the backbone's architecture, the main network of the KL term.
      config: the switches of the loss; None for the defaults.

    Returns:
      A method like ``base`` (see ``penalise``), called "BASE+metadd".

    Raises:
      ValueError: as ``penalise``; for a ``config`` that is none.
    """
    # The paper gives no proportions of its weights; ours are strengths beside the base method,
    # and 1:1:1 raw is ``paper``.
    config = InvariantConfig() if config is None else config
    if not isinstance(config, InvariantConfig):
        raise ValueError(f"config={config!r} must be an InvariantConfig; {{'ai': 1.0}} is InvariantConfig(ai=1.0)")
    terms: Strengths = {term: config.strengths[name] for name, term in config.terms.items()}
    return penalise_by(base, auxiliaries, terms, config, reference=reference, name="metadd")
