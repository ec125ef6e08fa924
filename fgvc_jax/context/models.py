"""What phases share of models: how they are made, where they start, how trained ones are read back."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvc_jax import backbones, model
from fgvc_jax.backbones import Preprocessing
from fgvc_jax.context import transfer
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.images.batch import random_views
from fgvc_jax.images.view import View
from fgvc_jax.model import Specification
from fgvc_jax.train import tree
from fgvc_jax.weights import load_pretrained, preprocessing_of, wanted_arguments

log = logging.getLogger(__name__)


class Models:
    """The models of a run.

    Attributes:
      canvas: side of the canvases of images that a trained model is given later, pixels.
      view: the preprocessing: the config's, and where it says nothing what the weights were trained with.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        manifest: Manifest,
        mesh: Mesh,
        view: View,
        canvas: int,
    ):
        self.config, self.workdir, self.manifest = config, workdir, manifest
        self.mesh, self.view, self.canvas = mesh, view, canvas

    def specify(self, section: ConfigDict) -> Specification:
        """The model of a training section."""
        settings = self.config.model
        return Specification(
            backbone=settings.backbone,
            backbone_arguments=self._backbone_arguments,
            method=_absolute(section.method),
            method_arguments=self._method_arguments(section.arguments.to_dict()),
            classes=self.manifest.classes,
            class_ids=self.manifest.ids,
            view=self.view,
            canvas=self.canvas,
            dtype=str(dtype_of(self.config)),
            param_dtype=settings.param_dtype,
            remat=settings.remat,
            attention=settings.attention,
        )

    @functools.cached_property
    def _backbone_arguments(self) -> dict[str, Any]:
        """Once: every phase specifies its model several times, and the file of weights is asked each time."""
        return backbone_arguments(self.config)

    def _method_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The method's, and for a second backbone, where they are the usual ones, what its weights want."""
        name, source = arguments.get("second"), self.config.model.second_pretrained
        if self.config.init.run and not source:
            return transfer.second_arguments(self.config.init.run, arguments)
        if not (name and source):
            return arguments
        own, wants = self._second_wants(name, tuple(arguments["second_arguments"]))
        filled = {"second_arguments": tuple(own.items())}
        unchanged = {"second_scale": (1.0,) * 3, "second_shift": (0.0,) * 3}
        if all(tuple(arguments[key]) == value for key, value in unchanged.items()):
            # (pixel - mean) / std in the view's numbers, turned into the second one's.
            mean, std = np.array(self.view.mean), np.array(self.view.std)
            filled["second_scale"] = tuple((std / wants.std).tolist())
            filled["second_shift"] = tuple(((mean - wants.mean) / wants.std).tolist())
        return arguments | filled

    @functools.cache  # noqa: B019  as `_backbone_arguments`; there is one of this class a run
    def _second_wants(self, name: str, given: tuple) -> tuple[dict[str, Any], Preprocessing]:
        """(arguments, preprocessing) of a second backbone, from the file of its weights."""
        source = self.config.model.second_pretrained
        own = wanted_arguments(name, source) | dict(given)
        net = abstract_net(self.config, name, own, "arguments.second_arguments")
        return own, preprocessing_of(net, source, allow=self.config.model.allow)[0]

    def starting_model(self, specification: Specification) -> nnx.Module:
        """The model before any training: an earlier run's, pretrained, or from scratch."""
        module, init = specification.build(self.config.seed), self.config.init
        if init.file:
            return transfer.from_file(module, specification, init.file)
        if init.run:
            nets = transfer.NETS[:1] if self.config.model.second_pretrained else transfer.NETS
            module = transfer.from_run(module, specification, init.run, self.mesh, nets)
        pretrained = dict(self._pretrained) if self.config.model.pretrained else {}
        if self.config.model.second_pretrained and module.second is not None:
            own = specification.method_arguments
            where = "arguments.second_arguments"
            net = abstract_net(self.config, own["second"], dict(own["second_arguments"]), where)
            pretrained |= self._load("second", net, self.config.model.second_pretrained)
        if pretrained:
            static, params, batch_stats = tree.split(module)

            def take(ours: tree.Flat) -> tree.Flat:
                # Copies: the train step gives away the buffers of the state that it starts from.
                return {path: jnp.array(pretrained.get(path, x)) for path, x in ours.items()}

            module = tree.merge(static, take(params), take(batch_stats))
        return module

    def check_start(self, section: ConfigDict) -> None:
        """Raises UserError where a training section starts from a checkpoint that does not fit its model."""
        if self.config.init.file and not section.init.phase:
            transfer.check_file(self.specify(section), self.config.init.file)

    @functools.cached_property
    def _pretrained(self) -> tree.Flat:
        """Read when a phase starts from it, not before."""
        backbone = abstract_backbone(self.config)
        return self._load("backbone", backbone, self.config.model.pretrained)

    def _load(self, part: str, net: nnx.Module, source: str) -> tree.Flat:
        """The arrays of a file of weights, by their path in a model where the net is this part."""
        _, report = load_pretrained(net, source, allow=self.config.model.allow)
        log.info(report.text)
        arrays = tree.weights(net)
        arrays = arrays["params"] | arrays["batch_stats"]
        return {f"{part}/{path}": x for path, x in arrays.items() if path in report.used}

    def predictor(self, static: tree.Static, random: bool = False) -> Callable:
        """The jitted forward pass of a module in eval mode; see `fgvc_jax.train.step.predict_step`."""
        return model.predictor(static, self.mesh, self.view, dtype_of(self.config), random)

    def preprocess(self) -> Callable:
        """(keys, pixels, sizes) -> augmented images."""
        return functools.partial(random_views, view=self.view, dtype=dtype_of(self.config))

    def trained(self, phase: str, which: str) -> tuple[Specification, nnx.Module, dict]:
        """(specification, module in eval mode, {'params', 'batch_stats'} on the mesh) of a finished phase."""
        return model.trained(self.workdir / phase, which, self.mesh)


