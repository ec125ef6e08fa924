"""The checks of a config that need no data."""

import re
from collections.abc import Iterable

import jax
from ml_collections import ConfigDict

from fgvc_jax import backbones, lengths, methods
from fgvc_jax.config import SECTIONS, inputs, phases
from fgvc_jax.errors import UserError, choose, did_you_mean


def check(config: ConfigDict) -> None:
    """Refuses what can be known to be wrong before any data is read.

    Raises:
      UserError: for an unknown phase, method, backbone or choice, a phase that reads one which does not
        come before it, a repeated phase.
    """
    names = phases(config)
    if not names:
        raise UserError("config.phases is empty: name at least one phase.")
    sections = [
        key for key, value in config.items() if isinstance(value, ConfigDict) and "kind" in value
    ]
    for position, name in enumerate(names):
        choose(name, sections, "config.phases: phase")
        if name in names[:position]:
            raise UserError(f"config.phases names {name!r} twice.")
        section = config[name]
        choose(section.kind, SECTIONS, f"config.{name}.kind")
        for read in inputs(section, f"config.{name}."):
            if read not in names[:position]:
                before = ", ".join(names[:position]) or "nothing"
                raise UserError(
                    f"phase {name!r} reads {read!r}, which does not come before it in config.phases "
                    f"(before it: {before}){did_you_mean(read, names[:position])}"
                    + (
                        " In a length, it is no unit either."
                        if read in str(section.get("length"))
                        else ""
                    )
                )
            wanted = {"mine": "embed"}.get(section.kind, "train")
            if section.kind == "train" and read == section.pairs:
                wanted = "mine"
            if config[read].kind != wanted:
                raise UserError(
                    f"phase {name!r} reads {read!r}, which is a phase of kind {config[read].kind!r}; "
                    f"here one of kind {wanted!r} is needed."
                )
        if section.kind == "train":
            _check_training(section, name, config)
        elif section.kind in ("embed", "evaluate"):
            _check_classifiers(section, name, names[:position], config)
        elif section.kind == "mine":
            choose(section.similarity, ("cosine", "ip", "l2"), f"config.{name}.similarity")
            choose(section.backend, ("faiss", "jax"), f"config.{name}.backend")
            _at_least(section.top_classes, 1, f"config.{name}.top_classes")
        if "batch" in section:
            _at_least(section.batch, 1, f"config.{name}.batch")
    choose(config.model.backbone, backbones.names(), "config.model.backbone")
    types = ("float32", "bfloat16", "float64")
    _check_patterns(config.model.allow, "config.model.allow")
    choose(config.model.dtype, ("auto", *types), "config.model.dtype")
    choose(config.model.param_dtype, types, "config.model.param_dtype")
    if (
        "float64" in (config.model.dtype, config.model.param_dtype)
        and not jax.config.jax_enable_x64
    ):
        raise UserError("config.model: float64 needs the environment variable JAX_ENABLE_X64=1.")
    lengths.terms(config.log.every, "config.log.every")
    if (
        not 0 <= config.data.val_fraction + config.data.test_fraction < 1
        or min(config.data.val_fraction, config.data.test_fraction) < 0
    ):
        raise UserError(
            f"config.data.val_fraction = {config.data.val_fraction} and config.data.test_fraction = "
            f"{config.data.test_fraction}: shares from 0 on, which leave something for training."
        )
    _at_least(config.data.split_seed, 0, "config.data.split_seed")
    _at_least(config.data.canvas, 8, "config.data.canvas")
    for key in ("flip", "augment_probability", "blur", "sharpen"):
        if not 0 <= config.image[key] <= 1:
            raise UserError(
                f"config.image.{key} = {config.image[key]}; a probability lies in 0 to 1."
            )
    for key in ("mean", "std"):
        if len(config.image[key]) not in (0, 3) or (key == "std" and 0 in config.image[key]):
            raise UserError(
                f"config.image.{key} = {config.image[key]!r}; give three numbers (of values in 0..1), "
                "such as (0.5,0.5,0.5), or () for what the weights want."
            )
    for key in ("crop_scale", "crop_ratio", "blur_sigma"):
        low_high = config.image[key]
        if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
            raise UserError(f"config.image.{key} = {low_high}; it is (lowest, highest), above 0.")
    choose(config.protocol, ("val", "refit"), "config.protocol")
    _at_least(config.seeds, 1, "config.seeds")
    named = ("cub", "cars", "aircraft")
    known = ("folder", "list", "inaturalist", *named, "competition", "tfds", "digits")
    choose(config.data.source, known, "config.data.source")
    if config.data.images and config.data.source not in ("list", "inaturalist"):
        raise UserError(
            f"config.data.images = {config.data.images!r} is for the sources 'list' and 'inaturalist'; "
            f"{config.data.source!r} finds its images in config.data.root."
        )
    if config.data.source != "tfds":
        for key, usual in (("splits", "official"), ("fold", 1)):
            if config.data[key] != usual:
                raise UserError(
                    f"config.data.{key} = {config.data[key]!r} is for the source 'tfds'; "
                    f"{config.data.source!r} has no such choice."
                )
    choose(config.data.on_bad, ("stop", "skip"), "config.data.on_bad")
    choose(config.data.feed, ("auto", "resident", "streamed", "decoded"), "config.data.feed")
    augments = ("none", "trivial_augment_wide", "auto_augment")
    choose(config.image.augment, augments, "config.image.augment")
    if config.image.interpolation:
        choose(config.image.interpolation, ("bilinear", "bicubic"), "config.image.interpolation")
    _at_least(config.image.size, 1, "config.image.size")
    choose(config.image.crop, ("random_resized", "random"), "config.image.crop")
    _at_least(config.image.crop_pad, 0, "config.image.crop_pad")
    squash = config.image.squash
    if len(squash) not in (0, 2) or not all(isinstance(n, int) and n >= 1 for n in squash):
        raise UserError(
            f"config.image.squash = {squash!r}; give (height, width) in pixels, such as (550,550), or ()."
        )
    if config.image.resize:
        _at_least(config.image.resize, config.image.size, "config.image.resize (or 0)")


