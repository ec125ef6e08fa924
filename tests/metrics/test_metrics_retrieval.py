"""Retrieval metrics against plain loops over the definitions, and cases worked by hand."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from fgvc_jax.errors import UserError
from fgvc_jax.metrics import retrieval as r

BACKENDS = ("faiss", "jax")


def loops(queries, labels, gallery, gallery_labels, ks, similarity, itself):
    """By METHODS' formulas, one query at a time, in float64; ties by the lower index."""
    recalls, precisions, averages = [], [], []
    for n, query in enumerate(queries.astype(np.float64)):
        found = []
        for m, item in enumerate(gallery.astype(np.float64)):
            if itself and m == n:
                continue
            value = query @ item
            if similarity == "cosine":
                value /= np.linalg.norm(query) * np.linalg.norm(item)
            if similarity == "l2":
                value = -((query - item) ** 2).sum()
            found.append((-value, m))
        relevant = [gallery_labels[m] == labels[n] for _, m in sorted(found)]
        R = sum(relevant)
        if R == 0:
            continue
        recalls.append([any(relevant[:k]) for k in ks])
        precisions.append(sum(relevant[:R]) / R)
        averages.append(sum(sum(relevant[:i]) / i for i in range(1, R + 1) if relevant[i - 1]) / R)
    expected = {f"recall@{k}": v for k, v in zip(ks, np.mean(recalls, axis=0), strict=True)}
    expected |= {"r_precision": np.mean(precisions), "map@r": np.mean(averages)}
    return expected | {"count": len(averages), "excluded": len(queries) - len(averages)}


