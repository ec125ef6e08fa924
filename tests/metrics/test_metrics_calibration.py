"""Calibration against plain loops."""

import numpy as np
import pytest

from fgvc_jax.metrics import calibration


def made(seed=0, count=400):
    random = np.random.default_rng(seed)
    sure = np.round(random.uniform(0, 1, count), 2)  # ties, and edges of bins
    return sure, random.uniform(0, 1, count) < sure**2


def test_reliability_is_the_loop_over_bins():
    sure, right = made()
    sure[:3] = 0, 1, 0.2
    found = calibration.reliability(sure, right, bins=10)
    ece = 0.0
    for i in range(10):
        # (i / 10, (i + 1) / 10], the first bin with its 0
        rows = [j for j, s in enumerate(sure) if max(1, np.ceil(s * 10)) == i + 1]
        assert found.count[i] == len(rows)
        assert found.accuracy[i] == pytest.approx(np.mean(right[rows]))
        assert found.confidence[i] == pytest.approx(np.mean(sure[rows]))
        ece += len(rows) / len(sure) * abs(np.mean(right[rows]) - np.mean(sure[rows]))
    assert found.ece == pytest.approx(ece, abs=1e-12)
    assert found.count.sum() == len(sure)


def test_an_empty_bin_has_no_mean():
    found = calibration.reliability([0.95, 0.97], [True, False], bins=10)
    assert np.isnan(found.accuracy[:9]).all() and found.accuracy[9] == 0.5
    assert found.ece == pytest.approx(0.46)


def test_risk_is_the_mean_over_orders_of_equals():
    sure, right = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 1, 0])
    coverage, risk, area = calibration.risk_coverage(sure, right)
    expected = np.zeros(5)
    orders = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]
    for middle in orders:
        wrong = 1 - right[[0, *middle, 4]]
        expected += np.cumsum(wrong) / np.arange(1, 6) / len(orders)
    np.testing.assert_allclose(risk, expected, atol=1e-12)
    np.testing.assert_allclose(coverage, np.arange(1, 6) / 5)
    assert area == pytest.approx(expected.mean())


def test_without_ties_it_is_the_sorted_cumulative_error():
    random = np.random.default_rng(1)
    sure, right = random.permutation(200) / 200, random.uniform(size=200) < 0.7
    _, risk, _ = calibration.risk_coverage(sure, right)
    wrong, order = 0, sorted(range(200), key=lambda i: -sure[i])
    for place, row in enumerate(order, 1):
        wrong += not right[row]
        assert risk[place - 1] == pytest.approx(wrong / place)
