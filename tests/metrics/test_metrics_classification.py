"""Metrics against scikit-learn, SciPy, published values and hand counts."""

import csv
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
    assert m.classification(logits, [0, 0], 3)["nll"] == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    logits, labels = example()
    logits[7, 3] = value
    for measure in (
        lambda: m.classification(logits, labels, 9),
        lambda: m.per_class(logits, labels, list("abcdefghi")),
        lambda: m.confusions(logits, labels, list("abcdefghi")),
    ):
        with pytest.raises(UserError, match="example 7"):
            measure()


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


@pytest.mark.parametrize("distinct", [3, 20, 10**6])
def test_binary_against_scikit_learn(distinct):
    rng = np.random.default_rng(distinct)
    labels = rng.integers(0, 2, 300)
    scores = (rng.integers(0, distinct, 300) + labels) / distinct - 0.5  # few values: many ties
    result = m.binary(scores, labels)
    assert result["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    expected = sk.average_precision_score(labels, scores)
    assert result["average_precision"] == pytest.approx(expected, abs=1e-12)
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
    with pytest.raises(UserError, match="example 1 is NaN"):
        m.auroc([0.0, np.nan], [0, 1])


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


def test_confusions_per_class_and_their_files(tmp_path):
    classes = ["a", "b, with a comma", "c", "never"]
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    answer = np.array([0, 1, 1, 2, 1, 0, 2, 2, 3])
    logits = np.eye(4)[answer]
    assert m.confusions(logits, labels, classes) == [
        {"true": "a", "predicted": classes[1], "count": 2, "share": 0.5},
        {"true": classes[1], "predicted": "a", "count": 1, "share": 0.5},
        {"true": "c", "predicted": "never", "count": 1, "share": 1 / 3},
        {"true": "a", "predicted": "c", "count": 1, "share": 0.25},
    ]
    assert len(m.confusions(logits, labels, classes, limit=2)) == 2

    table = m.per_class(logits, labels, classes)
    precision, recall, f1, count = sk.precision_recall_fscore_support(
        labels, answer, labels=range(4), zero_division=0
    )
    for c in range(3):
        row = table[c]
        assert row["class"] == classes[c] and row["count"] == count[c]
        assert row["predicted"] == (answer == c).sum()
        assert (row["accuracy"], row["precision"], row["f1"]) == pytest.approx(
            (recall[c], precision[c], f1[c])
        )
    assert (table[0]["mistaken_for"], table[0]["mistaken_share"]) == (classes[1], 0.5)
    assert table[3]["count"] == 0 and np.isnan(table[3]["accuracy"]) and np.isnan(table[3]["f1"])

    m.write_per_class_csv(tmp_path / "classes.csv", table)
    with open(tmp_path / "classes.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["class"] for row in read] == classes
    assert float(read[2]["accuracy"]) == pytest.approx(2 / 3, abs=1e-6)
    assert read[3]["accuracy"] == ""

    m.write_confusion_csv(tmp_path / "confusion.csv", logits, labels, classes)
    with open(tmp_path / "confusion.csv", newline="", encoding="utf-8") as file:
        header, *body = csv.reader(file)
    assert header[1:] == classes == [row[0] for row in body]
    counts = np.array([row[1:] for row in body], int)
    np.testing.assert_array_equal(counts, sk.confusion_matrix(labels, answer, labels=range(4)))


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
