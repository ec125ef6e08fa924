"""How likely each label is wrong, from embeddings: by models that have not seen the image's own label.

Two of them: a linear probe on the other folds, and the labels of the nearest other images. Their mean is a
probability of each class; the score is its normalised margin (Kuan & Mueller 2022, "Model-agnostic label
quality scoring to detect real-world label errors"), turned round so that 1 is a wrong label. Suspect is what
confident learning would count as wrong (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068).
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fgvc_jax.errors import UserError
from fgvc_jax.ops.knn import nearest, prepare

PENALTY = 0.05  # of the squared norm of the probe's weights, beside its mean loss
FOLDS, NEIGHBOURS, SEED = 5, 10, 0


class Scores(NamedTuple):
    """Of N training images. Images that are alone in their class are not judged: their scores are NaN.

    Attributes:
      score: float64 [N], from 0 to 1, 1 where the label looks wrong.
      suggestion: int [N], the likeliest other class.
      probe: float64 [N, C], the probe's probabilities.
      other: float64 [N], the share of the nearest images with another label.
      suspect: bool [N], whether confident learning counts the label as wrong.
      order: int [N], the images from the highest score to the lowest, those not judged last.
    """

    score: np.ndarray
    suggestion: np.ndarray
    probe: np.ndarray
    other: np.ndarray
    suspect: np.ndarray
    order: np.ndarray


def score(
    embeddings_ND: ArrayLike,
    labels_N: ArrayLike,
    classes: int,
    *,
    folds: int = FOLDS,
    neighbours: int = NEIGHBOURS,
) -> Scores:
    """Judges every label by the other images.

    Args:
      embeddings_ND: any float dtype, finite.
      labels_N: int, 0..classes - 1.
      folds: of the probe; fewer where no class has as many images.
      neighbours: k, at least 1; of a small class as many as an image has others of its class.

    Raises:
      UserError: fewer than two classes with two images each.
    """
    labels_N = np.asarray(labels_N)
    counts_C = np.bincount(labels_N, minlength=classes)
    if (counts_C > 1).sum() < 2:
        raise UserError(
            "labels can be judged where two classes at least have two training images each; here "
            f"{(counts_C > 1).sum()} of {classes} have."
        )
    judged = np.flatnonzero(counts_C[labels_N] > 1)
    embeddings_JD, labels_J = np.asarray(embeddings_ND)[judged], labels_N[judged]
    probe_JC = out_of_fold(embeddings_JD, labels_J, classes, folds)
    votes_JC = votes(embeddings_JD, labels_J, classes, neighbours)
    both_JC = (probe_JC + votes_JC) / 2
    score_J, suggestion_J = margin(both_JC, labels_J)

    def whole(values_J: np.ndarray, empty) -> np.ndarray:
        values_N = np.full((len(labels_N), *values_J.shape[1:]), empty, values_J.dtype)
        values_N[judged] = values_J
        return values_N

    score_N = whole(score_J, np.nan)
    own = np.arange(len(judged)), labels_J
    return Scores(
        score_N,
        whole(suggestion_J, -1),
        whole(probe_JC, np.nan),
        whole(1 - votes_JC[own], np.nan),
        whole(suspects(both_JC, labels_J), False),
        np.argsort(-np.nan_to_num(score_N, nan=-1), kind="stable"),
    )


def out_of_fold(
    embeddings_ND: np.ndarray, labels_N: np.ndarray, classes: int, folds: int = FOLDS
) -> np.ndarray:
    """Probabilities float64 [N, C] of a probe that was trained on the other folds.

    Multinomial logistic regression on standardised embeddings, with a strong penalty, so that one wrong label
    does not bend it. Folds are stratified and drawn with a fixed seed.

    Args:
      labels_N: int; of each class at least two images.
    """
    there, index_N, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
    folds = min(folds, int(counts.max()))
    c = 1 / (2 * PENALTY * len(labels_N))  # scikit-learn sums the losses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer images than folds
        found = cross_val_predict(
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300)),
            np.asarray(embeddings_ND, np.float64),
            index_N,
            cv=StratifiedKFold(folds, shuffle=True, random_state=SEED),
            method="predict_proba",
        )
    probabilities_NC = np.zeros((len(labels_N), classes))
    probabilities_NC[:, there] = found
    return probabilities_NC


def votes(
    embeddings_ND: np.ndarray, labels_N: np.ndarray, classes: int, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """The share of each class among an image's nearest others by cosine, float64 [N, C].

    In a class of n images at most n - 1 others are asked, so that all of them can agree.
    """
    at_most = np.minimum(neighbours, np.bincount(labels_N)[labels_N] - 1)
    index_Nk = nearest_others(embeddings_ND, int(at_most.max()))
    shares_NC = np.zeros((len(labels_N), classes))
    for k in range(index_Nk.shape[1]):
        rows = np.flatnonzero(k < at_most)
        shares_NC[rows, labels_N[index_Nk[rows, k]]] += 1 / at_most[rows]
    return shares_NC


def nearest_others(embeddings_ND: np.ndarray, k: int) -> np.ndarray:
    """Rows int [N, k] of the images that are nearest to each by cosine, itself left out."""
    index, _ = nearest(embeddings_ND, embeddings_ND, k, self_index_N=np.arange(len(embeddings_ND)))
    return index


def margin(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(score float64 [N], the likeliest other class int [N]); of equally likely ones the lower class."""
    rows = np.arange(len(labels_N))
    own_N, others_NC = probabilities_NC[rows, labels_N], probabilities_NC.copy()
    others_NC[rows, labels_N] = -1
    other_N = others_NC.argmax(1)
    return (1 - (own_N - others_NC[rows, other_N])) / 2, other_N


def suspects(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Those off the diagonal of confident learning's joint, bool [N].

    A class is confident where its probability is at least the mean that images with its label give to it. An
    image is suspect where the likeliest of its confident classes is not its label.
    """
    classes = probabilities_NC.shape[1]
    counts_C = np.bincount(labels_N, minlength=classes)
    rows = np.arange(len(labels_N))
    sums_C = np.bincount(labels_N, probabilities_NC[rows, labels_N], classes)
    thresholds_C = np.where(counts_C > 0, sums_C / np.maximum(counts_C, 1), np.inf)
    confident_NC = np.where(probabilities_NC >= thresholds_C, probabilities_NC, -1)
    return (confident_NC.max(1) >= 0) & (confident_NC.argmax(1) != labels_N)


def nearest_of_class(
    embedding_D: np.ndarray, embeddings_ND: np.ndarray, rows: np.ndarray, count: int
) -> np.ndarray:
    """Of some rows the `count` that are nearest by cosine to an embedding, nearest first."""
    query = prepare(embedding_D[None], "cosine", "query").astype(np.float64)[0]
    of_class = prepare(embeddings_ND[rows], "cosine", "gallery").astype(np.float64)
    return rows[np.argsort(-(of_class @ query), kind="stable")[:count]]
