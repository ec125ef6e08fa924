"""Exact nearest neighbours, inside candidate classes or over a whole gallery.

Two backends, faiss (a flat index for each class) and JAX (products and `lax.top_k`), which check
each other: both order by similarity, largest first, and exact ties by the lower gallery index; they
agree wherever similarities differ by more than float32 rounding (1e-6 of the embeddings' scale).

Both work class by class: the requests for one class, (query, candidate) pairs, are cut into tiles
that are compared with the members of that class alone. JAX runs on all local devices; each process
searches everything, so that all have the same result.
"""

import functools
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fgvc_jax.errors import UserError, choose

SIMILARITIES = ("cosine", "ip", "l2")
BACKENDS = ("faiss", "jax")
# Requests of one class searched at once; in a large class this bounds memory to TILE rows of similarities.
TILE = 256
# Numbers in the queries, or similarities, of one call: several tiles in JAX, one in faiss, which is then
# larger than TILE where the class is small.
CALL = 2**22
NARROWEST = 64  # JAX pads a class to a power of two from here on, or to the largest class


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
    itself = queries_ND is gallery_MD
    queries_ND = prepare(queries_ND, similarity, "gallery" if itself else "query")
    gallery_MD = queries_ND if itself else prepare(gallery_MD, similarity, "gallery")
    self_index_N = np.asarray(self_index_N, np.int32)
    classes_NQ = np.asarray(classes_NQ, np.int32)
    num_queries, num_slots = classes_NQ.shape
    wanted = _wanted(classes_NQ.reshape(-1), np.asarray(gallery_labels_M, np.int32))
    index_Rk = np.full((num_queries * num_slots, k), -1, np.int32)
    value_Rk = np.full((num_queries * num_slots, k), -np.inf, np.float32)
    search = _search_faiss if backend == "faiss" else _search_jax
    if len(wanted.first):
        for rows, index, value in search(
            queries_ND, self_index_N, num_slots, wanted, gallery_MD, k, similarity == "l2"
        ):
            index_Rk[rows, : index.shape[1]] = index
            value_Rk[rows, : value.shape[1]] = value
    index_Rk[np.isneginf(value_Rk)] = -1
    shape = (num_queries, num_slots, k)
    return index_Rk.reshape(shape), value_Rk.reshape(shape)


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
    given = np.asarray(x_ND)
    x_ND = np.ascontiguousarray(given, np.float32)
    finite_N = [np.isfinite(x_ND[i : i + TILE]).all(axis=1) for i in range(0, len(x_ND), TILE)]
    bad = np.flatnonzero(~np.concatenate(finite_N)) if finite_N else []
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
        owned = not np.may_share_memory(x_ND, given)
        out = x_ND if owned else np.empty_like(x_ND)
        x_ND = np.divide(x_ND, norm_N1, out=out, casting="same_kind")
    return x_ND


class _Wanted(NamedTuple):
    """The classes that are asked for and have members, A of them, in ascending order.

    A request is a query's candidate class, numbered over queries and their slots.
    """

    items_M: np.ndarray  # int32, gallery items ordered by class, ascending in each
    start: np.ndarray  # int [A], where the members of each class begin in it
    size: np.ndarray  # int [A], how many they are
    requests_R: np.ndarray  # int, requests ordered by class, ascending in each
    first: np.ndarray  # int [A], where those of each class begin
    count: np.ndarray  # int [A]


def _wanted(classes_R: np.ndarray, labels_M: np.ndarray) -> _Wanted:
    items_M, members, start, size = _grouped(labels_M)
    requests_R, asked, first, count = _grouped(classes_R)
    _, a, b = np.intersect1d(members, asked, assume_unique=True, return_indices=True)
    return _Wanted(items_M.astype(np.int32), start[a], size[a], requests_R, first[b], count[b])