def _absolute(method: str) -> str:
    """A method's name, or the whole path of its file, so that a model finds it from any folder."""
    return str(Path(method).expanduser().resolve()) if method.endswith(".py") else method


def dtype_of(config: ConfigDict, platform: str = "") -> jnp.dtype:
    """The dtype of the computation; `platform` that it runs on, '' = this machine's."""
    name = config.model.dtype
    if name == "auto":
        platform = platform or jax.devices()[0].platform
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def backbone_arguments(config: ConfigDict) -> dict[str, Any]:
    """The backbone's arguments: the config's, and where these are the usual ones what the weights want.

    An earlier run's weights want that run's.
    torchvision's Swin, for one, pads its maps in another order than timm's.
    """
    settings = config.model
    arguments, usual = settings.arguments.to_dict(), backbones.arguments(settings.backbone)
    if config.init.run:
        return transfer.backbone_arguments(config.init.run, settings.backbone, arguments, usual)
    if settings.pretrained:
        for name, value in wanted_arguments(settings.backbone, settings.pretrained).items():
            if arguments[name] == usual[name]:
                arguments[name] = value
    return arguments


def abstract_backbone(config: ConfigDict) -> nnx.Module:
    """The backbone in eval mode, with shapes in place of arrays.

    Raises:
      UserError: arguments or an image size that make no backbone.
    """
    name, arguments = config.model.backbone, backbone_arguments(config)
    return abstract_net(config, name, arguments, "config.model.arguments")


def abstract_net(
    config: ConfigDict, name: str, arguments: dict[str, Any], where: str
) -> nnx.Module:
    """As `abstract_backbone`, of any name and arguments; `where` these stand."""

    def make() -> nnx.Module:
        return backbones.create(
            name,
            image_size=config.image.size,
            rngs=nnx.Rngs(0),
            dtype=dtype_of(config),
            param_dtype=jnp.dtype(config.model.param_dtype),
            **arguments,
        )

    try:
        backbone = nnx.eval_shape(make)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} = {arguments} make no {name}: {error}") from error
    backbone.eval()
    return backbone


def view_of(config: ConfigDict) -> View:
    """The preprocessing: the config's, and where it says nothing what the backbone's weights want."""
    image, backbone = config.image, abstract_backbone(config)
    wants = backbone.info.preprocessing
    if config.init.run:
        wants = transfer.preprocessing(config.init.run, wants)
    elif config.model.pretrained:
        wants, _ = preprocessing_of(backbone, config.model.pretrained, allow=config.model.allow)
    if config.init.run or config.model.pretrained:
        for key in ("mean", "std", "interpolation"):
            ours, theirs = image[key], getattr(wants, key)
            if ours and ours != theirs:
                log.info(
                    "image.%s is %s, but these weights were trained with %s", key, ours, theirs
                )
    return make_view(image, wants)


def make_view(image: ConfigDict, wants: Preprocessing) -> View:
    """Args: image, config.image; wants, the preprocessing that the backbone's weights want."""
    settings = {name: value for name, value in image.items() if name in View._fields}
    settings |= {
        "resize": image.resize or round(image.size / wants.crop_fraction),
        "mean": image.mean or wants.mean,
        "std": image.std or wants.std,
        "interpolation": image.interpolation or wants.interpolation,
    }
    return View(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
