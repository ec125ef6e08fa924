"""Paired tests against plain loops."""

import numpy as np
import pytest

from fgvc_jax.metrics import paired


def test_bootstrap_is_that_of_resampled_rows():
    random = np.random.default_rng(0)
    a = random.uniform(size=300) < 0.7
    b = np.where(random.uniform(size=300) < 0.8, a, random.uniform(size=300) < 0.5)
    found = paired.bootstrap(a, b)
    gain = a.astype(float) - b
    rows = random.integers(0, 300, (10_000, 300))
    low, high = np.percentile(gain[rows].mean(axis=1), (2.5, 97.5))
    assert found["difference"] == pytest.approx(gain.mean())
    # Two sets of 10,000 draws: their percentiles differ by some hundredths of the spread, which is 0.02.
    assert found["low"] == pytest.approx(low, abs=0.006)
    assert found["high"] == pytest.approx(high, abs=0.006)
    assert found == paired.bootstrap(a, b)


def test_equal_answers_have_no_difference():
    same = np.ones(20, bool)
    assert paired.bootstrap(same, same) == {"difference": 0, "low": 0, "high": 0}


def test_holm_is_the_step_down_rule():
    """A test holds at alpha exactly where Holm's procedure rejects it."""
    p = [0.01, 0.04, 0.03, 0.005, 0.6]
    corrected = paired.holm(p)
    for alpha in np.linspace(0.001, 0.999, 500):
        rejected = set()
        for place, test in enumerate(sorted(range(5), key=lambda i: p[i])):
            if p[test] > alpha / (5 - place):
                break
            rejected.add(test)
        assert {i for i in range(5) if corrected[i] <= alpha} == rejected
    np.testing.assert_allclose(corrected, [0.04, 0.09, 0.09, 0.025, 0.6])
    assert paired.holm([0.7, 0.9]).max() == 1
