"""A full device memory, told as a message that names the batch and what to change."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from fgvc_jax.errors import UserError
from fgvc_jax.hardware.compiled import needed

_SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


@dataclasses.dataclass
class Estimate:
    """Bytes that the compiled step needs on each device; 0 = not known (yet)."""

    bytes: int = 0


@contextlib.contextmanager
def explained(where: str, batch: int) -> Iterator[Estimate]:
    """Turns what the compiler or the runtime raises for a lack of memory into a UserError.

    Yields an `Estimate` to be filled in once the step is compiled.

    Args:
      where: the config key of the batch.
      batch: its value.
    """
    estimate = Estimate()
    try:
        yield estimate
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _SIGNS):
            raise
        said = text.strip().splitlines()[0][:200] if text.strip() else "out of memory"
        need = estimate.bytes or needed(text)
        needs = f"; the step alone needs {need / 2**30:.2f} GiB on each device" if need else ""
        raise UserError(
            f"{where} = {batch:,} does not fit into memory ({said}){needs}. Lower {where}; or keep it and "
            "compute it in parts (accumulate=2, 4, ...), set config.model.remat=full, lower "
            "config.image.size, or split the parameters over devices (config.devices.fsdp). 'fgvc plan' "
            "finds the largest batch that fits an accelerator."
        ) from None
