"""Re-ranking of a classifier's first choices by the comparator.

p(c | x) * sigmoid(S(x, nn_c)) over the K most probable classes c, with nn_c the training image of class c
that is nearest to x and S the comparator's "same class" logit (PCNN, Nguyen et al. 2024, from which FineNet
descends).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from fgvc_jax.ops.knn import class_neighbours
from fgvc_jax.ops.rank import best

CANDIDATES = 5  # classes that the comparator chooses among, unless it is told otherwise


def candidates(
    scores_NC: ArrayLike,
    queries_ND: ArrayLike,
    gallery_MD: ArrayLike,
    gallery_labels_M: ArrayLike,
    k: int,
    *,
    similarity: str = "cosine",
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable classes of each example, and the gallery image of each that is nearest to it.

    Args:
      scores_NC: class scores, any float dtype; of equal ones the lower class comes first.
      queries_ND, gallery_MD: embeddings, any float dtype.
      gallery_labels_M: int, 0..C-1.
      k: K; with fewer classes all are candidates.
      similarity: as in `fgvc_jax.ops.knn.class_neighbours`, errors too.

    Returns:
      (classes int32 [N, K], rows of the gallery int32 [N, K]); -1 where it has no image of the class.
    """
    classes_Nk = best(scores_NC, k)
    outside = np.full(len(classes_Nk), -1)
    index_Nk1, _ = class_neighbours(
        queries_ND, outside, classes_Nk, gallery_MD, gallery_labels_M, 1, similarity=similarity
    )
    return classes_Nk, index_Nk1[:, :, 0]


def rerank(scores_NC: ArrayLike, classes_Nk: np.ndarray, same_Nk: ArrayLike) -> np.ndarray:
    """Log-scores float64 [N, C], -inf outside the candidates.

    Args:
      scores_NC: the classifier's logits, any float dtype.
      classes_Nk: int, the candidate classes of each example.
      same_Nk: the comparator's logit for each of them; -inf where there was nothing to compare with.
    """
    scores_NC = np.asarray(scores_NC, np.float64)
    log_p_NC = scores_NC - np.logaddexp.reduce(scores_NC, axis=1, keepdims=True)
    log_same_Nk = -np.logaddexp(0, -np.asarray(same_Nk, np.float64))
    result_NC = np.full_like(scores_NC, -np.inf)
    np.put_along_axis(
        result_NC, classes_Nk, np.take_along_axis(log_p_NC, classes_Nk, 1) + log_same_Nk, axis=1
    )
    return result_NC


def reranked(
    scores_NC: ArrayLike,
    queries_ND: ArrayLike,
    gallery_MD: ArrayLike,
    gallery_labels_M: ArrayLike,
    k: int,
    same: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """A classifier's scores re-ranked among the K most probable classes; arguments as above.

    Args:
      queries_ND, gallery_MD: the comparator's embeddings.
      same: (queries [N, D], neighbours [N, D]) -> its logits [N].
    """
    classes_Nk, nearest_Nk = candidates(scores_NC, queries_ND, gallery_MD, gallery_labels_M, k)
    columns = [  # one candidate of every query at a time; -1 picks a row that is then masked
        np.where(column >= 0, same(queries_ND, gallery_MD[column]), -np.inf)
        for column in nearest_Nk.T
    ]
    return rerank(scores_NC, classes_Nk, np.stack(columns, axis=1))
