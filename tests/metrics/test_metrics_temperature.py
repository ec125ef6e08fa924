"""Temperature against scikit-learn's, thresholds against a loop over all of them."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from fgvc_jax.metrics.calibration import softmax, temperature, threshold


class Logits(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its logits."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return self.classes_[x.argmax(axis=1)]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_is_that_of_scikit_learn(sharpness):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    scores = rng.normal(size=(400, 5)) + 1.5 * np.eye(5)[labels]
    scores = (sharpness * scores).astype(np.float32)
    fitted = FrozenEstimator(Logits().fit(scores, labels))
    theirs = CalibratedClassifierCV(fitted, method="temperature").fit(scores, labels)
    inverse = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    found = temperature(scores, labels)
    assert abs(found * inverse - 1) < 1e-3  # both stop where the likelihood is flat
    rows = theirs.predict_proba(scores)
    np.testing.assert_allclose(softmax(scores / found), rows, rtol=0, atol=1e-3)


def test_temperature_has_no_better_neighbour_and_keeps_its_bounds():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 50)
    scores = rng.normal(size=(50, 3)) + 2 * np.eye(3)[labels]

    def nll(t):
        return -np.log(softmax(scores / t)[np.arange(50), labels]).mean()

    found = temperature(scores, labels)
    assert all(nll(found) <= nll(found * factor) + 1e-9 for factor in (0.9, 0.99, 1.01, 1.1))
    assert temperature(10 * np.eye(3), np.arange(3)) >= 1  # all right: no reason to be surer
    assert temperature(10 * np.eye(3), np.array([1, 2, 0])) == pytest.approx(20)  # all wrong


def test_threshold_accepts_most():
    rng = np.random.default_rng(2)
    for wanted in (0.5, 0.8, 0.9, 1.0):
        confidence = np.round(rng.uniform(0, 1, 300), 2)  # with ties
        right = rng.uniform(0, 1, 300) < confidence
        best = None
        for t in np.unique(confidence):
            taken = confidence >= t
            if right[taken].mean() >= wanted:
                best = t if best is None else best
        found = threshold(confidence, right, wanted)
        assert found.value == best
        if best is not None:
            taken = confidence >= best
            assert found.accepted == pytest.approx(taken.mean())
            assert found.precision == pytest.approx(right[taken].mean()) and found.low < wanted
    assert threshold([0.9, 0.8], [False, False], 0.5).value is None
    assert threshold([], [], 0.5).value is None
