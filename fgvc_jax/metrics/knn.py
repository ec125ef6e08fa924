"""k-nearest-neighbour classification on embeddings: what features are worth without training."""

import numpy as np

from fgvc_jax.ops.knn import nearest


def knn_accuracy(
    query_embeddings_ND,
    query_labels_N,
    gallery_embeddings_MD,
    gallery_labels_M,
    *,
    ks=(1, 5),
    similarity="cosine",
    backend="faiss",
):
    """dict of float, `knn1`, `knn5`, ...: accuracy of a vote of the k nearest gallery items.

    The commonest class wins; of several, the one that is found nearest. Queries must not be in the
    gallery. With fewer than k gallery items all of them vote.
    """
    index_Nk, _ = nearest(
        query_embeddings_ND, gallery_embeddings_MD, max(ks), similarity=similarity, backend=backend
    )
    gallery_labels_M = np.asarray(gallery_labels_M, np.int32)
    labels_N = np.asarray(query_labels_N)
    return {
        f"knn{k}": float((_vote(index_Nk[:, :k], gallery_labels_M) == labels_N).mean()) for k in ks
    }


def _vote(index_Nk, labels_M):
    label_Nk = np.where(index_Nk >= 0, labels_M[index_Nk], -1)
    votes_Nk = (label_Nk[:, :, None] == label_Nk[:, None, :]).sum(axis=2)
    votes_Nk[label_Nk < 0] = 0
    # Columns run from the nearest on, and argmax takes the first of equals.
    return np.take_along_axis(label_Nk, votes_Nk.argmax(axis=1)[:, None], axis=1)[:, 0]
