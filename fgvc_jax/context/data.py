"""What phases share of the data: the manifest, canvases, and feeds that bring them to the devices."""

from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvc_jax.data import cache, feed
from fgvc_jax.data.doctor import Look
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.images.view import View


def placed(need: float, held: float, settings: ConfigDict, devices: int) -> str:
    """Where canvases go: 'everywhere' (all on each device), 'spread' over the devices, or 'streamed'.

    Args:
      need: their bytes.
      held: bytes on each device of those that are there already.
      settings: config.data.
    """
    if settings.feed in ("streamed", "decoded"):
        return "streamed"
    room = settings.resident_gb * 1e9 - held
    spread = need > room and devices > 1
    if settings.feed == "auto" and need > room * (devices if spread else 1):
        return "streamed"
    return "spread" if spread else "everywhere"


class Data:
    """The splits of a data set as uint8 canvases; each is decoded once and sent to the devices once.

    Attributes:
      canvas: side of the canvases, pixels.
    """

    def __init__(self, manifest: Manifest, settings: ConfigDict, mesh: Mesh, look: Look):
        """Args: settings, config.data; look, what one look at every image has left."""
        self.manifest, self.settings, self.mesh, self.look = manifest, settings, mesh, look
        self.canvas = look.side
        self._canvases: dict[str, cache.Canvases] = {}
        self._resident: dict[str, feed.Resident] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Images by split."""
        return {name: len(split.labels) for name, split in self.manifest.splits.items()}

    def canvas_later(self, view: View) -> int:
        """The side of the canvases of images that a trained model is given later, pixels.

        As here where images had to be shrunk; where they were all small, as much as larger ones need.
        """
        if self.look.facts.sizes.max() > self.canvas:
            return self.canvas
        return cache.canvas_side(
            np.zeros((0, 2), np.int32),
            resize=view.resize,
            squash=view.squash,
            canvas=self.settings.canvas,
        )

    def labels(self, split: str) -> np.ndarray:
        return self.manifest.splits[split].labels

    def canvases(self, split: str) -> cache.Canvases:
        if split not in self._canvases:
            files = self.manifest.splits[split].files
            self._canvases[split] = self.look.canvases(files)
        return self._canvases[split]

    def feed(self, splits: Sequence[str]) -> feed.Feed:
        """A feed whose columns of images look into these splits."""
        columns = [self.canvases(split) for split in splits]
        new = [split for split in dict.fromkeys(splits) if split not in self._resident]
        need = sum(self.canvases(split).nbytes for split in new)
        held = sum(
            r.pixels.nbytes / (self.mesh.size if r.spread else 1) for r in self._resident.values()
        )
        place = placed(need, held, self.settings, self.mesh.size)
        if place == "streamed":
            return feed.Feed(columns, self.mesh)
        for split in new:
            canvases = self.canvases(split)
            self._resident[split] = feed.make_resident(canvases, self.mesh, place == "spread")
        return feed.Feed(columns, self.mesh, tuple(self._resident[split] for split in splits))

    def in_order(self, splits: Sequence[str], index: np.ndarray, batch: int) -> Iterator[tuple]:
        """Every example of an index int [N, V] once, for `fgvc_jax.train.predict.predict_all`."""
        return self.feed(splits).in_order(index, batch)

    def whole(self, split: str, batch: int) -> Iterator[tuple]:
        """Every image of a split once."""
        return self.in_order([split], np.arange(self.sizes[split])[:, None], batch)
