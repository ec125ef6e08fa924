"""The evaluation phase: every trained model on validation and test, each kind by its evaluator."""

import functools

from flax import nnx
from ml_collections import ConfigDict

from fgvc_jax import evaluators, methods, phases
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models
from fgvc_jax.context.run import Run
from fgvc_jax.errors import UserError, at_least
from fgvc_jax.evaluators._scorer import Scorer
from fgvc_jax.phases import _budget as budget
from fgvc_jax.phases import _programs as programs
from fgvc_jax.phases._base import Cost, Pass, Read, Result
from fgvc_jax.phases._base import Phase as Base


class Phase(Base):
    @staticmethod
    def defaults() -> ConfigDict:
        section = ConfigDict()
        # Training phases; () = all that come before, comparators aside.
        section.models = ()
        section.batch = 64
        section.neighbours = 5  # of the kNN row
        # Two classifiers for the paired test and its verdict, if both ran: the pipeline's and its control's.
        section.compare = ("retrain", "control")
        # The first of them re-ranked by this phase's comparator, if it ran, among so many classes; '' = no.
        section.rerank = "pairs"
        section.rerank_classes = 5
        return section

    def reads(self) -> list[Read]:
        trained = phases.trained(self.config, self.before)
        named = (
            [self.section.models] if isinstance(self.section.models, str) else self.section.models
        )
        return [Read(name, "train") for name in dict.fromkeys([*named, *trained])]

    def check(self) -> None:
        section, where = self.section, f"config.{self.name}"
        if not self._models():
            raise UserError(f"phase {self.name!r}: nothing that it can score is trained before it.")
        for key in ("batch", "neighbours", "rerank_classes"):
            at_least(section[key], 1, f"{where}.{key}")
        if len(section.compare) != 2:
            raise UserError(f"{where}.compare = {section.compare!r}; name two phases.")

    def cost(self, models: Models, sizes: dict[str, int], known: dict[str, Result]) -> Cost:
        scored, train = sizes.get("val", 0) + sizes.get("test", 0), sizes["train"]
        images = passes = 0
        for evaluator, names in self._models().items():
            if evaluator == "classify":  # the row of starting features
                images, passes = images + scored + train, passes + scored + train
            for name in names:
                build = models.specify(self.config[name]).build
                # Best and last; an embedding's gallery is the training images.
                count = 2 * (scored + (train if evaluator == "retrieve" else 0))
                images += count
                passes += count * nnx.eval_shape(build).cost.predict
        return Cost(forward=images, passes=passes)

    def passes(self, models: Models) -> list[Pass]:
        found: dict[object, Pass] = {}
        for name in (name for names in self._models().values() for name in names):
            one = programs.forward(
                models.specify(self.config[name]),
                models,
                key=f"config.{self.name}.batch",
                batch=self.section.batch,
                splits=("train", "val", "test"),
            )
            found.setdefault(one.same, one)
        return list(found.values())

    def run(self, run: Run, data: Data, models: Models) -> Result:
        """Each evaluator's rows; see `final` in the files of fgvc_jax/evaluators."""
        cost = functools.partial(budget.of, run)
        scorer = Scorer(run, data, models, self.section, run.directory(self.name), cost)
        result: Result = {}
        for evaluator, names in self._models().items():
            result |= evaluators.get(evaluator).final(scorer, names)
        return result

    def _models(self) -> dict[str, list[str]]:
        """The phases to score, by evaluator."""
        given = (
            [self.section.models] if isinstance(self.section.models, str) else self.section.models
        )
        found: dict[str, list[str]] = {}
        for name in phases.trained(self.config, given or self.before):
            evaluator = methods.get(self.config[name].method).evaluator
            if given or evaluator != "verify":
                found.setdefault(evaluator, []).append(name)
        return found
