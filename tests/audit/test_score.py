"""The score of a label against plain loops, and on made embeddings with known wrong labels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from fgvc_jax.audit import score as scores
from fgvc_jax.errors import UserError


def blobs(seed=0, classes=4, each=12, width=6):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = 4 * rng.normal(size=(classes, width))
    return (centres[labels] + rng.normal(size=(len(labels), width))).astype(np.float32), labels


def test_wrong_labels_lead_the_ranking_and_the_true_ones_are_suggested():
    embeddings, labels = blobs()
    swapped = labels.copy()
    wrong = np.array([3, 17, 30])
    swapped[wrong] = (labels[wrong] + 2) % 4
    found = scores.score(embeddings, swapped, 4)
    assert set(found.order[:3].tolist()) == set(wrong.tolist())
    np.testing.assert_array_equal(found.suggestion[wrong], labels[wrong])
    np.testing.assert_array_equal(np.flatnonzero(found.suspect), wrong)


def test_the_probe_has_not_seen_the_image_that_it_judges():
    """Against scikit-learn's own loop over the folds, with the standardisation written out."""
    embeddings, labels = blobs(1)
    x = embeddings.astype(np.float64)
    expected = np.zeros((len(x), 4))
    for train, held in StratifiedKFold(5, shuffle=True, random_state=0).split(x, labels):
        mean, std = x[train].mean(0), x[train].std(0)
        c = 1 / (2 * scores.PENALTY * len(x))
        model = LogisticRegression(C=c, max_iter=300).fit((x[train] - mean) / std, labels[train])
        expected[held] = model.predict_proba((x[held] - mean) / std)
    # L-BFGS stops at a tolerance of 1e-4 on the gradient.
    np.testing.assert_allclose(scores.out_of_fold(x, labels, 4), expected, atol=1e-3)


def test_neighbours_vote_by_cosine_and_never_for_themselves():
    embeddings, labels = blobs(2, classes=3, each=5)
    labels[:2] = 1, 2  # classes of 3, 6 and 6
    embeddings[7] = embeddings[8]  # equal images
    x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = scores.votes(embeddings, labels, 3, neighbours=4)
    for i in range(len(x)):
        k = min(4, int((labels == labels[i]).sum()) - 1)
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -float(x[i] @ x[j]))
        expected = np.bincount(labels[others[:k]], minlength=3) / k
        np.testing.assert_allclose(found[i], expected, atol=1e-12)


def test_margin_and_the_count_of_confident_learning():
    p = np.array(
        [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.2, 0.2, 0.6]]
    )
    labels = np.array([0, 0, 1, 1, 2])
    score, other = scores.margin(p, labels)
    np.testing.assert_allclose(score, [0.25, 0.65, 0.15, 0.4, 0.3])
    np.testing.assert_array_equal(other, [1, 1, 0, 2, 0])
    # Means of the own class: 0.5, 0.65, 0.6. Image 1 gives class 1 less than that: it is not counted.
    assert not scores.suspects(p, labels).any()
    p[1] = 0.2, 0.7, 0.1  # now 0.45, 0.65, 0.6
    np.testing.assert_array_equal(scores.suspects(p, labels), [0, 1, 0, 0, 0])


def test_an_image_alone_in_its_class_is_not_judged_and_stands_last():
    embeddings, labels = blobs(3)
    labels[5] = 4
    found = scores.score(embeddings, labels, 6)
    assert np.isnan(found.score[5]) and found.suggestion[5] == -1 and not found.suspect[5]
    assert found.order[-1] == 5 and np.isfinite(np.delete(found.score, 5)).all()
    with pytest.raises(UserError, match="1 of 3 have"):
        scores.score(embeddings[:5], np.array([0, 0, 0, 1, 2]), 3)
