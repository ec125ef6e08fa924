"""Exact nearest neighbours, inside candidate classes or over a whole gallery.

Two backends, faiss (a flat index for each class) and JAX (`lax.top_k` on tiles), which check each
other: both order by similarity, largest first, and exact ties by the lower gallery index; they
agree wherever similarities differ by more than float32 rounding (1e-6 of the embeddings' scale).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fgvc_jax.errors import UserError, choose

SIMILARITIES = ("cosine", "ip", "l2")
BACKENDS = ("faiss", "jax")
TILE = 256  # queries searched at once; bounds memory to TILE rows of similarities


def class_neighbours(
    queries_ND: ArrayLike,
    self_index_N: ArrayLike,
    classes_NQ: ArrayLike,
    gallery_MD: ArrayLike,
    gallery_labels_M: ArrayLike,
    k: int,
    *,
    similarity: str = "cosine",
    backend: str = "faiss",
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar gallery items of each candidate class, for every query.

    Args:
      queries_ND: embeddings, any float dtype; searched in float32.
      self_index_N: int, each query's own row in the gallery, which is never returned; -1 where the
        query is not in the gallery (or where it may be returned).
      classes_NQ: int, Q candidate classes for each query; -1 means none.
      gallery_MD: embeddings searched.
      gallery_labels_M: int, the class of each gallery item, >= 0.
      k: neighbours for each class.
      similarity: 'cosine' (a zero vector is 0 from everything), 'ip' (inner product) or 'l2'
        (minus the squared Euclidean distance).
      backend: 'faiss' or 'jax'.

    Returns:
      (index int32 [N, Q, k], similarity float32 [N, Q, k]), the most similar first, exact ties by
      the lower index; -1 and -inf where a class has fewer than k items to give.

    Raises:
      UserError: unknown similarity or backend, or an embedding that is not finite.
    """
    choose(backend, BACKENDS, "backend of the search")
    queries_ND = prepare(queries_ND, similarity, "query")
    gallery_MD = prepare(gallery_MD, similarity, "gallery")
    self_index_N = np.asarray(self_index_N, np.int32)
    classes_NQ = np.asarray(classes_NQ, np.int32)
    gallery_labels_M = np.asarray(gallery_labels_M, np.int32)
    search = _search_faiss if backend == "faiss" else _search_jax
    index, value = search(
        queries_ND, self_index_N, classes_NQ, gallery_MD, gallery_labels_M, k, similarity == "l2"
    )
    return np.where(np.isneginf(value), -1, index).astype(np.int32), value


