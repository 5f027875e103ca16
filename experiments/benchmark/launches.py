"""Kernels that a compiled program launches: on a GPU each costs microseconds, which bounds a step of small networks."""

from __future__ import annotations

import re

# They name or rearrange what is there and start nothing.
_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?:\([^=]*?\)|\S+) ([\w\-]+)\(")
_NUMBERING = re.compile(r"/\*index=\d+\*/")  # stands before every fifth type of a long tuple


def count(program: str) -> int:
    """Counts the kernels of one call: every loop multiplied out, of a conditional the longest branch.

    Args:
      program: optimised HLO, ``compiled.as_text()``. A fusion, a product, a convolution, a copy and a library's call
        are one kernel each.

    Returns:
      Their number. A loop whose rounds XLA does not know counts as one round.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in _NUMBERING.sub("", program).splitlines():
        if begins := _COMPUTATION.match(line):
            lines = computations.setdefault(begins[1], [])
            entry = begins[1] if line.startswith("ENTRY") else entry
        elif lines is not None:
            lines.append(line)

    def kernels(name: str) -> int:
        return sum(of(line) for line in computations[name])

    def of(line: str) -> int:
        instruction = _INSTRUCTION.match(line)
        if instruction is None or instruction[1] in _NOTHING:
            return 0
        if instruction[1] == "while":
            rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            return (int(rounds[1]) if rounds else 1) * sum(map(kernels, _called(line, "body", "condition")))
        if instruction[1] == "conditional":
            return max(map(kernels, _called(line, "true_computation", "false_computation", "branch_computations")))
        if instruction[1] == "call":
            return sum(map(kernels, _called(line, "to_apply")))
        return 1

    return kernels(entry)


def _called(line: str, *attributes: str) -> list[str]:
    found = re.findall(rf"(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%?[\w.\-]+)", line)
    return [name.strip().lstrip("%") for text in found for name in text.strip("{}").split(",")]
