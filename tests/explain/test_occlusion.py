"""Covers and slid patches against plain loops, in float64."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgvc_jax.explain import occlusion
from fgvc_jax.explain.enlarge import enlarge

TOLERANCE = 1e-12  # float64: sums of some tens of products
rng = np.random.default_rng(0)


def box_by_loop(heat):
    """Flood fill from every hot pixel, over sides and corners."""
    left, best = set(zip(*np.nonzero(heat >= 0.5), strict=True)), []
    for start in sorted(left):
        if start not in left:
            continue
        part, queue = [], deque([start])
        left.remove(start)
        while queue:
            y, x = queue.popleft()
            part.append((y, x))
            for near in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    queue.append(near)
        best = part if len(part) > len(best) else best
    if not best:
        return [0, 0, -1, -1]
    rows, columns = zip(*best, strict=True)
    return [min(rows), min(columns), max(rows), max(columns)]


def test_the_box_of_the_hottest_part():
    heat = rng.uniform(size=(40, 9, 9)) ** 2
    heat[0] = 0.4999  # nothing is hot
    heat[1] = 0
    heat[1, 2, 3] = heat[1, 3, 4] = heat[1, 7, 7] = 0.5  # two that touch at a corner, and one
    found = jax.jit(occlusion.hottest_box)(heat)
    np.testing.assert_array_equal(found, [box_by_loop(x) for x in heat])
    assert found[1].tolist() == [2, 3, 3, 4] and found.dtype == jnp.int32


def test_the_cover_is_the_box_and_nothing_else():
    images = rng.normal(size=(3, 6, 6, 3))
    boxes = np.array([[1, 2, 3, 2], [0, 0, -1, -1], [-2, 4, 1, 9]])
    black = occlusion.colour("black", (0.5, 0.4, 0.2), (0.25, 0.2, 0.4))
    assert black == (-2, -2, -0.5) and occlusion.colour("mean", (0.5,) * 3, (0.2,) * 3) == (0, 0, 0)
    with jax.enable_x64(True):
        found = occlusion.cover(jnp.asarray(images), jnp.asarray(boxes), black)
    expected = images.copy()
    expected[0, 1:4, 2:3] = black
    expected[2, 0:2, 4:6] = black
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("size", "patch", "cells"), [(8, 3, 4), (9, 4, 3), (8, 8, 1), (7, 1, 7)])
def test_slid_patches_drop_what_a_loop_says(size, patch, cells):
    images, weights = rng.normal(size=(2, size, size, 3)), rng.normal(size=(size * size * 3, 4))

    def probability(x, backend):
        e = backend.exp(x.reshape(len(x), -1) @ weights / size)
        return (e / e.sum(1, keepdims=True))[:, :2]

    expected = np.zeros((2, 2, cells, cells))
    for i in range(cells):
        for j in range(cells):
            covered = images.copy()
            # The patch's first pixel, so that its centre is nearest to the cell's.
            top, left = (round((n + 0.5) * size / cells - patch / 2 + 1e-9) for n in (i, j))
            covered[:, max(top, 0) : top + patch, max(left, 0) : left + patch] = 7.0
            fallen = probability(images, np) - probability(covered, np)
            expected[:, :, i, j] = fallen
    with jax.enable_x64(True):

        @jax.jit
        def run(x):
            return occlusion.drops(lambda x: probability(x, jnp), x, patch, cells, (7.0,) * 3)

        found = run(jnp.asarray(images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(expected) > 1e-3


def test_enlarged_heat_is_bilinear_between_centres():
    heat = rng.uniform(size=(2, 3, 4))
    boxes = np.array([[2, 1, 9, 11], [0, 0, 11, 11]])
    with jax.enable_x64(True):
        inside = np.asarray(enlarge(jnp.asarray(heat), 12, jnp.asarray(boxes)))
        whole = np.asarray(enlarge(jnp.asarray(heat), 12))
    for n, (top, left, bottom, right) in enumerate(boxes):
        shape = (right - left + 1, bottom - top + 1)
        expected = np.zeros((12, 12))
        picture = Image.fromarray(heat[n].astype(np.float32)).resize(shape, Image.BILINEAR)
        expected[top : bottom + 1, left : right + 1] = np.asarray(picture)
        np.testing.assert_allclose(inside[n], expected, rtol=0, atol=1e-6)  # Pillow: float32
    np.testing.assert_allclose(whole[1], inside[1], rtol=0, atol=TOLERANCE)
