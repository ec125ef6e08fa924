"""A finished run as something to use: `fgvc_jax.load(RUN).predict(images)`."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fgvc_jax import methods
from fgvc_jax.data.cache import Canvases, fit, place
from fgvc_jax.data.feed import Feed
from fgvc_jax.data.sources import EXTENSIONS, read_image
from fgvc_jax.errors import UserError, choose
from fgvc_jax.model import load_description, trained
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train import tree
from fgvc_jax.train.checkpoint import METRIC
from fgvc_jax.train.predict import predict_all
from fgvc_jax.train.step import predict_step

Images = Sequence[str | os.PathLike | np.ndarray]


class Classifier:
    """A trained classifier.

    Attributes:
      phase: the folder of the training phase.
      classes: class names; column i of `predict` belongs to classes[i].
      class_ids: the ids of the classes in the data that it was trained on; () where they had none.
      metrics: what the phase's validation found, {'best': {...}, 'last': {...}}.
    """

    def __init__(self, folder: Path, which: str):
        self.phase = folder
        self.description = load_description(folder / "model.json")
        task = methods.get(self.description.method).task
        if task != "classify":
            raise UserError(
                f"{folder} holds a {self.description.method!r} model, which does not give classes."
            )
        self.classes, self.class_ids = self.description.classes, self.description.class_ids
        done = folder / "DONE.json"
        self.metrics = json.loads(done.read_text())["validation"] if done.exists() else {}
        self._mesh = meshes.make()
        _, module, self._weights = trained(folder, which, self._mesh)
        static, _, _ = tree.split(module)
        dtype = np.dtype(self.description.dtype)
        self._step = predict_step(static, self._mesh, self.description.view, dtype)

    def predict(self, images: Images, batch: int = 64) -> np.ndarray:
        """Class probabilities, float32 [N, C], of files or arrays (uint8 [H, W, 3], RGB, upright).

        Raises:
          UserError: for an image that cannot be read, by name.
        """
        scores = self._run(images, batch, "scores").astype(np.float64)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)

    def embed(self, images: Images, batch: int = 64) -> np.ndarray:
        """Pooled features of the backbone, float32 [N, D]."""
        return self._run(images, batch, "embedding").astype(np.float32)

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

    def _run(self, images: Images, batch: int, what: str) -> np.ndarray:
        if isinstance(images, str | os.PathLike | np.ndarray):
            raise UserError("predict and embed take a list of images, for one image a list of one.")
        if len(images) == 0:
            raise UserError("no images were given.")
        batch = -(-batch // self._mesh.size) * self._mesh.size
        parts = []
        for pixels, sizes in self._canvases(images, batch):
            feed = Feed([Canvases(pixels, sizes)], self._mesh)
            index = np.arange(len(sizes))[:, None]
            parts.append(predict_all(self._step, self._weights, feed, index, batch)[what])
        return np.concatenate(parts)

    def _canvases(self, images: Images, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        side = self.description.canvas
        for first in range(0, len(images), batch):
            chunk = images[first : first + batch]
            pixels = np.zeros((len(chunk), side, side, 3), np.uint8)
            sizes = np.zeros((len(chunk), 2), np.int32)
            for i, image in enumerate(chunk):
                array = image if isinstance(image, np.ndarray) else read_image(image)
                if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                    raise UserError(
                        f"image {first + i} is {array.dtype} {array.shape}; an array must be uint8 "
                        "[height, width, 3], RGB."
                    )
                place(fit(array, side), pixels[i], sizes[i])
            yield pixels, sizes


def load(run: str | os.PathLike, phase: str = "", which: str = "best") -> Classifier:
    """Loads the classifier of a run.

    Args:
      run: the run's workdir, or the folder of one of its training phases.
      phase: which training phase; '' = the classifier that is best on validation, of equals the latest.
      which: the checkpoint, 'best' by validation or 'last'.

    Raises:
      UserError: where there is no trained classifier.
    """
    choose(which, ("best", "last"), "which")
    run = Path(run).expanduser().resolve()
    if phase:
        return Classifier(run / phase, which)
    if (run / "model.json").exists():
        return Classifier(run, which)
    found = {}
    for done in sorted(run.glob("*/DONE.json"), key=lambda path: path.stat().st_mtime):
        model = done.parent / "model.json"
        if model.exists() and methods.get(load_description(model).method).task == "classify":
            validation = json.loads(done.read_text())["validation"]
            found[done.parent] = validation["best"].get(METRIC, 0.0)
    if not found:
        parts = sorted(p.parent.parent for p in run.glob("*/*/DONE.json"))
        inside = f" There are some in {parts[0]}." if parts else ""
        raise UserError(f"no finished classifier in {run}: is it the --workdir of a run?{inside}")
    return Classifier(max(reversed(found), key=found.get), which)
