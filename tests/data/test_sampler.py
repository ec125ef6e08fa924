"""The order of the examples: a pure function of the seed and the step."""

import numpy as np
import pytest

from fgvc_jax.data import sampler
from fgvc_jax.errors import UserError


def epochs(order, examples, batch, count):
    """The stream of `count` epochs, [count, examples]."""
    steps = count * examples // batch
    return np.concatenate([order[i] for i in range(steps)]).reshape(count, examples)


def test_a_step_is_the_same_however_it_is_reached():
    order = sampler.shuffled(10, 4, seed=3)
    forward = [order[i] for i in range(30)]
    again = sampler.shuffled(10, 4, seed=3)
    for i in (29, 0, 17, 3):
        np.testing.assert_array_equal(again[i], forward[i])
    tail = order.slice(slice(13, 30))
    assert len(tail) == 17
    np.testing.assert_array_equal(np.stack(list(tail)), np.stack(forward[13:]))


@pytest.mark.parametrize(("examples", "batch"), [(12, 4), (10, 4), (5, 8)])
def test_every_example_once_an_epoch_in_an_order_of_its_own(examples, batch):
    """Also where batches straddle epochs and where a batch is more than an epoch."""
    order = sampler.shuffled(examples, batch, seed=0)
    found = epochs(order, examples, batch, 4 * batch)  # so many epochs are whole batches
    assert (np.sort(found, axis=1) == np.arange(examples)).all()
    assert (found[1:] != found[:-1]).any(axis=1).mean() > 0.9  # of 120 orders two may be equal
    assert all(order[i].shape == (batch,) for i in range(5))


def test_seeds_differ_and_examples_do_not_stay_in_their_place():
    a, b = (epochs(sampler.shuffled(500, 50, seed=s), 500, 50, 20) for s in (1, 2))
    # Two random orders agree at 1 place of 500 on average: here at about 20 of 10,000. Grain's
    # shuffle is a cheap one, in which a rare epoch keeps tens of places: 1 % is the bound.
    assert (a == b).mean() < 0.01
    assert (a == np.arange(500)).mean() < 0.01
    assert (a[1:] == a[:-1]).mean() < 0.01
    # The mean position of an example over 20 epochs is 249.5 +- 32.
    assert abs(a.argsort(axis=1).mean(axis=0) - 249.5).max() < 160


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_in_order_covers_every_example_once(examples, batch):
    batches = sampler.in_order(examples, batch)
    assert all(rows.shape == mask.shape == (batch,) for rows, mask in batches)
    assert all(rows.min() >= 0 and rows.max() < examples for rows, _ in batches)
    covered = np.concatenate([rows[mask] for rows, mask in batches])
    np.testing.assert_array_equal(covered, np.arange(examples))


LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [3, 7, 4, 10]))


def test_balanced_shows_every_class_and_every_image_of_a_class_equally_often():
    order = sampler.balanced(LABELS, batch=6, seed=1)
    rounds = 3 * 7 * 20  # a multiple of every class's size: all its images equally often
    stream = np.concatenate([order[i] for i in range(4 * rounds // 6)]).reshape(rounds, 4)
    assert (np.sort(LABELS[stream], axis=1) == [0, 1, 2, 5]).all()
    counts = np.bincount(stream.ravel())
    for label in (0, 1, 2, 5):
        assert (counts[label == LABELS] == rounds / (label == LABELS).sum()).all()
        # ... and within a class all of them before one comes again
        shown = stream.ravel()[LABELS[stream.ravel()] == label]
        size = (label == LABELS).sum()
        assert all(len(set(part)) == size for part in shown[: 5 * size].reshape(5, size).tolist())
    assert len({tuple(row) for row in LABELS[stream]}) == 24  # the classes come in every order


def test_classes_by_images():
    order = sampler.classes_by_images(LABELS, batch=8, images=4, seed=2)
    seen = []
    for step in range(200):
        classes = LABELS[order[step]].reshape(2, 4)
        assert (classes == classes[:, :1]).all() and classes[0, 0] != classes[1, 0]
        seen.append(set(classes[:, 0].tolist()))
        for row in order[step].reshape(2, 4):
            assert len(set(row.tolist())) == min(4, (LABELS[row[0]] == LABELS).sum())
    # Two steps are an epoch of the four classes.
    assert all(a | b == {0, 1, 2, 5} for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert set(np.concatenate([order[i] for i in range(200)]).tolist()) == set(range(24))


@pytest.mark.parametrize(("batch", "images"), [(8, 3), (20, 4)])
def test_classes_by_images_refuses_what_does_not_fit(batch, images):
    with pytest.raises(UserError, match="at most the 4 classes"):
        sampler.classes_by_images(LABELS, batch, images, seed=0)


@pytest.mark.parametrize("kind", ["balanced", "classes_by_images"])
def test_other_samplers_are_functions_of_seed_and_step(kind):
    def make(seed):
        if kind == "balanced":
            return sampler.balanced(LABELS, 8, seed)
        return sampler.classes_by_images(LABELS, 8, 4, seed)

    forward = [make(3)[i] for i in range(20)]
    order = make(3)
    for i in (19, 0, 7):
        np.testing.assert_array_equal(order[i], forward[i])
    for row, expected in zip(order.slice(slice(5, 20)), forward[5:], strict=True):
        np.testing.assert_array_equal(row, expected)
    assert any((make(4)[i] != forward[i]).any() for i in range(5))
