"""The model of a finished run in use: `fgvc_jax.load(RUN).predict(images)`, or `.embed(images)`."""

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from fgvc_jax import mesh as meshes
from fgvc_jax import model_folder
from fgvc_jax.data.cache import fit, place
from fgvc_jax.data.feed import THREADS, to_device
from fgvc_jax.data.sources import EXTENSIONS, read_image
from fgvc_jax.errors import UserError, choose
from fgvc_jax.images.tta import KINDS
from fgvc_jax.metrics.calibration import softmax
from fgvc_jax.mining import rerank as reranking
from fgvc_jax.mining.rerank import CANDIDATES
from fgvc_jax.model import Specification, comparing, predictor, read_done, restore
from fgvc_jax.model_folder import Support
from fgvc_jax.train import tree
from fgvc_jax.trained import Found, find, gives_classes, trained_on

log = logging.getLogger(__name__)

Image = str | os.PathLike | np.ndarray
Images = Sequence[Image]


class Answer(NamedTuple):
    """The result of one image: `error` is None, or all the others are."""

    image: Image
    probabilities: np.ndarray | None  # float32 [C]
    error: str | None  # why the image could not be read
    embedding: np.ndarray | None = None  # float32 [D]


class Classifier:
    """A trained classifier, or a model that only embeds (method 'triplet'), which has no `predict`.

    Attributes:
      phase: the folder of the training phase, or the model folder that it was loaded from.
      specification: the model without its weights.
      classes: class names; column i of `predict` belongs to classes[i].
      class_ids: the ids of the classes in the data that it was trained on; () where they had none.
      metrics: the phase's validation metrics, {'best': {...}, 'last': {...}}.
      calibration: what validation told of it, see `fgvc_jax.export.model_folder`; {} where nothing did.
      support: embedded training images; None where it was not loaded from a model folder.
      comparator: 'same class?' of two images; None without one.
      images_root: the folder that the files of `support` lie in; '' where it is not known.
    """

    def __init__(
        self,
        specification: Specification,
        weights: dict[str, tree.Flat],
        static: tree.Static,
        mesh: Mesh,
        phase: Path,
        *,
        metrics: dict | None = None,
        calibration: dict | None = None,
        support: Support | None = None,
        comparator: "Classifier | None" = None,
        images_root: str = "",
    ):
        """Use `load`. Args: weights, {'params', 'batch_stats'} on the mesh."""
        self.phase, self.specification = phase, specification
        self.classes, self.class_ids = specification.classes, specification.class_ids
        self.metrics, self.calibration = metrics or {}, calibration or {}
        self.support, self.comparator, self.images_root = support, comparator, images_root
        self._mesh, self._weights, self._static = mesh, weights, static
        self._step = self._predictor("")

    def predict(self, images: Images, batch: int = 64) -> np.ndarray:
        """Class probabilities, float32 [N, C], of files or arrays (uint8 [H, W, 3], RGB, upright).

        With a model folder's calibration the scores are divided by its temperature.

        Raises:
          UserError: for an image that cannot be read, by name; no images.
        """
        self.check_classes()
        return self._probabilities(self._all(images, batch, "scores"))

    def embed(self, images: Images, batch: int = 64) -> np.ndarray:
        """The method's embedding, float32 [N, D]; arguments and errors as for `predict`."""
        return self._all(images, batch, "embedding")[0].astype(np.float32)

    def stream(
        self, images: Iterable[Image], batch: int = 64, *, tta: str = "", rerank: bool = False
    ) -> Iterator[Answer]:
        """One answer for each image, in order, also for an image that cannot be read.

        For any number of images: a few batches are in memory at a time. Threads decode the next images
        while the device works on the last ones.

        Args:
          images: files or arrays, as for `predict`; any iterable.
          batch: images at a time, rounded up to a multiple of the devices.
          tta: test-time augmentation, one of `fgvc_jax.images.tta.KINDS`: probabilities and embeddings are
            means over the views.
          rerank: the first classes are weighed by the comparator, see `fgvc_jax.mining.rerank`.

        Raises:
          UserError: no comparator to re-rank with; an unknown augmentation.
        """
        self.check_classes()
        other = self.check_comparator() if rerank else None
        names = ("scores", "embedding")
        for chunk, outputs, compared in self._outputs(images, batch, names, tta, other):
            probabilities = self._probabilities(outputs["scores"])
            if other is not None:
                probabilities = self._rerank(other, probabilities, compared)
            mean = [None] * len(chunk)
            if "embedding" in outputs:  # a user's own method may have none
                mean = outputs["embedding"].astype(np.float32).mean(axis=0)
            for (image, error), p, x in zip(chunk, probabilities, mean, strict=True):
                yield Answer(image, None, error) if error else Answer(image, p, None, x)

    @property
    def temperature(self) -> float:
        """What scores are divided by before the softmax: 1 without a calibration."""
        return self.calibration.get("temperature", 1.0)

    def check_classes(self) -> None:
        """UserError for a model that only embeds."""
        if not gives_classes(self.specification):
            raise UserError(
                f"{self.phase} holds a {self.specification.method!r} model, which embeds images and gives no "
                "classes: fgvc_jax.load(RUN).embed(images)."
            )

    def same(self, queries: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
        """A comparator's logit [N] of "same class" for embeddings [N, D] of its own."""
        return np.asarray(comparing(self._static)(self._weights, queries, neighbours))

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

    def _predictor(self, tta: str) -> Callable[..., dict[str, jax.Array]]:
        if tta:
            choose(tta, tuple(KINDS), "test-time augmentation")
        dtype = np.dtype(self.specification.dtype)
        return predictor(self._static, self._mesh, self.specification.view, dtype, tta=tta)

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Scores [V, N, C] of V views -> float32 [N, C], the mean of their softmaxes."""
        return softmax(scores.astype(np.float64) / self.temperature).mean(axis=0).astype(np.float32)

    def check_comparator(self) -> "Classifier":
        """The comparator; UserError without one."""
        if self.comparator is None:
            raise UserError(
                f"{self.phase} has no comparator to re-rank with: that takes a run with a phase of method "
                "'pairs', such as configs/cub_finer.py, and its folder model/."
            )
        return self.comparator

    def _rerank(
        self, other: "Classifier", probabilities: np.ndarray, embedding: np.ndarray
    ) -> np.ndarray:
        with np.errstate(divide="ignore"):
            scores = np.log(probabilities.astype(np.float64))
        same = other.same
        gallery, labels = other.support.embedding, other.support.label
        found = reranking.reranked(scores, embedding, gallery, labels, CANDIDATES, same)
        return softmax(found).astype(np.float32)

    def _all(self, images: Images, batch: int, output: str) -> np.ndarray:
        """An output of every image, [1, N, ...]; the first image that cannot be read is raised."""
        rows = []
        for chunk, outputs, _ in self._outputs(images, batch, (output,)):
            for _, error in chunk:
                if error is not None:
                    raise UserError(error)
            if output not in outputs:
                raise UserError(
                    f"{self.phase}: its method {self.specification.method!r} gives no {output!r}, see "
                    "docs/add_a_method.md."
                )
            rows.append(outputs[output])
        if not rows:
            raise UserError("no images were given.")
        return np.concatenate(rows, axis=1)

    def _outputs(
        self,
        images: Iterable[Image],
        batch: int,
        names: Sequence[str],
        tta: str = "",
        other: "Classifier | None" = None,
    ) -> Iterator[tuple[list[tuple[Image, str | None]], dict[str, np.ndarray], np.ndarray | None]]:
        """Batches of ((image, error), outputs [V, B, ...] by name, embeddings of the comparator `other`).

        Rows of images that cannot be read mean nothing; error says why.
        """
        if isinstance(images, str | os.PathLike | np.ndarray):
            raise UserError("a list of images is wanted; for one image give a list of one.")
        if batch < 1:
            raise UserError(f"batch = {batch}; it must be at least 1.")
        step = self._predictor(tta) if tta else self._step
        batch = -(-batch // self._mesh.size) * self._mesh.size
        sharding = NamedSharding(self._mesh, meshes.BATCH)
        running: deque[tuple] = deque()

        def collect():
            chunk, outputs, compared = running.popleft()
            rows = {name: np.asarray(outputs[name]) for name in names if name in outputs}
            rows = {name: (x if tta else x[None])[:, : len(chunk)] for name, x in rows.items()}
            return chunk, rows, None if compared is None else np.asarray(compared)[: len(chunk)]

        def run(model: "Classifier", step: Callable, canvases: tuple) -> dict[str, jax.Array]:
            arrays = model.weights["params"], model.weights["batch_stats"]
            return step(*arrays, *canvases, np.uint32(0), 0)

        for chunk, pixels, sizes in self.canvases(images, batch):
            canvases = to_device(pixels, sharding), to_device(sizes, sharding)
            compared = None if other is None else run(other, other._step, canvases)["embedding"]
            running.append((chunk, run(self, step, canvases), compared))
            if len(running) > 1:  # of the batch before, while this one runs
                yield collect()
        while running:
            yield collect()

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
                        fitted = future.result()
                        place(fitted, pixels[i, 0])
                        sizes[i, 0] = fitted.shape[:2]
                        chunk.append((image, None))
                    except UserError as error:
                        chunk.append((image, str(error)))
                decoding.clear()  # frees the decoded images
                yield chunk, pixels, sizes
        finally:  # also where the caller takes no more answers
            pool.shutdown(cancel_futures=True)


def load(run: str | os.PathLike, phase: str = "", which: str = "best") -> Classifier:
    """Loads the classifier of a run, or of a model folder (RUN/model, wherever it lies now).

    Without a phase a run's own model folder is taken, which brings calibration and support along.
    Arguments, choice and errors as for `fgvc_jax.trained.find`.
    """
    run = Path(run).expanduser()
    if model_folder.is_model_folder(run):
        if phase or which != "best":
            raise UserError(
                f"{run} is a model folder and holds one model: no phase, no checkpoint."
            )
        return of_folder(run.resolve())
    found = find(run, phase, which)
    folder = found.folder.parent / model_folder.NAME
    named = phase or which != "best" or found.folder == run.resolve()
    done = read_done(found.folder)
    if named or not model_folder.is_of(folder, found.folder.name, done.get("hash", "")):
        if not named and model_folder.is_model_folder(folder):
            log.warning(
                "%s is not of %s, which is loaded without calibration.", folder, found.folder
            )
        return of_phase(found)
    loaded = of_folder(folder)
    loaded.phase, loaded.images_root = found.folder, _images_root(found.folder)
    return loaded


def of_phase(found: Found) -> Classifier:
    """The model of a training phase, without calibration."""
    mesh = meshes.make()
    module, weights = restore(found.specification, found.folder, found.which, mesh)
    metrics = read_done(found.folder).get("validation", {})
    static, _, _ = tree.split(module)
    return Classifier(found.specification, weights, static, mesh, found.folder, metrics=metrics)


def of_folder(folder: Path) -> Classifier:
    """The model of a model folder; see `fgvc_jax.model_folder`."""
    content, mesh = model_folder.read(folder), meshes.make()
    module = nnx.eval_shape(content.specification.build)
    weights = model_folder.fit_arrays(content.arrays, tree.weights(module), str(folder))
    weights = jax.device_put(weights, meshes.shardings(weights, mesh))
    inner = folder / model_folder.COMPARATOR
    return Classifier(
        content.specification,
        weights,
        tree.split(module)[0],
        mesh,
        folder,
        metrics=content.about.get("validation", {}),
        calibration=content.calibration,
        support=content.support,
        comparator=of_folder(inner) if inner.is_dir() else None,
    )


def _images_root(phase: Path) -> str:
    """The folder of the images that a phase was trained on; '' where they are no files."""
    try:
        return trained_on(phase)[0]["root"] or ""
    except UserError:  # a phase that was copied out of its run
        return ""
