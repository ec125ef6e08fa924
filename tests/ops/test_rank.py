"""The best classes of each row against Python's sort."""

import ml_dtypes
import numpy as np
import pytest

from fgvc_jax.ops import rank


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 8, 20])
def test_against_a_sort_of_every_row(k, dtype, monkeypatch):
    monkeypatch.setattr(rank, "CELLS", 8 * 7)  # tiles of 7 rows; 50 rows end in a tile of one
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (50, 8)).astype(dtype)  # full of ties
    scores[::5] = 0  # and nothing but ties
    scores[1, 2], scores[2, 3] = np.inf, -np.inf
    expected = [sorted(range(8), key=lambda c, row=row: (-float(row[c]), c))[:k] for row in scores]
    found = rank.best(scores, k)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


def test_nan_comes_last():
    nan = np.nan
    found = rank.best(np.array([[nan, 1, nan, 2], [nan] * 4]), 3)
    np.testing.assert_array_equal(found, [[3, 1, 0], [0, 1, 2]])


def test_a_memory_map_stays_one(tmp_path):
    scores = np.random.default_rng(0).standard_normal((30, 5))
    np.save(tmp_path / "scores.npy", scores)
    before = scores.copy()
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    np.testing.assert_array_equal(rank.best(mapped, 2), np.argsort(-scores, axis=1)[:, :2])
    rank.best(scores, 2)
    np.testing.assert_array_equal(scores, before)


def test_no_rows():
    assert rank.best(np.zeros((0, 4)), 2).shape == (0, 2)