def example(seed, n, integers=False):
    """Classes of very different size; class 6 has one item, and so R = 0 within itself."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(6, n, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    labels[n // 2] = 6
    x = rng.integers(-1, 2, (n, 3)) if integers else rng.standard_normal((n, 6))
    return x.astype(np.float32) + (
        0 if integers else 0.7 * np.eye(7, 6, dtype=np.float32)[labels]
    ), labels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("cells", [1, 200, r.CELLS])
def test_against_loops(monkeypatch, similarity, backend, cells):
    """In one block, in several, and a query at a time: the same numbers."""
    monkeypatch.setattr(r, "CELLS", cells)
    x, labels = example(0, 50)
    gallery, gallery_labels = example(1, 40)
    gallery_labels[gallery_labels == 3] = 9  # no query is of class 9, queries of class 3 have R = 0
    settings = {"ks": (1, 3, 60), "similarity": similarity, "backend": backend}
    # The shares are sums of the same fractions in float64.
    expected = loops(x, labels, x, labels, (1, 3, 60), similarity, True)
    assert r.retrieval(x, labels, **settings) == pytest.approx(expected, abs=1e-12)
    assert expected["excluded"] == 1 and 0.1 < expected["map@r"] < expected["r_precision"] < 0.9
    expected = loops(x, labels, gallery, gallery_labels, (1, 3, 60), similarity, False)
    found = r.retrieval(x, labels, gallery, gallery_labels, **settings)
    assert found == pytest.approx(expected, abs=1e-12)
    assert expected["excluded"] == (labels == 3).sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", ["ip", "l2"])
def test_ties_go_to_the_lower_index(similarity, backend):
    # Entries -1, 0, 1: small integers, exact in float32 and full of ties.
    x, labels = example(2, 60, integers=True)
    expected = loops(x, labels, x, labels, (1, 2), similarity, True)
    found = r.retrieval(x, labels, ks=(1, 2), similarity=similarity, backend=backend)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("hits", "recall1", "precision", "average"),
    [
        ([1], 1, 0.1, 0.1),
        ([1, 10], 1, 0.2, 0.12),  # (1/1 + 2/10) / 10
        ([1, 2], 1, 0.2, 0.2),
        ([2, 10], 0, 0.2, 0.07),  # (1/2 + 2/10) / 10
        (range(1, 11), 1, 1, 1),
        ([], 0, 0, 0),
    ],
)
def test_by_hand(hits, recall1, precision, average):
    """R = 10: the hits among the 10 nearest, the rest of the class at the far end."""
    line, classes = np.arange(1.0, 31)[:, None], np.zeros(30, int)
    classes[[hit - 1 for hit in hits]] = 1
    classes[20 : 30 - len(hits)] = 1
    found = r.retrieval(np.zeros((1, 1)), [1], line, classes, ks=(1, 10), similarity="l2")
    assert (found["recall@1"], found["recall@10"]) == (recall1, float(len(hits) > 0))
    # Sums of a few fractions in float64.
    assert (found["r_precision"], found["map@r"]) == pytest.approx((precision, average), abs=1e-12)


def test_mistakes_are_named():
    x = np.eye(4, dtype=np.float32)
    with pytest.raises(UserError, match="none of the 4 queries has another image of its class"):
        r.retrieval(x, [0, 1, 2, 3])
    with pytest.raises(
        UserError, match=r"query embeddings of shape \(4, 4\) for labels of shape \(3,\)"
    ):
        r.retrieval(x, [0, 0, 1])
    with pytest.raises(UserError, match="both embeddings and labels"):
        r.retrieval(x, [0, 0, 1, 1], x)
    with pytest.raises(UserError, match=r"ks = \(0, 1\)"):
        r.retrieval(x, [0, 0, 1, 1], ks=(0, 1))
    with pytest.raises(UserError, match="embedding of row 2 is not finite"):
        r.retrieval(np.where(np.arange(4)[:, None] == 2, np.nan, x), [0, 0, 1, 1])


def test_nmi_against_clusters_that_are_known():
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(4)
    labels = np.repeat(np.arange(4), 15)
    x = centres[labels] + rng.normal(size=(60, 4))
    assert r.nmi(x, labels) == pytest.approx(1)
    # Four labels that have nothing to do with the four far places.
    crossed = np.tile(np.arange(4), 15)
    expected = normalized_mutual_info_score(crossed, labels)
    assert (
        r.nmi(x, crossed, similarity="l2") == pytest.approx(expected, abs=1e-12) and expected < 0.1
    )
    assert r.nmi(x, np.zeros(60, int)) == 1
    # Lengths do not count under 'cosine'.
    lengths = rng.uniform(0.1, 50, (60, 1))
    assert r.nmi(x * lengths, labels) == pytest.approx(1)
    assert r.nmi(x * lengths, labels, similarity="l2") < 0.9


@pytest.mark.parametrize("zero", [False, True])
def test_mean_cosines_against_loops_over_pairs(zero):
    x, labels = example(3, 40)
    if zero:
        x[7] = 0
    same, other = [], []
    for i in range(40):
        for j in range(i + 1, 40):
            a, b = x[i].astype(np.float64), x[j].astype(np.float64)
            length = np.linalg.norm(a) * np.linalg.norm(b)
            cosine = a @ b / length if length else 0.0
            (same if labels[i] == labels[j] else other).append(cosine)
    expected = {"cosine_same": np.mean(same), "cosine_other": np.mean(other)}
    # Sums of 780 numbers below 1 in float64.
    assert r.mean_cosines(x, labels) == pytest.approx(expected, abs=1e-12)
    assert expected["cosine_same"] > expected["cosine_other"] + 0.05
    # Labels are only compared, and lengths do not count.
    moved = r.mean_cosines(8 * x, 1000 - 3 * labels)
    assert moved == pytest.approx(expected, abs=1e-12)


def test_mean_cosines_without_pairs_of_a_kind():
    x = np.eye(3)
    assert r.mean_cosines(x, [0, 0, 0]) == {"cosine_same": 0.0, "cosine_other": None}
    assert r.mean_cosines(x, [0, 1, 2]) == {"cosine_same": None, "cosine_other": 0.0}


def test_perfect_clusters_are_all_ones():
    labels = np.repeat(np.arange(4), 5)
    found = r.retrieval(np.eye(4)[labels], labels)
    assert found["map@r"] == found["r_precision"] == found["recall@1"] == 1


def test_against_pytorch_metric_learning():
    """Where that library is installed: its AccuracyCalculator, with cosine similarity as its distance."""
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    torch = pytest.importorskip("torch")
    x, labels = example(4, 80)
    x, labels = (
        x[labels != 6],
        labels[labels != 6],
    )  # it does not leave out queries with R = 0 alike
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = accuracy.AccuracyCalculator(
        include=names,
        k="max_bin_count",
        knn_func=inference.CustomKNN(distances.CosineSimilarity()),
        device=torch.device("cpu"),
    ).get_accuracy(torch.tensor(x), torch.tensor(labels))
    found = r.retrieval(x, labels)
    for ours, their in zip(("recall@1", "r_precision", "map@r"), names, strict=True):
        assert found[ours] == pytest.approx(theirs[their], abs=1e-6)  # it averages in float32


def test_nmi_is_the_same_each_time_and_scikit_learns():
    x, labels = example(5, 60)
    found = r.nmi(x, labels)
    assert found == r.nmi(x, labels) and 0.05 < found < 0.95
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    clusters = KMeans(len(set(labels)), n_init=10, random_state=0).fit_predict(unit)
    assert found == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-9)
