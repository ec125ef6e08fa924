"""Retrieval: whether an image's nearest neighbours are of its class, also of classes never trained on.

Source: Musgrave et al., arXiv 2003.08505; METHODS.md B.3.
"""

import numpy as np

from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.evaluators._scorer import Scorer
from fgvc_jax.metrics import retrieval
from fgvc_jax.train.checkpoint import METRIC


def check(manifest: Manifest) -> None:
    """Raises UserError unless every split that is scored has a class with two images."""
    for name, split in manifest.splits.items():
        if np.bincount(split.labels).max() < 2:
            raise UserError(
                f"{manifest.name}: no class of split {name!r} has two images, so nothing can be retrieved."
            )


def validate(outputs: dict[str, np.ndarray], labels: np.ndarray, classes: int) -> dict[str, float]:
    """Each image against all others of the split; MAP@R chooses the best checkpoint."""
    found = retrieval.retrieval(outputs["embedding"], labels)
    return found | {METRIC: found["map@r"]}


def final(scorer: Scorer, names: list[str]) -> dict:
    """Writes embedding.npy by phase and split.

    Returns:
      {'retrieval': [{'name', 'val': {...}, 'test': {...}, 'last_test': ...}, ...]}.
    """
    rows = []
    for phase in names:
        row = {"name": phase}
        for which, read in scorer.checkpoints(phase).items():
            _, module, weights = scorer.models.trained(phase, read)
            for split in scorer.splits:
                found = scorer.outputs(module, weights, split)["embedding"]
                measured = retrieval.retrieval(found, scorer.data.labels(split))
                row[split if which == "best" else f"last_{split}"] = measured
                if scorer.run.main and which == "best":
                    folder = scorer.folder / phase / split
                    folder.mkdir(parents=True, exist_ok=True)
                    np.save(folder / "embedding.npy", found.astype(np.float32))
        rows.append(row)
    return {"retrieval": rows}