def _check_classifiers(section: ConfigDict, name: str, before, config: ConfigDict) -> None:
    for read in inputs(section):
        if methods.get(config[read].method).task != "classify":
            raise UserError(
                f"phase {name!r} reads {read!r}, whose method {config[read].method!r} gives no class scores."
            )
    if section.kind == "embed":
        choose(section.view, ("eval", "train"), f"config.{name}.view")
        choose(section.model_from, ("best", "last"), f"config.{name}.model_from")
        return
    trained = [config[phase].method for phase in before if config[phase].kind == "train"]
    if not any(methods.get(method).task == "classify" for method in trained):
        raise UserError(f"phase {name!r}: no classifier is trained before it in config.phases.")
    _at_least(section.neighbours, 1, f"config.{name}.neighbours")
    _at_least(section.rerank_classes, 1, f"config.{name}.rerank_classes")
    if len(section.compare) != 2:
        raise UserError(f"config.{name}.compare = {section.compare!r}; name two phases.")


def _check_training(section: ConfigDict, name: str, config: ConfigDict) -> None:
    choose(section.method, methods.names(), f"config.{name}.method")
    samplers = ("shuffled", "balanced", "classes_by_images")
    choose(section.sampler, samplers, f"config.{name}.sampler")
    _at_least(section.images_per_class, 1, f"config.{name}.images_per_class")
    choose(section.optimizer, ("sgd", "adamw"), f"config.{name}.optimizer")
    schedules = ("constant", "cosine", "step", "plateau")
    choose(section.schedule, schedules, f"config.{name}.schedule")
    _at_least(section.accumulate, 1, f"config.{name}.accumulate")
    _at_least(section.sam_groups, 1, f"config.{name}.sam_groups")
    if section.batch % (section.accumulate * section.sam_groups):
        raise UserError(
            f"config.{name}.batch = {section.batch} is not divisible by accumulate x sam_groups = "
            f"{section.accumulate} x {section.sam_groups}."
        )
    if not 0 <= section.ema < 1:
        raise UserError(f"config.{name}.ema = {section.ema}; a decay lies in 0 (off) to below 1.")
    choose(section.init_from, ("best", "last"), f"config.{name}.init_from")
    choose(section.head, ("keep", "fresh", "means"), f"config.{name}.head")
    choose(section.batch_norm, ("keep", "estimate"), f"config.{name}.batch_norm")
    choose(section.frozen_batch_norm, ("fixed", "update"), f"config.{name}.frozen_batch_norm")
    if section.blend and not section.init:
        raise UserError(
            f"config.{name}.blend = {section.blend!r} needs config.{name}.init to blend with."
        )
    if not section.init and (section.head == "means" or section.batch_norm == "estimate"):
        key = "head" if section.head == "means" else "batch_norm"
        raise UserError(
            f"config.{name}.{key} = {section[key]!r} needs config.{name}.init, the phase whose weights it is "
            "computed with."
        )
    if not 0 <= section.alpha <= 1:
        raise UserError(
            f"config.{name}.alpha = {section.alpha}; the weight of the first phase is 0 to 1."
        )
    for key in ("learning_rate", "weight_decay", "clip", "sam_rho", "sam_eta", "patience"):
        _at_least(section[key], 0, f"config.{name}.{key}")
    if not any(number for number, _ in lengths.terms(section.length, f"config.{name}.length")):
        raise UserError(
            f"config.{name}.length = {section.length!r}; leave the phase out of config.phases."
        )
    views = methods.get(section.method).views
    if bool(section.pairs) != (views == 2):
        trains_on, wants = (
            ("pairs", "name a mining phase") if views == 2 else ("images", "be empty")
        )
        raise UserError(
            f"config.{name}.pairs = {section.pairs!r}: method {section.method!r} trains on {trains_on}, "
            f"so it must {wants}."
        )
    for key in ("no_decay", "freeze"):
        _check_patterns(section[key], f"config.{name}.{key}")
    if any(
        not isinstance(entry, tuple) or len(entry) != 2 for entry in section.learning_rate_scale
    ):
        raise UserError(
            f"config.{name}.learning_rate_scale = {section.learning_rate_scale}; it is a tuple of "
            "(pattern, factor), such as (('head/.*', 10.0),)."
        )
    _check_patterns(
        (p for p, _ in section.learning_rate_scale), f"config.{name}.learning_rate_scale"
    )
    for key in ("warmup", "eval_every", "keep_every"):
        if section[key]:
            lengths.terms(section[key], f"config.{name}.{key}")
    for text in section.schedule_steps:
        lengths.terms(text, f"config.{name}.schedule_steps")


def _check_patterns(patterns: Iterable[str], where: str) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}.") from None


def _at_least(value, lowest, where: str) -> None:
    if not value >= lowest:
        raise UserError(f"{where} = {value}; it must be at least {lowest}.")
