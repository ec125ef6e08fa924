"""The chips that a plan knows, with what their makers say of them."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip, as JAX sees it: one device.

    Attributes:
      name: as `--on` calls it.
      kind: how `device.device_kind` begins.
      flops: bfloat16 FLOP/s at most, dense.
      memory: bytes.
      share: of the memory that programs may fill; a GPU's is what JAX takes unless told otherwise
        (XLA_PYTHON_CLIENT_MEM_FRACTION).
      bandwidth: of the memory, bytes/s.
      ring: bytes/s that a chip sends in a ring over the chips of a slice, both ways at once. On a TPU: two of
        its ports; on a GPU: all of its NVLink, one way.
    """

    name: str
    kind: str
    flops: float
    memory: float
    share: float
    bandwidth: float
    ring: float

    @property
    def room(self) -> float:
        """Bytes that programs may fill."""
        return self.memory * self.share


# TPU: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, "Key chip specifications". A port carries its part
# of the chip's interconnect bandwidth: 2,400 Gbit/s over 6 ports, 1,600 over 4, 4,800 over 6, 3,200 over 4.
# GPU: NVIDIA's data sheets of H100 SXM, H200 SXM and A100 80GB SXM, without sparsity.
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * 2**30, 0.98, 1228e9, 100e9),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * 2**30, 0.98, 819e9, 100e9),
    Chip("v5p", "TPU v5", 459e12, 95 * 2**30, 0.98, 2765e9, 200e9),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * 2**30, 0.98, 1640e9, 200e9),
    Chip("h100", "NVIDIA H100", 989e12, 80 * 2**30, 0.75, 3350e9, 450e9),
    Chip("h200", "NVIDIA H200", 989e12, 141e9, 0.75, 4800e9, 450e9),
    Chip("a100", "NVIDIA A100", 312e12, 80 * 2**30, 0.75, 2039e9, 300e9),
)


def of(device_kind: str) -> Chip | None:
    """The chip of a device; None where it is not in the table, as a CPU."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.kind)), None)
