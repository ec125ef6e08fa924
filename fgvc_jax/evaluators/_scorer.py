"""What an evaluator is given at the end of a run: trained models, splits, and a folder to write to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models
from fgvc_jax.context.run import Run
from fgvc_jax.train import tree
from fgvc_jax.train.predict import predict_all


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Attributes:
    section, folder: of the evaluation phase.
    budget: (pipeline, control) -> what the two phases have cost, for the line that compares them.
    """

    run: Run
    data: Data
    models: Models
    section: ConfigDict
    folder: Path
    budget: Callable[[str, str], dict]

    @property
    def splits(self) -> list[str]:
        """Validation, which chose the checkpoints, and test, which is only read."""
        return [split for split in ("val", "test") if split in self.data.sizes]

    def outputs(self, module, weights: dict, split: str) -> dict[str, np.ndarray]:
        """Outputs of a module, {'scores', 'embedding', ...}, one row an image of the split."""
        return predict_all(
            self.models.predictor(tree.split(module)[0]),
            weights,
            self.data.whole(split, self.section.batch),
            check=self.run.stop.check,
        )

    def checkpoints(self, phase: str) -> dict[str, str]:
        """{'best': 'best', 'last': ...}: the checkpoint to read for each; equal ones are read once."""
        chosen = self.run.results[phase]["validation"]
        same = chosen["last"]["step"] == chosen["best"]["step"]
        return {"best": "best", "last": "best" if same else "last"}
