"""The checks of a config that need no data: the keys that every run has, and each phase's own."""

from typing import get_args

import jax
from ml_collections import ConfigDict

from fgvc_jax import lengths, phases
from fgvc_jax.data import load
from fgvc_jax.errors import UserError, at_least, check_patterns, choose
from fgvc_jax.images.augment import AUGMENTS, CROPS, ERASE_MODES
from fgvc_jax.layers import attention, remat
from fgvc_jax.ops.crop import Interpolation
from fgvc_jax.tracking import wandb
from fgvc_jax.train import profile

TYPES = ("float32", "bfloat16", "float64")


def check(config: ConfigDict) -> None:
    """Refuses what can be known to be wrong before any data is read.

    Args:
      config: complete, see `fgvc_jax.phases.complete`.

    Raises:
      UserError: for the first thing that is wrong.
    """
    for phase in phases.of(config):
        phase.check()
    choose(config.protocol, ("val", "refit"), "config.protocol")
    at_least(config.seeds, 1, "config.seeds")
    lengths.terms(config.log.every, "config.log.every")
    lengths.seconds(config.checkpoint_every, "config.checkpoint_every")
    profile.steps(config.log.profile, "config.log.profile")
    if config.tracking.wandb:
        wandb.check_installed()
    _check_model(config.model)
    if config.init.run and config.init.file:
        raise UserError("config.init.run and config.init.file are two beginnings; give one.")
    _check_second(config)
    _check_data(config.data)
    _check_image(config.image)


def _check_model(model: ConfigDict) -> None:
    check_patterns(model.allow, "config.model.allow")
    choose(model.dtype, ("auto", *TYPES), "config.model.dtype")
    choose(model.param_dtype, TYPES, "config.model.param_dtype")
    choose(model.remat, remat.KINDS, "config.model.remat")
    choose(model.attention, attention.KINDS, "config.model.attention")
    if "float64" in (model.dtype, model.param_dtype) and not jax.config.jax_enable_x64:
        raise UserError("config.model: float64 needs the environment variable JAX_ENABLE_X64=1.")


def _check_second(config: ConfigDict) -> None:
    """Weights for a second backbone want a phase whose method has one."""
    weights = config.model.second_pretrained
    if weights and not any(config[p].arguments.get("second") for p in phases.trained(config)):
        raise UserError(
            f"config.model.second_pretrained = {weights!r}, and no phase's method has a second backbone. "
            "'bilinear' has one where config.<phase>.arguments.second names it."
        )


def _check_data(data: ConfigDict) -> None:
    choose(data.source, load.SOURCES, "config.data.source")
    choose(data.on_bad, ("stop", "skip"), "config.data.on_bad")
    choose(data.feed, ("auto", "resident", "streamed", "decoded"), "config.data.feed")
    at_least(data.split_seed, 0, "config.data.split_seed")
    if data.canvas:
        at_least(data.canvas, 8, "config.data.canvas (or 0)")
    shares = (data.val_fraction, data.test_fraction)
    if not 0 <= sum(shares) < 1 or min(shares) < 0:
        raise UserError(
            f"config.data.val_fraction = {data.val_fraction} and config.data.test_fraction = "
            f"{data.test_fraction}: shares from 0 on, which leave something for training."
        )
    if data.images and data.source not in ("list", "inaturalist"):
        raise UserError(
            f"config.data.images = {data.images!r} is for the sources 'list' and 'inaturalist'; "
            f"{data.source!r} finds its images in config.data.root."
        )
    choose(data.splits, ("official", "retrieval"), "config.data.splits")
    if data.source != "tfds" and data.fold != 1:
        raise UserError(
            f"config.data.fold = {data.fold!r} is for the source 'tfds'; {data.source!r} has no folds."
        )


def _check_image(image: ConfigDict) -> None:
    at_least(image.size, 1, "config.image.size")
    choose(image.augment, AUGMENTS, "config.image.augment")
    choose(image.crop, CROPS, "config.image.crop")
    choose(image.erase_mode, ERASE_MODES, "config.image.erase_mode")
    if image.interpolation:
        choose(image.interpolation, get_args(Interpolation), "config.image.interpolation")
    at_least(image.crop_pad, 0, "config.image.crop_pad")
    if image.resize:
        at_least(image.resize, image.size, "config.image.resize (or 0)")
    for key in ("flip", "augment_probability", "blur", "sharpen", "erase"):
        if not 0 <= image[key] <= 1:
            raise UserError(f"config.image.{key} = {image[key]}; a probability lies in 0 to 1.")
    for key in ("mean", "std"):
        if len(image[key]) not in (0, 3) or (key == "std" and 0 in image[key]):
            raise UserError(
                f"config.image.{key} = {image[key]!r}; give three numbers (of values in 0..1), "
                "such as (0.5,0.5,0.5), or () for what the weights want."
            )
    for key in ("crop_scale", "crop_ratio", "blur_sigma", "erase_scale", "erase_ratio"):
        low_high = image[key]
        if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
            raise UserError(f"config.image.{key} = {low_high}; it is (lowest, highest), above 0.")
    squash = image.squash
    if len(squash) not in (0, 2) or not all(isinstance(n, int) and n >= 1 for n in squash):
        raise UserError(
            f"config.image.squash = {squash!r}; give (height, width) in pixels, such as (550,550), or ()."
        )
