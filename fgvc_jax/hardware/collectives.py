"""What a step sends between chips, read from the text of the compiled program (HLO)."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "token": 0}  # of types whose name does not end in their bits

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)"
)
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_KNOWN = re.compile(r'known_trip_count\D*"?n"?\D*(\d+)')
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


class Collective(NamedTuple):
    """The collectives of one kind in a step, each chip's own.

    Attributes:
      kind: one of KINDS.
      count: how many are run.
      bytes: of their results, in all; of a reduce-scatter of what goes in.
      sent: bytes that a chip sends in a ring, the least there is.
    """

    kind: str
    count: int
    bytes: int
    sent: float


def read(text: str, devices: int) -> list[Collective]:
    """The collectives of a program by kind, those in loops counted as often as the loop runs.

    How often: as the compiler notes it, else the constant that the loop's condition compares with, since
    every loop that `jax.lax` makes counts from 0 by 1.

    Args:
      text: `compiled.as_text()`.
      devices: over which the program runs; what a collective without groups spans.
    """
    bodies = _computations(text)
    times = _times(bodies)
    found: dict[str, list[tuple[int, int, float]]] = {}
    for name, lines in bodies.items():
        for line in lines:
            match = _OPERATION.search(line)
            if not match or not times.get(name):
                continue
            result, kind, started = match.groups()
            size, group = _bytes(result, kind, bool(started)), _group(line, devices)
            if kind == "reduce-scatter":
                size *= group
            found.setdefault(kind, []).append((times[name], size, _sent(kind, size, group)))
    return [
        Collective(
            kind,
            sum(n for n, *_ in all_),
            sum(n * b for n, b, _ in all_),
            sum(n * s for n, _, s in all_),
        )
        for kind, all_ in sorted(found.items())
    ]


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation, by its name; the entry's is ''."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = found.setdefault("" if line.startswith("ENTRY") else head[1], [])
        else:
            lines.append(line)
    return found


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one run of the entry."""
    times = dict.fromkeys(bodies, 0)

    def visit(name: str, factor: int) -> None:
        times[name] += factor
        for line in bodies[name]:
            loop = _WHILE.search(line)
            if loop:
                trips = _trips(line, bodies.get(loop[1], ()))
                for inner in loop.groups():
                    visit(inner, factor * trips)
                continue
            for names in _CALLED.findall(line):
                for inner in names.split(", "):
                    if inner.lstrip("%") in bodies:
                        visit(inner.lstrip("%"), factor)

    visit("", 1)
    return times


def _trips(line: str, condition: Iterable[str]) -> int:
    known = _KNOWN.search(line)
    if known:
        return int(known[1])
    bounds = [int(n) for other in condition for n in _BOUND.findall(other)]
    return max(bounds, default=1)


def _bytes(result: str, kind: str, started: bool) -> int:
    """Bytes of a result such as 'f32[8,4]{1,0}' or '(f32[8], bf16[4])'."""
    sizes = []
    for dtype, shape in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", result)):
        digits = re.search(r"\d+$", dtype)
        bits = _BITS.get(dtype, int(digits[0]) if digits else 8)
        sizes.append(math.prod(int(n) for n in shape.split(",") if n) * bits // 8)
    if started and kind == "collective-permute":
        return sizes[1]  # (operand, result, ...)
    if started and kind == "all-gather":
        return sum(sizes[len(sizes) // 2 :])  # (operands, results)
    return sum(sizes)


def _group(line: str, devices: int) -> int:
    """How many chips one collective spans."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return listed[1].count(",") + 1 if listed else devices


def _sent(kind: str, size: int, group: int) -> float:
    """Bytes that each chip of a ring sends (Patarasuk & Yuan 2009)."""
    if kind == "collective-permute":
        return size
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)
