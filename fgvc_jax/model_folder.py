"""The folder of a trained model, which needs neither its run nor Orbax: files of plain formats.

model.safetensors   all arrays, by their path in the module
config.json         backbone, method and their arguments; where the model comes from
classes.json        [{"name", "id"}, ...]; the position is the label
preprocessing.json  how an image becomes the network's input
calibration.json    temperature, confidences and distances on validation; absent without validation
support.npz         embeddings of training images [N, D], their labels and files
README.md           the model card
method.py           where the method is a user's own file
comparator/         such a folder of the run's comparator, if there is one
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fgvc_jax import files
from fgvc_jax.errors import UserError
from fgvc_jax.model import Specification, read_done
from fgvc_jax.train.tree import Flat

FORMAT = 1
WEIGHTS = "model.safetensors"
COMPARATOR = "comparator"
NAME = "model"  # of the folder in that of a run
FAR = 5  # the neighbour whose distance tells whether an image is unlike all training images


class Support(NamedTuple):
    """Embedded training images; `embedding` float32 [N, D] as the model gives it."""

    embedding: np.ndarray
    label: np.ndarray  # int32 [N]
    file: np.ndarray  # str [N], relative to the data's folder


class ModelFolder(NamedTuple):
    """What a folder holds.

    Attributes:
      about: where the model comes from: phase, checkpoint, its hash, validation metrics, versions.
      calibration: see `fgvc_jax.export.model_folder`; {} without validation.
    """

    specification: Specification
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]
    calibration: dict[str, Any]
    support: Support | None


def is_model_folder(path: str | os.PathLike) -> bool:
    return Path(path, WEIGHTS).is_file() and Path(path, "config.json").is_file()


def is_of(folder: str | os.PathLike, phase: str, hash_: str) -> bool:
    """Whether it is the folder of the model of a training phase with this hash."""
    if not is_model_folder(folder):
        return False
    about = _json(Path(folder, "config.json")).get("about", {})
    return (about.get("phase"), about.get("hash")) == (phase, hash_)


def calibration_of(phase: Path) -> dict[str, Any]:
    """calibration.json of the folder beside a training phase, if it is of that phase's model; else {}."""
    folder = phase.parent / NAME
    of_phase = is_of(folder, phase.name, read_done(phase).get("hash", ""))
    path = folder / "calibration.json"
    return _json(path) if of_phase and path.exists() else {}


def save(folder: str | os.PathLike, content: ModelFolder, card: str) -> None:
    """Writes all but a comparator's folder into an existing folder."""
    folder, fields = Path(folder), dataclasses.asdict(content.specification)
    classes, ids = fields.pop("classes"), fields.pop("class_ids")
    fields.pop("view")
    preprocessing = content.specification.view._asdict() | {"canvas": fields.pop("canvas")}
    if fields["method"].endswith(".py"):  # a user's own file, which goes along
        shutil.copy(fields["method"], folder / "method.py")
        fields["method"] = "method.py"
    named = [{"name": name} | ({"id": ids[i]} if ids else {}) for i, name in enumerate(classes)]
    files.write_json(folder / "config.json", {"format": FORMAT} | fields | {"about": content.about})
    files.write_json(folder / "classes.json", named)
    files.write_json(folder / "preprocessing.json", preprocessing)
    if content.calibration:
        files.write_json(folder / "calibration.json", content.calibration)
    if content.support is not None:
        support = content.support
        # Half precision, where it holds the numbers: cosines are off by less than 1e-3, the folder is half.
        fits = np.abs(support.embedding).max(initial=0) < np.finfo(np.float16).max
        np.savez_compressed(
            folder / "support.npz",
            embedding=support.embedding.astype(np.float16 if fits else np.float32),
            label=support.label.astype(np.int32),
            files=support.file.astype(np.str_),
        )
    arrays = {path: np.ascontiguousarray(x) for path, x in content.arrays.items()}
    save_file(arrays, folder / WEIGHTS, metadata={"format": "fgvc_jax"})
    files.write_text(folder / "README.md", card)


def read(folder: str | os.PathLike) -> ModelFolder:
    """Reads a folder that `save` wrote.

    Raises:
      UserError: a file that is missing, damaged or of another version, by name.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    if config.pop("format", None) != FORMAT:
        raise UserError(f"{folder}/config.json is not of format {FORMAT}, the one known here.")
    about = config.pop("about")
    classes, view = _json(folder / "classes.json"), _json(folder / "preprocessing.json")
    if config["method"].endswith(".py"):
        config["method"] = str((folder / config["method"]).resolve())
    specification = Specification.read(
        config
        | {
            "canvas": view.pop("canvas"),
            "view": view,
            "classes": [entry["name"] for entry in classes],
            "class_ids": [entry["id"] for entry in classes if "id" in entry],
        },
        folder / "config.json",
    )
    calibration = folder / "calibration.json"
    try:
        arrays = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    return ModelFolder(
        specification,
        arrays,
        about,
        _json(calibration) if calibration.exists() else {},
        _support(folder / "support.npz"),
    )


def fit_arrays(arrays: dict[str, np.ndarray], wanted: dict[str, Flat], where: str) -> dict:
    """The arrays as {'params', 'batch_stats'} like `wanted`; UserError where they do not fit it."""
    shapes = {path: x.shape for part in wanted.values() for path, x in part.items()}
    wrong = [
        path for path, shape in shapes.items() if path not in arrays or arrays[path].shape != shape
    ]
    wrong += sorted(arrays.keys() - shapes.keys())
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} arrays of {WEIGHTS} do not fit the model of config.json, the first "
            f"{wrong[0]}: the files are not of one model."
        )
    return {kind: {path: arrays[path] for path in part} for kind, part in wanted.items()}


def _support(path: Path) -> Support | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as saved:
            embedding, label, file = saved["embedding"], saved["label"], saved["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return Support(embedding.astype(np.float32), label, file)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8", "surrogateescape"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the folder of a model needs it.") from None
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON: {error}") from None
