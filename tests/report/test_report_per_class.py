"""Lists and CSV files of single classes, against scikit-learn and hand counts."""

import csv

import numpy as np
import pytest
from sklearn import metrics as sk

from fgvc_jax.errors import UserError
from fgvc_jax.report import per_class


def test_scores_that_are_not_finite_are_refused():
    logits = np.zeros((3, 2))
    logits[1, 0] = np.nan
    for measure in (per_class.rows, per_class.confusions):
        with pytest.raises(UserError, match="example 1"):
            measure(logits, [0, 1, 0], ["a", "b"])


def test_confusions_per_class_and_their_files(tmp_path):
    classes = ["a", "b, with a comma", "c", "never"]
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    answer = np.array([0, 1, 1, 2, 1, 0, 2, 2, 3])
    logits = np.eye(4)[answer]
    assert per_class.confusions(logits, labels, classes) == [
        {"true": "a", "predicted": classes[1], "count": 2, "share": 0.5},
        {"true": classes[1], "predicted": "a", "count": 1, "share": 0.5},
        {"true": "c", "predicted": "never", "count": 1, "share": 1 / 3},
        {"true": "a", "predicted": "c", "count": 1, "share": 0.25},
    ]
    assert len(per_class.confusions(logits, labels, classes, limit=2)) == 2

    table = per_class.rows(logits, labels, classes)
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

    per_class.write_csv(tmp_path / "classes.csv", table)
    with open(tmp_path / "classes.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["class"] for row in read] == classes
    assert float(read[2]["accuracy"]) == pytest.approx(2 / 3, abs=1e-6)
    assert read[3]["accuracy"] == ""

    per_class.write_confusion_csv(tmp_path / "confusion.csv", logits, labels, classes)
    with open(tmp_path / "confusion.csv", newline="", encoding="utf-8") as file:
        header, *body = csv.reader(file)
    assert header[1:] == classes == [row[0] for row in body]
    counts = np.array([row[1:] for row in body], int)
    np.testing.assert_array_equal(counts, sk.confusion_matrix(labels, answer, labels=range(4)))
