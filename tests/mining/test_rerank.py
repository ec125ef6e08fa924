"""Re-ranking against the formula, one example and one class at a time."""

import math

import numpy as np

from fgvc_jax.mining import rerank


def test_against_a_loop_in_float64():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 6))
    gallery = rng.normal(size=(40, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 40)  # class 5 has no image
    queries = rng.normal(size=(20, 5)).astype(np.float32)
    same = {}

    classes, nearest = rerank.candidates(scores, queries, gallery, labels, 3)
    logits = np.full(classes.shape, -np.inf)
    for i in range(20):
        expected = sorted(range(6), key=lambda c, i=i: (-scores[i, c], c))[:3]
        assert classes[i].tolist() == expected
        for j, c in enumerate(expected):
            rows = np.flatnonzero(labels == c)
            if len(rows) == 0:
                assert nearest[i, j] == -1
                continue
            cosine = gallery[rows] @ queries[i] / np.linalg.norm(gallery[rows], axis=1)
            assert nearest[i, j] == rows[np.argmax(cosine)]
            logits[i, j] = same[i, c] = rng.normal()

    result = rerank.rerank(scores, classes, logits)
    for i in range(20):
        p = np.exp(scores[i]) / np.exp(scores[i]).sum()
        for c in range(6):
            if (i, c) in same:
                expected = math.log(p[c] / (1 + math.exp(-same[i, c])))
                assert abs(result[i, c] - expected) < 1e-12
            else:
                assert result[i, c] == -np.inf


def test_a_sure_comparator_overrules_a_close_call_only():
    scores = np.log([[0.5, 0.4, 0.1], [0.98, 0.015, 0.005]])
    classes = np.array([[0, 1], [0, 1]])
    same = np.array(
        [[-1.0, 3.0], [-1.0, 3.0]]
    )  # "not the same" for the first, "the same" for the second
    assert rerank.rerank(scores, classes, same).argmax(axis=1).tolist() == [1, 0]
