"""The pair generator against an independent brute-force version, written as loops."""

import numpy as np
import pytest

from fgvc_jax.errors import UserError
from fgvc_jax.mining import pairs

BACKENDS = ("faiss", "jax")


def brute_force(queries, logits, labels, gallery, gallery_labels, q, *, same=True, by_rank=False):
    """Inner product; a set of (query, neighbour, label, similarity, rank, slot)."""
    result = []
    for i in range(len(queries)):
        ranked = sorted(range(logits.shape[1]), key=lambda c: (-logits[i, c], c))[:q]
        for slot, c in enumerate(ranked):
            members = [j for j in range(len(gallery)) if gallery_labels[j] == c]
            if same and not by_rank:
                members = [j for j in members if j != i]
            members.sort(key=lambda j: (-float(gallery[j] @ queries[i]), j))
            if by_rank and same and c == labels[i]:
                members = members[1:]
            for rank, j in enumerate(members[: q if slot == 0 else 1]):
                if same and i == j:
                    continue
                same_class = int(gallery_labels[j] == labels[i])
                result.append((i, j, same_class, float(gallery[j] @ queries[i]), rank, slot))
    return result


def toy(seed, counts, dim=4, num_classes=None):
    """Integer embeddings (exact in float32, full of ties), and logits that err now and then."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = rng.integers(-2, 3, (len(labels), dim)).astype(np.float32)
    logits = rng.standard_normal((len(labels), num_classes or len(counts)))
    logits[np.arange(len(labels)), labels] += 1.5
    return x, logits.astype(np.float32), labels


def rows(mined):
    return list(zip(*(array.tolist() for array in mined), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("counts", [(9, 9, 9, 9, 9), (12, 1, 2, 3, 7), (0, 6, 6, 6, 6)])
def test_agrees_with_brute_force(counts, by_rank, backend):
    x, logits, labels = toy(1, counts)
    mined = pairs.mine(
        x,
        logits,
        labels,
        x,
        labels,
        top_classes=3,
        similarity="ip",
        backend=backend,
        self_by_rank=by_rank,
    )
    assert rows(mined) == brute_force(x, logits, labels, x, labels, 3, by_rank=by_rank)
    assert (mined.query != mined.neighbour).all()
    np.testing.assert_array_equal(mined.label, labels[mined.query] == labels[mined.neighbour])
    assert [a.dtype for a in mined] == [np.int32, np.int32, np.int32, np.float32, *[np.int32] * 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_pairs_search_the_training_gallery(backend):
    gallery, _, gallery_labels = toy(2, (8, 8, 8, 8))
    x, logits, labels = toy(3, (3, 0, 3, 3))
    # Validation image 0 is a copy of training image 0: another image, so it may be paired with it.
    x[0], labels[0] = gallery[0] * 100, gallery_labels[0]
    logits[0, labels[0]] = 9
    x[0, 0] += 1
    gallery[0] = x[0]
    mined = pairs.mine(
        x,
        logits,
        labels,
        gallery,
        gallery_labels,
        top_classes=3,
        similarity="ip",
        backend=backend,
        query_is_gallery=False,
        self_by_rank=True,  # without effect here
    )
    expected = brute_force(x, logits, labels, gallery, gallery_labels, 3, same=False)
    assert rows(mined) == expected
    assert (0, 0) in set(zip(mined.query.tolist(), mined.neighbour.tolist(), strict=True))


def test_counts_are_the_published_ones():
    # Q = 7, classes larger than Q: 13 pairs an image. A right top-1 gives 7 positives and 6
    # negatives; a wrong one 7 negatives, and of the other 6 one positive if y is among them.
    x, logits, labels = toy(4, (8,) * 10, dim=16)
    mined = pairs.mine(x, logits, labels, x, labels)
    ranked = np.argsort(-logits, axis=1)[:, :7]
    for i in range(len(x)):
        mine = mined.query == i
        assert mine.sum() == 13
        right, among = ranked[i, 0] == labels[i], labels[i] in ranked[i]
        assert mined.label[mine].sum() == (7 if right else int(among))
        assert np.bincount(mined.slot[mine]).tolist() == [7, 1, 1, 1, 1, 1, 1]
    wrong = ranked[:, 0] != labels
    assert 0.1 < wrong.mean() < 0.9, "both cases must occur"


def test_small_classes_give_fewer_by_the_formula():
    counts = (20, 5, 2, 1)
    x, logits, labels = toy(5, counts, dim=6)
    mined = pairs.mine(x, logits, labels, x, labels, top_classes=4)
    ranked = np.argsort(-logits, axis=1)
    expected = 0
    for i in range(len(x)):
        for slot, c in enumerate(ranked[i]):
            there = counts[c] - (c == labels[i])
            expected += min(there, 4 if slot == 0 else 1)
    assert len(mined.query) == expected < 7 * len(x)
    text = "\n".join(pairs.summary(mined, labels, labels, list("abcd"), top_classes=4))
    assert f"{7 * len(x) - expected:,} pairs fewer than 7 an image" in text
    assert "fewer than 5 images give fewer pairs: d (1), c (2)\n" in text + "\n"


def test_summary_counts_and_warnings():
    x, logits, labels = toy(6, (9, 9, 9), dim=6)
    logits[np.arange(len(x)), labels] = 9  # every top-1 right
    logits[:3] *= -1  # but for these
    mined = pairs.mine(x, logits, labels, x, labels)
    lines = pairs.summary(mined, labels, labels, list("abc"))
    assert lines[0] == "top_classes is 7, but there are 3 classes: 3 used"
    assert lines[1] == "135 pairs of 27 images: 5.0 an image, at most 5"
    positives = 24 * 3 + 3
    assert lines[2] == f"positive: {positives} ({positives / 135:.1%}); negative: {135 - positives}"
    assert lines[3] == ("most probable class wrong: 3 images (11.1%), which give 15 pairs (11.1%)")
    assert len(lines) == 4

    alone = pairs.mine(x, logits, labels, x, labels, top_classes=1)
    text = "\n".join(pairs.summary(alone, labels, labels, list("abc"), top_classes=1))
    assert "warning: 88.9% of the pairs are positive" in text

    one_each = pairs.mine(x[:1], logits[:1], labels[:1], x[:1], labels[:1], top_classes=1)
    assert len(one_each.query) == 0
    assert "0 pairs" in pairs.summary(one_each, labels[:1], labels[:1], list("abc"))[-1]


def test_equal_logits_are_ranked_by_class():
    labels = np.repeat(np.arange(60), 2)
    x = np.ones((120, 2), np.float32)
    logits = np.tile(np.arange(60) % 2, (120, 1))  # the odd classes tie for the first place
    mined = pairs.mine(x, logits, labels, x, labels, top_classes=3)
    assert labels[mined.neighbour[mined.query == 119]].tolist() == [1, 1, 3, 5]


def test_top_classes_must_be_positive():
    with pytest.raises(UserError, match="top_classes is 0"):
        pairs.mine(np.ones((1, 2)), np.ones((1, 2)), [0], np.ones((1, 2)), [0], top_classes=0)


def test_saved_pairs_come_back_and_nothing_is_unpickled(tmp_path):
    x, logits, labels = toy(7, (5, 5, 5))
    mined = pairs.mine(x, logits, labels, x, labels)
    path = tmp_path / "pairs.npz"
    pairs.save(mined, path)
    for old, new in zip(mined, pairs.load(path), strict=True):
        np.testing.assert_array_equal(old, new)
        assert old.dtype == new.dtype

    np.savez(path, **(mined._asdict() | {"label": np.array([{}], dtype=object)}))
    with pytest.raises(UserError, match="not a file of mined pairs"):
        pairs.load(path)
    np.savez(path, query=mined.query)
    with pytest.raises(UserError, match="not a file of mined pairs"):
        pairs.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a file of mined pairs"):
        pairs.load(path)
    np.savez(path, **(mined._asdict() | {"label": mined.label[1:]}))
    with pytest.raises(UserError, match="differ in length"):
        pairs.load(path)
