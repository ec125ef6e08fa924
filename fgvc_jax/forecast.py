"""What the phases of a run take of chips that need not be there: compiled, not run."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from fgvc_jax import mesh as meshes
from fgvc_jax import phases, plan
from fgvc_jax.context.data import placed
from fgvc_jax.context.models import Models
from fgvc_jax.data import feed
from fgvc_jax.data.counts import Counts
from fgvc_jax.errors import UserError
from fgvc_jax.hardware import compiled, search
from fgvc_jax.hardware.chips import Chip
from fgvc_jax.hardware.compiled import Measured
from fgvc_jax.phases._base import Cost, Pass

AHEAD = 16  # batches of a streamed feed that lie on the devices before their turn, at most


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One program of one phase, on one chip of many.

    Attributes:
      runs: how often the phase runs it.
      own: bytes of those arguments that are resident images.
      images: bytes of all canvases that lie in a chip's memory meanwhile.
      beside: bytes of a training state that lies there meanwhile and is no argument.
      needed: bytes in all; infinite where the compiler refused the program and said no number.
      fits: None where the chip's memory is not known.
      largest: the largest batch that fits, where it was searched; 0 = none.
      tried: batch -> bytes needed, of all that were compiled.
    """

    phase: str
    one: Pass
    runs: int
    measured: Measured
    own: float
    images: float
    beside: float
    needed: float
    fits: bool | None
    largest: int | None = None
    tried: dict[int, float] = dataclasses.field(default_factory=dict)


class Shelf:
    """Where the canvases of each split lie; as `fgvc_jax.context.data.Data`, of shapes."""

    def __init__(self, counts: Counts, settings: ConfigDict, mesh: Mesh):
        self.counts, self.settings, self.mesh = counts, settings, mesh
        self.places: dict[str, str] = {}

    def put(self, splits: Sequence[str]) -> None:
        """Those of the splits that there are, all of them or none."""
        new = [s for s in dict.fromkeys(splits) if s in self.counts.splits and s not in self.places]
        need = sum(self.counts.splits[s] for s in new) * self._image
        place = placed(need, self.bytes(self.places), self.settings, self.mesh.size)
        if place != "streamed":
            self.places |= dict.fromkeys(new, place)

    def bytes(self, splits: Sequence[str]) -> float:
        """On one chip, of those that lie there."""
        parts = {"everywhere": 1, "spread": self.mesh.size}
        there = {s for s in splits if s in self.places}
        return sum(-(-self.counts.splits[s] // parts[self.places[s]]) for s in there) * self._image

    def resident(self, splits: Sequence[str]) -> tuple[feed.Resident, ...]:
        """The shapes of the splits; () where one of them is streamed."""
        if any(split not in self.places for split in splits):
            return ()
        return tuple(map(self._shapes, splits))

    def ahead(self, examples: int, splits: Sequence[str]) -> float:
        """Bytes on a chip of batches that a streamed feed has made ahead."""
        streamed = any(s in self.counts.splits and s not in self.places for s in splits)
        return AHEAD * examples * self._image / self.mesh.size if streamed else 0.0

    @property
    def _image(self) -> int:
        return 3 * self.counts.canvas**2

    def _shapes(self, split: str) -> feed.Resident:
        count, side = self.counts.splits[split], self.counts.canvas
        spread = self.places[split] == "spread"
        padded = -(-count // self.mesh.size) * self.mesh.size if spread else count
        everywhere = NamedSharding(self.mesh, P())
        place = NamedSharding(self.mesh, meshes.BATCH) if spread else everywhere
        pixels = jax.ShapeDtypeStruct((padded, side, side, 3), jnp.uint8, sharding=place)
        sizes = jax.ShapeDtypeStruct((count, 2), jnp.int32, sharding=everywhere)
        return feed.Resident(pixels, sizes, spread)


def of(
    config: ConfigDict,
    models: Models,
    counts: Counts,
    chip: Chip | None,
    *,
    options: dict[str, Any] | None = None,
    counter: Models | None = None,
    largest: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Forecast]:
    """The programs of all phases, in order. What several phases share is compiled once.

    Args:
      config: complete and checked.
      models: on the mesh to plan for.
      options: for the compiler.
      counter: models on a device of this machine, for the FLOPs where the compiler does not count them.
      largest: search a train step's largest batch that fits also where the config's own fits.
      say: told before each compilation.
    """
    todo, mesh = phases.of(config), models.mesh
    meshes.check_batches(phases.batches(todo), mesh)
    costs = plan.costs(todo, models, counts.splits, {})
    shelf, known = Shelf(counts, config.data, mesh), {}

    def measure(one: Pass, batch: int) -> Measured:
        resident = shelf.resident(one.splits) if one.name == "train step" else ()
        key = (one.same, batch, resident)
        if key not in known:
            say(f"compiling the {one.name} of {one.key} = {batch:,} ...")
            traced = one.trace(batch, counts.canvas, resident)
            known[key] = compiled.measure(traced, mesh.size, options)
            if counter and known[key].memory and not known[key].flops:
                known[key] = known[key]._replace(flops=count(one, batch))
        return known[key]

    def count(one: Pass, batch: int) -> float | None:
        same = (other for phase in todo for other in phase.passes(counter))
        traced = next(o for o in same if o.same == one.same).trace(batch, counts.canvas)
        return (compiled.flops(traced) or 0) / mesh.size

    for phase in todo:
        state = 0.0
        passes = phase.passes(models)
        for one in passes:
            shelf.put(one.splits)
        for one in passes:
            runs = _runs(one, costs[phase.name])
            if not runs:
                continue
            trains = one.name == "train step"
            own = shelf.bytes(one.splits) if trains and shelf.resident(one.splits) else 0.0
            images = shelf.bytes(shelf.places)
            beside = 0.0 if trains else state

            def needed(batch: int, one=one, own=own, images=images, beside=beside) -> float:
                program = measure(one, batch).needed or math.inf
                return program - own + images + beside + shelf.ahead(batch, one.splits)

            measured, total = measure(one, one.batch), needed(one.batch)
            fits = None if chip is None else total <= chip.room
            found, tried = None, {one.batch: total}
            if fits is False or (fits and largest and trains):
                unit = one.unit * mesh.size
                start = tried if one.batch % unit == 0 else {unit: needed(unit)}
                # As many examples as there are images, but of pairs, whose number is not known yet.
                most = counts.splits[one.splits[0]] if len(one.splits) == 1 else sys.maxsize
                found = search.largest(_or_none(needed), chip.room, unit, start, most)
                tried |= start
            if trains and measured.memory:
                state = measured.memory.arguments - own
            images += shelf.ahead(one.batch, one.splits)
            yield Forecast(
                phase.name, one, runs, measured, own, images, beside, total, fits, found, tried
            )


def _or_none(needed: Callable[[int], float]) -> Callable[[int], float]:
    """Infinite for a batch that cannot be trained at all, as a single image under BatchNorm."""

    def or_none(batch: int) -> float:
        try:
            return needed(batch)
        except UserError:
            return math.inf

    return or_none


def _runs(one: Pass, cost: Cost) -> int:
    return cost.steps if one.name == "train step" else math.ceil(cost.forward / one.batch)
