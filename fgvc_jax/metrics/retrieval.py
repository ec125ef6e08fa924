"""Retrieval metrics of embeddings: Recall@K, R-Precision and MAP@R (Musgrave et al. 2020), cosines, NMI.

A query's references are the gallery items other than itself, R of them of its own class. References are
ranked by similarity, equal ones by the lower index.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from fgvc_jax.errors import UserError
from fgvc_jax.ops.knn import nearest, prepare

CELLS = 2**22  # neighbours held at once, which bounds the memory to about 200 MB


def retrieval(
    query_embeddings_ND: ArrayLike,
    query_labels_N: ArrayLike,
    gallery_embeddings_MD: ArrayLike | None = None,
    gallery_labels_M: ArrayLike | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    similarity: str = "cosine",
    backend: str = "faiss",
) -> dict[str, float]:
    """How well the nearest references of a query are of its own class.

    Args:
      query_embeddings_ND: any float dtype; searched in float32.
      query_labels_N: int, only compared.
      gallery_embeddings_MD, gallery_labels_M: the references. None: the queries themselves, each of
        them left out by its index where it is the query.
      ks: the K of Recall@K.
      similarity, backend: as in `fgvc_jax.ops.knn.class_neighbours`.

    Returns:
      dict of shares between 0 and 1, means over the queries with R > 0: `recall@K` for each K, the share of
      queries with one of their class among the K nearest; `r_precision`, the share of their class among the
      R nearest; `map@r`, (1/R) * the sum over i = 1..R of the precision among the i nearest where the i-th
      is of their class, else 0. And int: `count`, the queries with R > 0; `excluded`, those with R = 0.

    Raises:
      UserError: shapes that do not fit, a K below 1, no query with R > 0; an embedding that is not finite.
    """
    queries_ND, labels_N = _checked(query_embeddings_ND, query_labels_N, "query")
    itself = gallery_embeddings_MD is None
    if itself != (gallery_labels_M is None):
        raise UserError("retrieval: a gallery needs both embeddings and labels, or neither.")
    if itself:
        gallery_MD, gallery_labels_M = queries_ND, labels_N
    else:
        gallery_MD, gallery_labels_M = _checked(gallery_embeddings_MD, gallery_labels_M, "gallery")
    if not ks or min(ks) < 1:
        raise UserError(f"retrieval: ks = {tuple(ks)}; Recall@K needs one or more K of at least 1.")

    relevant_N = _occurrences(labels_N, gallery_labels_M) - itself
    asked = np.flatnonzero(relevant_N > 0)
    if not len(asked):
        raise UserError(
            f"retrieval: none of the {len(labels_N)} queries has another image of its class in the gallery, "
            "so there is nothing to find. Are these the labels of these embeddings?"
        )
    depth = int(max(*ks, relevant_N.max()))
    rows = max(1, CELLS // depth)
    recalls, precisions, averages = [], [], []
    for start in range(0, len(asked), rows):
        block_B = asked[start : start + rows]
        index_Bk, _ = nearest(
            queries_ND[block_B],
            gallery_MD,
            depth,
            similarity=similarity,
            backend=backend,
            self_index_N=block_B if itself else None,
        )
        hit_Bk = (index_Bk >= 0) & (gallery_labels_M[index_Bk] == labels_N[block_B, None])
        recalls.append(np.stack([hit_Bk[:, :k].any(axis=1) for k in ks], axis=1))
        r_B = relevant_N[block_B]
        hit_Bk &= np.arange(depth) < r_B[:, None]
        found_Bk = np.cumsum(hit_Bk, axis=1, dtype=np.int32)
        precisions.append(found_Bk[:, -1] / r_B)
        share_Bk = np.where(hit_Bk, found_Bk, 0) / np.arange(1, depth + 1)
        averages.append(share_Bk.sum(axis=1) / r_B)
    recall_K = np.concatenate(recalls).mean(axis=0)
    return {
        **{f"recall@{k}": float(recall) for k, recall in zip(ks, recall_K, strict=True)},
        "r_precision": float(np.concatenate(precisions).mean()),
        "map@r": float(np.concatenate(averages).mean()),
        "count": len(asked),
        "excluded": len(labels_N) - len(asked),
    }


def mean_cosines(embeddings_ND: ArrayLike, labels_N: ArrayLike) -> dict[str, float | None]:
    """How near images lie: the mean cosine over pairs i < j.

    From the sums of the unit vectors of each class, in N D operations.

    Args:
      embeddings_ND: any float dtype; computed in float64. A vector of zeros has cosine 0 with everything.
      labels_N: int, only compared.

    Returns:
      `cosine_same` over pairs of one class, `cosine_other` over pairs of different classes; None where
      there is no such pair.

    Raises:
      UserError: shapes that do not fit.
    """
    embeddings_ND, labels_N = _checked(embeddings_ND, labels_N, "query")
    unit_ND = embeddings_ND.astype(np.float64)
    length_N1 = np.linalg.norm(unit_ND, axis=1, keepdims=True)
    unit_ND = np.divide(unit_ND, length_N1, out=np.zeros_like(unit_ND), where=length_N1 > 0)
    order = np.argsort(labels_N, kind="stable")
    starts = np.flatnonzero(np.diff(labels_N[order], prepend=labels_N[order[0]] - 1))
    sums_CD = np.add.reduceat(unit_ND[order], starts)
    counts_C = np.diff(starts, append=len(labels_N))
    # |sum|^2 has each pair twice, and each vector with itself.
    itself = np.square(unit_ND).sum()
    same = (np.square(sums_CD).sum() - itself) / 2
    every = (np.square(sums_CD.sum(0)).sum() - itself) / 2
    pairs = int((counts_C * (counts_C - 1) // 2).sum())
    others = len(labels_N) * (len(labels_N) - 1) // 2 - pairs
    return {
        "cosine_same": float(same / pairs) if pairs else None,
        "cosine_other": float((every - same) / others) if others else None,
    }


def nmi(
    embeddings_ND: ArrayLike, labels_N: ArrayLike, *, similarity: str = "cosine", seed: int = 0
) -> float:
    """Normalised mutual information of the labels and a k-means clustering into as many clusters.

    scikit-learn's KMeans (k-means++, the best of 10 starts) and its score, normalised by the arithmetic
    mean of both entropies. One class alone gives 1.

    Args:
      embeddings_ND: any float dtype; clustered in float32.
      labels_N: int, only compared.
      similarity: 'cosine' scales embeddings to length 1 first; 'ip' and 'l2' leave them as they are.
      seed: of the starts.

    Raises:
      UserError: shapes that do not fit, an embedding that is not finite.
    """
    embeddings_ND, labels_N = _checked(embeddings_ND, labels_N, "query")
    embeddings_ND = prepare(embeddings_ND, similarity, "query")
    clusters = len(np.unique(labels_N))
    model = KMeans(clusters, n_init=10, random_state=seed).fit(embeddings_ND)
    return float(normalized_mutual_info_score(labels_N, model.labels_))


def _occurrences(labels_N: np.ndarray, among_M: np.ndarray) -> np.ndarray:
    """int64 [N]: how many of `among_M` equal each label."""
    value_U, count_U = np.unique(among_M, return_counts=True)
    place_N = np.searchsorted(value_U, labels_N).clip(max=len(value_U) - 1)
    return np.where(value_U[place_N] == labels_N, count_U[place_N], 0)


def _checked(
    embeddings_ND: ArrayLike, labels_N: ArrayLike, what: str
) -> tuple[np.ndarray, np.ndarray]:
    embeddings_ND, labels_N = np.asarray(embeddings_ND), np.asarray(labels_N)
    if embeddings_ND.ndim != 2 or labels_N.shape != embeddings_ND.shape[:1] or not len(labels_N):
        raise UserError(
            f"{what} embeddings of shape {embeddings_ND.shape} for labels of shape {labels_N.shape}: "
            "expected [N, D] and [N] with N of at least 1."
        )
    return embeddings_ND, labels_N