def _grouped(labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rows ordered by label, and of each label >= 0 itself, where it begins, how many rows it has)."""
    order_N = np.argsort(labels_N, kind="stable")
    found = np.unique(labels_N[order_N], return_index=True, return_counts=True)
    return order_N, *(x[found[0] >= 0] for x in found)


def _search_faiss(
    queries_ND: np.ndarray,
    self_index_N: np.ndarray,
    num_slots: int,
    wanted: _Wanted,
    gallery_MD: np.ndarray,
    k: int,
    l2: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(requests [B], index int [B, k], similarity [B, k]), tile by tile."""
    import faiss

    places = zip(wanted.start, wanted.size, wanted.first, wanted.count, strict=True)
    for start, size, first, count in places:
        members = wanted.items_M[start : start + size]
        flat = (faiss.IndexFlatL2 if l2 else faiss.IndexFlatIP)(gallery_MD.shape[1])
        flat.add(gallery_MD[members])
        tile = max(TILE, CALL // max(gallery_MD.shape[1], size))
        for at in range(first, first + count, tile):
            requests = wanted.requests_R[at : min(at + tile, first + count)]
            n = requests // num_slots
            found = _search_flat(flat, members, queries_ND[n], self_index_N[n], k, l2)
            yield requests, *found


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
    num_slots: int,
    wanted: _Wanted,
    gallery_MD: np.ndarray,
    k: int,
    l2: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As `_search_faiss`, from calls that take turns on the local devices; few are under way at a time."""
    calls = list(_calls(wanted, gallery_MD.shape[1]))
    devices = jax.local_devices()[: len(calls)]
    galleries = [_placed(gallery_MD, wanted.items_M, device) for device in devices]
    under_way = deque()
    for number, (width, start_B, size_B, at_BT, there_BT) in enumerate(calls):
        requests_BT = wanted.requests_R[at_BT]
        rows_BT = requests_BT // num_slots
        blocks = (queries_ND[rows_BT], self_index_N[rows_BT], start_B, size_B)
        turn = number % len(devices)
        found = _search_blocks(
            *jax.device_put(blocks, devices[turn]),
            *galleries[turn],
            width=width,
            k=min(k, width),
            l2=l2,
        )
        under_way.append((requests_BT, there_BT, found))
        if len(under_way) > 2 * len(devices):
            yield _fetched(*under_way.popleft())
    while under_way:
        yield _fetched(*under_way.popleft())


def _fetched(requests_BT, there_BT, found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return requests_BT[there_BT], *(np.asarray(x)[there_BT] for x in found)


class _Call(NamedTuple):
    """B blocks of T requests for one class each, searched in one call."""

    width: int  # to which the classes are padded
    start_B: np.ndarray  # int32, where the members of the class begin
    size_B: np.ndarray  # int32
    at_BT: np.ndarray  # int, places in `_Wanted.requests_R`
    there_BT: np.ndarray  # bool, False where a block has no request any more


def _calls(wanted: _Wanted, dim: int) -> Iterator[_Call]:
    widths_A = np.minimum(np.maximum(NARROWEST, _power_of_two(wanted.size)), wanted.size.max())
    for width in np.unique(widths_A):
        of_width = np.flatnonzero(widths_A == width)
        count = wanted.count[of_width]
        tile = int(np.clip(_power_of_two(count.mean()), 8, TILE))
        blocks = -(-count // tile)
        class_P = np.repeat(of_width, blocks)  # of each block
        number_P = np.arange(len(class_P)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        # Calls of one size, so that one program serves them all; the last may end with empty blocks.
        num_calls = -(-len(class_P) // max(1, CALL // (tile * max(dim, int(width)))))
        size = -(-len(class_P) // num_calls)
        for i in range(0, len(class_P), size):
            empty = (0, max(0, i + size - len(class_P)))
            class_B = np.pad(class_P[i : i + size], empty)
            number_B = np.pad(number_P[i : i + size], empty, constant_values=len(wanted.requests_R))
            place_BT = number_B[:, None] * tile + np.arange(tile)
            there_BT = place_BT < wanted.count[class_B, None]
            yield _Call(
                int(width),
                wanted.start[class_B].astype(np.int32),
                wanted.size[class_B].astype(np.int32),
                wanted.first[class_B, None] + np.where(there_BT, place_BT, 0),
                there_BT,
            )


def _power_of_two(n: ArrayLike) -> np.ndarray:
    """The lowest that is not below n, int."""
    return 2 ** np.ceil(np.log2(n)).astype(int)


def _placed(
    gallery_MD: np.ndarray, items_M: np.ndarray, device: jax.Device
) -> tuple[jax.Array, jax.Array]:
    """On the device (the gallery ordered by class, which item each row is); no other copy is made of it."""
    placed = jnp.zeros(gallery_MD.shape, gallery_MD.dtype, device=device)
    rows = max(1, CALL // gallery_MD.shape[1])
    for start in range(0, len(items_M), rows):
        part = jax.device_put(gallery_MD[items_M[start : start + rows]], device)
        placed = _write(placed, part, start)
    return placed, jax.device_put(items_M, device)


@functools.partial(jax.jit, donate_argnums=0)
def _write(placed_MD: jax.Array, part_BD: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(placed_MD, part_BD, start, axis=0)


@functools.partial(jax.jit, static_argnames=("width", "k", "l2"))
def _search_blocks(
    queries_BTD: jax.Array,
    self_index_BT: jax.Array,
    start_B: jax.Array,
    size_B: jax.Array,
    gallery_MD: jax.Array,
    items_M: jax.Array,
    *,
    width: int,
    k: int,
    l2: bool,
) -> tuple[jax.Array, jax.Array]:
    """(index int32 [B, T, k], similarity [B, T, k]), one block after the other.

    Args:
      gallery_MD, items_M: ordered by class.
      start_B, size_B: where in them the class of each block lies.
      width: how many rows of them are looked at, the largest size or more; at most M.
    """

    def search(block) -> tuple[jax.Array, jax.Array]:
        queries_TD, self_index_T, start, size = block
        # The slice ends with the gallery, so it may begin before the class.
        begin = jnp.minimum(start, len(gallery_MD) - width)
        members_SD = jax.lax.dynamic_slice_in_dim(gallery_MD, begin, width)
        items_S = jax.lax.dynamic_slice_in_dim(items_M, begin, width)
        highest = jax.lax.Precision.HIGHEST
        similarity_TS = jnp.einsum("td,sd->ts", queries_TD, members_SD, precision=highest)
        if l2:
            squares_T1 = jnp.sum(queries_TD**2, axis=1, keepdims=True)
            similarity_TS = 2 * similarity_TS - squares_T1 - jnp.sum(members_SD**2, axis=1)
        # To top_k 0 is more than -0.
        similarity_TS = jnp.where(similarity_TS == 0, 0, similarity_TS)
        place_S = begin + jnp.arange(width)
        member_S = (place_S >= start) & (place_S < start + size)
        allowed_TS = member_S & (items_S != self_index_T[:, None])
        # Members ascend and top_k prefers the lower position, so exact ties go to the lower index.
        value_Tk, place_Tk = jax.lax.top_k(jnp.where(allowed_TS, similarity_TS, -jnp.inf), k)
        return items_S[place_Tk], value_Tk

    return jax.lax.map(search, (queries_BTD, self_index_BT, start_B, size_B))
