"""A training phase: from the data and earlier weights to checkpoints and model.json."""

import functools
import io
import logging
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fgvc_jax import evaluators, lengths, methods
from fgvc_jax.data import feed, sampler
from fgvc_jax.errors import UserError, at_least, check_patterns, choose
from fgvc_jax.images.mix import mix
from fgvc_jax.mining import pairs as mined
from fgvc_jax.phases import _starts as starts
from fgvc_jax.phases._base import Cost, Read, Result
from fgvc_jax.phases._base import Phase as Base
from fgvc_jax.phases._data import Data
from fgvc_jax.phases._models import Models
from fgvc_jax.phases._run import Run
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.tracking.timers import Seconds
from fgvc_jax.tracking.writers import Writer
from fgvc_jax.train import loop, optim, plateau, tree
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train.build import Program, batch_of, build, new_state
from fgvc_jax.train.checkpoint import Checkpoints
from fgvc_jax.train.loop import Milestones, Tracker
from fgvc_jax.train.memory import explained
from fgvc_jax.train.microbatch import accumulate
from fgvc_jax.train.plateau import Patience
from fgvc_jax.train.predict import predict_all
from fgvc_jax.train.sam import l2_in_loss, sam
from fgvc_jax.train.step import Recipe

log = logging.getLogger(__name__)

UNITS = ("steps", "epochs", "images", "%")


def defaults() -> ConfigDict:
    section = ConfigDict()
    section.method = "baseline"  # a file in fgvc_jax/methods, or the path of one of your own
    section.arguments = (
        ConfigDict()
    )  # the method's own, such as label_smoothing; defaults from its file
    section.pairs = ""  # for methods that train on pairs: the mining phase that made them
    section.length = "30 epochs"
    # What the name of an earlier phase in `length` stands for: as many 'images' through a backward pass, or
    # as many 'passes' through the backbone (SAM counts twice, a frozen backbone a third).
    section.budget = "images"
    section.batch = 64  # examples a step over all devices; for pairs: pairs
    section.accumulate = 1  # parts of the batch, one after the other, in the memory of one
    section.ema = (
        0.0  # decay of a moving average of the weights, which is validated and kept; 0 = off
    )

    section.init = ConfigDict()
    section.init.phase = (
        ""  # whose weights it starts from; '' = config.model.pretrained, or scratch
    )
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
    section.schedule.name = "cosine"  # 'constant', 'cosine', 'step', 'plateau'
    section.schedule.warmup = "0 steps"  # linear, from 0
    section.schedule.drops = ("60 %", "80 %")  # where 'step' multiplies by factor
    section.schedule.factor = 0.1
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
    return section


class Examples(NamedTuple):
    """What a phase trains or validates on."""

    splits: tuple[str, ...]  # of each image of an example
    index: np.ndarray  # int [N, V], rows of these splits
    labels: np.ndarray  # int32 [N], class ids, or 1 for a pair of the same class


