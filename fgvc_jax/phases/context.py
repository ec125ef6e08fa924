"""What the phases of a run share: the data, the devices, and what earlier phases have left."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from fgvc_jax import backbones, files
from fgvc_jax.backbones.features import Preprocessing
from fgvc_jax.config import arguments
from fgvc_jax.data import cache, doctor, feed
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.images.augment import View
from fgvc_jax.model import Description, trained
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train import tree
from fgvc_jax.train.step import predict_step
from fgvc_jax.train.stop import Stop
from fgvc_jax.weights import load_pretrained


class Context:
    """Made once for a run; phases read from it and write into `directory(phase)` only."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        manifest: Manifest,
        say: Callable[[str], None],
        stop: Stop,
        look: doctor.Look | None = None,
    ):
        self.config, self.workdir, self.manifest = config, workdir, manifest
        self.say, self.stop = say, stop
        self.mesh = meshes.make(config.devices.shard_parameters)
        self.main = jax.process_index() == 0  # the process that writes
        self.results: dict[str, dict] = {}  # DONE.json of the phases that came before
        self.later_seconds: float | None = None  # estimated time of the phases after this one
        self._pretrained: tree.Flat = {}
        self.view = make_view(config, self._load_backbone().info.preprocessing)
        self.look = look
        if look:
            self.canvas = look.side
        else:  # the images are looked at when they are asked for; their headers tell the side
            labelled = [file for split in manifest.splits.values() for file in split.files]
            self.canvas = cache.canvas_side(
                cache.image_sizes(manifest, labelled),
                resize=self.view.resize,
                squash=self.view.squash,
                canvas=config.data.canvas,
            )
        self._canvases: dict[str, cache.Canvases | cache.Decoded] = {}
        self._resident: dict[str, feed.Resident] = {}

    def directory(self, phase: str) -> Path:
        path = self.workdir / phase
        path.mkdir(parents=True, exist_ok=True)
        return path

    def dtype(self) -> jnp.dtype:
        name = self.config.model.dtype
        if name == "auto":
            name = "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"
        return jnp.dtype(name)

    def canvases(self, split: str) -> cache.Canvases | cache.Decoded:
        if self.look is None:
            self.look = doctor.look(
                self.manifest,
                files.cache_folder(self.config.data.cache),
                resize=self.view.resize,
                squash=self.view.squash,
                canvas=self.config.data.canvas,
                feed=self.config.data.feed,
            )
        if split not in self._canvases:
            self._canvases[split] = self.look.canvases(self.manifest.splits[split].files)
        return self._canvases[split]

    def feed(self, splits: Sequence[str]) -> feed.Feed:
        """A feed whose views look into these splits."""
        views = [self.canvases(split) for split in splits]
        choice = self.config.data.feed
        if choice == "streamed" or any(isinstance(view, cache.Decoded) for view in views):
            return feed.Feed(views, self.mesh)
        new = [split for split in dict.fromkeys(splits) if split not in self._resident]
        need = sum(self.canvases(split).nbytes for split in new)
        held = sum(
            r.pixels.nbytes / (self.mesh.size if r.spread else 1) for r in self._resident.values()
        )
        room = self.config.data.resident_gb * 1e9 - held
        spread = need > room and self.mesh.size > 1
        if choice == "auto" and need > room * (self.mesh.size if spread else 1):
            return feed.Feed(views, self.mesh)
        for split in new:
            self._resident[split] = feed.make_resident(self.canvases(split), self.mesh, spread)
        return feed.Feed(views, self.mesh, tuple(self._resident[split] for split in splits))

    def describe(self, section: ConfigDict) -> Description:
        """The model of a training section."""
        model = self.config.model
        method_arguments = arguments(section.arguments, "the method's arguments")
        for name in method_arguments:
            if name in ("rngs", "dtype", "param_dtype"):
                raise UserError(f"{name} is not set by a method's arguments; see config.model.")
        return Description(
            backbone=model.backbone,
            backbone_arguments=backbone_arguments(self.config),
            method=section.method,
            method_arguments=method_arguments,
            classes=self.manifest.classes,
            class_ids=self.manifest.ids,
            view=self.view,
            canvas=max(self.canvas, self.config.data.canvas or cache.LEAST),
            dtype=str(self.dtype()),
            param_dtype=model.param_dtype,
            remat=model.remat,
        )

    def _load_backbone(self) -> nnx.Module:
        """The backbone with its pretrained weights, which are kept; with shapes alone where it has none."""
        backbone = abstract_backbone(self.config, self.dtype())
        if not self.config.model.pretrained:
            return backbone
        model, image = self.config.model, self.config.image
        _, report = load_pretrained(backbone, model.pretrained, allow=model.allow)
        self.say(report.text)
        for key in ("mean", "std", "interpolation"):
            ours, theirs = image[key], getattr(backbone.info.preprocessing, key)
            if ours and ours != theirs:
                self.say(f"image.{key} is {ours}, but these weights were trained with {theirs}")
        _, params, stats = tree.split(backbone)
        self._pretrained = {
            f"backbone/{path}": array
            for path, array in (params | stats).items()
            if path in report.used
        }
        return backbone

    def starting_model(self, description: Description) -> nnx.Module:
        """The model before any training: pretrained where the config names weights, else from scratch."""
        static, params, stats = tree.split(description.build(self.config.seed))

        def take(ours: tree.Flat) -> tree.Flat:
            # Copies: the train step gives away the buffers of the state that it starts from.
            return {
                path: jnp.array(self._pretrained.get(path, array)) for path, array in ours.items()
            }

        return tree.merge(static, take(params), take(stats))

    def predictor(self, module: nnx.Module, random: bool = False) -> Callable:
        """The jitted forward pass of a module in eval mode."""
        static, _, _ = tree.split(module)
        return predict_step(static, self.mesh, self.view, self.dtype(), random)

    def trained_model(self, phase: str, which: str) -> tuple[Description, nnx.Module, dict]:
        """(description, module in eval mode, {'params', 'stats'} on the mesh) of a finished phase."""
        return trained(self.workdir / phase, which, self.mesh)


