"""Deletion and insertion against plain loops, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.explain import curves

TOLERANCE = 1e-12  # float64: sums of some tens of products
rng = np.random.default_rng(0)
SIZE = 6


def probability(x, backend):
    x = x.reshape(len(x), -1)[:, :: SIZE - 1].sum(1, keepdims=True) / 3
    return 1 / (1 + backend.exp(-x))


def blurred_by_loop(image, sigma):
    reach, result = int(np.ceil(3 * sigma)), np.zeros_like(image)
    for y in range(SIZE):
        for x in range(SIZE):
            total = 0
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    share = np.exp(-(i * i + j * j) / (2 * sigma**2))
                    total += share
                    place = min(max(y + i, 0), SIZE - 1), min(max(x + j, 0), SIZE - 1)
                    result[y, x] += share * image[place]
            result[y, x] /= total
    return result


def test_blur():
    images = rng.normal(size=(2, SIZE, SIZE, 3))
    with jax.enable_x64(True):
        found = curves.blur(jnp.asarray(images), 0.8)
    expected = [blurred_by_loop(image, 0.8) for image in images]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [1, 5, 36])
def test_curves_are_those_of_a_loop(steps):
    images = rng.normal(size=(3, SIZE, SIZE, 3))
    heat = rng.integers(0, 5, (3, SIZE, SIZE)) / 4  # many are equal: then in raster order
    filling = (0.3, -0.2, 0.1)
    with jax.enable_x64(True):
        run = jax.jit(lambda x, h: curves.both(lambda x: probability(x, jnp), x, h, filling, steps))
        found = run(jnp.asarray(images), jnp.asarray(heat))
    for n in range(3):
        places = sorted(np.ndindex(SIZE, SIZE), key=lambda p: (-heat[n][p], p))
        blurred = blurred_by_loop(images[n], SIZE * curves.BLUR)
        for name, now, then in (
            ("deletion", images[n].copy(), np.broadcast_to(filling, images[n].shape)),
            ("insertion", blurred, images[n]),
        ):
            expected, done = [probability(now[None], np)], 0
            for k in range(1, steps + 1):
                until = SIZE * SIZE * k // steps
                for place in places[done:until]:
                    now[place] = then[place]
                done = until
                expected.append(probability(now[None], np))
            expected = np.concatenate(expected)
            np.testing.assert_allclose(found[name][n], expected, rtol=0, atol=TOLERANCE)


def test_the_area_is_that_of_trapezoids():
    curve = rng.uniform(size=(3, 9))
    expected = np.trapezoid(curve, dx=1 / 8, axis=1)
    np.testing.assert_allclose(curves.area(curve), expected, rtol=0, atol=TOLERANCE)
    assert curves.area(np.ones(4)) == 1


def test_a_map_that_knows_what_counts_is_better_than_a_random_one():
    """The class is the mean of one corner."""
    images = np.zeros((1, 8, 8, 3))
    images[:, :2, :2] = 10
    knows = np.zeros((1, 8, 8))
    knows[:, :2, :2] = 1
    random = curves.random_heat(8, 8)

    def score(x):
        return x[:, :2, :2].mean((1, 2)) / 10

    @jax.jit
    def run(heat):
        return curves.both(score, jnp.asarray(images), heat, (0, 0, 0), 16)

    good, other = (
        {name: curves.area(np.asarray(x)[0, :, 0]) for name, x in run(heat).items()}
        for heat in (knows, random)
    )
    assert good["deletion"] < 0.1 < other["deletion"]
    assert good["insertion"] > other["insertion"] + 0.01
    np.testing.assert_array_equal(random, curves.random_heat(8, 8))
