"""Colour jitter, hue and blur of whole grey levels, as torchvision does them to Pillow images."""

import jax
import jax.numpy as jnp
import numpy as np

from fgvc_jax.images.operations import blend, grey, mean_grey

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def colour_jitter(
    key: jax.Array, image: jax.Array, strength: tuple[float, float, float, float]
) -> jax.Array:
    """torchvision's ColorJitter of a Pillow image: four adjustments by random factors, in random order.

    Args:
      key: the example's own.
      image: [H, W, 3] in 0..255.
      strength: static (brightness, contrast, saturation, hue). A factor is drawn from
        [max(0, 1 - b), 1 + b], likewise for contrast and saturation, a hue shift from [-h, h]
        turns, h at most 1/2. An adjustment of strength 0 is left out.

    Returns:
      float32 [H, W, 3], whole levels.
    """
    active = [kind for kind, amount in enumerate(strength) if amount]
    x = jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
    hw = jnp.array(x.shape[:2])
    key_order, key_amount = jax.random.split(key)
    order = jax.random.permutation(key_order, jnp.array(active, jnp.int32))
    low = jnp.array([max(0, 1 - s) for s in strength[:3]] + [-strength[3]], jnp.float32)
    high = jnp.array([1 + s for s in strength[:3]] + [strength[3]], jnp.float32)
    amount = jax.random.uniform(key_amount, (4,), jnp.float32, low, high)
    # The hue has a place of its own, with the others before or after it: computed once, they twice.
    is_hue = order == _HUE
    place = jnp.where(is_hue.any(), jnp.argmax(is_hue), len(active))
    others = order[jnp.argsort(is_hue)][: len(active) - bool(strength[3])]

    def adjust(x, used) -> jax.Array:
        if not len(others):
            return x
        # A loop, because XLA computes unrolled steps anew for every channel of the next one.
        factor = jnp.where(used, amount[others], 1)
        return jax.lax.fori_loop(
            0, len(others), lambda i, x: _adjust(x, others[i], factor[i], hw), x
        )

    before = jnp.arange(len(others)) < place
    x = adjust(x, before)
    if strength[3]:
        x = adjust(shift_hue(x, amount[_HUE]), ~before)
    return x.astype(jnp.float32)


def _adjust(x: jax.Array, kind: jax.Array, factor: jax.Array, hw: jax.Array) -> jax.Array:
    """Brightness, contrast or saturation of uint8 [H, W, 3]; factor 1 changes nothing."""
    other = jnp.where(kind == _CONTRAST, mean_grey(x, hw), 0)
    return blend(jnp.where(kind == _SATURATION, grey(x)[..., None], other), x, factor)


def shift_hue(x: jax.Array, turns: jax.Array) -> jax.Array:
    """torchvision's `adjust_hue` of a Pillow image: the hue turns in 8-bit HSV, which rounds twice.

    Equal for every colour. HSV in bytes is coarse: a shift by 0 moves a channel by up to 7 levels, another by
    up to 17 from where a shift in float HSV (torchvision's tensor path) takes it.

    Args:
      x: uint8 [..., 3].
      turns: of the whole circle, in [-1/2, 1/2]; 255 turns are cut to a whole number. May be traced.

    Returns:
      uint8 [..., 3].
    """
    r, g, b = jnp.moveaxis(x.astype(jnp.int32), -1, 0)
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    # The place on a circle of 6 chroma.
    sixths = jnp.where(
        value == r, g - b, jnp.where(value == g, 2 * chroma + b - r, 4 * chroma + r - g)
    )
    sixths = jnp.where(sixths < 0, sixths + 6 * chroma, sixths)
    hue = _quotient(255 * sixths, 6 * chroma)
    exact = 255 * sixths == 6 * chroma * hue
    hue -= exact & jnp.array(_SHORT)[hue]
    saturation = _quotient(255 * chroma, value)

    # Back: the distance of each primary from the hue, 255 a sixth of the circle.
    hue = (hue + jnp.trunc(255 * turns).astype(jnp.int32)) % 256
    k = (255 * jnp.array([5, 3, 1]) + 6 * hue[..., None]) % (6 * 255)
    share = 255**2 - saturation[..., None] * jnp.clip(jnp.minimum(k, 4 * 255 - k), 0, 255)
    return ((2 * value[..., None] * share + 255**2) // (2 * 255**2)).astype(jnp.uint8)


# Pillow's hue is 255 times a float32. Where that should be one of these whole numbers it falls short of it by
# a rounding, and is cut to the byte below.
_SHORT = np.zeros(256, np.int32)
_SHORT[[*range(1, 32), *range(88, 105, 4), *range(129, 150, 2), 153, 157, 161, 165, 169, 173]] = 1
_SHORT[[176, 177, 181, 184, 185, 189, 193, 197, 201, 205, 209]] = 1


def _quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """a // b for int32 0 <= a < 2^19 and quotients to 255, 0 where b is 0.

    In float32, which is vectorised; the half keeps a division that rounds either way from a whole number.
    """
    return jnp.where(b > 0, (a + 0.5) / jnp.maximum(b, 1), 0).astype(jnp.int32)


def gaussian_blur(image: jax.Array, sigma: jax.Array, kernel: int = 5) -> jax.Array:
    """torchvision's GaussianBlur: `kernel` taps (odd, static) each way, borders reflected.

    Args:
      image: [H, W, 3] in 0..255.
      sigma: in pixels, > 0; may be traced.

    Returns:
      float32 [H, W, 3], whole levels.
    """
    reach = kernel // 2
    weight = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / jnp.float32(sigma)) ** 2)
    weight = (weight / weight.sum()).astype(jnp.float32)
    x = jnp.pad(image.astype(jnp.float32), ((reach, reach), (reach, reach), (0, 0)), "reflect")
    h, w = image.shape[:2]
    x = sum(weight[i] * x[i : i + h] for i in range(kernel))
    x = sum(weight[i] * x[:, i : i + w] for i in range(kernel))
    return jnp.round(x)
