"""Pairs of look-alikes, mined inside the classes that the classifier itself confuses.

The FineNet generator. For an image x with label y, c_1..c_Q are its Q most probable classes. Its Q
nearest neighbours inside c_1 give Q pairs, the nearest one inside each of c_2..c_Q gives one more:
at most 2Q-1 pairs an image, labelled 1 where the candidate class is y. So positives are the
nearest images of the own class, negatives the nearest images of the confusing classes, with Q hard
negatives wherever the classifier errs.
"""

import os
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fgvc_jax.errors import UserError
from fgvc_jax.ops.knn import class_neighbours
from fgvc_jax.ops.rank import best


class Pairs(NamedTuple):
    """Mined pairs as plain arrays [P], ordered by query, slot, rank."""

    query: np.ndarray  # int32, row among the queries
    neighbour: np.ndarray  # int32, row in the gallery
    label: np.ndarray  # int32, 1 same class, 0 different
    similarity: np.ndarray  # float32
    rank: np.ndarray  # int32, place inside the candidate class, 0 = nearest, the query left out
    slot: np.ndarray  # int32, which of the Q predicted classes, 0 = the most probable


def mine(
    query_embeddings_ND: ArrayLike,
    query_logits_NC: ArrayLike,
    query_labels_N: ArrayLike,
    gallery_embeddings_MD: ArrayLike,
    gallery_labels_M: ArrayLike,
    *,
    top_classes: int = 7,
    similarity: str = "cosine",
    backend: str = "faiss",
    query_is_gallery: bool = True,
    self_by_rank: bool = False,
) -> Pairs:
    """Pairs each query with its nearest neighbours inside its most probable classes.

    Args:
      query_embeddings_ND, gallery_embeddings_MD: embeddings, any float dtype. Where both are one object
        it is prepared and held once.
      query_logits_NC: class scores, which may be a memory map; equal ones are ranked by the lower class.
      query_labels_N, gallery_labels_M: int, 0..C-1.
      top_classes: Q, how many of the most probable classes to search; at most C are used.
      similarity, backend: as in `fgvc_jax.ops.knn.class_neighbours`.
      query_is_gallery: row i of both is the same image (training pairs), which is never paired with
        itself. False for validation queries against the training gallery.
      self_by_rank: instead of leaving the query out by its index, take the nearest item of its own
        class to be the query, drop that, and then drop the pairs that are self pairs all the same
        (fewer pairs): the original authors' code. Nothing to do where `query_is_gallery` is False.

    Returns:
      Pairs. A class with too few images gives fewer; `summary` says so.

    Raises:
      UserError: `top_classes` below 1, or an embedding that is not finite.
    """
    if top_classes < 1:
        raise UserError(f"mine: top_classes is {top_classes}; it must be at least 1.")
    n, num_classes = np.shape(query_logits_NC)
    num_slots = min(top_classes, num_classes)
    labels_N, gallery_labels_M = np.asarray(query_labels_N), np.asarray(gallery_labels_M)
    classes_NQ = best(query_logits_NC, num_slots)
    itself_N = np.arange(n) if query_is_gallery else np.full(n, -1)
    self_by_rank = self_by_rank and query_is_gallery

    def nearest(slots: slice, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(index, similarity) [N, slots * k] of the k nearest of each of these classes."""
        classes_Nq = classes_NQ[:, slots]
        found = class_neighbours(
            query_embeddings_ND,
            np.full(n, -1) if self_by_rank else itself_N,
            classes_Nq,
            gallery_embeddings_MD,
            gallery_labels_M,
            k + self_by_rank,
            similarity=similarity,
            backend=backend,
        )
        if self_by_rank:
            own_Nq1 = (classes_Nq == labels_N[:, None])[..., None]
            found = tuple(np.where(own_Nq1, x[..., 1:], x[..., :-1]) for x in found)
        return tuple(x.reshape(n, classes_Nq.shape[1] * k) for x in found)

    # One column for each possible pair: Q ranks of the first class, then rank 0 of the others.
    slot = np.r_[np.zeros(num_slots), 1:num_slots].astype(np.int32)
    rank = np.r_[0:num_slots, np.zeros(num_slots - 1)].astype(np.int32)
    parts = nearest(slice(0, 1), num_slots), nearest(slice(1, None), 1)
    index, value = (np.concatenate(both, axis=1) for both in zip(*parts, strict=True))
    query, column = np.nonzero((index >= 0) & (index != itself_N[:, None]))
    neighbour = index[query, column]
    return Pairs(
        query=query.astype(np.int32),
        neighbour=neighbour,
        label=(labels_N[query] == gallery_labels_M[neighbour]).astype(np.int32),
        similarity=value[query, column],
        rank=rank[column],
        slot=slot[column],
    )


def summary(
    pairs: Pairs,
    query_labels: ArrayLike,
    gallery_labels: ArrayLike,
    class_names: Sequence[str],
    *,
    top_classes: int = 7,
    query_is_gallery: bool = True,
) -> list[str]:
    """Lines of text about the pairs, for the log.

    Counts, the share of positives (with a warning outside 30 to 70 %), how much comes from images
    whose most probable class is wrong, and every reason why there are fewer pairs than 2Q-1 an
    image. `top_classes` and `query_is_gallery` are those that `mine` was called with.
    """
    num_images, num_pairs = len(query_labels), len(pairs.query)
    used = min(top_classes, len(class_names))
    full = num_images * (2 * used - 1)
    lines = []
    if used < top_classes:
        lines.append(f"top_classes is {top_classes}, but there are {used} classes: {used} used")
    lines.append(
        f"{num_pairs:,} pairs of {num_images:,} images: {num_pairs / max(num_images, 1):.1f} an "
        f"image, at most {2 * used - 1}"
    )
    if num_pairs == 0:
        return lines
    positives = int(pairs.label.sum())
    share = positives / num_pairs
    lines.append(f"positive: {positives:,} ({share:.1%}); negative: {num_pairs - positives:,}")
    if not 0.3 <= share <= 0.7:
        lines.append(
            f"warning: {share:.1%} of the pairs are positive, outside 30 to 70 %: the "
            "same/different phase will lean to one answer"
        )
    wrong = np.unique(pairs.query[(pairs.slot == 0) & (pairs.label == 0)])
    from_wrong = int(np.isin(pairs.query, wrong).sum())
    lines.append(
        f"most probable class wrong: {len(wrong):,} images ({len(wrong) / num_images:.1%}), which "
        f"give {from_wrong:,} pairs ({from_wrong / num_pairs:.1%})"
    )
    if num_pairs < full:
        lines.append(f"{full - num_pairs:,} pairs fewer than {2 * used - 1} an image")
    count_C = np.bincount(gallery_labels, minlength=len(class_names))
    need = used + query_is_gallery
    small = [c for c in np.argsort(count_C, kind="stable") if count_C[c] < need]
    if small:
        named = ", ".join(f"{class_names[c]} ({count_C[c]})" for c in small[:8])
        more = f" and {len(small) - 8} more" if len(small) > 8 else ""
        lines.append(f"classes with fewer than {need} images give fewer pairs: {named}{more}")
    alone = num_images - len(np.unique(pairs.query))
    if alone:
        lines.append(f"{alone:,} images are in no pair as the query")
    return lines


def save(pairs: Pairs, path: str | os.PathLike) -> None:
    """Writes the arrays of `pairs` as a plain .npz file."""
    with open(path, "wb") as file:
        np.savez(file, **pairs._asdict())


def load(path: str | os.PathLike) -> Pairs:
    """Reads a file that `save` wrote; nothing is unpickled.

    Raises:
      UserError: the file is not one of pairs.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pairs = Pairs(*(arrays[name] for name in Pairs._fields))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a file of mined pairs ({error}). It should be an .npz file with the "
            f"arrays {', '.join(Pairs._fields)}; run the mining phase again."
        ) from error
    if len({array.shape for array in pairs}) != 1 or pairs.query.ndim != 1:
        raise UserError(
            f"{path}: the arrays of pairs differ in length; run the mining phase again."
        )
    return pairs
