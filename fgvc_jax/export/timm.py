"""A trained classifier as the files of another library."""

import logging
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from fgvc_jax import backbones, files, trained
from fgvc_jax import mesh as meshes
from fgvc_jax.errors import UserError
from fgvc_jax.export import _model
from fgvc_jax.model import Specification, restore
from fgvc_jax.weights import TABLES, refusal, torch_axes
from fgvc_jax.weights.tables import Layout

log = logging.getLogger(__name__)


def to_timm(
    run: str | os.PathLike,
    out: str | os.PathLike,
    which: str = "best",
    images: Sequence[str] = (),
) -> Path:
    """Writes config.json and model.safetensors for `timm.create_model('local-dir:OUT', pretrained=True)`.

    The weights are those of the checkpoint, bit for bit. Where timm is installed, it classifies real images
    first, by what is written.

    Args:
      run: a run's workdir, or one of its training phases; the classifier is `trained.find`'s.
      out: folder to write, new or empty.
      which: the checkpoint, 'best' by validation or 'last'; of a refitted model always the last.
      images: files or folders to try it on; () = the run's.

    Returns:
      The folder of the training phase that was exported.

    Raises:
      UserError: no classifier there, one that timm has no model for, a folder that is not empty, timm's
        probabilities are not the model's.
    """
    out = _model.new_folder(out)
    phase, which, specification = trained.find(run, which=which)
    module, weights = restore(specification, phase, which, meshes.make())
    layout = _layout(specification, module)

    state = {}
    for path, array in (weights["params"] | weights["batch_stats"]).items():
        part, _, inner = path.partition("/")
        last = {"kernel": "weight"}.get(inner, inner)
        key = layout.key(inner) if part == "backbone" else f"{layout.head}.{last}"
        state[key] = np.ascontiguousarray(torch_axes(inner, np.asarray(array)))
    config = _config(specification, module, layout)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        files.write_json(Path(partial, "config.json"), config)
        save_file(state, Path(partial, "model.safetensors"), metadata={"format": "pt"})
        _try(run, which, partial, images)
        out.mkdir(exist_ok=True)
        for name in ("model.safetensors", "config.json"):
            os.replace(Path(partial, name), out / name)
    return phase


def _try(run: str | os.PathLike, which: str, folder: str, paths: Sequence[str]) -> None:
    """UserError where timm's probabilities of real images are not the model's; a warning without timm."""
    try:
        import timm
        import torch
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        log.warning("not tried in timm, which cannot be imported here: %s", error)
        return
    model = _model.Model(run, which, calibrated=False)  # timm has no place for a temperature
    images = _model.real_images(model, paths)
    view = model.specification.view
    grey = model.crop(*_model.canvases(model, images))
    normal = (np.asarray(grey) / 255 - np.float32(view.mean)) / np.float32(view.std)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        found = net(torch.tensor(normal.transpose(0, 3, 1, 2))).softmax(1).numpy()
    probabilities = {"probabilities": _model.expected(model, images)["probabilities"]}
    _model.compare(probabilities, {"probabilities": found}, "timm's model")


def _layout(specification: Specification, module: nnx.Module) -> Layout:
    """The names that timm has for the model's arrays; UserError where it has none."""
    name = specification.backbone
    if specification.method != "baseline":
        raise UserError(
            f"the model of method {specification.method!r} is more than a backbone with one linear layer; "
            "timm has nothing to hold it. Train a phase with method 'baseline'."
        )
    table = TABLES[type(module.backbone)]
    layout = next((layout for layout in table.layouts if layout.head), None)
    if layout is None:
        raise UserError(f"timm's names for a trained {name} are not known here.")
    known = layout.arguments.keys() | layout.wants(name).keys()
    usual = backbones.arguments(name)
    for argument, value in specification.backbone_arguments.items():
        value = tuple(value) if isinstance(value, list) else value  # as JSON has it
        if argument == "stochastic_depth":
            continue  # how it was trained, not what it computes
        if argument not in known and value != usual.get(argument):
            raise UserError(f"timm's {name} cannot be made with {argument}={value!r}.")
    otherwise = refusal(layout, module.backbone, name)
    if otherwise and not layout.agrees(module.backbone):
        raise UserError(f"timm's {name} would compute something else: {otherwise}.")
    if len(set(specification.view.squash)) > 1:
        raise UserError(
            f"timm cannot squash images to {specification.view.squash}, which is no square."
        )
    return layout


def _config(specification: Specification, module: nnx.Module, layout: Layout) -> dict[str, Any]:
    view = specification.view
    resize, mode = (view.squash[0], "squash") if view.squash else (view.resize, "center")
    arguments = specification.backbone_arguments | {"image_size": view.size}
    return {
        "architecture": specification.backbone,
        "num_classes": len(specification.classes),
        "num_features": module.backbone.info.width,
        "label_names": specification.classes,
        "model_args": {
            layout.arguments[name]: value
            for name, value in arguments.items()
            if name in layout.arguments
        },
        "pretrained_cfg": {
            "input_size": [3, view.size, view.size],
            "fixed_input_size": "image_size" in layout.arguments,
            "interpolation": view.interpolation,
            "crop_pct": _crop(view.size, resize),
            "crop_mode": mode,
            "mean": view.mean,
            "std": view.std,
            "num_classes": len(specification.classes),
            "classifier": layout.head,
        },
    }


def _crop(size: int, resize: int) -> float:
    """size / resize, such that timm's floor(size / crop) is `resize` again."""
    crop = size / resize
    while math.floor(size / crop) < resize:
        crop = math.nextafter(crop, 0)
    return crop
