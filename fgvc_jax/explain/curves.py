"""Deletion and insertion: does the order of a heat map matter to the probability?

Petsiuk et al. 2018, "RISE", arXiv 1806.07421. Pixels are removed, hottest first, and put in, hottest first;
each time the area under the curve of the class's probability is the score.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fgvc_jax.backbones.features import wide

BLUR = 1 / 20  # sigma of the image that pixels are put into, as a share of its side
SEED = 0  # of the random map that a heat map is compared with


def ranks(heat_BSS: jax.Array) -> jax.Array:
    """The place of each pixel in the order of its heat, hottest 0; of equals the first in raster order."""
    order = jnp.argsort(-heat_BSS.reshape(len(heat_BSS), -1), axis=1, stable=True)
    return jnp.argsort(order, axis=1).reshape(heat_BSS.shape)


def curve(
    probability: Callable,
    before_BSSC: jax.Array,
    after_BSSC: jax.Array,
    ranks_BSS: jax.Array,
    steps: int,
) -> jax.Array:
    """Probabilities [B, steps + 1, K] while pixels of `before` become those of `after`, by their ranks.

    Args:
      probability: images -> [B, K].
      steps: parts of equally many pixels (one more in some, where they do not divide).
    """
    pixels = ranks_BSS.shape[1] * ranks_BSS.shape[2]

    def at(count) -> jax.Array:
        return probability(jnp.where(ranks_BSS[..., None] < count, after_BSSC, before_BSSC))

    counts = jnp.array([pixels * k // steps for k in range(steps + 1)])
    return jnp.swapaxes(jax.lax.map(at, counts), 0, 1)


def both(
    probability: Callable,
    images_BSSC: jax.Array,
    heat_BSS: jax.Array,
    filling: Sequence[float],
    steps: int,
) -> dict[str, jax.Array]:
    """The curves of 'deletion', to one colour, and of 'insertion', into the blurred image; see `curve`."""
    order = ranks(heat_BSS)
    nothing = jnp.broadcast_to(jnp.array(filling, images_BSSC.dtype), images_BSSC.shape)
    blurred = blur(images_BSSC, images_BSSC.shape[1] * BLUR)
    return {
        "deletion": curve(probability, images_BSSC, nothing, order, steps),
        "insertion": curve(probability, blurred, images_BSSC, order, steps),
    }


def area(curve: np.ndarray) -> np.ndarray:
    """The area under curves [..., steps + 1] whose axis goes from 0 to 1, by trapezoids."""
    return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


def random_heat(height: int, width: int) -> jax.Array:
    """[1, h, w], uniform, the same in every call. In cells of the size of the map that it is compared with:
    single pixels at random would destroy an image sooner than any map does.
    """
    return jax.random.uniform(jax.random.key(SEED), (1, height, width))


def blur(images_BSSC: jax.Array, sigma: float) -> jax.Array:
    """Gaussian blur, cut off at 3 sigma, with the border's pixels repeated."""
    size, reach = images_BSSC.shape[1], int(np.ceil(3 * sigma))
    offsets = np.arange(-reach, reach + 1)
    shares = np.exp(-0.5 * np.square(offsets / sigma))
    shares /= shares.sum()
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], np.clip(row + offsets, 0, size - 1), shares)
    wider = wide(images_BSSC)
    matrix = jnp.array(matrix, wider.dtype)
    blurred = jnp.einsum("yh,bhwc,xw->byxc", matrix, wider, matrix, precision="highest")
    return blurred.astype(images_BSSC.dtype)
