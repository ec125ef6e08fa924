"""Classification read off embeddings, with the training images as what is known: no head of the net's own.

Nearest neighbours are in `fgvc_jax.metrics.knn`.
"""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fgvc_jax.ops.knn import prepare


def centroid_accuracy(
    query_embeddings_ND: ArrayLike,
    query_labels_N: ArrayLike,
    train_embeddings_MD: ArrayLike,
    train_labels_M: ArrayLike,
) -> float:
    """The share of queries whose nearest class mean by cosine is their own; of equal ones the lower class.

    Embeddings are scaled to length 1 before they are averaged, and the means again.

    Args:
      query_embeddings_ND, train_embeddings_MD: any float dtype.
      query_labels_N, train_labels_M: int.

    Raises:
      UserError: an embedding that is not finite.
    """
    queries_ND = prepare(query_embeddings_ND, "cosine", "query").astype(np.float64)
    train_MD = prepare(train_embeddings_MD, "cosine", "gallery").astype(np.float64)
    classes_C, index_M = np.unique(train_labels_M, return_inverse=True)
    sums_CD = np.zeros((len(classes_C), train_MD.shape[1]))
    np.add.at(sums_CD, index_M, train_MD)
    sums_CD /= np.maximum(np.linalg.norm(sums_CD, axis=1, keepdims=True), 1e-12)
    found_N = classes_C[(queries_ND @ sums_CD.T).argmax(1)]
    return float((found_N == np.asarray(query_labels_N)).mean())


def fit_probe(
    train_embeddings_MD: ArrayLike,
    train_labels_M: ArrayLike,
    *,
    c: float = 1.0,
    iterations: int = 1000,
) -> Callable[[ArrayLike], np.ndarray]:
    """A linear probe, embeddings [N, D] -> labels [N]: multinomial logistic regression on train.

    scikit-learn's, by L-BFGS from zero, so the same each time; features are standardised with the training
    images' mean and deviation, and half the squared norm of the weights is added to c times the summed loss.

    Args:
      train_embeddings_MD: any float dtype, finite; computed in float64.
      train_labels_M: int, of two classes or more.
      iterations: at most; on classes that a plane parts, it may stop there, near its end.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.asarray(train_embeddings_MD, np.float64), train_labels_M)
    return lambda embeddings_ND: model.predict(np.asarray(embeddings_ND, np.float64))
