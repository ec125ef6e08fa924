"""The largest scores of each row, without sorting the row."""

import numpy as np
from numpy.typing import ArrayLike

CELLS = 2**22  # scores looked at together; bounds memory to a few arrays of so many


def best(scores_NC: ArrayLike, k: int) -> np.ndarray:
    """The k classes with the largest scores, the largest first and equal ones by the lower class.

    Args:
      scores_NC: any float dtype; read in tiles of rows, so it may be a memory map. NaN counts as -inf.
      k: at least 1; with fewer classes all are ranked.

    Returns:
      int32 [N, min(k, C)].
    """
    scores_NC = np.asarray(scores_NC)
    n, num_classes = scores_NC.shape
    k = min(k, num_classes)
    result_Nk = np.empty((n, k), np.int32)
    rows = max(1, CELLS // max(num_classes, 1))
    for start in range(0, n, rows):
        result_Nk[start : start + rows] = _best(scores_NC[start : start + rows], k)
    return result_Nk


def _best(scores_BC: np.ndarray, k: int) -> np.ndarray:
    scores_BC = scores_BC.astype(np.promote_types(scores_BC.dtype, np.float32))
    scores_BC[np.isnan(scores_BC)] = -np.inf
    last = scores_BC.shape[1] - k
    least_B1 = np.partition(scores_BC, last, axis=1)[:, last, None]
    above_BC, equal_BC = scores_BC > least_B1, scores_BC == least_B1
    # Of those equal to the k-th, the first ones, as many as there is still room for.
    room_B1 = k - above_BC.sum(axis=1, keepdims=True)
    few = equal_BC.sum(axis=1) > room_B1[:, 0]
    equal_BC[few] &= np.cumsum(equal_BC[few], axis=1) <= room_B1[few]
    classes_Bk = np.nonzero(above_BC | equal_BC)[1].reshape(-1, k)  # ascending
    kept_Bk = np.take_along_axis(scores_BC, classes_Bk, axis=1)
    return np.take_along_axis(classes_Bk, np.argsort(-kept_Bk, axis=1, kind="stable"), axis=1)
