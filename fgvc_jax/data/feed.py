"""Canvases to the device, by one of two ways with the same batches, order and pixels.

'resident': all canvases of a split live in device memory and the jitted step gathers its own.
'streamed': host threads copy each batch out of the memory-mapped cache and send it.
"""

import functools
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax.data.cache import Canvases

BATCH = P(("data", "model"))  # the batch axis is split over all devices of the mesh
Resident = tuple[tuple[jax.Array, jax.Array], ...]


def to_device(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array from the same host array in every process; each sends only its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def make_resident(canvases: Canvases, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """(pixels [N, C, C, 3] uint8, sizes [N, 2] int32) on every device."""
    everywhere = NamedSharding(mesh, P())
    return to_device(canvases.pixels, everywhere), to_device(canvases.sizes, everywhere)


class Feed:
    """Batches of examples; an example has one image (a view) or, for pairs, two.

    Attributes:
      resident: the arrays to pass to the jitted step; empty when streamed.
    """

    def __init__(self, views: Sequence[Canvases], mesh: Mesh, resident: Resident = ()):
        """Args: the canvases that each view's index refers to; for 'resident', the same on the device."""
        self.views = views
        self.mesh = mesh
        self.resident = resident
        self.sharding = NamedSharding(mesh, BATCH)

    def batch(self, index: np.ndarray, **columns: np.ndarray) -> dict[str, jax.Array]:
        """{'index' int32 [B, V]} or {'pixels' uint8 [B, V, C, C, 3], 'sizes' int32 [B, V, 2]}, and columns.

        Args:
          index: int [B, V], the row of each view in its canvases.
          columns: arrays with leading axis B, such as label and mask.
        """
        result = {name: to_device(column, self.sharding) for name, column in columns.items()}
        if self.resident:
            return result | {"index": to_device(index.astype(np.int32), self.sharding)}

        def load(what: str):
            side = getattr(self.views[0], what).shape[1:]

            def rows(part):  # only the rows that a device of this process holds are read
                chosen = index[part[0]]
                columns = [getattr(v, what)[chosen[:, i]] for i, v in enumerate(self.views)]
                return np.stack(columns, axis=1)

            shape = (*index.shape, *side)
            return jax.make_array_from_callback(shape, self.sharding, rows)

        return result | {"pixels": load("pixels"), "sizes": load("sizes")}

    def stream(self, sampler: grain.MapDataset, examples: dict[str, np.ndarray]) -> Iterator[dict]:
        """Batches for every entry of the sampler, made ahead of time by threads.

        Args:
          sampler: its entries are int [B] rows of `examples`.
          examples: 'index' int [E, V], and further columns with leading axis E.
        """

        def make(rows: np.ndarray) -> dict:
            return self.batch(**{name: column[rows] for name, column in examples.items()})

        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return iter(sampler.map(make).to_iter_dataset(options))


@functools.partial(jax.jit, static_argnames="mesh")
def gather(resident: Resident, batch: dict[str, jax.Array], mesh: Mesh):
    """Of a batch, inside the train step or by itself: (pixels uint8 [B, V, C, C, 3], sizes int32 [B, V, 2]).

    Each device copies its own examples one slice at a time: a plain `pixels[index]` copies half the cache
    on a TPU, and left to the partitioner it sums the whole batch over all devices.
    """
    if not resident:
        return batch["pixels"], batch["sizes"]

    def local(resident, index):
        columns = [
            jax.lax.map(lambda i, p=pixels, s=sizes: (p[i], s[i]), index[:, view])
            for view, (pixels, sizes) in enumerate(resident)
        ]
        return jax.tree.map(lambda *views: jax.numpy.stack(views, axis=1), *columns)

    return jax.shard_map(local, mesh=mesh, in_specs=(P(), BATCH), out_specs=BATCH)(
        resident, batch["index"]
    )
