"""A trained classifier as the files of another library."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from fgvc_jax import backbones, trained
from fgvc_jax import mesh as meshes
from fgvc_jax.errors import UserError
from fgvc_jax.model import Specification, restore
from fgvc_jax.weights import TABLES, refusal, torch_axes
from fgvc_jax.weights.tables import Layout


def to_timm(run: str | os.PathLike, out: str | os.PathLike, which: str = "best") -> Path:
    """Writes config.json and model.safetensors for `timm.create_model('local-dir:OUT', pretrained=True)`.

    The weights are those of the checkpoint, bit for bit.

    Args:
      run: a run's workdir, or one of its training phases; the classifier is `trained.find`'s.
      out: folder to write, new or empty.
      which: the checkpoint, 'best' by validation or 'last'; of a refitted model always the last.

    Returns:
      The folder of the training phase that was exported.

    Raises:
      UserError: no classifier there, one that timm has no model for, a folder that is not empty.
    """
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already; name a new or an empty folder.")
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

    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return phase


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
