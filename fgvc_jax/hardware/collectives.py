"""What a step sends between chips, read from the text of the compiled program."""

import math
import re
from typing import NamedTuple

from fgvc_jax.hardware import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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

    Args:
      text: `compiled.as_text()`.
      devices: over which the program runs; what a collective without groups spans.
    """
    bodies = hlo.computations(text)
    found: dict[str, list[tuple[int, int, float]]] = {}
    for name, factor in hlo.times(bodies, within=True).items():
        if not factor or _goes_on(name, bodies[name]):
            continue
        for operation in bodies[name]:
            kind = operation.kind.removesuffix("-start")
            if kind not in KINDS:
                continue
            size, group = _bytes(operation), _group(operation.line, devices)
            size *= group if kind == "reduce-scatter" else 1
            # A TPU's, around the sum over all and the cut.
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            found.setdefault(kind, []).append((factor, size, _sent(kind, size, group)))
    return [
        Collective(
            kind, sum(n for n, *_ in some), *(sum(x[0] * x[i] for x in some) for i in (1, 2))
        )
        for kind, some in sorted(found.items())
    ]


def _goes_on(name: str, operations: list[hlo.Operation]) -> bool:
    """Whether a computation repeats a collective that began in another one, beside a TPU's arithmetic."""
    ends = any('"AsyncCollectiveDone"' in operation.line for operation in operations)
    return ends or name.startswith("async_collective_fusion")


def _bytes(operation: hlo.Operation) -> int:
    sizes = [array.bytes for array in operation.result]
    if operation.kind == "collective-permute-start":
        return sizes[1]  # (operand, result, ...)
    if operation.kind in ("all-gather-start", "reduce-scatter-start"):
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
