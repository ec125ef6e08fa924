"""The section of a training phase: its keys, which values they may have, and the recipe that they make."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import grain
import numpy as np
from ml_collections import ConfigDict

from fgvc_jax import lengths
from fgvc_jax.data import sampler
from fgvc_jax.errors import UserError, at_least, check_patterns, choose
from fgvc_jax.images.mix import mix
from fgvc_jax.phases import _starts as starts
from fgvc_jax.train import optim, tree
from fgvc_jax.train.microbatch import accumulate
from fgvc_jax.train.plateau import Patience
from fgvc_jax.train.sam import l2_in_loss, sam
from fgvc_jax.train.step import Recipe


def defaults() -> ConfigDict:
    """Every key of the section, by group."""
    section = ConfigDict()
    section.method = "baseline"  # a file in fgvc_jax/methods, or the path of one of your own
    # The method's own, such as label_smoothing; their defaults come from its file.
    section.arguments = ConfigDict()
    section.pairs = ""  # for methods that train on pairs: the mining phase that made them
    section.length = "30 epochs"
    # The name of an earlier phase in `length` stands for as many 'images' through a backward pass, or
    # as many 'passes' through the backbone (SAM counts twice, a frozen backbone a third).
    section.budget = "images"
    section.batch = 64  # examples a step over all devices; for pairs: pairs
    section.accumulate = 1  # parts of the batch, one after the other, in the memory of one
    # Decay of a moving average of the weights, which is then validated and kept; 0 = off.
    section.ema = 0.0

    section.init = ConfigDict()
    # The phase whose weights it starts from; '' = config.model.pretrained, or from scratch.
    section.init.phase = ""
    section.init.checkpoint = "best"  # of that phase: 'best' by validation, or 'last'
    section.init.interpolate = ""  # a second phase: backbone = alpha * phase + (1 - alpha) * this
    section.init.alpha = 0.5
    # The head: 'keep' that phase's; 'fresh' = new random weights; 'means' = the nearest class mean, as a
    # linear layer on the embeddings of the training images.
    section.init.head = "keep"
    # BatchNorm's running statistics: 'keep' that phase's (or the interpolated ones), or 'estimate' them anew
    # from training images, which interpolated weights call for.
    section.init.batch_norm = "keep"

    section.sampler = ConfigDict()
    # 'shuffled' epochs; 'balanced': every class equally often; 'classes_by_images': a batch has
    # images_per_class images of each of its classes (P x K).
    section.sampler.name = "shuffled"
    section.sampler.images_per_class = 4

    section.optimizer = ConfigDict()
    section.optimizer.name = "sgd"  # 'sgd', 'adamw'
    section.optimizer.learning_rate = 0.01
    section.optimizer.rate_scale = ()  # ((pattern, factor), ...); the first that matches counts
    section.optimizer.momentum = 0.9
    section.optimizer.nesterov = False
    section.optimizer.beta2 = 0.999  # adamw (its beta1 is momentum)
    section.optimizer.weight_decay = 1e-4
    section.optimizer.no_decay = ()  # patterns of parameter paths without weight decay, as '.*bias'
    # Weight decay as 0.5 wd |w|^2 in the loss, so in both of SAM's passes.
    section.optimizer.decay_in_loss = False
    section.optimizer.clip = 0.0  # global norm of the gradient; 0 = off
    section.optimizer.freeze = ()  # patterns of parameter paths that stay as they are
    # BatchNorm whose parameters are frozen: 'fixed' statistics, or 'update'.
    section.optimizer.frozen_batch_norm = "fixed"

    section.schedule = ConfigDict()
    section.schedule.name = "cosine"  # 'constant', 'cosine', 'oscillating', 'step', 'plateau'
    section.schedule.warmup = "0 steps"  # linear, from 0
    section.schedule.drops = ("60 %", "80 %")  # where 'step' multiplies by factor
    section.schedule.factor = 0.1
    section.schedule.period = "400 steps"  # in which 'oscillating' goes to 0 and back
    section.schedule.patience = 5  # evaluations without a better one before 'plateau' multiplies

    section.sam = ConfigDict()
    section.sam.rho = 0.0  # radius of sharpness-aware minimisation, usually 0.05 to 0.1; 0 = off
    section.sam.adaptive = False  # ASAM, whose radius is ten times larger
    section.sam.eta = 0.01  # ASAM's
    section.sam.weights_only = True  # ASAM scales kernels only (its authors), or everything
    section.sam.groups = 1  # m-sharpness: parts of the batch with a perturbation each

    section.mix = ConfigDict()
    section.mix.mixup = 0.0  # alpha of the Beta distribution of shares; 0 = off
    section.mix.cutmix = 0.0
    section.mix.probability = 1.0  # that a batch is mixed at all
    section.mix.switch = 0.5  # probability of CutMix in place of mixup, where both are on

    section.validation = ConfigDict()
    section.validation.every = "1 epochs"  # with a checkpoint each
    section.validation.early_stopping = 0  # evaluations without a better one; 0 = never
    section.validation.keep_every = ""  # checkpoints kept besides best and latest, as '10 epochs'
    # Embeddings of all splits written after these lengths, as ('0 epochs', '1 epochs'), to be looked at.
    section.validation.embeddings = ()
    return section


class Length(NamedTuple):
    """Length of a training phase; images are those through a backward pass."""

    steps: int
    images_per_step: int
    images_per_epoch: int

    def of(self, text: str, where: str) -> int:
        """Steps of a length within the phase, such as its warm-up."""
        return lengths.steps(
            text,
            where=where,
            images_per_step=self.images_per_step,
            images_per_epoch=self.images_per_epoch,
            total_steps=self.steps,
        )


def recipe(section: ConfigDict, where: str, params: tree.Flat, length: Length) -> Recipe:
    """How a module with these parameters is trained.

    Args:
      where: the section's name in messages, such as 'config.finetune'.
      params: by path; shapes are enough.

    Raises:
      UserError: a pattern that matches no parameter, or nothing left to train.
    """
    optimizer, schedule = section.optimizer, section.schedule
    freeze = tuple(optimizer.freeze)
    trainable = [path for path in params if not tree.matches(freeze, path)]
    if not trainable:
        raise UserError(f"{where}.optimizer.freeze = {optimizer.freeze!r} leaves nothing to train.")
    patterns = [(pattern, "freeze") for pattern in freeze]
    patterns += [(pattern, "rate_scale") for pattern, _ in optimizer.rate_scale]
    for pattern, key in patterns:
        if not any(tree.matches([pattern], path) for path in params):
            raise UserError(
                f"{where}.optimizer.{key}: {pattern!r} matches no parameter. They are called, for instance, "
                f"{', '.join([*list(params)[:3], list(params)[-1]])}."
            )
    return Recipe(
        optimizer=optim.optimizer(
            optimizer.name,
            trainable,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
            beta2=optimizer.beta2,
            weight_decay=0.0 if optimizer.decay_in_loss else optimizer.weight_decay,
            no_decay=optimizer.no_decay,
            clip=optimizer.clip,
        ),
        learning_rate=optim.schedule(
            schedule.name,
            peak=optimizer.learning_rate,
            total=length.steps,
            warmup=length.of(schedule.warmup, f"{where}.schedule.warmup"),
            drops=[length.of(text, f"{where}.schedule.drops") for text in schedule.drops],
            factor=schedule.factor,
            period=length.of(schedule.period, f"{where}.schedule.period"),
        ),
        total_steps=length.steps,
        steps_per_epoch=length.images_per_epoch / length.images_per_step,
        rate_scales=optim.learning_rate_scales(trainable, tuple(optimizer.rate_scale)),
        freeze=freeze,
        fix_batch_norm=optimizer.frozen_batch_norm == "fixed",
        wrap=_wrap(section, trainable),
        mix=functools.partial(mix, **section.mix.to_dict()) if mixes(section) else None,
        ema=section.ema,
    )


def _wrap(section: ConfigDict, trainable: list[str]) -> Callable[[Callable], Callable]:
    """SAM around accumulation around the decay in the loss, as far as they are asked for."""
    optimizer, settings = section.optimizer, section.sam.to_dict()
    rho = settings.pop("rho")

    def wrap(gradient: Callable) -> Callable:
        if optimizer.decay_in_loss:
            decays = {path: not tree.matches(optimizer.no_decay, path) for path in trainable}
            gradient = l2_in_loss(gradient, optimizer.weight_decay, decays)
        gradient = accumulate(gradient, section.accumulate)
        return sam(gradient, rho, **settings) if rho else gradient

    return wrap


def freezes_backbone(section: ConfigDict) -> bool:
    """Whether no gradient goes through the backbone, nor through a second one."""
    parts = ("backbone", "second") if section.arguments.get("second") else ("backbone",)
    return all(tree.matches(section.optimizer.freeze, f"{part}/x") for part in parts)


def mixes(section: ConfigDict) -> bool:
    """Whether mixup or CutMix is on."""
    return bool(section.mix.mixup or section.mix.cutmix)


def patience(section: ConfigDict) -> Patience:
    drop = section.schedule.patience if section.schedule.name == "plateau" else 0
    return Patience(section.validation.early_stopping, drop, section.schedule.factor)


def order(section: ConfigDict, labels: np.ndarray, seed: int) -> grain.MapDataset:
    """The examples of each step, `order[step]` -> int64 [batch]."""
    name, batch = section.sampler.name, section.batch
    if name == "balanced":
        return sampler.balanced(labels, batch, seed)
    if name == "classes_by_images":
        return sampler.classes_by_images(labels, batch, section.sampler.images_per_class, seed)
    return sampler.shuffled(len(labels), batch, seed)


def check(section: ConfigDict, where: str) -> None:
    """Raises UserError for values that are wrong whatever the other phases and the data are."""
    init, opt, schedule = section.init, section.optimizer, section.schedule
    validation, sam_ = section.validation, section.sam
    choose(section.budget, ("images", "passes"), f"{where}.budget")
    choose(section.sampler.name, sampler.NAMES, f"{where}.sampler.name")
    choose(opt.name, optim.OPTIMIZERS, f"{where}.optimizer.name")
    choose(schedule.name, optim.SCHEDULES, f"{where}.schedule.name")
    choose(init.checkpoint, ("best", "last"), f"{where}.init.checkpoint")
    choose(init.head, starts.HEADS, f"{where}.init.head")
    choose(init.batch_norm, starts.BATCH_NORMS, f"{where}.init.batch_norm")
    for key, value in (("head", "means"), ("batch_norm", "estimate"), ("interpolate", None)):
        given = init[key] if value is None else init[key] == value
        if given and not init.phase:
            raise UserError(
                f"{where}.init.{key} = {init[key]!r} needs {where}.init.phase, the phase whose weights it "
                "starts from."
            )
    choose(opt.frozen_batch_norm, ("fixed", "update"), f"{where}.optimizer.frozen_batch_norm")
    for key in (
        "batch",
        "accumulate",
        "sam.groups",
        "sampler.images_per_class",
        "schedule.patience",
    ):
        at_least(_get(section, key), 1, f"{where}.{key}")
    for key in ("mixup", "cutmix", "probability", "switch"):
        at_least(section.mix[key], 0, f"{where}.mix.{key}")
        if key in ("probability", "switch") and section.mix[key] > 1:
            raise UserError(
                f"{where}.mix.{key} = {section.mix[key]}; a probability lies in 0 to 1."
            )
    for key in ("learning_rate", "weight_decay", "clip"):
        at_least(opt[key], 0, f"{where}.optimizer.{key}")
    at_least(sam_.rho, 0, f"{where}.sam.rho")
    at_least(sam_.eta, 0, f"{where}.sam.eta")
    at_least(validation.early_stopping, 0, f"{where}.validation.early_stopping")
    if section.batch % (section.accumulate * sam_.groups):
        raise UserError(
            f"{where}.batch = {section.batch} is not divisible by accumulate x sam.groups = "
            f"{section.accumulate} x {sam_.groups}."
        )
    if not 0 <= section.ema < 1:
        raise UserError(f"{where}.ema = {section.ema}; a decay lies in 0 (off) to below 1.")
    if not 0 <= init.alpha <= 1:
        raise UserError(
            f"{where}.init.alpha = {init.alpha}; the weight of the first phase is 0 to 1."
        )
    if not any(number for number, _ in lengths.terms(section.length, f"{where}.length")):
        raise UserError(
            f"{where}.length = {section.length!r}; leave the phase out of config.phases."
        )
    for key in ("no_decay", "freeze"):
        check_patterns(opt[key], f"{where}.optimizer.{key}")
    if any(not isinstance(entry, tuple) or len(entry) != 2 for entry in opt.rate_scale):
        raise UserError(
            f"{where}.optimizer.rate_scale = {opt.rate_scale}; it is a tuple of (pattern, factor), such as "
            "(('head/.*', 10.0),)."
        )
    check_patterns((p for p, _ in opt.rate_scale), f"{where}.optimizer.rate_scale")
    for key in ("schedule.warmup", "validation.every", "validation.keep_every"):
        if _get(section, key):
            lengths.terms(_get(section, key), f"{where}.{key}")
    if not any(number for number, _ in lengths.terms(schedule.period, f"{where}.schedule.period")):
        raise UserError(f"{where}.schedule.period = {schedule.period!r}; it must be above 0.")
    for key in ("schedule.drops", "validation.embeddings"):
        for text in _get(section, key):
            lengths.terms(text, f"{where}.{key}")


def _get(section: ConfigDict, key: str):
    for part in key.split("."):
        section = section[part]
    return section
