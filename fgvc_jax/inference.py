"""The model of a finished run in use: `fgvc_jax.load(RUN).predict(images)`, or `.embed(images)`."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from fgvc_jax import mesh as meshes
from fgvc_jax.data.cache import fit, place
from fgvc_jax.data.feed import THREADS, to_device
from fgvc_jax.data.sources import EXTENSIONS, read_image
from fgvc_jax.errors import UserError
from fgvc_jax.model import predictor, read_done, restore
from fgvc_jax.train import tree
from fgvc_jax.trained import Found, find, gives_classes

Image = str | os.PathLike | np.ndarray
Images = Sequence[Image]


class Answer(NamedTuple):
    """The result of one image: one of the last two is None."""

    image: Image
    probabilities: np.ndarray | None  # float32 [C]
    error: str | None  # why the image could not be read


class Classifier:
    """A trained classifier, or a model that only embeds (method 'triplet'), which has no `predict`.

    Attributes:
      phase: the folder of the training phase.
      specification: the model without its weights.
      classes: class names; column i of `predict` belongs to classes[i].
      class_ids: the ids of the classes in the data that it was trained on; () where they had none.
      metrics: the phase's validation metrics, {'best': {...}, 'last': {...}}.
    """

    def __init__(self, found: Found):
        self.phase, self.specification = found.folder, found.specification
        self.classes, self.class_ids = self.specification.classes, self.specification.class_ids
        self.metrics = read_done(found.folder).get("validation", {})
        self._mesh = meshes.make()
        module, self._weights = restore(self.specification, found.folder, found.which, self._mesh)
        self._static, _, _ = tree.split(module)
        dtype = np.dtype(self.specification.dtype)
        self._step = predictor(self._static, self._mesh, self.specification.view, dtype)

    def predict(self, images: Images, batch: int = 64) -> np.ndarray:
        """Class probabilities, float32 [N, C], of files or arrays (uint8 [H, W, 3], RGB, upright).

        Raises:
          UserError: for an image that cannot be read, by name; no images.
        """
        self.check_classes()
        return _softmax(self._all(images, batch, "scores"))

    def embed(self, images: Images, batch: int = 64) -> np.ndarray:
        """The method's embedding, float32 [N, D]; arguments and errors as for `predict`."""
        return self._all(images, batch, "embedding").astype(np.float32)

    def stream(self, images: Iterable[Image], batch: int = 64) -> Iterator[Answer]:
        """One answer for each image, in order, also for an image that cannot be read.

        For any number of images: a few batches are in memory at a time. Threads decode the next images
        while the device works on the last ones.

        Args:
          images: files or arrays, as for `predict`; any iterable.
          batch: images at a time, rounded up to a multiple of the devices.
        """
        self.check_classes()
        for image, outputs, error in self._outputs(images, batch, "scores"):
            yield Answer(image, None if outputs is None else _softmax(outputs), error)

    def check_classes(self) -> None:
        """UserError for a model that only embeds."""
        if not gives_classes(self.specification):
            raise UserError(
                f"{self.phase} holds a {self.specification.method!r} model, which embeds images and gives no "
                "classes: fgvc_jax.load(RUN).embed(images)."
            )

    @property
    def static(self) -> tree.Static:
        """The module in eval mode without its arrays; `weights` has these."""
        return self._static

    @property
    def weights(self) -> dict[str, tree.Flat]:
        """{'params', 'batch_stats'} on the devices."""
        return self._weights

    def find_images(self, paths: Sequence[str | os.PathLike]) -> list[str]:
        """The files themselves and, sorted, all images in the folders among them.

        Raises:
          UserError: for a path that does not exist or a folder without images.
        """
        files: list[str] = []
        for path in map(Path, paths):
            if path.is_dir():
                inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
                if not inside:
                    raise UserError(
                        f"no images in {path}; known are {', '.join(sorted(EXTENSIONS))}."
                    )
                files += map(str, inside)
            elif path.exists():
                files.append(str(path))
            else:
                raise UserError(f"{path} does not exist.")
        return files

    def _all(self, images: Images, batch: int, output: str) -> np.ndarray:
        """An output of every image, [N, ...]; the first image that cannot be read is raised."""
        rows = []
        for _, row, error in self._outputs(images, batch, output):
            if error is not None:
                raise UserError(error)
            rows.append(row)
        if not rows:
            raise UserError("no images were given.")
        return np.stack(rows)

    def _outputs(
        self, images: Iterable[Image], batch: int, output: str
    ) -> Iterator[tuple[Image, np.ndarray | None, str | None]]:
        """(image, its row of an output, None) or (image, None, the reason why it cannot be read)."""
        if isinstance(images, str | os.PathLike | np.ndarray):
            raise UserError("a list of images is wanted; for one image give a list of one.")
        if batch < 1:
            raise UserError(f"batch = {batch}; it must be at least 1.")
        batch = -(-batch // self._mesh.size) * self._mesh.size
        sharding = NamedSharding(self._mesh, meshes.BATCH)
        weights = self._weights["params"], self._weights["batch_stats"]
        running: deque[tuple[list[tuple[Image, str | None]], jax.Array]] = deque()

        def collect() -> Iterator[tuple[Image, np.ndarray | None, str | None]]:
            chunk, rows = running.popleft()
            for (image, error), row in zip(chunk, np.asarray(rows)[: len(chunk)], strict=True):
                yield image, None if error else row, error

        for chunk, pixels, sizes in self.canvases(images, batch):
            canvases = to_device(pixels, sharding), to_device(sizes, sharding)
            running.append((chunk, self._step(*weights, *canvases, np.uint32(0), 0)[output]))
            if len(running) > 1:  # of the batch before, while this one runs
                yield from collect()
        while running:
            yield from collect()

    def canvases(
        self, images: Iterable[Image], batch: int
    ) -> Iterator[tuple[list[tuple[Image, str | None]], np.ndarray, np.ndarray]]:
        """Batches of (images with errors, pixels uint8 [B, 1, C, C, 3], sizes int32 [B, 1, 2]).

        The next batch is being decoded while one is used. Images that cannot be read and empty
        places of the last batch are single black pixels.
        """
        side = self.specification.canvas
        numbered = enumerate(images)

        def decode(number: int, image: Image) -> np.ndarray:
            array = image if isinstance(image, np.ndarray) else read_image(image)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise UserError(
                    f"image {number} is {array.dtype} {array.shape}; an array must be uint8 "
                    "[height, width, 3], RGB."
                )
            return fit(array, side)

        def begin() -> list[tuple[Image, Future]]:
            chunk = itertools.islice(numbered, batch)
            return [(image, pool.submit(decode, number, image)) for number, image in chunk]

        pool = ThreadPoolExecutor(THREADS)
        try:
            ahead = begin()
            while ahead:
                decoding, ahead = ahead, begin()
                pixels = np.zeros((batch, 1, side, side, 3), np.uint8)
                sizes = np.ones((batch, 1, 2), np.int32)
                chunk: list[tuple[Image, str | None]] = []
                for i, (image, future) in enumerate(decoding):
                    try:
                        place(future.result(), pixels[i, 0], sizes[i, 0])
                        chunk.append((image, None))
                    except UserError as error:
                        chunk.append((image, str(error)))
                decoding.clear()  # frees the decoded images
                yield chunk, pixels, sizes
        finally:  # also where the caller takes no more answers
            pool.shutdown(cancel_futures=True)


def load(run: str | os.PathLike, phase: str = "", which: str = "best") -> Classifier:
    """Loads the classifier of a run; arguments, choice and errors as for
    `fgvc_jax.trained.find`."""
    return Classifier(find(run, phase, which))


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis, computed in float64, as float32."""
    scores = scores.astype(np.float64)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (scores / scores.sum(axis=-1, keepdims=True)).astype(np.float32)
