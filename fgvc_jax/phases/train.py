"""A training phase: from the data and earlier weights to checkpoints and model.json."""

import functools
import io
import logging
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fgvc_jax import evaluators, lengths, methods
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models, dtype_of
from fgvc_jax.context.run import Run
from fgvc_jax.data import feed
from fgvc_jax.errors import UserError
from fgvc_jax.files import atomic
from fgvc_jax.hardware import compiled
from fgvc_jax.mining import pairs as mined
from fgvc_jax.phases import _programs as programs
from fgvc_jax.phases import _starts as starts
from fgvc_jax.phases import _training as training
from fgvc_jax.phases._base import Cost, Pass, Read, Result
from fgvc_jax.phases._base import Phase as Base
from fgvc_jax.phases._training import Length
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.tracking.timers import Seconds
from fgvc_jax.tracking.wandb import Wandb
from fgvc_jax.tracking.writers import Writer
from fgvc_jax.train import loop, plateau, profile, tree
from fgvc_jax.train.build import Program, batch_of, build, new_state
from fgvc_jax.train.checkpoint import Checkpoints, Unlogged
from fgvc_jax.train.clock import Clock
from fgvc_jax.train.loop import Milestones, Tracker
from fgvc_jax.train.memory import Estimate, explained
from fgvc_jax.train.predict import predict_all
from fgvc_jax.train.profile import Profile
from fgvc_jax.train.step import Recipe, State
from fgvc_jax.train.stop import Interrupted

log = logging.getLogger(__name__)


class Examples(NamedTuple):
    """The examples that a phase trains or validates on."""

    splits: tuple[str, ...]  # of each image of an example
    index: np.ndarray  # int [N, V], rows of these splits
    labels: np.ndarray  # int32 [N], class ids, or 1 for a pair of the same class


