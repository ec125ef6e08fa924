"""The contract of a phase: what a run calls, and what the phase may rely on."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from ml_collections import ConfigDict

from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models
from fgvc_jax.context.run import Run

Result = dict[str, Any]  # what DONE.json holds


class Read(NamedTuple):
    """An earlier phase that a phase reads, and the kind that it must be of.

    Attributes:
      length: only how long it was matters.
    """

    phase: str
    kind: str
    length: bool = False


class Cost(NamedTuple):
    """The expected cost of a phase.

    Attributes:
      images: through a backward pass.
      forward: images through a forward pass alone.
      steps: optimizer steps.
      passes: all of it in forward passes of one image; a backward pass takes two.
      expected: those entries of the phase's result that the cost of later phases depends on.
    """

    images: int = 0
    forward: int = 0
    steps: int = 0
    passes: float = 0.0
    expected: Result = {}  # noqa: RUF012


class Pass(NamedTuple):
    """A program that a phase runs for batch after batch, to be compiled for devices that need not be there.

    Attributes:
      name: 'train step' or 'forward pass'.
      key: config key of the batch.
      batch: examples over all devices.
      splits: that it looks into; of a train step, of each image of an example.
      unit: into how many equal parts the batch is cut, one after the other.
      trace: (batch, canvas, resident) -> `jax.stages.Traced`. Batch is a number of examples, canvas the side
        in pixels, resident a tuple of `feed.Resident` of shapes, () where the canvases come with the batch.
      same: equal for passes with the same program, whatever phase they are of.
    """

    name: str
    key: str
    batch: int
    splits: tuple[str, ...]
    unit: int
    trace: Callable[..., Any]
    same: Any


class Phase:
    """One phase of a run. Subclass it as `Phase` in a file of `fgvc_jax/phases`.

    Attributes:
      name: as `config.phases` calls it.
      section: `config.<name>`.
      config: of the whole run.
      before: names of the phases that come before it.
      trains: whether it leaves a trained model, with model.json and checkpoints.
    """

    trains: ClassVar[bool] = False

    def __init__(self, config: ConfigDict, name: str, before: tuple[str, ...] = ()):
        self.config, self.name, self.before = config, name, before
        self.section: ConfigDict = config[name]

    @staticmethod
    def defaults() -> ConfigDict:
        """The keys of its section, with their defaults; `kind` is added."""
        return ConfigDict()

    @staticmethod
    def arguments(section: ConfigDict, where: str) -> dict[str, Any]:
        """Defaults of `section.arguments`, where the section has such a group.

        Args:
          where: the section's name in messages, such as 'config.finetune'.
        """
        return {}

    def reads(self) -> list[Read]:
        """The earlier phases whose results it reads; their hashes become part of its own."""
        return []

    def check(self) -> None:
        """Raises UserError for what can be known to be wrong without data. `reads` has been checked."""

    def prepare(self, run: Run, data: Data, models: Models) -> None:
        """Raises UserError for what can be known to be wrong with the data at hand, before any phase runs."""

    def cost(self, models: Models, sizes: dict[str, int], known: dict[str, Result]) -> Cost:
        """The expected cost.

        Args:
          models: how models are made; `models.manifest` has the classes.
          sizes: images by split.
          known: results of the phases before it; of those that have not run, what they expect.
        """
        return Cost()

    def passes(self, models: Models) -> list[Pass]:
        """The programs that it runs for batch after batch; a train step stands first."""
        return []

    def run(self, run: Run, data: Data, models: Models) -> Result:
        """Does the work, in `run.directory(self.name)`; started again, it goes on where it was.

        Returns:
          What DONE.json keeps. Only `run.main` writes files.

        Raises:
          UserError: for what the user can mend.
          Interrupted: after a signal, when all is saved.
        """
        raise NotImplementedError(f"{type(self).__module__} does not define run")
