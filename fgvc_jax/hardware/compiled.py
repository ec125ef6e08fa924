"""What a compiled program takes: memory, arithmetic, traffic. All figures are one chip's."""

import re
from typing import Any, NamedTuple

import jax

from fgvc_jax.hardware import collectives, traffic
from fgvc_jax.hardware.chips import Chip
from fgvc_jax.hardware.collectives import Collective

_USED = re.compile(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT]?)(?: of|\))")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes.

    Attributes:
      arguments: the state and what else is passed, resident images and a batch among them.
      temporaries: activations and whatever lives within a step.
      output: beyond what takes the place of an argument.
      program: the code.
    """

    arguments: int
    temporaries: int
    output: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)


class Measured(NamedTuple):
    """Of one program on one chip.

    Attributes:
      memory: None where the compiler refused it for lack of memory.
      needed: bytes in all, as the compiler says; of a program that it refused, too; 0 = it did not say.
      flops: of one step; None where the compiler does not count them.
      bytes: of one step, to and from the chip's main memory; see `traffic`.
    """

    memory: Memory | None
    needed: int
    flops: float | None = None
    bytes: float | None = None
    collectives: tuple[Collective, ...] = ()

    def bound(self, chip: Chip) -> float | None:
        """Seconds that a step takes at least: its arithmetic or its memory traffic at full speed.

        Where traffic is not counted, the arithmetic alone; None where nothing is.
        """
        if not self.flops:
            return None
        return max(self.flops / chip.flops, (self.bytes or 0) / chip.bandwidth)

    def bound_by(self, chip: Chip) -> str | None:
        """What `bound` is the time of."""
        bound = self.bound(chip)
        if bound is None:
            return None
        return "arithmetic" if self.flops / chip.flops >= bound else "memory traffic"

    def sending(self, chip: Chip) -> float:
        """Seconds of the step's collectives, one after the other at full speed in a ring."""
        return sum(c.sent for c in self.collectives) / chip.ring


def memory(compiled: jax.stages.Compiled) -> Memory:
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.generated_code_size_in_bytes,
    )


def measure(traced: Any, devices: int, options: dict[str, Any] | None = None) -> Measured:
    """Compiles a program (`jax.stages.Traced`) for so many devices and reads what it takes.

    Args:
      options: for the compiler.
    """
    lowered = traced.lower()
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Measured(None, needed(str(error)))
    taken, cost, text = memory(compiled), compiled.cost_analysis() or {}, compiled.as_text()
    sent = collectives.read(text, devices) if devices > 1 else ()
    return Measured(taken, taken.total, cost.get("flops"), traffic.read(text), tuple(sent))


def flops(traced: Any) -> float | None:
    """Of one step over all devices, counted before the compiler has changed the program."""
    return (traced.lower().cost_analysis() or {}).get("flops")


def needed(text: str) -> int:
    """Bytes that a program needs, from the compiler's message that there are fewer; 0 = it does not say.

    'Ran out of memory in memory space hbm. Used 20.31G of 15.75G hbm.', or, far above the limit, 'the total
    memory required for HLO temporaries (17.00G) exceeds available HBM (15.75G)', without the arguments.
    """
    found = _USED.search(text)
    return round(float(found[1]) * _UNITS[found[2]]) if found else 0
