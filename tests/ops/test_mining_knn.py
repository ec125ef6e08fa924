"""The exact neighbour search against a brute-force float64 loop, and its two backends together."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fgvc_jax.errors import UserError
from fgvc_jax.ops import knn

BACKENDS = ("faiss", "jax")


def similarity_of(a, b, kind):
    a, b = a.astype(np.float64), b.astype(np.float64)
    if kind == "l2":
        return -sum((a - b) ** 2)
    if kind == "cosine":
        a = a / (np.sqrt(sum(a * a)) or 1)
        b = b / (np.sqrt(sum(b * b)) or 1)
    return sum(a * b)


def brute_force(queries, self_index, classes, gallery, labels, k, kind):
    index = np.full((*classes.shape, k), -1)
    value = np.full((*classes.shape, k), -np.inf)
    for n, query in enumerate(queries):
        for q, c in enumerate(classes[n]):
            found = [
                (-similarity_of(query, gallery[m], kind), m)
                for m in range(len(gallery))
                if labels[m] == c and m != self_index[n]
            ]
            for r, (negated, m) in enumerate(sorted(found)[:k]):
                index[n, q, r], value[n, q, r] = m, -negated
    return index, value


def example(seed, integers=False):
    """40 queries = gallery, 6 classes of very different size (class 5 has one image)."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, (40, 3)) if integers else rng.standard_normal((40, 8))
    labels = rng.choice(5, 40, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    labels[17] = 5
    classes = np.stack([rng.permutation(6)[:4] for _ in range(40)])
    return x.astype(np.float32), labels, classes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", knn.SIMILARITIES)
def test_agrees_with_brute_force(kind, backend):
    x, labels, classes = example(0)
    itself = np.arange(40)
    index, value = knn.class_neighbours(
        x, itself, classes, x, labels, 5, similarity=kind, backend=backend
    )
    expected_index, expected_value = brute_force(x, itself, classes, x, labels, 5, kind)
    # Random similarities lie further apart than float32 rounding (checked for this seed).
    np.testing.assert_array_equal(index, expected_index)
    # float32 products of 8 numbers of size 1 to 3: a few roundings of 1e-7 each on values up to 40.
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-5)
    assert index.dtype == np.int32 and value.dtype == np.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["ip", "l2"])
