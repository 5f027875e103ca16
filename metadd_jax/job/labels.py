"""What judged networks learn from: one choice for every row of a table, the real images' among them.

Soft labels of a teacher lift random real images as much as distilled ones, so rows under different labels say nothing
about the sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import metadd_jax as mdd
from metadd_jax import ranges
from metadd_jax.training import relabel

FORMS = (
    "hard, own, teacher, teacher:NET, teacher:NET+NET (the mean of their logits), teacher:0.7*NET+0.3*NET, or "
    "prior:63*NET+65*NET (softmax(63/10, 65/10))"
)
_PRIOR_TEMPERATURE = 10.0  # CV-DD's, where a committee labels


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of an evaluation.

    Attributes:
      rule: "hard", "own" (a set's soft labels where it has them, else its hard ones) or "teacher".
      networks: the teachers as the user writes them; none stands for the method's own teacher.
      weights: of their logits, one each, 1 in all.
    """

    rule: str
    networks: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()


def read(text: str) -> Labels:
    """Reads the labels of an evaluation.

    Args:
      text: one of ``FORMS``.

    Raises:
      ValueError: if it is none of them, or names a network that does not exist, or one twice.
    """
    rule, colon, rest = text.partition(":")
    if not colon and rule in ("hard", "own", "teacher"):
        return Labels(rule)
    if not colon or rule not in ("teacher", "prior"):
        raise ValueError(
            f"cannot read the labels {text!r}{ranges.nearest(text, ('hard', 'own', 'teacher'))}; write {FORMS}"
        )
    numbers, networks = [], []
    for part in rest.split("+"):
        number, star, network = part.rpartition("*")
        numbers.append(_number(number, text) if star else None)
        networks.append(network.strip())
        mdd.zoo.check(networks[-1])
    if len(set(networks)) < len(networks):
        raise ValueError(f"the labels {text!r} name a network twice; give it a larger weight instead")
    given = [number for number in numbers if number is not None]
    if rule == "prior" and len(given) == len(networks):
        return Labels("teacher", tuple(networks), relabel.prior_weights(given, _PRIOR_TEMPERATURE))
    if rule == "prior" or len(given) not in (0, len(networks)):
        raise ValueError(f"the labels {text!r} have {len(given)} numbers for {len(networks)} networks; give each one")
    shares = given or [1.0] * len(networks)
    if min(shares) < 0 or not sum(shares) > 0:
        raise ValueError(f"the labels {text!r} weigh a network by {min(shares):g}; give numbers from 0, not all 0")
    return Labels("teacher", tuple(networks), tuple(share / sum(shares) for share in shares))


def _number(word: str, text: str) -> float:
    try:
        value = float(word)
    except ValueError as error:
        raise ValueError(f"cannot read {word!r} in the labels {text!r}; write a number, as in 0.7*NET") from error
    if not ranges.Real().holds(value):
        raise ValueError(f"the number {word} in the labels {text!r} is not finite")
    return value


def join(labels: Labels, trained: Sequence[mdd.training.Trained]) -> relabel.Teacher | None:
    """Makes the teacher of trained networks: none, one alone, or a committee.

    Args:
      labels: the labels.
      trained: those networks, in their order there; none where the labels are the sets' own.
    """
    # Only logits are wanted: the ranges of maps stay unmeasured.
    members = [mdd.Auxiliary(variables=one.variables, map_eps={}, net=one.net) for one in trained]
    if len(members) < 2:
        return members[0] if members else None
    return relabel.committee(members, weights=labels.weights)


def words(labels: Labels, own: str) -> str:
    """Names the labels as a user would ask for them.

    Args:
      labels: the labels.
      own: the label of the method's own teacher.
    """
    if labels.rule != "teacher":
        return labels.rule
    names = list(labels.networks) or [own]
    if len(names) > 1:
        names = [f"{share:.3g}*{name}" for share, name in zip(labels.weights, names, strict=True)]
    return f"teacher:{'+'.join(names)}"


def told(labels: Labels, teacher: relabel.Teacher | None, sets: Mapping[str, Sequence[mdd.SyntheticSet]]) -> str:
    """Names the labels in words that differ where the labels do, for ``report.rows_of``.

    Args:
      labels: the labels.
      teacher: who gives them, or None.
      sets: what is judged, by name.

    Returns:
      "hard", "own" where a set of the table has soft labels, or the teachers with their shares and eight digits of a
      hash of their weights: the same names may stand for other weights in another run.
    """
    if teacher is None:
        soft = any(one.soft_labels is not None for group in sets.values() for one in group)
        # "own" without a soft label is the same training as "hard", and must compare with it.
        return "own" if labels.rule == "own" and soft else "hard"
    own = "" if isinstance(teacher, relabel.Committee) else teacher.net.label
    return f"{words(labels, own)} {relabel.fingerprint(teacher)[:8]}"


def note(words: str, sets: Mapping[str, Sequence[mdd.SyntheticSet]]) -> str:
    """Says under which labels all networks of a table were trained, in a sentence.

    Args:
      words: of ``told``.
      sets: what was judged, by name.
    """
    if words == "hard":
        return "Labels of every row, the real images included: the hard ones."
    if not words.startswith("own"):
        return f"Labels of every row, the real images included: {words}."
    soft = [name for name, group in sets.items() if any(one.soft_labels is not None for one in group)]
    hard = [name for name in sets if name not in soft]
    beside = f", hard in {', '.join(hard)}: such rows are not under equal labels (--eval-labels)" if hard else ""
    return f"Labels: each set's own, soft in {', '.join(soft)}{beside}."
