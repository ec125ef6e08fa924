"""The classes of an evaluation: how well each is told, with which it is confused; as lists and CSV files.

Class scores, labels and the errors raised for them are as in `fgvc_jax.metrics.classification`.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fgvc_jax.metrics.classification import by_class, checked_scores, confusion_matrix


def rows(logits_NC: ArrayLike, labels_N: ArrayLike, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One dict for each class, in the order of `classes` (its C names).

    Keys: `class`, `count` (true), `predicted` (how often it was answered), `accuracy` (its
    recall), `precision`, `f1`, `mistaken_for` (its commonest wrong answer, '' if none) and
    `mistaken_share`. A class that does not occur has accuracy and f1 NaN; precision is NaN where
    the class was never answered.
    """
    logits_NC, labels_N = checked_scores(logits_NC, labels_N, len(classes))
    return rows_of(confusion_matrix(logits_NC.argmax(axis=1), labels_N, len(classes)), classes)


def rows_of(counts_CC: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """As `rows`, from a confusion matrix int [C, C]."""
    recall_C, precision_C, f1_C = by_class(counts_CC)
    wrong_CC = counts_CC * (1 - np.eye(len(classes), dtype=np.int64))
    table = []
    for c, name in enumerate(classes):
        count, worst = int(counts_CC[c].sum()), int(wrong_CC[c].argmax())
        mistakes = int(wrong_CC[c, worst])
        table.append(
            {
                "class": name,
                "count": count,
                "predicted": int(counts_CC[:, c].sum()),
                "accuracy": float(recall_C[c]),
                "precision": float(precision_C[c]),
                "f1": float(f1_C[c]) if count else float("nan"),
                "mistaken_for": classes[worst] if mistakes else "",
                "mistaken_share": mistakes / count if count else 0.0,
            }
        )
    return table


def write_csv(path: str | os.PathLike, table: Sequence[Mapping[str, Any]]) -> None:
    """Writes the list that `rows` gives, UTF-8 with a header; NaN becomes an empty cell."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        for row in table:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def confusions(
    logits_NC: ArrayLike, labels_N: ArrayLike, classes: Sequence[str], limit: int = 20
) -> list[dict[str, Any]]:
    """The commonest mistakes, a list of dict: `true`, `predicted`, `count`, `share` of that class.

    Most frequent first, then the larger share, then the lower class ids; at most `limit`.
    """
    logits_NC, labels_N = checked_scores(logits_NC, labels_N, len(classes))
    counts_CC = confusion_matrix(logits_NC.argmax(axis=1), labels_N, len(classes))
    total_C = counts_CC.sum(axis=1)
    true, predicted = np.nonzero(counts_CC * (1 - np.eye(len(classes), dtype=np.int64)))
    count = counts_CC[true, predicted]
    share = count / total_C[true]
    order = np.lexsort((predicted, true, -share, -count))[:limit]
    return [
        {
            "true": classes[true[i]],
            "predicted": classes[predicted[i]],
            "count": int(count[i]),
            "share": float(share[i]),
        }
        for i in order
    ]


def write_confusion_csv(
    path: str | os.PathLike, logits_NC: ArrayLike, labels_N: ArrayLike, classes: Sequence[str]
) -> None:
    """Writes the confusion matrix: a row for each true class, a column for each answer."""
    logits_NC, labels_N = checked_scores(logits_NC, labels_N, len(classes))
    counts_CC = confusion_matrix(logits_NC.argmax(axis=1), labels_N, len(classes))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, counts_CC, strict=True))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value