@pytest.mark.parametrize("seed", range(3))
def test_exact_ties_come_by_lower_index(seed, kind, backend):
    # Entries -1, 0, 1: similarities are small integers, exact in float32 and full of ties.
    x, labels, classes = example(seed, integers=True)
    itself = np.arange(40)
    index, value = knn.class_neighbours(
        x, itself, classes, x, labels, 3, similarity=kind, backend=backend
    )
    expected_index, expected_value = brute_force(x, itself, classes, x, labels, 3, kind)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(value, expected_value)
    assert (np.diff(value[value[..., 1] > -np.inf][:, :2]) == 0).any(), "no tie was tested"


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_and_minus_zero_tie(backend):
    gallery = np.array([[-1], [1], [-1], [1]], np.float32)
    index, value = knn.nearest(
        np.zeros((1, 1), np.float32), gallery, 4, similarity="ip", backend=backend
    )
    np.testing.assert_array_equal(index, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(value, np.zeros((1, 4)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_equal_items_beyond_the_first_search(backend):
    # One item is the best; 199 others tie, and the lowest of them must come next.
    gallery = np.ones((200, 4), np.float32)
    gallery[150] = 2
    index, _ = knn.nearest(gallery[:3], gallery, 4, similarity="ip", backend=backend)
    np.testing.assert_array_equal(index, [[150, 0, 1, 2]] * 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_duplicates_tie_under_cosine(backend):
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((60, 33)).astype(np.float32)
    gallery[[40, 7]] = gallery[23]
    index, _ = knn.nearest(gallery[[23]], gallery, 3, backend=backend, self_index_N=[23])
    np.testing.assert_array_equal(index[0, :2], [7, 40])


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_extremes_and_zero_vectors_under_cosine(backend):
    gallery = np.array([[3e38, 3e38], [1e-40, 0], [0, 0], [0, 5]], np.float32)
    index, value = knn.nearest(np.array([[2e-42, 0]]), gallery, 4, backend=backend)
    np.testing.assert_array_equal(index[0], [1, 0, 2, 3])
    np.testing.assert_allclose(value[0], [1, np.sqrt(0.5), 0, 0], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_that_do_not_occur_give_nothing(backend):
    x = np.eye(3, dtype=np.float32)
    classes = [[-1, 9, 0, 2]] * 3
    index, value = knn.class_neighbours(x, [-1] * 3, classes, x, [0, 2, 2], 2, backend=backend)
    assert (index[:, :2] == -1).all() and np.isneginf(value[:, :2]).all()
    assert (index[:, 2] == [0, -1]).all()
    assert (np.sort(index[:, 3]) == [1, 2]).all()


def test_backends_agree_over_several_tiles(monkeypatch):
    monkeypatch.setattr(knn, "CALL", 1)
    rng = np.random.default_rng(3)
    gallery = rng.standard_normal((500, 32)).astype(np.float32)
    queries = rng.standard_normal((2 * knn.TILE + 9, 32)).astype(np.float32)
    labels = rng.integers(0, 7, 500)
    classes = np.stack([rng.permutation(7)[:3] for _ in queries])
    itself = np.full(len(queries), -1)
    found = {
        b: knn.class_neighbours(queries, itself, classes, gallery, labels, 6, backend=b)
        for b in BACKENDS
    }
    np.testing.assert_allclose(found["faiss"][1], found["jax"][1], atol=1e-6)
    # Where neighbours in the order are further apart than 1e-6 the order is the same.
    value = found["faiss"][1]
    gap = np.pad(-np.diff(value), ((0, 0), (0, 0), (1, 1)), constant_values=1)
    clear = (gap[..., :-1] > 1e-6) & (gap[..., 1:] > 1e-6)
    assert clear[..., :-1].mean() > 0.99  # at the last place the next value is not known
    same = found["faiss"][0] == found["jax"][0]
    assert same[..., :-1][clear[..., :-1]].all()


@pytest.mark.parametrize("kind", knn.SIMILARITIES)
def test_long_tailed_classes_in_many_calls(kind, monkeypatch):
    # 300 items of 9 classes of 1 to 150, in mixed order; classes of many and of few requests.
    monkeypatch.setattr(knn, "NARROWEST", 4)
    monkeypatch.setattr(knn, "TILE", 16)
    monkeypatch.setattr(knn, "CALL", 16 * 64 * 3)  # three blocks of a class of 33 to 64
    rng = np.random.default_rng(7)
    counts = np.array([150, 64, 33, 25, 11, 8, 5, 3, 1])
    labels = rng.permutation(np.repeat(np.arange(9), counts))
    x = rng.standard_normal((300, 6)).astype(np.float32)
    classes = np.stack([labels, rng.integers(-1, 11, 300), rng.integers(0, 9, 300)], axis=1)
    wanted = knn._wanted(classes.reshape(-1).astype(np.int32), labels)
    calls = list(knn._calls(wanted, 6))
    widths = {call.width for call in calls}
    assert widths == {4, 8, 16, 32, 64, 150} and len(calls) > len(widths)
    assert len({(c.width, c.there_BT.shape) for c in calls}) == len(widths), "one program a width"
    sent = np.concatenate([wanted.requests_R[c.at_BT[c.there_BT]] for c in calls])
    np.testing.assert_array_equal(
        np.sort(sent), np.flatnonzero((classes >= 0) & (classes < 9)), "every request once"
    )
    itself = np.where(rng.random(300) < 0.5, np.arange(300), -1)
    index, value = knn.class_neighbours(
        x, itself, classes, x, labels, 4, similarity=kind, backend="jax"
    )
    expected_index, expected_value = brute_force(x, itself, classes, x, labels, 4, kind)
    # float32 products of 6 numbers of size 1 to 3, as above.
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-5)
    # Two similarities that lie within that may change places; here few do.
    assert (index == expected_index).mean() > 0.999


SEVERAL_DEVICES = """
import jax
import numpy as np
from fgvc_jax.ops import knn

assert len(jax.local_devices()) == 3
knn.CALL = 2**12
used = set()
placed = knn._placed
knn._placed = lambda x, items, device: used.add(device) or placed(x, items, device)
rng = np.random.default_rng(0)
x = rng.integers(-1, 2, (2000, 4)).astype(np.float32)  # similarities exact in float32, and many ties
labels, classes = rng.integers(0, 9, 2000), rng.integers(0, 9, (2000, 2))
arguments = x, np.arange(2000), classes, x, labels, 3
found = [knn.class_neighbours(*arguments, similarity="ip", backend=b) for b in knn.BACKENDS]
for a, b in zip(*found, strict=True):
    np.testing.assert_array_equal(a, b)
assert len(used) == 3
"""


def test_several_devices_take_turns():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    command = [sys.executable, "-c", SEVERAL_DEVICES]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_one_array_as_queries_and_gallery_and_two_equal_ones():
    x, labels, classes = example(3)
    for backend in BACKENDS:
        arguments = np.arange(40), classes, x, labels, 3
        shared = knn.class_neighbours(x, *arguments, backend=backend)
        apart = knn.class_neighbours(x.copy(), *arguments, backend=backend)
        for a, b in zip(shared, apart, strict=True):
            np.testing.assert_array_equal(a, b)


def test_embeddings_are_left_as_they_are():
    for dtype in (np.float32, np.float16, np.float64):
        x = np.random.default_rng(0).standard_normal((5, 3)).astype(dtype)
        before = x.copy()
        assert abs(np.linalg.norm(knn.prepare(x, "cosine", "query"), axis=1) - 1).max() < 1e-6
        np.testing.assert_array_equal(x, before)


def test_bad_arguments_are_named():
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match="'cos' is unknown; did you mean 'cosine'"):
        knn.nearest(x, x, 1, similarity="cos")
    with pytest.raises(UserError, match=r"backend of the search = 'annoy' is unknown.*faiss, jax"):
        knn.nearest(x, x, 1, backend="annoy")
    bad = x.copy()
    bad[1, 0] = np.nan
    with pytest.raises(UserError, match=r"gallery embedding of row 1 .*1 of 3"):
        knn.nearest(x, bad, 1)