class Phase(Base):
    trains = True
    defaults = staticmethod(training.defaults)
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
        lasted = [Read(unit, "train", length=True) for unit in units if unit not in lengths.UNITS]
        # By name, so that a phase that is read for more than its length stands first, and once.
        return list({read.phase: read for read in [*lasted, *started, *mined]}.values())

    def _passes_an_example(self, models: Models) -> float:
        """Forward passes of one image that an example costs; a backward pass takes two, SAM doubles all."""
        if self._cost is None:
            self._cost = self._module(models).cost
        forward, backward, _ = self._cost
        passes = forward + (0 if training.freezes_backbone(self.section) else 2 * backward)
        return passes * (2 if self.section.sam.rho else 1)

    def check(self) -> None:
        section, where = self.section, f"config.{self.name}"
        training.check(section, where)
        wants_pairs = self.method.trains_on == "pairs"
        if bool(section.pairs) != wants_pairs:
            wants = "name a mining phase" if wants_pairs else "be empty"
            raise UserError(
                f"{where}.pairs = {section.pairs!r}: method {section.method!r} trains on "
                f"{self.method.trains_on}, so it must {wants}."
            )
        evaluators.get(self.method.evaluator)
        if training.mixes(section) and not self.method.takes_mixed_labels:
            raise UserError(
                f"{where}.mix: the loss of method {section.method!r} takes no mixed labels. Set mix.mixup "
                "and mix.cutmix to 0."
            )
        parts = section.accumulate * section.sam.groups
        if parts > 1 and self.method.compares_examples:
            raise UserError(
                f"{where}: the loss of method {section.method!r} compares the examples of a batch with each "
                f"other, and accumulate x sam.groups = {section.accumulate} x {section.sam.groups} would "
                f"show it {parts} parts of {section.batch // parts} examples, one after the other. Set both "
                "to 1; where memory is short, config.model.remat=full or a smaller batch."
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
        forward += len(section.validation.embeddings) * sum(sizes.values())
        in_use = forward * self._cost.predict
        expected = {"images": images, "passes": passes / 3}
        return Cost(images, forward, length.steps, passes + in_use, expected)

    def prepare(self, run: Run, data: Data, models: Models) -> None:
        section, where = self.section, f"config.{self.name}"
        if not run.dry_run:  # which has a few images of a few classes
            self._check_images(data)
        if section.schedule.name == "plateau" and "val" not in data.sizes:
            raise UserError(
                f"{where}.schedule.name = 'plateau' waits for validation, and {data.manifest.name} has no "
                "val split. Use 'cosine' or 'step', or carve one (config.data.val_fraction)."
            )
        if not section.pairs:
            training.order(section, data.labels("train"), 0)
        length = Length(1, section.batch * self.method.images_per_example, 1)
        _, program, _ = self._build(models, length)
        images = self.method.images_per_example
        batch = batch_of(data.mesh, section.batch, images, data.canvas, label=jnp.int32)
        elsewhere = [p for p in program.state["batch_stats"] if not p.startswith("backbone/")]
        if section.init.batch_norm == "estimate" and elsewhere:
            raise UserError(
                f"{self._key('init.batch_norm')} = 'estimate' is for the statistics of the backbone, and "
                f"method {section.method!r} has others, such as {elsewhere[0]}. Use 'keep'."
            )
        if self.method.compares_examples and section.sampler.name != "classes_by_images":
            log.warning(
                "warning: method %r compares images of one class within a batch, and %s.sampler.name = "
                "%r may bring few of them together; 'classes_by_images' does.",
                section.method,
                where,
                section.sampler.name,
            )
        models.check_start(section)
        try:
            program.trace(batch)
            self._check_embedding(program, data, models)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{where}: method {section.method!r} cannot train {models.config.model.backbone} at "
                f"config.image.size = {models.view.size}: {error}"
            ) from error

    def passes(self, models: Models) -> list[Pass]:
        section, images, key = self.section, self.method.images_per_example, self._key("batch")
        _, program, _ = self._build(models, Length(1, section.batch * images, 1))
        apart = ("init", "length", "budget", "schedule", "validation", "sampler", "pairs")
        same = {name: value for name, value in section.to_dict().items() if name not in apart}
        step = programs.training(
            program,
            models,
            key=key,
            batch=section.batch,
            images=images,
            unit=section.accumulate * section.sam.groups,
            same=repr(same),
        )
        validation = programs.forward(
            models.specify(section), models, key=key, batch=section.batch, splits=("val",)
        )
        return [step, validation]

    def _check_embedding(self, program: Program, data: Data, models: Models) -> None:
        """Raises UserError where the section wants an embedding, and the method gives none or another."""
        section, params, means = self.section, program.state["params"], "head/kernel"
        reads_means = section.init.head == "means"
        if not (reads_means or section.validation.embeddings):
            return
        batch = batch_of(data.mesh, section.batch, 1, data.canvas)
        outputs = models.predictor(program.eval_static).eval_shape(
            params, program.state["batch_stats"], batch["pixels"], batch["sizes"], np.uint32(0), 0
        )
        width = outputs["embedding"].shape[1] if "embedding" in outputs else 0
        shape = (width, len(data.manifest.classes))
        if reads_means and (not width or means not in params or params[means].shape != shape):
            raise UserError(
                f"{self._key('init.head')} = 'means' makes a linear layer called head on the embedding, and "
                f"method {section.method!r} has none. Use 'keep' or 'fresh'."
            )
        if section.validation.embeddings and not width:
            raise UserError(
                f"{self._key('validation.embeddings')}: method {section.method!r} gives no embedding of an "
                "image. Leave it empty."
            )

    def run(self, run: Run, data: Data, models: Models) -> Result:
        """Trains, resuming from the latest checkpoint of this phase if there is one.

        Returns:
          Steps, images through a backward pass, passes, seconds by kind, the steps after which a plateau
          dropped the rate, and the validation metrics of the best and the last checkpoint.
        """
        section, folder, seconds = self.section, run.directory(self.name), Seconds()
        saved_every = self.config.checkpoint_every
        train = self._examples(run, data, "train")
        if train is None:
            raise UserError(
                f"phase {self.name!r} has nothing to train on: {section.pairs!r} found no pairs. Search more "
                "classes (top_classes), or train the model that embeds longer."
            )
        length = self._length(models, len(train.index), run.results)
        module, program, recipe = self._build(models, length)
        keep = section.validation.keep_every
        milestones = Milestones(
            first=0,
            total=length.steps,
            evaluate=max(1, length.of(section.validation.every, self._key("validation.every"))),
            log=max(1, length.of(self.config.log.every, "config.log.every")),
            keep=length.of(keep, self._key("validation.keep_every")) if keep else 0,
            embed=self._embedding_steps(length),
        )
        if run.main:
            models.specify(section).save(folder / "model.json")
        checkpoints = Checkpoints(folder / "checkpoints", milestones.keep, mend=True)
        state, unlogged = self._restore(checkpoints, program, recipe, data, models)
        milestones = milestones._replace(first=int(state["step"]))
        writer = self._writer(run) if run.main else None
        if writer:
            writer.truncate(loop.logged(milestones.first, unlogged))
        progress = Progress(
            self.name,
            length.steps,
            section.batch * module.cost.forward,
            first_step=milestones.first,
            later_seconds=run.later_seconds,
            stream=None if run.main else io.StringIO(),
        )
        try:
            with explained(self._key("batch"), section.batch) as estimate:
                step, batches = self._compile(
                    program, state, train, data, milestones, seconds, estimate
                )
                with progress, self._profile(run) as trace:
                    state = loop.fit(
                        state,
                        step,
                        batches,
                        milestones=milestones,
                        evaluate=self._validator(program, run, data, models),
                        embed=self._embedder(program, run, data, models),
                        checkpoints=checkpoints,
                        tracker=Tracker(progress, seconds, writer),
                        stop=run.stop,
                        patience=training.patience(section),
                        unlogged=unlogged,
                        trace=trace,
                        clock=Clock(lengths.seconds(saved_every, "config.checkpoint_every")),
                    )
            last = int(state["step"])
            with seconds.measure("save"):
                checkpoints.close()
        except Interrupted:
            checkpoints.close()
            raise
        except BaseException:
            checkpoints.abandon()
            raise
        finally:
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

    def _profile(self, run: Run) -> Profile:
        """Of the steps of `config.log.profile`, in the first process alone."""
        window = profile.steps(self.config.log.profile, "config.log.profile")
        return Profile(window if run.main else None, run.directory(self.name) / "profile")

    def _writer(self, run: Run) -> Writer:
        """Of the phase's metrics. Begins the phase's run of Weights & Biases, where there is to be one."""
        folder, project = run.directory(self.name), self.config.tracking.wandb
        tracked = None
        if project and not run.dry_run:
            # Of several seeds and a refit each phase has its own run, all in the group of their workdir.
            parents = (run.workdir, *run.workdir.parents)
            top = next((p for p in parents if (p / "config.json").exists()), run.workdir)
            name = str(folder.relative_to(top))
            tracked = Wandb(folder, project, top.name, name, self.config.to_dict())
            tracked.open()
        return Writer(folder, self.config.log.tensorboard, tracked)

    def _build(self, models: Models, length: Length) -> tuple[nnx.Module, Program, Recipe]:
        """The module as shapes (in train mode), its program and its recipe, from specifications alone."""
        module = self._module(models)
        _, params, _ = tree.split(module)
        recipe = training.recipe(self.section, f"config.{self.name}", params, length)
        program = build(
            module,
            recipe,
            mesh=models.mesh,
            gather=functools.partial(feed.gather, mesh=models.mesh),
            preprocess=models.preprocess(),
            dtype=dtype_of(models.config),
        )
        return module, program, recipe

    def _restore(
        self,
        checkpoints: Checkpoints,
        program: Program,
        recipe: Recipe,
        data: Data,
        models: Models,
    ) -> tuple[State, Unlogged]:
        """The latest checkpoint; where there is none, the state that the phase starts from."""
        latest, state, unlogged = checkpoints.restore_latest(program.state)
        if state is not None:
            log.info("  %s goes on from step %s of %s", self.name, latest, recipe.total_steps)
            return state, unlogged
        weights = starts.weights(
            self.section,
            models.specify(self.section),
            data,
            models,
            seed=phase_seed(self.config.seed, self.name),
            batch_norm_seed=phase_seed(self.config.seed, f"{self.name}/batch_norm"),
        )
        return new_state(program, weights["params"], weights["batch_stats"], recipe), []

    def _compile(
        self,
        program: Program,
        state: State,
        train: Examples,
        data: Data,
        milestones: Milestones,
        seconds: Seconds,
        estimate: Estimate,
    ) -> tuple[Callable[[State, dict], tuple[State, dict]], Iterator[dict]]:
        """(step function of a state and a batch, the batches from the first milestone on)."""
        seed = np.uint32(phase_seed(self.config.seed, self.name))
        order = training.order(self.section, train.labels, int(seed))
        examples = {"index": train.index, "label": train.labels}
        source, step = data.feed(train.splits), program.step
        batches = source.stream(order.slice(slice(milestones.first, milestones.total)), examples)
        if milestones.first < milestones.total:
            log.info("  compiling the train step ... (first time; the result is cached)")
            with seconds.measure("compile"):
                rows = order[milestones.first]
                batch = source.batch(**{key: column[rows] for key, column in examples.items()})
                step = step.lower(state, source.resident, batch, seed).compile()
            estimate.bytes = compiled.memory(step).total
        return lambda state, batch: step(state, source.resident, batch, seed), batches

    def _validator(
        self, program: Program, run: Run, data: Data, models: Models
    ) -> Callable[[State], dict[str, float] | None]:
        """state -> metrics of validation, None where there is nothing to validate on."""
        val = self._examples(run, data, "val")
        predict = models.predictor(program.eval_static)
        evaluator = evaluators.get(self.method.evaluator)

        def evaluate(state: State) -> dict[str, float] | None:
            if val is None:
                return None
            batches = data.in_order(val.splits, val.index, self.section.batch)
            outputs = predict_all(predict, state.get("ema", state), batches)
            found = evaluator.validate(outputs, val.labels, len(data.manifest.classes))
            # Checkpoints keep metrics as JSON, which has no NaN.
            return {k: v for k, v in found.items() if v is not None and np.isfinite(v)}

        return evaluate

    def _embedding_steps(self, length: Length) -> frozenset[int]:
        """The steps after which embeddings are written."""
        steps = set()
        for text in self.section.validation.embeddings:
            step = length.of(text, self._key("validation.embeddings"))
            if step > length.steps:
                log.info("  no embeddings after %s: the phase has %s steps", text, length.steps)
            else:
                steps.add(step)
        return frozenset(steps)

    def _embedder(
        self, program: Program, run: Run, data: Data, models: Models
    ) -> Callable[[int, State], None]:
        """(steps done, state) -> embeddings/step_000012.npz, for every split <split>_embedding and _label.

        They are written for people to look at, see `fgvc evolution`; no phase reads them.
        """
        predict = models.predictor(program.eval_static)

        def embed(step: int, state: State) -> None:
            arrays = {}
            for split in data.sizes:
                batches = data.whole(split, self.section.batch)
                found = predict_all(predict, state.get("ema", state), batches)["embedding"]
                arrays[f"{split}_embedding"] = found.astype(np.float32)
                arrays[f"{split}_label"] = data.labels(split)
            if run.main:
                folder = run.directory(self.name) / "embeddings"
                folder.mkdir(exist_ok=True)
                with atomic(folder / f"step_{step:06d}.npz") as file:
                    np.savez(file, **arrays)

        return embed

    def _key(self, key: str) -> str:
        return f"config.{self.name}.{key}"

    def _length(self, models: Models, examples: int, known: dict[str, Result]) -> Length:
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
        return Length(max(1, count), section.batch * per_example, examples * per_example)

    def _module(self, models: Models) -> nnx.Module:
        section = self.section
        try:
            return nnx.eval_shape(models.specify(section).build)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self._key('arguments')} = {section.arguments.to_dict()} do not suit {section.method!r}: "
                f"{error}"
            ) from error

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
