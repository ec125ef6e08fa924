"""Canvases to the device, by one of two ways with the same batches, order and pixels.

'resident': all canvases of a split live in device memory, on every device or spread over them, and the
jitted step gathers its own.
'streamed': host threads take each batch out of the memory-mapped cache, or decode it, and send it.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax.data import sampler
from fgvc_jax.data.cache import Canvases, Decoded
from fgvc_jax.mesh import AXES, BATCH

THREADS = min(8, os.cpu_count() or 1)  # each makes a whole batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resident:
    """The canvases of a split in device memory; an argument of the jitted step.

    Attributes:
      pixels: uint8 [N, C, C, 3] on every device, or, where it is spread, in equal parts, the last padded.
      sizes: int32 [N, 2], on every device.
    """

    pixels: jax.Array
    sizes: jax.Array
    spread: bool = dataclasses.field(default=False, metadata={"static": True})


def to_device(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array from the same host array in every process; each sends only its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def make_resident(canvases: Canvases, mesh: Mesh, spread: bool = False) -> Resident:
    """Sends the canvases of a split, all to every device or, spread, each to one."""
    everywhere = NamedSharding(mesh, P())
    sizes = to_device(canvases.sizes, everywhere)
    if not spread:
        pixels = canvases.pixels if canvases.rows is None else canvases.pixels[canvases.rows]
        return Resident(to_device(pixels, everywhere), sizes)
    count, rest = len(canvases.sizes), canvases.pixels.shape[1:]
    shape = (-(-count // mesh.size) * mesh.size, *rest)

    def rows(part) -> np.ndarray:
        start, stop, _ = part[0].indices(shape[0])
        found, _ = canvases.take(slice(start, stop))
        return np.pad(found, [(0, stop - start - len(found)), *[(0, 0)] * len(rest)])

    pixels = jax.make_array_from_callback(shape, NamedSharding(mesh, BATCH), rows)
    return Resident(pixels, sizes, spread=True)


class Feed:
    """Batches of examples; an example has one image or, for pairs, two.

    Attributes:
      sources: the canvases behind each of the V columns of an index, one an image of the example.
      resident: the arrays to pass to the jitted step; empty when streamed.
    """

    def __init__(
        self,
        sources: Sequence[Canvases | Decoded],
        mesh: Mesh,
        resident: tuple[Resident, ...] = (),
    ):
        """Args: the sources; the mesh; for 'resident', the same sources on the device."""
        self.sources = sources
        self.mesh = mesh
        self.resident = resident
        self.sharding = NamedSharding(mesh, BATCH)

    def batch(self, index: np.ndarray, **columns: np.ndarray) -> dict[str, jax.Array]:
        """{'index' int32 [B, V]} or {'pixels' uint8 [B, V, C, C, 3], 'sizes' int32 [B, V, 2]}, and columns.

        Args:
          index: int [B, V], V images an example: the row of each in the canvases of its column.
          columns: arrays with leading axis B, such as label and mask.
        """
        result = {name: to_device(column, self.sharding) for name, column in columns.items()}
        if self.resident:
            return result | {"index": to_device(index.astype(np.int32), self.sharding)}

        taken: dict[tuple, list[np.ndarray]] = {}

        def take(part) -> list[np.ndarray]:  # only the rows that a device of this process holds
            rows = index[part[0]]
            place = part[0].indices(len(index))
            if place not in taken:
                columns = [source.take(rows[:, i]) for i, source in enumerate(self.sources)]
                taken[place] = [np.stack(c, axis=1) for c in zip(*columns, strict=True)]
            return taken[place]

        def send(number: int, *rest: int) -> jax.Array:
            shape = (*index.shape, *rest)
            return jax.make_array_from_callback(shape, self.sharding, lambda p: take(p)[number])

        side = self.sources[0].side
        return result | {"pixels": send(0, side, side, 3), "sizes": send(1, 2)}

    def stream(self, order: grain.MapDataset, examples: dict[str, np.ndarray]) -> Iterator[dict]:
        """Batches for every entry of the order, made ahead of time by threads.

        Args:
          order: its entries are int [B] rows of `examples`.
          examples: 'index' int [E, V], and further columns with leading axis E.
        """

        def make(rows: np.ndarray) -> dict:
            return self.batch(**{name: column[rows] for name, column in examples.items()})

        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
        return iter(order.map(make).to_iter_dataset(options))

    def in_order(self, index: np.ndarray, batch: int) -> Iterator[tuple]:
        """Every example of an index int [N, V] once: (pixels, sizes, mask bool [B]); the last is padded."""
        batches = sampler.in_order(len(index), batch)
        order = grain.MapDataset.source([rows for rows, _ in batches])
        for number, examples in enumerate(self.stream(order, {"index": index})):
            yield *gather(self.resident, examples, self.mesh), batches[number][1]


@functools.partial(jax.jit, static_argnames="mesh")
def gather(resident: tuple[Resident, ...], batch: dict[str, jax.Array], mesh: Mesh):
    """The canvases of a batch: (pixels uint8 [B, V, C, C, 3], sizes int32 [B, V, 2]).

    Each device copies its own examples one slice at a time: a plain `pixels[index]` copies half the cache
    on a TPU, and left to the partitioner it sums the whole batch over all devices.
    """
    if not resident:
        return batch["pixels"], batch["sizes"]

    def local(resident, index):
        columns = []
        for column, source in enumerate(resident):
            take = _from_the_ring if source.spread else _from_own
            rows = index[:, column]
            columns.append((take(source.pixels, rows), source.sizes[rows]))
        return tuple(jnp.stack(column, axis=1) for column in zip(*columns, strict=True))

    places = tuple(Resident(BATCH if r.spread else P(), P(), r.spread) for r in resident)
    return jax.shard_map(local, mesh=mesh, in_specs=(places, BATCH), out_specs=BATCH)(
        resident, batch["index"]
    )


def _from_own(pixels, index):
    return jax.lax.map(lambda i: pixels[i], index)


def _from_the_ring(pixels, index):
    """Each device's order goes once around all devices; every one fills in the images that it holds.

    Two local batches of memory, whatever the number of devices.
    """
    here, size = jax.lax.axis_index(AXES), jax.lax.axis_size(AXES)
    following = [(i, (i + 1) % size) for i in range(size)]

    def visit(_, order):
        index, images = order

        def fill(one):
            wanted, image = one
            mine = wanted // len(pixels) == here
            return jnp.where(mine, pixels[wanted % len(pixels)], image)

        images = jax.lax.map(fill, (index, images))
        return jax.lax.ppermute((index, images), AXES, following)

    empty = jax.lax.pcast(
        jnp.zeros((len(index), *pixels.shape[1:]), pixels.dtype), AXES, to="varying"
    )
    return jax.lax.fori_loop(0, size, visit, (index, empty))[1]
