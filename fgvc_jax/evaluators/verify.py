"""Same or different class: how well a comparator ranks pairs, by the area under the ROC curve."""

import numpy as np

from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.evaluators._scorer import Scorer
from fgvc_jax.metrics import classification
from fgvc_jax.train.checkpoint import METRIC


def check(manifest: Manifest) -> None:
    """Raises UserError unless there are two classes, each with a training image: pairs are mined there."""
    manifests.check_classification(manifest)


def validate(outputs: dict[str, np.ndarray], labels: np.ndarray, classes: int) -> dict[str, float]:
    """AUROC, by which the best checkpoint is chosen (accuracy where only one answer occurs)."""
    found = classification.binary(outputs["scores"], labels)
    auroc, accuracy = found["auroc"], found["accuracy"]
    selection = auroc if np.isfinite(auroc) else accuracy
    return {"auroc": auroc, "accuracy": accuracy, METRIC: selection}


def final(scorer: Scorer, names: list[str]) -> dict:
    """{'verification': one row a phase}: the validation metrics of the best and the last checkpoint."""
    rows = []
    for phase in names:
        found = scorer.run.results[phase]["validation"]
        rows.append({"name": phase, "val": found["best"], "last_val": found["last"]})
    return {"verification": rows}
