"""Windows, their means, and greedy suppression against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.ops import windows

SHAPES = ((4, 4), (3, 5), (5, 3))


def loop_boxes(shapes, rows, columns, stride, size):
    found = []
    for height, width in shapes:
        for i in range(rows - height + 1):
            for j in range(columns - width + 1):
                box = [stride * n - 1 for n in (i, j, i + height, j + width)]
                found.append([min(max(0, n), size - 1) for n in box])
    return found


@pytest.mark.parametrize(
    ("cells", "stride", "size"), [((14, 14), 32, 448), ((7, 9), 16, 140), ((5, 5), 32, 150)]
)
def test_boxes_are_those_of_a_loop(cells, stride, size):
    found = windows.boxes(SHAPES, cells, stride, size)
    np.testing.assert_array_equal(found, loop_boxes(SHAPES, *cells, stride, size))
    assert found.dtype == np.int32 and found.max() == size - 1 and found.min() == 0


def test_means_are_those_of_a_loop():
    grid = np.random.default_rng(0).normal(size=(3, 7, 6))
    expected = [
        grid[:, i : i + h, j : j + w].mean((1, 2))
        for h, w in SHAPES
        for i in range(7 - h + 1)
        for j in range(6 - w + 1)
    ]
    with jax.enable_x64(True):
        found = jax.jit(lambda x: windows.means(x, SHAPES))(grid)
    # float64: sums of 16 numbers around 1
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=0, atol=1e-14)


def overlap(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    area = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return both / (sum(area) - both)


def loop_suppress(scores, boxes, count, threshold):
    """(chosen, whether the last one had to be repeated)."""
    left, chosen = sorted(range(len(scores)), key=lambda i: -scores[i]), []
    while left and len(chosen) < count:
        chosen.append(left.pop(0))
        left = [i for i in left if overlap(boxes[i], boxes[chosen[-1]]) <= threshold]
    return chosen + [chosen[-1]] * (count - len(chosen)), len(chosen) < count


def test_suppression_is_that_of_a_loop():
    """On 1,000 sets of scores; on small maps there is often no window left to choose."""
    rng, repeated = np.random.default_rng(0), 0
    for cells, sets in (((14, 14), 100), ((8, 8), 450), ((7, 7), 450)):
        boxes = windows.boxes(SHAPES, cells, 32, 32 * cells[0])
        scores = rng.normal(size=(sets, len(boxes))).astype(np.float32)
        choose = jax.jit(jax.vmap(lambda x, boxes=boxes: windows.suppress(x, boxes, 4, 0.25)))
        for row, found in zip(scores, np.asarray(choose(scores)), strict=True):
            expected, short = loop_suppress(row, boxes.tolist(), 4, 0.25)
            assert found.tolist() == expected
            repeated += short
    assert 50 < repeated < 900


def test_an_overlap_of_just_the_threshold_stays():
    boxes = np.array([[0, 0, 3, 4], [0, 3, 3, 7], [0, 2, 3, 6]])  # 2 of 8 columns; 3 of 7
    assert windows.suppress(jnp.array([3.0, 1.0, 2.0]), boxes, 2, 0.25).tolist() == [0, 1]
    assert windows.suppress(jnp.array([3.0, 1.0, 2.0]), boxes, 3, 0.5).tolist() == [0, 2, 2]


def test_equal_scores_go_to_the_first():
    boxes = windows.boxes(((2, 2),), (8, 8), 1, 8)
    assert windows.suppress(jnp.zeros(len(boxes)), boxes, 1, 0.25).tolist() == [0]
