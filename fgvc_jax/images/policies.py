"""TrivialAugment and AutoAugment: which operation, how strong, drawn for each example."""

import jax
import jax.numpy as jnp
import numpy as np

from fgvc_jax.images.operations import Op, apply

# TrivialAugment "wide" (Müller & Hutter 2021, table 7) as in torchvision: 31 magnitudes an
# operation, from none to full.
_BIN = np.arange(31) / 30
_TRIVIAL = {
    Op.IDENTITY: 0 * _BIN,
    Op.SHEAR_X: 0.99 * _BIN,
    Op.SHEAR_Y: 0.99 * _BIN,
    Op.TRANSLATE_X: 32 * _BIN,
    Op.TRANSLATE_Y: 32 * _BIN,
    Op.ROTATE: 135 * _BIN,
    Op.BRIGHTNESS: 0.99 * _BIN,
    Op.COLOR: 0.99 * _BIN,
    Op.CONTRAST: 0.99 * _BIN,
    Op.SHARPNESS: 0.99 * _BIN,
    Op.POSTERIZE: 8 - np.round(6 * _BIN),
    Op.SOLARIZE: 255 * (1 - _BIN),
    Op.AUTO_CONTRAST: 0 * _BIN,
    Op.EQUALIZE: 0 * _BIN,
}
TRIVIAL = np.array([_TRIVIAL[Op(i)] for i in range(14)], np.float32)  # [14, 31]

# AutoAugment's policy for ImageNet (Cubuk et al. 2019, table 9) as in torchvision: one of 25 pairs
# of (operation, probability, magnitude). The paper's magnitudes 0..9 are in units here.
_SHEAR = 0.3 * np.arange(10) / 9
_ROTATE = 30 * np.arange(10) / 9
_FACTOR = 0.9 * np.arange(10) / 9
_BITS = 8 - np.round(4 * np.arange(10) / 9)
_LEVEL = 255 * (1 - np.arange(10) / 9)
_EQUALIZE_4 = (Op.EQUALIZE, 0.4, 0)
_EQUALIZE_6 = (Op.EQUALIZE, 0.6, 0)
_EQUALIZE_8 = (Op.EQUALIZE, 0.8, 0)
_EQUALIZE = (Op.EQUALIZE, 1.0, 0)
_AUTO_CONTRAST = (Op.AUTO_CONTRAST, 0.6, 0)
_INVERT = (Op.INVERT, 0.6, 0)
AUTO = np.array(
    [
        ((Op.POSTERIZE, 0.4, _BITS[8]), (Op.ROTATE, 0.6, _ROTATE[9])),
        ((Op.SOLARIZE, 0.6, _LEVEL[5]), _AUTO_CONTRAST),
        (_EQUALIZE_8, _EQUALIZE_6),
        ((Op.POSTERIZE, 0.6, _BITS[7]), (Op.POSTERIZE, 0.6, _BITS[6])),
        (_EQUALIZE_4, (Op.SOLARIZE, 0.2, _LEVEL[4])),
        (_EQUALIZE_4, (Op.ROTATE, 0.8, _ROTATE[8])),
        ((Op.SOLARIZE, 0.6, _LEVEL[3]), _EQUALIZE_6),
        ((Op.POSTERIZE, 0.8, _BITS[5]), _EQUALIZE),
        ((Op.ROTATE, 0.2, _ROTATE[3]), (Op.SOLARIZE, 0.6, _LEVEL[8])),
        (_EQUALIZE_6, (Op.POSTERIZE, 0.4, _BITS[6])),
        ((Op.ROTATE, 0.8, _ROTATE[8]), (Op.COLOR, 0.4, _FACTOR[0])),
        ((Op.ROTATE, 0.4, _ROTATE[9]), _EQUALIZE_6),
        ((Op.EQUALIZE, 0.0, 0), _EQUALIZE_8),
        (_INVERT, _EQUALIZE),
        ((Op.COLOR, 0.6, _FACTOR[4]), (Op.CONTRAST, 1.0, _FACTOR[8])),
        ((Op.ROTATE, 0.8, _ROTATE[8]), (Op.COLOR, 1.0, _FACTOR[2])),
        ((Op.COLOR, 0.8, _FACTOR[8]), (Op.SOLARIZE, 0.8, _LEVEL[7])),
        ((Op.SHARPNESS, 0.4, _FACTOR[7]), _INVERT),
        ((Op.SHEAR_X, 0.6, _SHEAR[5]), _EQUALIZE),
        ((Op.COLOR, 0.4, _FACTOR[0]), _EQUALIZE_6),
        (_EQUALIZE_4, (Op.SOLARIZE, 0.2, _LEVEL[4])),
        ((Op.SOLARIZE, 0.6, _LEVEL[5]), _AUTO_CONTRAST),
        (_INVERT, _EQUALIZE),
        ((Op.COLOR, 0.6, _FACTOR[4]), (Op.CONTRAST, 1.0, _FACTOR[8])),
        (_EQUALIZE_8, _EQUALIZE_6),
    ],
    np.float32,
)  # [25, 2, 3]


def trivial_augment(
    key: jax.Array, image: jax.Array, probability: float = 1.0, hw: jax.Array | None = None
) -> jax.Array:
    """TrivialAugmentWide: one of 14 operations, one of 31 strengths, a sign, all uniform.

    Args:
      key: the example's own.
      image: [H, W, 3] in 0..255.
      probability: that it is applied at all.
      hw: int [2], the valid part where the image lies on a canvas.

    Returns:
      float32 [H, W, 3], whole levels.
    """
    keys = jax.random.split(key, 4)
    op = jax.random.randint(keys[0], (), 0, len(TRIVIAL), jnp.int32)
    strength = jax.random.randint(keys[1], (), 0, TRIVIAL.shape[1], jnp.int32)
    negative = jax.random.uniform(keys[2], (), jnp.float32) < 0.5
    magnitude = _signed(op, jnp.array(TRIVIAL)[op, strength], negative)
    used = jax.random.uniform(keys[3], (), jnp.float32) < probability
    return apply(image, jnp.where(used, op, Op.IDENTITY), magnitude, hw)


def auto_augment(
    key: jax.Array, image: jax.Array, probability: float = 1.0, hw: jax.Array | None = None
) -> jax.Array:
    """AutoAugment with the ImageNet policy; arguments and result as `trivial_augment`."""
    keys = jax.random.split(key, 4)
    policy = jnp.array(AUTO)[jax.random.randint(keys[0], (), 0, len(AUTO), jnp.int32)]
    chance = jax.random.uniform(keys[1], (2,), jnp.float32)
    negative = jax.random.uniform(keys[2], (2,), jnp.float32) < 0.5
    used = jax.random.uniform(keys[3], (), jnp.float32) < probability
    for i in range(2):
        op, share, magnitude = policy[i]
        op = jnp.where(used & (chance[i] < share), op.astype(jnp.int32), Op.IDENTITY)
        image = apply(image, op, _signed(op, magnitude, negative[i]), hw)
    return image


def _signed(op: jax.Array, magnitude: jax.Array, negative: jax.Array) -> jax.Array:
    """Geometry and enhancement work in both directions, the others have no sign."""
    return jnp.where(negative & (op <= Op.SHARPNESS), -magnitude, magnitude)
