"""Colour jitter, hue and blur, on whole grey levels as on Pillow images."""

import jax
import jax.numpy as jnp

from fgvc_jax.images.operations import blend, grey, mean_grey

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def colour_jitter(
    key: jax.Array, image: jax.Array, strength: tuple[float, float, float, float]
) -> jax.Array:
    """torchvision's ColorJitter: four adjustments by random factors, in random order.

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
    for i in range(len(active)):
        kind = order[i]
        other = jnp.where(kind == _CONTRAST, mean_grey(x, hw), 0)
        other = jnp.where(kind == _SATURATION, grey(x)[..., None], other)
        factor = jnp.where(kind == _HUE, 1, amount[kind])
        turned = shift_hue(x, jnp.where(kind == _HUE, amount[_HUE], 0)) if strength[3] else x
        x = blend(other, turned, factor)
    return x.astype(jnp.float32)


def shift_hue(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns the hue of uint8 [..., 3] round the HSV circle, saturation and value kept; uint8."""
    r, g, b = jnp.moveaxis(x.astype(jnp.float32), -1, 0)
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    safe = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == r,
        (g - b) / safe,
        jnp.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe),
    )
    # Distance of each primary from the hue, on a circle of six.
    k = (jnp.array([5, 3, 1]) + (sixths + 6 * turns)[..., None]) % 6
    result = value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return jnp.round(result).astype(jnp.uint8)


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