def nearest(
    queries_ND: ArrayLike,
    gallery_MD: ArrayLike,
    k: int,
    *,
    similarity: str = "cosine",
    backend: str = "faiss",
    self_index_N: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar items of the whole gallery.

    Returns (index int32 [N, k], similarity float32 [N, k]); arguments, order and padding as in
    `class_neighbours`. By default no query is taken to be in the gallery.
    """
    if self_index_N is None:
        self_index_N = np.full(len(queries_ND), -1)
    index, value = class_neighbours(
        queries_ND,
        self_index_N,
        np.zeros((len(queries_ND), 1)),
        gallery_MD,
        np.zeros(len(gallery_MD)),
        k,
        similarity=similarity,
        backend=backend,
    )
    return index[:, 0], value[:, 0]


def prepare(x_ND: ArrayLike, similarity: str, what: str) -> np.ndarray:
    """Embeddings as they are searched: float32 [N, D], of length 1 under 'cosine' (a zero vector stays 0).

    Args:
      x_ND: any float dtype.
      similarity: one of SIMILARITIES.
      what: 'query' or 'gallery', for messages.

    Raises:
      UserError: unknown similarity, or an embedding that is not finite.
    """
    choose(similarity, SIMILARITIES, "similarity of the search")
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    bad = np.flatnonzero(~np.isfinite(x_ND).all(axis=1))
    if len(bad):
        raise UserError(
            f"The {what} embedding of row {bad[0]} is not finite ({len(bad)} of {len(x_ND)} rows "
            "are not): the network that made it has diverged. Train it again with a lower "
            "learning rate or with gradient clipping."
        )
    if similarity == "cosine":
        # Squares are summed in float64, where float32 values neither overflow nor vanish.
        norm_N1 = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64))[:, None]
        norm_N1[norm_N1 == 0] = 1
        x_ND = np.divide(x_ND, norm_N1, out=np.empty_like(x_ND), casting="same_kind")
    return x_ND


def _search_faiss(
    queries_ND: np.ndarray,
    self_index_N: np.ndarray,
    classes_NQ: np.ndarray,
    gallery_MD: np.ndarray,
    gallery_labels_M: np.ndarray,
    k: int,
    l2: bool,
) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    index_NQk = np.full((*classes_NQ.shape, k), -1, np.int64)
    value_NQk = np.full((*classes_NQ.shape, k), -np.inf, np.float32)
    for c in np.unique(classes_NQ):
        members = np.flatnonzero(gallery_labels_M == c)
        if c < 0 or not len(members):
            continue
        flat = (faiss.IndexFlatL2 if l2 else faiss.IndexFlatIP)(gallery_MD.shape[1])
        flat.add(gallery_MD[members])
        rows, slots = np.nonzero(classes_NQ == c)
        for start in range(0, len(rows), TILE):
            n, q = rows[start : start + TILE], slots[start : start + TILE]
            index_NQk[n, q], value_NQk[n, q] = _search_flat(
                flat, members, queries_ND[n], self_index_N[n], k, l2
            )
    return index_NQk, value_NQk


def _search_flat(
    flat: Any,
    members: np.ndarray,
    queries_BD: np.ndarray,
    self_index_B: np.ndarray,
    k: int,
    l2: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """One class: `flat`, a faiss index, holds the embeddings of the gallery items `members` (ascending)."""
    depth = k + 8
    while True:
        depth = min(depth, len(members))
        value, position = flat.search(queries_BD, depth)
        value = -value if l2 else value
        last = value[:, -1:].copy()
        index = members[position]
        value[index == self_index_B[:, None]] = -np.inf
        order = np.lexsort((index, -value), axis=-1)[:, :k]
        index = np.take_along_axis(index, order, axis=1)
        value = np.take_along_axis(value, order, axis=1)
        # Items that faiss left out are at most as similar as the last it returned: if the k-th kept is
        # no better than that, an equal one with a lower index may lie beyond.
        if depth == len(members) or (value[:, -1:] > last).all():
            break
        depth *= 4
    missing = ((0, 0), (0, k - index.shape[1]))
    return (
        np.pad(index, missing, constant_values=-1),
        np.pad(value, missing, constant_values=-np.inf),
    )


def _search_jax(
    queries_ND: np.ndarray,
    self_index_N: np.ndarray,
    classes_NQ: np.ndarray,
    gallery_MD: np.ndarray,
    gallery_labels_M: np.ndarray,
    k: int,
    l2: bool,
) -> tuple[np.ndarray, np.ndarray]:
    num_classes = int(gallery_labels_M.max(initial=-1)) + 1
    members_CS = _members(gallery_labels_M, num_classes)
    # Candidates outside 0..C-1 are sent to the last row, which is empty.
    known_NQ = (classes_NQ >= 0) & (classes_NQ < num_classes)
    classes_NQ = np.where(known_NQ, classes_NQ, num_classes).astype(np.int32)
    top = min(k, members_CS.shape[1])
    gallery, members = jnp.asarray(gallery_MD), jnp.asarray(members_CS)
    found = []
    for start in range(0, len(queries_ND), TILE):
        tile = [_pad_rows(x[start : start + TILE]) for x in (queries_ND, self_index_N, classes_NQ)]
        found.append(_search_tile(*tile, gallery, members, top, l2))
    n, num_slots = classes_NQ.shape
    index = np.full((n, num_slots, k), -1, np.int32)
    value = np.full((n, num_slots, k), -np.inf, np.float32)
    for i, (index_tile, value_tile) in enumerate(found):
        rows = slice(i * TILE, min((i + 1) * TILE, n))
        index[rows, :, :top] = np.asarray(index_tile)[: rows.stop - rows.start]
        value[rows, :, :top] = np.asarray(value_tile)[: rows.stop - rows.start]
    return index, value


@functools.partial(jax.jit, static_argnames=("k", "l2"))
def _search_tile(
    queries_BD: jax.Array,
    self_index_B: jax.Array,
    classes_BQ: jax.Array,
    gallery_MD: jax.Array,
    members_CS: jax.Array,
    k: int,
    l2: bool,
) -> tuple[jax.Array, jax.Array]:
    highest = jax.lax.Precision.HIGHEST
    similarity_BM = jnp.matmul(queries_BD, gallery_MD.T, precision=highest)
    if l2:
        squares_B1 = jnp.sum(queries_BD**2, axis=1, keepdims=True)
        similarity_BM = 2 * similarity_BM - squares_B1 - jnp.sum(gallery_MD**2, axis=1)
    members_BQS = members_CS[classes_BQ]
    b, q, s = members_BQS.shape
    similarity_BQS = jnp.take_along_axis(
        similarity_BM, jnp.maximum(members_BQS, 0).reshape(b, q * s), axis=1
    ).reshape(b, q, s)
    allowed_BQS = (members_BQS >= 0) & (members_BQS != self_index_B[:, None, None])
    # Members ascend and top_k prefers the lower position, so exact ties go to the lower index.
    value, position = jax.lax.top_k(jnp.where(allowed_BQS, similarity_BQS, -jnp.inf), k)
    return jnp.take_along_axis(members_BQS, position, axis=2), value


def _members(labels_M: np.ndarray, num_classes: int) -> np.ndarray:
    """int32 [C + 1, S]: the items of each class, ascending, padded with -1; the last row empty."""
    counts = np.bincount(labels_M, minlength=num_classes)
    order = np.argsort(labels_M, kind="stable")
    column = np.arange(len(labels_M)) - np.repeat(np.cumsum(counts) - counts, counts)
    members = np.full((num_classes + 1, max(counts.max(initial=0), 1)), -1, np.int32)
    members[labels_M[order], column] = order
    return members


def _pad_rows(x: np.ndarray) -> np.ndarray:
    return np.pad(x, [(0, TILE - len(x))] + [(0, 0)] * (x.ndim - 1))
