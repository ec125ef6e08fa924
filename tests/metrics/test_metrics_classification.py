"""Metrics against scikit-learn, SciPy, published values and hand counts."""

import warnings

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sk

from fgvc_jax.errors import UserError
from fgvc_jax.metrics import classification as m
from fgvc_jax.metrics.knn import knn_accuracy


def example(seed=0, n=200, classes=9, absent=()):
    rng = np.random.default_rng(seed)
    labels = rng.choice([c for c in range(classes) if c not in absent], n)
    logits = rng.standard_normal((n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    return logits, labels


@pytest.mark.parametrize("absent", [(), (0, 4)])
def test_classification_against_scikit_learn(absent):
    logits, labels = example(absent=absent)
    result = m.classification(logits, labels, 9)
    answer, present = logits.argmax(1), np.unique(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # answers that no label has
        expected = {
            "top1": sk.accuracy_score(labels, answer),
            "top5": sk.top_k_accuracy_score(labels, logits, k=5, labels=range(9)),
            "mean_class_accuracy": sk.balanced_accuracy_score(labels, answer),
            "macro_f1": sk.f1_score(labels, answer, average="macro", labels=present),
        }
    probability = np.exp(logits.astype(np.float64))
    probability /= probability.sum(1, keepdims=True)
    expected["nll"] = sk.log_loss(labels, probability, labels=range(9))
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12), name  # float64 on both sides
    assert result["count"] == 200
    assert (result["top1_low"], result["top1_high"]) == m.wilson(int((answer == labels).sum()), 200)


def test_ties_go_to_the_lower_class():
    equal = np.zeros((8, 8))
    result = m.classification(equal, np.arange(8), 8)
    assert (result["top1"], result["top5"]) == (1 / 8, 5 / 8)
    assert result["nll"] == pytest.approx(np.log(8))


def test_large_and_excluded_scores():
    logits = np.array([[1000.0, 0, -np.inf], [-np.inf, 2, 2]])
    result = m.classification(logits, [0, 2], 3)
    assert result["nll"] == pytest.approx(np.log(2) / 2)
    assert m.classification(logits, [0, 0], 3)["nll"] is None  # the second one's was ruled out


@pytest.mark.parametrize("kept", [1, 3, 4, 5, 6])
def test_where_classes_were_ruled_out_nothing_is_made_up(kept):
    """As after re-ranking: `kept` classes of each example have a score, and the true one may not."""
    logits, labels = example()
    for row in logits:
        row[np.argsort(-row, kind="stable")[kept:]] = -np.inf
    result = m.classification(logits, labels, 9)
    assert np.isneginf(logits[np.arange(200), labels]).any() and result["nll"] is None
    if kept < 5:  # places behind the last class kept are no order at all
        assert result["top5"] is None
    else:
        among = [
            label in sorted(range(9), key=lambda c, row=row: (-row[c], c))[:5]
            for row, label in zip(logits, labels, strict=True)
        ]
        assert result["top5"] == np.mean(among)
    assert result["top1"] == np.mean(logits.argmax(1) == labels)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    logits, labels = example()
    logits[7, 3] = value
    with pytest.raises(UserError, match="example 7"):
        m.classification(logits, labels, 9)


def test_labels_and_shapes_are_checked():
    logits, labels = example()
    for bad in (-1, 9):
        with pytest.raises(UserError, match=rf"label of example 5 is {bad}, outside 0\.\.8"):
            m.classification(logits, np.where(np.arange(200) == 5, bad, labels), 9)
    with pytest.raises(UserError, match="199 labels"):
        m.classification(logits, labels[1:], 9)
    with pytest.raises(UserError, match="at least one"):
        m.classification(logits[:0], labels[:0], 9)


# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score, no correction).
@pytest.mark.parametrize(
    "successes, n, low, high",
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_intervals(successes, n, low, high):
    np.testing.assert_allclose(m.wilson(successes, n), (low, high), atol=5e-5)  # as printed
    np.testing.assert_allclose(m.wilson(n - successes, n), (1 - high, 1 - low), atol=5e-5)


def areas(scores, labels):
    """(AUROC over all pairs of a positive and a negative, average precision over all cuts)."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives)
    precision_sum = recall_before = 0.0
    for cut in sorted(set(scores), reverse=True):
        taken = labels[scores >= cut]
        recall = taken.sum() / len(positives)
        precision_sum += (recall - recall_before) * taken.mean()
        recall_before = recall
    return wins / (len(positives) * len(negatives)), precision_sum


@pytest.mark.parametrize("distinct", [3, 20, 10**6])
def test_binary_against_the_definitions(distinct):
    rng = np.random.default_rng(distinct)
    labels = rng.integers(0, 2, 300)
    scores = (rng.integers(0, distinct, 300) + labels) / distinct - 0.5  # few values: many ties
    result = m.binary(scores, labels)
    area, average = areas(scores, labels)
    assert result["auroc"] == pytest.approx(area, abs=1e-12)  # float64 sums of 300 shares
    assert result["average_precision"] == pytest.approx(average, abs=1e-12)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(labels, scores > 0))
    assert result["f1"] == pytest.approx(sk.f1_score(labels, scores > 0))
    assert result["positive_share"] == pytest.approx(labels.mean())


def test_binary_where_one_label_is_missing():
    result = m.binary([-1.0, 1.0], [0, 0])
    assert np.isnan(result["auroc"]) and np.isnan(result["average_precision"])
    assert result["accuracy"] == 0.5 and result["f1"] == 0
    assert m.binary([-1.0], [0])["f1"] == 0
    with pytest.raises(UserError, match="0 or 1"):
        m.binary([0.0], [2])
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(UserError, match=f"example 1 is {value} .1 of 2 "):
            m.auroc([0.0, value], [0, 1])


@pytest.mark.parametrize("b, c", [(0, 0), (3, 3), (1, 9), (12, 2), (340, 411), (0, 1200)])
def test_mcnemar_against_the_binomial_test(b, c):
    a = np.r_[np.ones(b), np.zeros(c), np.ones(5), np.zeros(4)]
    other = np.r_[np.zeros(b), np.ones(c), np.ones(5), np.zeros(4)]
    expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1
    result = m.mcnemar(a, other)
    assert (result["b"], result["c"]) == (b, c)
    assert result["p"] == pytest.approx(expected, rel=1e-9)  # SciPy's own rounding


def test_majority():
    assert m.majority([0, 2, 2, 1, 1], [1, 1, 2, 0]) == 0.5  # 1 and 2 tie: the lower


@pytest.mark.parametrize("backend", ["faiss", "jax"])
def test_knn_accuracy(backend):
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    gallery, queries = rng.standard_normal((90, 5)), rng.standard_normal((40, 5))
    labels, expected = rng.integers(0, 2, 90), rng.integers(0, 2, 40)  # 2 classes, odd k: no ties
    result = knn_accuracy(
        queries, expected, gallery, labels, ks=(1, 5), similarity="l2", backend=backend
    )
    for k in (1, 5):
        model = KNeighborsClassifier(k).fit(gallery, labels)
        assert result[f"knn{k}"] == pytest.approx(model.score(queries, expected))
    # Distances 1, 2, 3, 4: classes 1, 0, 0, 1 tie at k = 4, and the nearest decides.
    line = np.array([[1.0], [2], [3], [4]])
    query = np.array([[0.0]])
    for answer, share in ((1, 1.0), (0, 0.0)):
        vote = knn_accuracy(query, [answer], line, [1, 0, 0, 1], ks=(4, 9), similarity="l2")
        assert vote == {"knn4": share, "knn9": share}
    assert knn_accuracy(query, [0], line, [1, 0, 0, 1], ks=(3,), similarity="l2") == {"knn3": 1.0}
