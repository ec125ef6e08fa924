"""Canvases to the device, by one of two ways with the same batches, order and pixels.

'resident': all canvases of a split live in device memory, on every device or spread over them, and the
jitted step gathers its own.
'streamed': host threads take each batch out of the memory-mapped cache, or decode it, and send it.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax.data import sampler
from fgvc_jax.data.cache import Canvases
from fgvc_jax.mesh import AXES, BATCH

THREADS = min(8, os.cpu_count() or 1)  # each makes a whole batch


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("pixels", "sizes"),
    meta_fields=("spread",),
    drop_fields=("slots",),
)
@dataclasses.dataclass(frozen=True)
class Resident:
    """The canvases of a split in device memory; an argument of the jitted step.

    Attributes:
      pixels: uint8 [S, C, C, 3], S slots on every device, or, where it is spread, in equal parts.
      sizes: int32 [S, 2], on every device; padding at the end may be left out.
      slots: int32 [N], on the host, the slot of each image; None = in their order. The step does not see it.
    """

    pixels: jax.Array
    sizes: jax.Array
    spread: bool = False
    slots: np.ndarray | None = None


def to_device(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array from the same host array in every process; each sends only its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def make_resident(canvases: Canvases, mesh: Mesh, spread: bool = False) -> Resident:
    """Sends the canvases of a split, all to every device or, spread, each to one.

    Of several processes that share the images each sends its own to its own devices, where they stay or from
    where the devices copy them to all; all processes must call it.
    """
    everywhere = NamedSharding(mesh, P())
    if canvases.owner is None and not spread:
        pixels = canvases.pixels  # not copied, where they are all that is cached
        if canvases.rows is not None:
            pixels = _in_parallel(canvases, np.arange(len(canvases.sizes)))
        return Resident(to_device(pixels, everywhere), to_device(canvases.sizes, everywhere))
    processes = np.array([device.process_index for device in mesh.devices.flat])
    if canvases.owner is None:  # every process can send any image
        owner, processes = np.zeros(len(canvases.sizes), np.int32), np.zeros_like(processes)
    else:
        owner = canvases.owner
    slots, part = slots_of(owner, processes)
    images = np.full(part * mesh.size, -1, np.int64)
    images[slots] = np.arange(len(slots))

    def held(place) -> np.ndarray:
        rows = images[place[0]]
        found = _in_parallel(canvases, rows[rows >= 0])  # a device's padding stands at its end
        return np.pad(found, [(0, len(rows) - len(found)), *[(0, 0)] * (found.ndim - 1)])

    shape = (len(images), *canvases.pixels.shape[1:])
    pixels = jax.make_array_from_callback(shape, NamedSharding(mesh, BATCH), held)
    if not spread:
        pixels = jax.jit(lambda pixels: pixels, out_shardings=everywhere)(pixels)
    sizes = np.zeros((slots.max() + 1, 2), np.int32)
    sizes[slots] = canvases.sizes
    in_order = canvases.owner is None
    return Resident(pixels, to_device(sizes, everywhere), spread, None if in_order else slots)


def slots_of(owner: np.ndarray, processes: np.ndarray) -> tuple[np.ndarray, int]:
    """(int32 [N], K): where each image lies in an array of K images a device, on its owner's devices.

    With one process image i lies in slot i.

    Args:
      owner: int [N], the process that sends each image.
      processes: int [D], the process of each device.
    """
    devices = {p: np.flatnonzero(processes == p) for p in np.unique(processes).tolist()}
    counts = {p: int((owner == p).sum()) for p in devices}
    part = max(-(-counts[p] // len(devices[p])) for p in devices)
    slots = np.zeros(len(owner), np.int32)
    for p, own in devices.items():
        turn = np.arange(counts[p])
        slots[owner == p] = own[turn // part] * part + turn % part
    return slots, part


def _in_parallel(canvases: Canvases, rows: np.ndarray) -> np.ndarray:
    """The pixels of some images, by several threads where images have to be decoded."""
    if canvases.rows is None or (canvases.rows[rows] >= 0).all():
        return canvases.take(rows)[0]
    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(canvases.take, np.array_split(rows, 8 * THREADS))
        return np.concatenate([pixels for pixels, _ in parts])


class Feed:
    """Batches of examples; an example has one image or, for pairs, two.

    Attributes:
      sources: the canvases behind each of the V columns of an index, one an image of the example.
      resident: the arrays to pass to the jitted step; empty when streamed.
    """

    def __init__(
        self,
        sources: Sequence[Canvases],
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
          index: int [B, V], V images an example: the row of each in the canvases of its column; where these
            are resident its slot is sent.
          columns: arrays with leading axis B, such as label and mask.
        """
        result = {name: to_device(column, self.sharding) for name, column in columns.items()}
        if self.resident:
            columns = [
                rows if held.slots is None else held.slots[rows]
                for held, rows in zip(self.resident, index.T, strict=True)
            ]
            slots = np.stack(columns, axis=1).astype(np.int32)
            return result | {"index": to_device(slots, self.sharding)}

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
