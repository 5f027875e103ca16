"""Kernels that a compiled program launches, and the memory that they read and write.

On a GPU each launch costs microseconds, which bounds a step of small networks; and a step of large maps and little
arithmetic is bounded by its memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# They name or rearrange what is there and start nothing.
_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier")
_PARTS = ("slice", "dynamic-slice", "gather")  # what reads no more than it gives
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, |$)(.*)")
_NUMBERING = re.compile(r"/\*index=\d+\*/")  # stands before every fifth part of a long tuple
_ARRAY = re.compile(r"\b[a-z]+(\d*)\[([\d,]*)\]")


class Kernel(NamedTuple):
    """One kernel of a program.

    Attributes:
      name: of its instruction.
      times: how often one call of the program starts it.
      moved: bytes that it reads and writes each time, if nothing is read twice and nothing from a cache.
    """

    name: str
    times: int
    moved: int


class _Instruction(NamedTuple):
    is_root: bool
    name: str
    shape: str
    kind: str
    operands: list[str]
    attributes: str


def kernels(program: str) -> list[Kernel]:
    """Lists the kernels of one call: every loop multiplied out, of a conditional the branch with the most.

    Args:
      program: optimised HLO, ``compiled.as_text()``. A fusion, a product, a convolution, a copy and a library's call
        are one kernel each. A loop whose rounds XLA does not know counts as one round.
    """
    entry, computations = _read(program)
    return list(_kernels(entry, 1, computations))


def _read(program: str) -> tuple[str, dict[str, list[_Instruction]]]:
    computations: dict[str, list[_Instruction]] = {}
    entry, lines = "", None
    for line in _NUMBERING.sub("", program).splitlines():
        if begins := _COMPUTATION.match(line):
            lines = computations.setdefault(begins[2], [])
            entry = begins[2] if begins[1] else entry
        elif lines is not None and (found := _INSTRUCTION.match(line)):
            root, name, shape, kind, operands, attributes = found.groups()
            named = re.findall(r"%([\w.\-]+)", operands)
            # A parameter has its number where others have operands.
            lines.append(_Instruction(bool(root), name, shape, kind, named or operands.split(), attributes))
    return entry, computations


def _kernels(name: str, times: int, computations: dict[str, list[_Instruction]]) -> Iterator[Kernel]:
    within = computations[name]
    shapes = {instruction.name: instruction.shape for instruction in within}
    for instruction in within:
        kind, attributes = instruction.kind, instruction.attributes
        if kind == "while":
            rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"', attributes)
            for called in _called(attributes, "body", "condition"):
                yield from _kernels(called, times * (int(rounds[1]) if rounds else 1), computations)
        elif kind == "conditional":
            branches = _called(attributes, "true_computation", "false_computation", "branch_computations")
            every = [list(_kernels(branch, times, computations)) for branch in branches]
            yield from max(every, key=lambda branch: sum(kernel.times for kernel in branch))
        elif kind == "call":
            for called in _called(attributes, "to_apply"):
                yield from _kernels(called, times, computations)
        elif kind not in _NOTHING:
            yield Kernel(instruction.name, times, _moved(instruction, shapes, computations))


def _moved(instruction: _Instruction, shapes: dict[str, str], computations: dict[str, list[_Instruction]]) -> int:
    """Bytes of what an instruction reads and writes."""
    if instruction.kind == "fusion":
        inside = computations[_called(instruction.attributes, "calls")[0]]
        numbers = {int(i.operands[0]): i.name for i in inside if i.kind == "parameter"}
        root = next(i for i in inside if i.is_root)
        if root.kind == "dynamic-update-slice":  # in place: reads and writes the part alone
            return 2 * _bytes({i.name: i.shape for i in inside}[root.operands[1]])
        read = [
            _read_of(numbers[number], shapes.get(own, ""), inside) for number, own in enumerate(instruction.operands)
        ]
        return _bytes(instruction.shape) + sum(read)
    shape = instruction.shape
    if instruction.kind == "custom-call":
        shape = re.sub(r"\b[su]8\[[\d,]*\]", "", shape)  # a library's scratch
    return _bytes(shape) + sum(_bytes(shapes.get(operand, "")) for operand in instruction.operands)


def _read_of(name: str, shape: str, inside: list[_Instruction]) -> int:
    """Bytes of an array that a fusion reads: of what it takes apart and nothing else, the parts."""
    whole, parts = _bytes(shape), 0
    for user in (i for i in inside if name in i.operands):
        if user.kind == "bitcast":
            parts += _read_of(user.name, user.shape, inside)
        else:
            parts += _bytes(user.shape) if user.kind in _PARTS else whole
    return min(whole, parts)


def _bytes(shape: str) -> int:
    return sum(
        math.prod(int(side) for side in sides.split(",") if side) * max(8, int(bits or 8)) // 8
        for bits, sides in _ARRAY.findall(shape)
    )


def _called(attributes: str, *names: str) -> list[str]:
    found = re.findall(rf"(?:{'|'.join(names)})=(\{{[^}}]*\}}|%?[\w.\-]+)", attributes)
    return [name.strip().lstrip("%") for text in found for name in text.strip("{}").split(",")]
