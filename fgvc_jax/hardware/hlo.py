"""The text of a compiled program (HLO): its computations, how often each runs, the size of arrays."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0}  # of types whose name does not tell their bits
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(r"(?:to_apply|calls|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)")
_WHILE = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_KNOWN = re.compile(r'known_trip_count\D*"?n"?\D*(\d+)')
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


class Array(NamedTuple):
    """Attributes:
    row: bytes of one entry along the leading axis.
    on_chip: it lies in memory on the chip (of a TPU), not in the chip's main memory.
    """

    dtype: str
    bytes: int
    row: int
    on_chip: bool


class Operation(NamedTuple):
    name: str
    result: list[Array]
    kind: str  # such as 'fusion', 'all-reduce-start'
    operands: list[str]
    line: str


def computations(text: str) -> dict[str, list[Operation]]:
    """The operations of each computation, by its name; the entry's is ''."""
    found: dict[str, list[Operation]] = {}
    operations: list[Operation] = []
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            operations = found.setdefault("" if line.startswith("ENTRY") else head[1], [])
            continue
        match = _OPERATION.match(_plain(line))
        if match:
            name, result, kind, operands = match.groups()
            named = re.findall(r"%?([\w.-]+)(?:,|$)", operands)
            operations.append(Operation(name, list(_arrays(result)), kind, named, line))
    return found


def times(bodies: dict[str, list[Operation]], within: bool) -> dict[str, int]:
    """How often each computation runs in one run of the entry; 0 = never.

    A loop runs as often as the compiler notes it, else up to the constant that its condition compares with,
    since every loop that `jax.lax` makes counts from 0 by 1.

    Args:
      within: go into fusions and the like, which stand for one operation each.
    """
    count = dict.fromkeys(bodies, 0)

    def visit(name: str, factor: int) -> None:
        count[name] += factor
        for operation in bodies[name]:
            line = operation.line
            if operation.kind == "while":
                condition, body = _WHILE.search(line).groups()
                trips = _trips(line, bodies.get(condition, ()))
                visit(condition, factor * trips)
                visit(body, factor * trips)
            elif within or operation.kind in ("call", "conditional"):
                for names in _CALLED.findall(line):
                    for inner in names.split(", "):
                        if inner.lstrip("%") in bodies:
                            visit(inner.lstrip("%"), factor)

    visit("", 1)
    return count


def _plain(line: str) -> str:
    """The line with layouts cut to what tells the memory, since their brackets would end the operands."""
    return re.sub(r"\{[^{}]*?(S\([1-9]\d*\))?\}", lambda m: "{S}" if m[1] else "{}", line)


def _trips(line: str, condition: Iterable[Operation]) -> int:
    known = _KNOWN.search(line)
    if known:
        return int(known[1])
    bounds = [int(n) for operation in condition for n in _BOUND.findall(operation.line)]
    return max(bounds, default=1)


def _arrays(result: str) -> Iterator[Array]:
    """Of a result such as 'f32[8,4]{}' or '(f32[8]{S}, bf16[4]{})'."""
    for dtype, shape, layout in _SHAPE.findall(result):
        digits = re.match(r"[a-z]+(\d+)", dtype)
        bits = _BITS.get(dtype, int(digits[1]) if digits else 8)
        axes = [int(n) for n in shape.split(",") if n] or [1]
        size = math.prod(axes) * bits // 8
        yield Array(dtype, size, size // max(1, axes[0]), layout == "{S}")
