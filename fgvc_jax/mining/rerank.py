"""Re-ranking a classifier's first choices by a comparator's word on each class's nearest training image.

p(c | x) * sigmoid(S(x, nn_c)) over the K most probable classes c, with nn_c the training image of class c
that is nearest to x and S the comparator's "same class" logit (PCNN, Nguyen et al. 2024, FineNet's ancestor).
"""

import numpy as np

from fgvc_jax.ops.knn import class_neighbours


def candidates(scores_NC, queries_ND, gallery_MD, gallery_labels_M, k, *, similarity="cosine"):
    """(classes int [N, k], neighbours int [N, k]): the most probable classes and the row of the nearest
    gallery image of each; -1 where the gallery has none of that class. Equal scores: the lower class first.
    """
    classes_Nk = np.argsort(-scores_NC, axis=1, kind="stable")[:, :k]
    outside = np.full(len(scores_NC), -1)
    index_Nk1, _ = class_neighbours(
        queries_ND, outside, classes_Nk, gallery_MD, gallery_labels_M, 1, similarity=similarity
    )
    return classes_Nk, index_Nk1[:, :, 0]


def rerank(scores_NC, classes_Nk, same_Nk):
    """Scores float64 [N, C], -inf outside the candidates.

    Args:
      scores_NC: the classifier's logits.
      classes_Nk: candidate classes of each example.
      same_Nk: the comparator's logit for each; -inf where there was nothing to compare with.
    """
    scores_NC = np.asarray(scores_NC, np.float64)
    log_p_NC = scores_NC - np.logaddexp.reduce(scores_NC, axis=1, keepdims=True)
    log_same_Nk = -np.logaddexp(0, -np.asarray(same_Nk, np.float64))
    result_NC = np.full_like(scores_NC, -np.inf)
    np.put_along_axis(
        result_NC, classes_Nk, np.take_along_axis(log_p_NC, classes_Nk, 1) + log_same_Nk, axis=1
    )
    return result_NC
