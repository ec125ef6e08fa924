"""What goes into a file: a run's model as one function of images, and real images to try the file on."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgvc_jax import photos
from fgvc_jax.errors import UserError
from fgvc_jax.files import write_json
from fgvc_jax.images.batch import plain_views
from fgvc_jax.inference import Image, of_phase
from fgvc_jax.model_folder import calibration_of
from fgvc_jax.train import tree
from fgvc_jax.trained import Found, find, gives_classes, trained_on

TOLERANCE = 1e-4
IMAGES = 32  # that a file is tried on
Outputs = dict[str, jax.Array]


class Model:
    """A run's model in float32, with its weights inside its functions.

    Attributes:
      classifier: the model in use.
      specification: its, in float32 whatever it was trained in.
      folder: of its training phase.

    The outputs are 'probabilities' [B, classes] (where it is a classifier) and 'embedding' [B, D].

    Args, errors: as for `fgvc_jax.trained.find`; calibrated, whether scores are divided by the temperature
    of the run's model folder, as `fgvc_jax.load(RUN).predict` does.
    """

    def __init__(self, run: str | os.PathLike, which: str = "best", calibrated: bool = True):
        found = find(run, which=which)
        specification = dataclasses.replace(found.specification, dtype="float32")
        self.classifier = of_phase(Found(found.folder, found.which, specification))
        self.specification, self.folder = specification, found.folder
        if calibrated and which == "best":
            self.classifier.calibration = calibration_of(found.folder)
        weights = jax.tree.map(jnp.asarray, jax.device_get(self.classifier.weights))  # constants
        self._module = tree.merge(self.classifier.static, weights["params"], weights["batch_stats"])

    def of_images(self, images: jax.Array) -> Outputs:
        """Cropped images, float32 [B, S, S, 3] in grey levels 0..255 -> the outputs, float32."""
        view = self.specification.view
        normal = (images / 255 - np.float32(view.mean)) / np.float32(view.std)
        found = self._module.predict(normal)
        outputs = {}
        if "embedding" in found:  # a user's own method may have none
            outputs["embedding"] = found["embedding"].astype(jnp.float32)
        if gives_classes(self.specification):
            scores = found["scores"].astype(jnp.float32)
            scores /= np.float32(self.classifier.temperature)
            outputs = {"probabilities": jax.nn.softmax(scores, axis=-1)} | outputs
        return outputs

    def input(self, batch: int) -> jax.ShapeDtypeStruct:
        """The shape that `of_images` takes."""
        side = self.specification.view.size
        return jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)

    def of_canvases(self, pixels: jax.Array, sizes: jax.Array) -> Outputs:
        """Images at the top left of canvases, uint8 [B, C, C, 3] and int32 [B, 2], height and width."""
        return self.of_images(self.crop(pixels, sizes))

    def crop(self, pixels: jax.Array, sizes: jax.Array) -> jax.Array:
        """Canvases -> what the net sees of them, float32 [B, S, S, 3] in grey levels 0..255."""
        view = self.specification.view
        grey = view._replace(mean=(0.0,) * 3, std=(1 / 255,) * 3)
        return plain_views(pixels[:, None], sizes[:, None], grey, jnp.float32)

    def describe(self) -> dict[str, Any]:
        """What a program that runs the file must know, for config.json."""
        view = self.specification.view
        return {
            "classes": self.specification.classes,
            "class_ids": self.specification.class_ids,
            "backbone": self.specification.backbone,
            "method": self.specification.method,
            "temperature": self.classifier.temperature,
            "preprocessing": {
                "longest_side": self.specification.canvas,
                "shorter_side": None if view.squash else view.resize,
                "squash": view.squash or None,
                "centre_crop": view.size,
                "interpolation": view.interpolation,
                "mean": view.mean,
                "std": view.std,
            },
        }


def real_images(model: Model, paths: Sequence[str] = (), count: int = IMAGES) -> list[Image]:
    """Real images to try a file on.

    Args:
      paths: files and folders; () = spread over the run's test images, or validation images where it has no
        others.

    Raises:
      UserError: there are none.
    """
    images = list(model.classifier.find_images(paths)) if paths else _of_run(model)
    return [images[i] for i in _spread(len(images), count)]


def canvases(model: Model, images: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8 [N, C, C, 3], sizes int32 [N, 2]); UserError for an image that cannot be read."""
    chunk, pixels, sizes = next(model.classifier.canvases(images, len(images)))
    for _, error in chunk:
        if error:
            raise UserError(error)
    return pixels[:, 0], sizes[:, 0]


def expected(model: Model, images: Sequence[Image]) -> dict[str, np.ndarray]:
    """What the model itself says of images, by the names of `Model`'s outputs, in full precision."""
    with jax.default_matmul_precision("highest"):
        found = {}
        if "embedding" in jax.eval_shape(model.of_images, model.input(1)):
            found["embedding"] = model.classifier.embed(images)
        if gives_classes(model.specification):
            found = {"probabilities": model.classifier.predict(images)} | found
    return found


def _of_run(model: Model) -> list[Image]:
    advice = "Name some real images to try the file on: --images PATH ..."
    try:
        manifest, _ = trained_on(model.folder)
        split = next(s for s in ("test", "val", "train") if manifest["splits"].get(s))
        files = list(manifest["splits"][split])
        if manifest["root"] is None:
            found = photos.of_phase(model.folder, split)
            return [found.read(files[i]) for i in _spread(len(files), IMAGES)]
    except UserError as error:
        raise UserError(f"{error}. {advice}") from None
    files = [os.path.join(manifest["root"], file) for file in files]
    files = [file for file in files if os.path.exists(file)]
    if not files:
        raise UserError(f"none of the run's images is in {manifest['root']} any more. {advice}")
    return files


def _spread(length: int, count: int) -> np.ndarray:
    """`count` places from the first to the last of `length`; all where there are fewer."""
    return np.unique(np.linspace(0, length - 1, count).astype(int))


def compare(expected: Mapping[str, Any], found: Mapping[str, Any], what: str) -> dict[str, float]:
    """The largest difference of each output.

    It is absolute for probabilities, and the share of its largest value for the embedding.

    Raises:
      UserError: one is above `TOLERANCE`, or not a number.
    """
    differences = {}
    for name, values in expected.items():
        values, others = np.asarray(values, np.float64), np.asarray(found[name], np.float64)
        largest = 1.0 if name == "probabilities" else max(np.abs(values).max(), 1e-30)
        differences[name] = float(np.abs(values - others).max() / largest)
        if not differences[name] <= TOLERANCE:  # also NaN
            raise UserError(
                f"{what} computes something else than the model: on {len(values)} real images its {name} "
                f"differ by up to {differences[name]:.2g}, and {TOLERANCE:g} is allowed. Nothing was written."
            )
    return differences


def new_folder(out: str | os.PathLike) -> Path:
    """The path; UserError where something is there already, but for an empty folder."""
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already; name a new or an empty folder.")
    return out


def write(out: Path, name: str, content: bytes, model: Model, more: dict[str, Any]) -> None:
    """The model's file and config.json beside it."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", {"file": name} | model.describe() | more)
    (out / name).write_bytes(content)
