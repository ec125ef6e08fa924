"""From the embeddings that a phase has saved to positions in a plane and to cosines, point by point."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.manifold import TSNE

from fgvc_jax.errors import UserError
from fgvc_jax.model import read_done
from fgvc_jax.ops.knn import prepare
from fgvc_jax.trained import run_of

POINTS, SEED, PERPLEXITY, BINS = 2000, 0, 30, 40


class Saved(NamedTuple):
    """The embeddings of one split of a phase, at P points of its training.

    Attributes:
      name: of the run, for titles.
      steps: of each point; `epochs`: the same in passes over the training images.
      embeddings: P of float32 [N, D], of the same N images.
      labels: int [N]; `classes`: their names.
    """

    name: str
    steps: list[int]
    epochs: list[float]
    embeddings: list[np.ndarray]
    labels: np.ndarray
    classes: list[str]


class Measured(NamedTuple):
    """What is drawn of `Saved`.

    Attributes:
      positions: float [P, N, 2], by t-SNE.
      same, different: P mean cosines of pairs of one class and of two.
      counts: int [P, 2, BINS], pairs of one class and of two, by their cosine from -1 to 1.
    """

    positions: np.ndarray
    same: list[float]
    different: list[float]
    counts: np.ndarray


def read(run: Path, split: str, most: int = POINTS) -> Saved:
    """The saved embeddings of a run that has one phase with such, or of that phase.

    Args:
      most: images; of more so many are drawn, with a fixed seed.

    Raises:
      UserError: none, several phases, or no such split.
    """
    run = run.expanduser().resolve()
    folders = sorted({path.parent for path in run.glob("embeddings/step_*.npz")})
    for inside in ("*", "*/*", "*/*/*"):  # in a phase, of a seed, of its refit
        folders += sorted({path.parent for path in run.glob(f"{inside}/embeddings/step_*.npz")})
    if not folders:
        raise UserError(
            f"{run} has no saved embeddings. Train with, for instance, --config.PHASE.validation."
            "embeddings=\"('0 epochs','1 epochs','100 %')\", PHASE being the training phase."
        )
    if len(folders) > 1:
        names = ", ".join(str(folder.parent) for folder in folders)
        raise UserError(f"{run} has several phases with saved embeddings; name one: {names}.")
    (folder,) = folders
    phase, embeddings, steps, labels, rows = folder.parent, [], [], None, None
    for path in sorted(folder.glob("step_*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            known = sorted(
                name.removesuffix("_label") for name in arrays if name.endswith("_label")
            )
            if split not in known:
                raise UserError(f"{path} has no split {split!r}; it has {', '.join(known)}.")
            if labels is None:
                every = arrays[f"{split}_label"]
                rng = np.random.default_rng(SEED)
                rows = np.sort(rng.permutation(len(every))[:most])
                labels = every[rows]
            embeddings.append(arrays[f"{split}_embedding"][rows])
        steps.append(int(re.search(r"\d+", path.stem)[0]))
    if len(labels) < 4:
        raise UserError(f"{folder}: {len(labels)} images of {split}; four at least are needed.")
    manifest = json.loads((run_of(phase) / "manifest.json").read_text(errors="surrogateescape"))
    done, train = read_done(phase), len(manifest["splits"]["train"])
    an_epoch = train * done["steps"] / done["images"] if done.get("images") else 0
    epochs = [round(step / an_epoch, 2) if an_epoch else float(step) for step in steps]
    return Saved(run.name, steps, epochs, embeddings, labels, manifest["classes"])


def measure(saved: Saved) -> Measured:
    """Projects every point from where the one before has left it, and measures all cosines."""
    units = [prepare(x, "cosine", "saved").astype(np.float64) for x in saved.embeddings]
    same, different, counts = [], [], []
    for unit in units:
        means, histograms = cosines(unit, saved.labels)
        same.append(means[0])
        different.append(means[1])
        counts.append(histograms)
    return Measured(project(units), same, different, np.array(counts))


def project(units: Sequence[np.ndarray]) -> np.ndarray:
    """t-SNE of P arrays of unit vectors [N, D]: float64 [P, N, 2].

    van der Maaten & Hinton 2008, scikit-learn's, perplexity 30, fixed seed. The first begins with the
    principal components; each other with the positions before it and without early exaggeration, so that
    images move no more than their neighbours make them.
    """
    positions: list[np.ndarray] = []
    for unit in units:
        first = not positions
        count, width = unit.shape
        start = "pca" if first and width > 1 else "random" if first else positions[-1]
        model = TSNE(
            perplexity=min(PERPLEXITY, (count - 1) / 3),
            init=start,
            early_exaggeration=12.0 if first else 1.0,
            max_iter=1000 if first else 500,
            random_state=SEED,
        )
        positions.append(model.fit_transform(unit).astype(np.float32))
    return np.array(positions, np.float64)


def cosines(unit_ND: np.ndarray, labels_N: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
    """((mean of pairs of one class, of two), their histograms int [2, BINS]); NaN without such pairs."""
    above = np.triu_indices(len(unit_ND), 1)
    values = np.clip((unit_ND @ unit_ND.T)[above], -1, 1)
    is_same = (labels_N[:, None] == labels_N)[above]
    parts = values[is_same], values[~is_same]
    means = tuple(float(part.mean()) if len(part) else float("nan") for part in parts)
    return means, np.array([np.histogram(part, BINS, (-1, 1))[0] for part in parts])
