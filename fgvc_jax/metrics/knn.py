"""k-nearest-neighbour classification on embeddings: how good features are without a trained head."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fgvc_jax.ops.knn import nearest


def knn_accuracy(
    query_embeddings_ND: ArrayLike,
    query_labels_N: ArrayLike,
    gallery_embeddings_MD: ArrayLike,
    gallery_labels_M: ArrayLike,
    *,
    ks: Sequence[int] = (1, 5),
    similarity: str = "cosine",
    backend: str = "faiss",
) -> dict[str, float]:
    """Accuracy of a vote of the k nearest gallery items, as `knn1`, `knn5`, ...

    The commonest class wins; of several, the one that is found nearest. With fewer than k gallery items
    all of them vote.

    Args:
      query_embeddings_ND, gallery_embeddings_MD: any float dtype. Queries must not be in the gallery.
      query_labels_N, gallery_labels_M: int.
      ks: the numbers of neighbours.
      similarity, backend: as in `fgvc_jax.ops.knn.class_neighbours`, errors too.
    """
    index_Nk, _ = nearest(
        query_embeddings_ND, gallery_embeddings_MD, max(ks), similarity=similarity, backend=backend
    )
    gallery_labels_M = np.asarray(gallery_labels_M, np.int32)
    labels_N = np.asarray(query_labels_N)
    return {
        f"knn{k}": float((_vote(index_Nk[:, :k], gallery_labels_M) == labels_N).mean()) for k in ks
    }


def _vote(index_Nk: np.ndarray, labels_M: np.ndarray) -> np.ndarray:
    label_Nk = np.where(index_Nk >= 0, labels_M[index_Nk], -1)
    votes_Nk = (label_Nk[:, :, None] == label_Nk[:, None, :]).sum(axis=2)
    votes_Nk[label_Nk < 0] = 0
    # Columns run from the nearest on, and argmax takes the first of equals.
    return np.take_along_axis(label_Nk, votes_Nk.argmax(axis=1)[:, None], axis=1)[:, 0]
