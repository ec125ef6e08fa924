"""Classification read off embeddings, against loops and against the condition that defines the optimum."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from fgvc_jax.errors import UserError
from fgvc_jax.metrics import transfer


def example(seed, n=60, shift=0.9):
    rng = np.random.default_rng(seed)
    labels = rng.choice([2, 5, 9], n, p=[0.5, 0.3, 0.2])
    return rng.normal(size=(n, 4)) + shift * np.eye(10, 4)[labels % 4], labels


def test_the_nearest_centroid_against_loops_and_scikit_learn():
    x, labels = example(0)
    train, train_labels = example(1)
    right = []
    for query, label in zip(x, labels, strict=True):
        cosines = {}
        for known in set(train_labels.tolist()):
            units = [z / np.linalg.norm(z) for z in train[train_labels == known]]
            mean = sum(units)
            cosines[known] = query @ mean / np.linalg.norm(query) / np.linalg.norm(mean)
        right.append(max(cosines, key=cosines.get) == label)
    found = transfer.centroid_accuracy(x, labels, train, train_labels)
    assert found == np.mean(right) and 0.4 < found < 0.95
    # Scikit-learn measures from means that are not scaled: the same where all means are equally long.
    train = np.array([[1, 0.2, 0.1], [1, -0.2, -0.1], [0.2, 1, -0.1], [-0.2, 1, 0.1]])
    queries = np.random.default_rng(2).normal(size=(50, 3))
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    theirs = NearestCentroid().fit(train, [0, 0, 1, 1]).predict(unit)
    assert transfer.centroid_accuracy(queries, theirs, train, [0, 0, 1, 1]) == 1


def test_equal_means_are_the_lower_class():
    assert transfer.centroid_accuracy([[1.0, 0]], [3], [[2.0, 0], [1.0, 0]], [7, 3]) == 1


def test_the_probe_is_scikit_learns_on_standardised_features():
    x, labels = example(0)
    train, train_labels = example(1)
    answers = transfer.fit_probe(1e3 * train, train_labels)(1e3 * x)
    # units do not count
    np.testing.assert_array_equal(answers, transfer.fit_probe(train, train_labels)(x))
    found = (answers == labels).mean()
    mean, std = train.mean(0), train.std(0)
    model = LogisticRegression(C=1.0, max_iter=1000, solver="newton-cg", tol=1e-8)
    model.fit((train - mean) / std, train_labels)
    assert found == model.score((x - mean) / std, labels) and 0.4 < found < 0.95


def test_the_probe_takes_a_feature_that_never_changes_and_classes_that_a_plane_parts():
    train = np.concatenate([np.ones((20, 1)), np.repeat([[-1.0], [1.0]], 10, 0)], axis=1)
    labels = np.repeat([0, 1], 10)
    np.testing.assert_array_equal(transfer.fit_probe(train, labels)(train), labels)


def test_what_is_not_finite_is_named():
    with pytest.raises(UserError, match="gallery embedding of row 1 is not finite"):
        transfer.centroid_accuracy([[1.0]], [0], [[1.0], [np.nan]], [0, 1])
