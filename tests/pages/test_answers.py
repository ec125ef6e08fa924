"""What a report reads off the answers, against plain loops on made ones."""

import json
from collections import Counter

import numpy as np
import pytest
import tiny
from sklearn.metrics import confusion_matrix

from fgvc_jax.pages import answers, finished
from fgvc_jax.pages.finished import probabilities

CLASSES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def made():
    random = np.random.default_rng(0)
    true = random.integers(0, 3, 120)  # 'd' never occurs
    scores = random.normal(size=(120, 4)) + 1.2 * np.eye(4)[true]
    every, rows = probabilities(scores), np.arange(120)
    answered = scores.argmax(1)
    files = tuple(f"{i}.jpg" for i in rows)
    found = answers.Answers(files, true, answered, every[rows, answered], every[rows, true], None)
    return found, scores


def test_probabilities_sum_to_one_with_classes_ruled_out():
    found = probabilities(np.array([[1000.0, 999.0, -np.inf]]))
    np.testing.assert_allclose(found, [[np.e / (1 + np.e), 1 / (1 + np.e), 0]])


def test_confused_pairs_count_both_directions(made):
    found, _ = made
    counted = Counter(
        frozenset((int(t), int(a)))
        for t, a in zip(found.true, found.answered, strict=True)
        if t != a
    )
    pairs = answers.confused(found)
    assert {frozenset(p["classes"]): sum(p["count"]) for p in pairs} == counted
    assert [sum(p["count"]) for p in pairs] == sorted(counted.values(), reverse=True)
    for pair in pairs:
        for own, rows in zip(pair["classes"], pair["rows"], strict=True):
            assert all(found.true[r] == own and found.answered[r] in pair["classes"] for r in rows)
            assert len(rows) <= answers.EACH


def test_worst_mistakes_are_the_largest_losses(made):
    found, _ = made
    wrong = [i for i in range(120) if found.true[i] != found.answered[i]]
    expected = sorted(wrong, key=lambda i: found.of_true[i])[:10]
    assert answers.worst(found, 10) == expected


def test_matrix_and_classes_are_those_that_occur(made):
    found, _ = made
    assert answers.occurring(found).tolist() == [0, 1, 2, 3]
    expected = confusion_matrix(found.true, found.answered, labels=range(4))
    np.testing.assert_array_equal(answers.counts(found), expected)
    few = found._replace(true=np.array([7, 2, 7]), answered=np.array([2, 2, 9]))
    np.testing.assert_array_equal(answers.counts(few), [[1, 0, 0], [1, 0, 1], [0, 0, 0]])
    rows = answers.per_class_rows(found, CLASSES)
    assert {row["class"] for row in rows} == {"a", "b", "c"}
    assert [row["accuracy"] for row in rows] == sorted(row["accuracy"] for row in rows)


def test_what_other_scores_mend_and_break(made):
    found, before = made
    after = before + np.random.default_rng(1).normal(size=before.shape)
    changed = answers.changed(before, after, found.true, most=1000)
    old, new = before.argmax(1), after.argmax(1)
    mended = {i for i in range(120) if old[i] != found.true[i] and new[i] == found.true[i]}
    broke = {i for i in range(120) if old[i] == found.true[i] and new[i] != found.true[i]}
    assert set(changed["mended"]) == mended and set(changed["broke"]) == broke
    assert (changed["b"], changed["c"]) == (len(mended), len(broke))


def test_hardest_pairs_are_extreme_and_varied():
    labels = np.array([0, 0, 0, 1, 1, 2])
    pairs = {
        "query": np.array([0, 1, 0, 1, 2, 3]),
        "neighbour": np.array([1, 0, 3, 3, 5, 4]),
        "label": np.array([1, 1, 0, 0, 0, 1]),
        "similarity": np.array([0.2, 0.2, 0.9, 0.8, 0.7, 0.4]),
    }
    found = answers.hardest(pairs, labels, most=2)
    assert found["same"] == [0, 5]  # not 1, which is 0 turned round
    assert found["different"] == [2, 4]  # not 3, which has the neighbour and the classes of 2


@pytest.mark.parametrize(
    ("saved", "expected"), [(False, "none"), (True, "full"), ("products",) * 2]
)
def test_the_config_of_an_older_run_is_read(saved, expected):
    """Its config.model.remat was a yes or no, and newer keys are missing."""
    content = tiny.pipeline().to_dict()
    content["model"]["remat"] = saved
    del content["checkpoint_every"]
    config = finished._config(json.loads(json.dumps(content)))
    assert config.model.remat == expected and config.checkpoint_every == "10 min"
