"""What phases share of the data: the manifest, canvases, and feeds that bring them to the devices."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvc_jax.data import cache, feed
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.files import cache_folder

log = logging.getLogger(__name__)


class Data:
    """The splits of a data set as uint8 canvases; each is decoded once and sent to the devices once.

    Attributes:
      canvas: side of the canvases, pixels.
    """

    def __init__(self, manifest: Manifest, settings: ConfigDict, mesh: Mesh):
        """Args: settings, config.data."""
        self.manifest, self.settings, self.mesh = manifest, settings, mesh
        self.canvas = cache.canvas_size(manifest, settings.canvas)
        self._canvases: dict[str, cache.Canvases | cache.Decoded] = {}
        self._resident: dict[str, feed.Resident] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Images by split."""
        return {name: len(split.labels) for name, split in self.manifest.splits.items()}

    def labels(self, split: str) -> np.ndarray:
        return self.manifest.splits[split].labels

    def canvases(self, split: str) -> cache.Canvases | cache.Decoded:
        if split not in self._canvases:
            settings, manifest, side = self.settings, self.manifest, self.canvas
            folder = cache_folder(settings.cache)
            keep = settings.feed != "decoded"
            if settings.feed == "auto" and not cache.fits_on_disk(manifest, split, side, folder):
                log.info("no room for the %s images in %s: decoded anew each time", split, folder)
                keep = False
            if keep:
                found = cache.build(manifest, split, side, folder)
            else:
                found = cache.Decoded(manifest.splits[split].files, manifest.read, side)
            self._canvases[split] = found
        return self._canvases[split]

    def feed(self, splits: Sequence[str]) -> feed.Feed:
        """A feed whose columns of images look into these splits."""
        columns = [self.canvases(split) for split in splits]
        choice = self.settings.feed
        if choice == "streamed" or any(isinstance(c, cache.Decoded) for c in columns):
            return feed.Feed(columns, self.mesh)
        new = [split for split in dict.fromkeys(splits) if split not in self._resident]
        need = sum(self.canvases(split).pixels.nbytes for split in new)
        held = sum(
            r.pixels.nbytes / (self.mesh.size if r.spread else 1) for r in self._resident.values()
        )
        room = self.settings.resident_gb * 1e9 - held
        spread = need > room and self.mesh.size > 1
        if choice == "auto" and need > room * (self.mesh.size if spread else 1):
            return feed.Feed(columns, self.mesh)
        for split in new:
            self._resident[split] = feed.make_resident(self.canvases(split), self.mesh, spread)
        return feed.Feed(columns, self.mesh, tuple(self._resident[split] for split in splits))

    def in_order(self, splits: Sequence[str], index: np.ndarray, batch: int) -> Iterator[tuple]:
        """Every example of an index int [N, V] once, for `fgvc_jax.train.predict.predict_all`."""
        return self.feed(splits).in_order(index, batch)

    def whole(self, split: str, batch: int) -> Iterator[tuple]:
        """Every image of a split once."""
        return self.in_order([split], np.arange(self.sizes[split])[:, None], batch)
