"""A full device memory, told as a message that names the batch and what to change."""

import contextlib
from collections.abc import Iterator

import jax

from fgvc_jax.errors import UserError

_SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


@contextlib.contextmanager
def explained(where: str, batch: int) -> Iterator[None]:
    """Turns what the runtime raises for a lack of memory into a UserError.

    Args:
      where: the config key of the batch.
      batch: its value.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _SIGNS):
            raise
        said = text.strip().splitlines()[0][:200] if text.strip() else "out of memory"
        raise UserError(
            f"{where} = {batch:,} does not fit into memory ({said}). Lower {where}; or keep it and compute "
            "it in parts (accumulate=2, 4, ...), set config.model.remat=True, lower config.image.size, or "
            "split the parameters over devices (config.devices.fsdp)."
        ) from None