class Phase(Base):
    defaults = staticmethod(defaults)
    _cost: methods.Cost | None = None  # of the method, once it has been built

    @staticmethod
    def arguments(section: ConfigDict, where: str) -> dict[str, Any]:
        return methods.arguments(section.method, f"{where}.method")

    @property
    def method(self) -> type[methods.Method]:
        return methods.get(self.section.method, f"config.{self.name}.method")

    def reads(self) -> list[Read]:
        section = self.section
        started = [Read(p, "train") for p in (section.init.phase, section.init.interpolate) if p]
        mined = [Read(section.pairs, "mine")] if section.pairs else []
        units = [unit for _, unit in lengths.terms(section.length, self._key("length"))]
        lasted = [Read(unit, "train", length=True) for unit in units if unit not in UNITS]
        # By name, so that a phase that is read for more than its length stands first, and once.
        return list({read.phase: read for read in [*lasted, *started, *mined]}.values())

    def _passes_an_example(self, models: Models) -> float:
        """Forward passes of one image that an example costs; a backward pass takes two, SAM doubles all."""
        if self._cost is None:
            self._cost = self._module(models).cost
        forward, backward = self._cost
        frozen = tree.matches(self.section.optimizer.freeze, "backbone/x")
        passes = forward + (0 if frozen else 2 * backward)
        return passes * (2 if self.section.sam.rho else 1)

    def check(self) -> None:
        section, where = self.section, f"config.{self.name}"
        _check_choices(section, where)
        wants_pairs = self.method.trains_on == "pairs"
        if bool(section.pairs) != wants_pairs:
            wants = "name a mining phase" if wants_pairs else "be empty"
            raise UserError(
                f"{where}.pairs = {section.pairs!r}: method {section.method!r} trains on "
                f"{self.method.trains_on}, so it must {wants}."
            )
        evaluators.get(self.method.evaluator)
        if self._mixes() and not self.method.takes_mixed_labels:
            raise UserError(
                f"{where}.mix: the loss of method {section.method!r} takes no mixed labels. Set mix.mixup "
                "and mix.cutmix to 0."
            )
        for name in section.arguments:
            if name in methods.COMMON:
                raise UserError(
                    f"{where}.arguments.{name} is not the method's own; see config.model."
                )

    def _check_images(self, data: Data) -> None:
        evaluators.get(self.method.evaluator).check(data.manifest)
        batch, count, devices = self.section.batch, data.sizes["train"], data.mesh.size
        if not self.section.pairs and batch > count:
            raise UserError(
                f"{self._key('batch')} = {batch:,} is more than the {count:,} training images; it may be "
                f"{devices} to {count // devices * devices:,}."
            )

    def cost(self, models: Models, sizes: dict[str, int], known: dict[str, Result]) -> Cost:
        section = self.section
        examples, validation = sizes["train"], sizes.get("val", 0)
        if section.pairs:
            examples = known[section.pairs]["train"]["pairs"]
            validation = 2 * known[section.pairs].get("val", {"pairs": 0})["pairs"]
        length = self._length(models, examples, known)
        images = length.steps * length.images_per_step
        passes = length.steps * section.batch * self._passes_an_example(models)
        every = max(1, length.of(section.validation.every, self._key("validation.every")))
        forward = validation * max(1, round(length.steps / every))
        expected = {"images": images, "passes": passes / 3}
        return Cost(images, forward, length.steps, passes + forward, expected)

    def prepare(self, run: Run, data: Data, models: Models) -> None:
        section, where = self.section, f"config.{self.name}"
        if not run.dry_run:  # which has a few images of a few classes
            self._check_images(data)
        meshes.check_batch(section.batch, data.mesh, f"{where}.batch")
        if section.schedule.name == "plateau" and "val" not in data.sizes:
            raise UserError(
                f"{where}.schedule.name = 'plateau' waits for validation, and {data.manifest.name} has no "
                "val split. Use 'cosine' or 'step', or carve one (config.data.val_fraction)."
            )
        if not section.pairs:
            self._order(data.labels("train"), 0)
        length = _Length(1, section.batch * self.method.images_per_example, 1)
        _, program, _ = self._program(models, data, length)
        columns = {"label": jnp.int32}
        batch = batch_of(
            data.mesh, section.batch, self.method.images_per_example, data.canvas, **columns
        )
        if section.init.head == "means" and "head/kernel" not in program.state["params"]:
            raise UserError(
                f"{where}.init.head = 'means' makes a linear layer called head, and method "
                f"{section.method!r} has none. Use 'keep' or 'fresh'."
            )
        try:
            program.trace(batch)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{where}: method {section.method!r} cannot train {models.config.model.backbone} at "
                f"config.image.size = {models.view.size}: {error}"
            ) from error

    def run(self, run: Run, data: Data, models: Models) -> Result:
        """Trains, resuming from the latest checkpoint of this phase if there is one.

        Returns:
          Steps, images through a backward pass, passes, seconds by kind, the steps after which a plateau
          dropped the rate, and the validation metrics of the best and the last checkpoint.
        """
        section, folder, seconds = self.section, run.directory(self.name), Seconds()
        train, val = self._examples(run, data, "train"), self._examples(run, data, "val")
        if train is None:
            raise UserError(
                f"phase {self.name!r} has nothing to train on: {section.pairs!r} found no pairs. Search more "
                "classes (top_classes), or train the model that embeds longer."
            )
        length = self._length(models, len(train.index), run.results)
        module, program, recipe = self._program(models, data, length)
        specification = models.specify(section)
        if run.main:
            specification.save(folder / "model.json")

        # Restored before anything is built from older weights: a resumed phase needs none of them.
        keep = section.validation.keep_every
        keep_every = length.of(keep, self._key("validation.keep_every")) if keep else 0
        checkpoints = Checkpoints(folder / "checkpoints", keep_every)
        first = checkpoints.latest() or 0
        if first:
            state = checkpoints.restore(first, program.state)
            log.info("  %s goes on from step %s of %s", self.name, first, length.steps)
        else:
            weights = starts.weights(
                section,
                specification,
                data,
                models,
                seed=phase_seed(self.config.seed, self.name),
                batch_norm_seed=phase_seed(self.config.seed, f"{self.name}/batch_norm"),
            )
            state = new_state(program, weights["params"], weights["batch_stats"], recipe)
        writer = None
        if run.main:
            writer = Writer(folder, tensorboard=self.config.log.tensorboard)
            writer.truncate(first)

        seed = np.uint32(phase_seed(self.config.seed, self.name))
        order = self._order(train.labels, int(seed))
        examples = {"index": train.index, "label": train.labels}
        source = data.feed(train.splits)
        batches = source.stream(order.slice(slice(first, length.steps)), examples)
        step = program.step
        if first < length.steps:
            log.info("  compiling the train step ... (first time; the result is cached)")
            with seconds.measure("compile"):
                rows = {key: column[order[first]] for key, column in examples.items()}
                with explained(f"config.{self.name}.batch", section.batch):
                    step = step.lower(state, source.resident, source.batch(**rows), seed).compile()

        predict = models.predictor(program.eval_static)
        evaluator = evaluators.get(self.method.evaluator)

        def evaluate(state) -> dict[str, float] | None:
            if val is None:
                return None
            batches = data.in_order(val.splits, val.index, section.batch)
            outputs = predict_all(predict, state.get("ema", state), batches)
            found = evaluator.validate(outputs, val.labels, len(specification.classes))
            # Checkpoints keep metrics as JSON, which has no NaN.
            return {k: v for k, v in found.items() if v is not None and np.isfinite(v)}

        def length_of(text: str, key: str) -> int:
            return max(1, length.of(text, key))

        progress = Progress(
            self.name,
            length.steps,
            section.batch * module.cost.forward,
            first_step=first,
            later_seconds=run.later_seconds,
            stream=None if run.main else io.StringIO(),
        )
        try:
            with progress, explained(f"config.{self.name}.batch", section.batch):
                state = loop.fit(
                    state,
                    lambda state, batch: step(state, source.resident, batch, seed),
                    batches,
                    milestones=Milestones(
                        first=first,
                        total=length.steps,
                        evaluate=length_of(section.validation.every, self._key("validation.every")),
                        log=length_of(self.config.log.every, "config.log.every"),
                        keep=keep_every,
                    ),
                    evaluate=evaluate,
                    checkpoints=checkpoints,
                    tracker=Tracker(progress, seconds, writer),
                    stop=run.stop,
                    patience=self._patience(),
                )
            last = int(state["step"])
        finally:
            with seconds.measure("save"):
                checkpoints.close()
            if writer:
                writer.close()
        return {
            "steps": last,
            "images": last * length.images_per_step,
            "passes": last * section.batch * self._passes_an_example(models) / 3,
            "plateau_drops": plateau.drops(jax.device_get(state["plateau"])),
            "seconds_by_kind": {k: round(v, 2) for k, v in vars(seconds).items()},
            "validation": _validation(folder / "checkpoints", last),
        }

    def _key(self, key: str) -> str:
        return f"config.{self.name}.{key}"

    def _length(self, models: Models, examples: int, known: dict[str, Result]) -> "_Length":
        """The length of the phase over this many examples (images or pairs)."""
        section, per_example = self.section, self.method.images_per_example
        earlier = {name: r["images"] for name, r in known.items() if "images" in r}
        if section.budget == "passes":
            an_image = self._passes_an_example(models) / 3 / per_example
            earlier = {name: r["passes"] / an_image for name, r in known.items() if "passes" in r}
        count = lengths.steps(
            section.length,
            where=self._key("length"),
            images_per_step=section.batch * per_example,
            images_per_epoch=examples * per_example,
            earlier=earlier,
        )
        return _Length(max(1, count), section.batch * per_example, examples * per_example)

    def _program(
        self, models: Models, data: Data, length: "_Length"
    ) -> tuple[nnx.Module, Program, Recipe]:
        """The module as shapes (in train mode), its program and its recipe, from specifications alone."""
        module = self._module(models)
        recipe = self._recipe(module, length)
        program = build(
            module,
            recipe,
            mesh=data.mesh,
            gather=functools.partial(feed.gather, mesh=data.mesh),
            preprocess=models.preprocess(),
        )
        return module, program, recipe

    def _module(self, models: Models) -> nnx.Module:
        section = self.section
        try:
            return nnx.eval_shape(models.specify(section).build)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self._key('arguments')} = {section.arguments.to_dict()} do not suit {section.method!r}: "
                f"{error}"
            ) from error

    def _recipe(self, module: nnx.Module, length: "_Length") -> Recipe:
        section = self.section
        opt, schedule, sam_ = section.optimizer, section.schedule, section.sam
        _, params, _ = tree.split(module)
        freeze = tuple(opt.freeze)
        trainable = [path for path in params if not tree.matches(freeze, path)]
        if not trainable:
            raise UserError(
                f"{self._key('optimizer.freeze')} = {opt.freeze!r} leaves nothing to train."
            )
        patterns = [(pattern, "freeze") for pattern in freeze]
        patterns += [(pattern, "rate_scale") for pattern, _ in opt.rate_scale]
        for pattern, key in patterns:
            if not any(tree.matches([pattern], path) for path in params):
                raise UserError(
                    f"{self._key('optimizer')}.{key}: {pattern!r} matches no parameter. They are called, for "
                    f"instance, {', '.join([*list(params)[:3], list(params)[-1]])}."
                )

        def wrap(gradient: Callable) -> Callable:
            """SAM around accumulation around the decay in the loss, as far as they are asked for."""
            if opt.decay_in_loss:
                decays = {path: not tree.matches(opt.no_decay, path) for path in trainable}
                gradient = l2_in_loss(gradient, opt.weight_decay, decays)
            gradient = accumulate(gradient, section.accumulate)
            if sam_.rho:
                gradient = sam(
                    gradient,
                    sam_.rho,
                    adaptive=sam_.adaptive,
                    eta=sam_.eta,
                    weights_only=sam_.weights_only,
                    groups=sam_.groups,
                )
            return gradient

        return Recipe(
            optimizer=optim.optimizer(
                opt.name,
                trainable,
                momentum=opt.momentum,
                nesterov=opt.nesterov,
                beta2=opt.beta2,
                weight_decay=0.0 if opt.decay_in_loss else opt.weight_decay,
                no_decay=opt.no_decay,
                clip=opt.clip,
            ),
            learning_rate=optim.schedule(
                schedule.name,
                peak=opt.learning_rate,
                total=length.steps,
                warmup=length.of(schedule.warmup, self._key("schedule.warmup")),
                drops=[length.of(text, self._key("schedule.drops")) for text in schedule.drops],
                factor=schedule.factor,
            ),
            total_steps=length.steps,
            steps_per_epoch=length.images_per_epoch / length.images_per_step,
            rate_scales=optim.learning_rate_scales(trainable, tuple(opt.rate_scale)),
            freeze=freeze,
            fix_batch_norm=opt.frozen_batch_norm == "fixed",
            wrap=wrap,
            mix=functools.partial(mix, **section.mix.to_dict()) if self._mixes() else None,
            ema=section.ema,
        )

    def _mixes(self) -> bool:
        return bool(self.section.mix.mixup or self.section.mix.cutmix)

    def _patience(self) -> Patience:
        schedule = self.section.schedule
        drop = schedule.patience if schedule.name == "plateau" else 0
        return Patience(self.section.validation.early_stopping, drop, schedule.factor)

    def _order(self, labels: np.ndarray, seed: int):
        name, batch = self.section.sampler.name, self.section.batch
        if name == "balanced":
            return sampler.balanced(labels, batch, seed)
        if name == "classes_by_images":
            images = self.section.sampler.images_per_class
            return sampler.classes_by_images(labels, batch, images, seed)
        return sampler.shuffled(len(labels), batch, seed)

    def _examples(self, run: Run, data: Data, split: str) -> Examples | None:
        """The examples of a split; None where there are none."""
        if not self.section.pairs:
            if split not in data.manifest.splits:
                return None
            labels = data.labels(split)
            return Examples((split,), np.arange(len(labels))[:, None], labels)
        path = run.workdir / self.section.pairs / f"{split}_pairs.npz"
        pairs = mined.load(path) if path.exists() else None
        if pairs is None or not len(pairs.query):
            return None
        index = np.stack([pairs.query, pairs.neighbour], axis=1)
        return Examples((split, "train"), index, pairs.label)


class _Length(NamedTuple):
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


def phase_seed(seed: int, name: str) -> int:
    """Phases draw differently from each other, and the same in every run with one seed."""
    return zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF


def _validation(directory, last: int) -> dict[str, dict]:
    checkpoints = Checkpoints(directory)
    best = checkpoints.best() or last
    result = {
        "best": {"step": best} | checkpoints.metrics(best),
        "last": {"step": last} | checkpoints.metrics(last),
    }
    checkpoints.close()
    return result


def _check_choices(section: ConfigDict, where: str) -> None:
    """Values that are wrong whatever the other phases and the data are."""
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
    for text in schedule.drops:
        lengths.terms(text, f"{where}.schedule.drops")


def _get(section: ConfigDict, key: str):
    for part in key.split("."):
        section = section[part]
    return section
