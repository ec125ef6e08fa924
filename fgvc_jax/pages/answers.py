"""What a model answered on a split, image by image: the parts of a report that need no pictures."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fgvc_jax.metrics import classification as metrics
from fgvc_jax.ops import knn
from fgvc_jax.pages.finished import Finished, Subject, probabilities
from fgvc_jax.report import per_class

WORST, PAIRS, EACH = 24, 8, 4  # mistakes; pairs of classes, and photos of each direction


class Answers(NamedTuple):
    """N images of a split.

    Attributes:
      true, answered: int [N], classes. A model that only embeds answers with the class of the image that is
        nearest, itself left out.
      sure: float64 [N], the probability of the answer; of embeddings the cosine to the nearest.
      of_true: float64 [N], the probability of the true class; None of embeddings.
      near: int [N], the row of the nearest image; None of a classifier.
    """

    files: tuple[str, ...]
    true: np.ndarray
    answered: np.ndarray
    sure: np.ndarray
    of_true: np.ndarray | None
    near: np.ndarray | None

    @property
    def right(self) -> np.ndarray:
        return self.true == self.answered


def of(run: Finished, subject: Subject) -> Answers:
    files, true = run.split(subject.split)
    if subject.scores is not None:
        every = probabilities(subject.scores)
        rows, answered = np.arange(len(true)), subject.scores.argmax(1)
        return Answers(files, true, answered, every[rows, answered], every[rows, true], None)
    found = subject.embedding
    index, cosine = knn.nearest(
        found, found, 1, similarity="cosine", backend="faiss", self_index_N=np.arange(len(found))
    )
    near = index[:, 0]
    return Answers(files, true, true[near], cosine[:, 0].astype(np.float64), None, near)


def per_class_rows(answers: Answers, classes: Sequence[str]) -> list[dict[str, Any]]:
    """As `fgvc_jax.report.per_class.rows`, of the classes that occur, worst first."""
    counts = metrics.confusion_matrix(answers.answered, answers.true, len(classes))
    rows = [row for row in per_class.rows_of(counts, classes) if row["count"]]
    return sorted(rows, key=lambda row: row["accuracy"])


def occurring(answers: Answers) -> np.ndarray:
    """int [K]: the classes that are true or answered somewhere."""
    return np.union1d(answers.true, answers.answered)


def counts(answers: Answers) -> np.ndarray:
    """int [K, K]: the confusion matrix of the classes that occur."""
    used = occurring(answers)
    places = np.searchsorted(used, answers.answered), np.searchsorted(used, answers.true)
    return metrics.confusion_matrix(*places, len(used))


def confused(answers: Answers, most: int = PAIRS) -> list[dict[str, Any]]:
    """Pairs of classes that are taken for each other most often, both directions together.

    Returns:
      [{'classes': (a, b), 'count': (a taken for b, b for a), 'of': (images of a, of b), 'rows': (up to
      `EACH` rows of each direction, the surest first)}, ...].
    """
    found: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(~answers.right):
        pair = sorted((int(answers.true[row]), int(answers.answered[row])))
        found.setdefault((pair[0], pair[1]), []).append(int(row))
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    result = []
    for (a, b), rows in ranked:
        rows.sort(key=lambda row: -answers.sure[row])
        each = [[row for row in rows if answers.true[row] == c] for c in (a, b)]
        result.append(
            {
                "classes": (a, b),
                "count": tuple(map(len, each)),
                "of": tuple(int((answers.true == c).sum()) for c in (a, b)),
                "rows": tuple(list(itertools.islice(rows, EACH)) for rows in each),
            }
        )
    return result


def worst(answers: Answers, most: int = WORST) -> list[int]:
    """Rows of the mistakes whose true class is least probable; of embeddings, whose nearest is nearest."""
    wrong = np.flatnonzero(~answers.right)
    loss = answers.sure if answers.of_true is None else -answers.of_true
    return wrong[np.argsort(-loss[wrong], kind="stable")][:most].tolist()


def changed(
    before_NC: np.ndarray, after_NC: np.ndarray, true_N: np.ndarray, most: int = 8
) -> dict[str, Any]:
    """What other scores of the same images mend and break.

    Returns:
      {'mended', 'broke': rows, the surest of the new answers first, at most so many; 'b', 'c', 'p': of
      McNemar's test, b = mended; 'swapped': how many wrong answers became other wrong ones}.
    """
    old, new = before_NC.argmax(1), after_NC.argmax(1)
    was, now = old == true_N, new == true_N
    sure = probabilities(after_NC).max(1)

    def rows(which):
        found = np.flatnonzero(which)
        return found[np.argsort(-sure[found], kind="stable")][:most].tolist()

    return {
        "mended": rows(now & ~was),
        "broke": rows(was & ~now),
        "swapped": int((~was & ~now & (old != new)).sum()),
        **metrics.mcnemar(now, was),
    }


def hardest(
    pairs: dict[str, np.ndarray], labels: np.ndarray, most: int = 8
) -> dict[str, list[int]]:
    """Rows of the mined pairs: of one class the least similar, of two the most similar.

    A query, a neighbour and two classes together come once each, as far as there are others.

    Args:
      pairs: the content of train_pairs.npz.
      labels: of the training images.
    """
    result = {}
    for name, label, sign in (("same", 1, 1), ("different", 0, -1)):
        rows = np.flatnonzero(pairs["label"] == label)
        seen: set = set()
        fresh: list[int] = []
        repeated: list[int] = []
        for p in rows[np.argsort(sign * pairs["similarity"][rows], kind="stable")]:
            q, n = int(pairs["query"][p]), int(pairs["neighbour"][p])
            marks = {
                ("q", q),
                ("q", n),
                ("n", q),
                ("n", n),
                frozenset((int(labels[q]), int(labels[n]))),
            }
            (repeated if marks & seen else fresh).append(int(p))
            seen |= marks
            if len(fresh) == most:
                break
        result[name] = (fresh + repeated)[:most]
    return result
