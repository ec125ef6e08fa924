"""Retrieval: whether an image's nearest neighbours are of its class, also of classes never trained on.

Source: Musgrave et al., arXiv 2003.08505; METHODS.md B. Embeddings are ranked by cosine.
"""

import numpy as np

from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.evaluators._scorer import Scorer
from fgvc_jax.metrics import retrieval
from fgvc_jax.metrics.knn import knn_accuracy
from fgvc_jax.metrics.transfer import centroid_accuracy, fit_probe
from fgvc_jax.train.checkpoint import METRIC


def check(manifest: Manifest) -> None:
    """Raises UserError unless every split has two classes, and one of them two images."""
    for name, split in manifest.splits.items():
        counts = np.unique(split.labels, return_counts=True)[1]
        if counts.max() < 2:
            raise UserError(
                f"{manifest.name}: no class of split {name!r} has two images, so nothing can be retrieved."
            )
        if len(counts) < 2:
            raise UserError(
                f"{manifest.name}: split {name!r} has images of one class alone, so nothing wrong can be "
                "retrieved. With config.data.splits = 'retrieval', a larger config.data.val_fraction holds "
                "out more classes for validation."
            )


def validate(outputs: dict[str, np.ndarray], labels: np.ndarray, classes: int) -> dict[str, float]:
    """Each image against all others of the split; MAP@R chooses the best checkpoint."""
    found = _among_themselves(outputs["embedding"], labels)
    del found["count"], found["excluded"]  # the same each time
    return found | {METRIC: found["map@r"]}


def final(scorer: Scorer, names: list[str]) -> dict:
    """Writes embedding.npy by phase and split.

    Where the classes of a split are known from train, the classification that can be read off the embeddings
    is measured too, with the training images as gallery: `knn1` and `knn<neighbours>`, `centroid`, `probe`.

    Returns:
      {'retrieval': [{'name', 'val': {...}, 'test': {...}, 'last_test': ...}, ...]}.
    """
    data, known = scorer.data, set(scorer.data.labels("train").tolist())
    closed = [split for split in scorer.splits if set(data.labels(split).tolist()) <= known]
    rows = []
    for phase in names:
        row = {"name": phase}
        for which, read in scorer.checkpoints(phase).items():
            if which == "last" and read == "best":
                row |= {f"last_{split}": row[split] for split in scorer.splits}
                continue
            _, module, weights = scorer.models.trained(phase, read)
            if closed:
                gallery = scorer.outputs(module, weights, "train")["embedding"]
                probe = fit_probe(gallery, data.labels("train"))
            for split in scorer.splits:
                found, labels = (
                    scorer.outputs(module, weights, split)["embedding"],
                    data.labels(split),
                )
                measured = _among_themselves(found, labels)
                measured["nmi"] = retrieval.nmi(found, labels)
                if split in closed:
                    measured |= _read_off(scorer, found, labels, gallery)
                    measured["probe"] = float((probe(found) == labels).mean())
                row[split if which == "best" else f"last_{split}"] = measured
                if scorer.run.main and which == "best":
                    folder = scorer.folder / phase / split
                    folder.mkdir(parents=True, exist_ok=True)
                    np.save(folder / "embedding.npy", found.astype(np.float32))
        rows.append(row)
    return {"retrieval": rows}


def _among_themselves(embedding: np.ndarray, labels: np.ndarray) -> dict:
    return retrieval.retrieval(embedding, labels) | retrieval.mean_cosines(embedding, labels)


def _read_off(
    scorer: Scorer, embedding: np.ndarray, labels: np.ndarray, gallery: np.ndarray
) -> dict[str, float]:
    """Accuracies with the training images as gallery."""
    data = (embedding, labels, gallery, scorer.data.labels("train"))
    ks = sorted({1, scorer.section.neighbours})
    return knn_accuracy(*data, ks=ks) | {"centroid": centroid_accuracy(*data)}