def backbone_arguments(config: ConfigDict) -> dict[str, Any]:
    return arguments(config.model.arguments, "config.model.arguments")


def make_backbone(config: ConfigDict, dtype) -> nnx.Module:
    return backbones.create(
        config.model.backbone,
        image_size=config.image.size,
        rngs=nnx.Rngs(config.seed),
        dtype=dtype,
        param_dtype=jnp.dtype(config.model.param_dtype),
        **backbone_arguments(config),
    )


def abstract_backbone(config: ConfigDict, dtype) -> nnx.Module:
    """The backbone in eval mode, with shapes in place of arrays."""
    try:
        backbone = nnx.eval_shape(lambda: make_backbone(config, dtype))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"config.model.arguments = {config.model.arguments!r} make no {config.model.backbone}: {error}"
        ) from error
    backbone.eval()
    return backbone


def first_view(config: ConfigDict) -> View:
    """The preprocessing, before there is a context."""
    backbone = abstract_backbone(config, jnp.float32)
    if config.model.pretrained:
        load_pretrained(backbone, config.model.pretrained, allow=config.model.allow)
    return make_view(config, backbone.info.preprocessing)


def make_view(config: ConfigDict, wants: Preprocessing) -> View:
    """The preprocessing: the config's, and where it says nothing what the backbone's weights want."""
    image = config.image
    settings = {name: value for name, value in image.items() if name in View._fields}
    settings |= {
        "resize": image.resize or round(image.size / wants.crop_fraction),
        "mean": image.mean or wants.mean,
        "std": image.std or wants.std,
        "interpolation": image.interpolation or wants.interpolation,
    }
    return View(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Atomically: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, default=float) + "\n")
    os.replace(partial, path)
