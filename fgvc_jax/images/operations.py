"""The image operations of AutoAugment and TrivialAugment, any of them by a traced number.

A `switch` over fifteen branches becomes, under `vmap`, fifteen images an example. Here all of them
are settings of one short chain: an affine warp, a blend with another image, a table of levels by
channel. Operations differ in six numbers, a factor and a [256, 3] table.
"""

import enum

import jax
import jax.numpy as jnp


class Op(enum.IntEnum):
    """The numbers of the operations; magnitudes as torchvision's, units in brackets."""

    IDENTITY = 0
    SHEAR_X = 1  # [pixels a pixel]
    SHEAR_Y = 2
    TRANSLATE_X = 3  # [pixels, cut to whole ones]
    TRANSLATE_Y = 4
    ROTATE = 5  # [degrees, counter-clockwise]
    BRIGHTNESS = 6  # [added to the factor 1]
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # [bits kept]
    SOLARIZE = 11  # [grey level from which on it inverts]
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    INVERT = 14


def apply(
    image: jax.Array, op: jax.Array, magnitude: jax.Array, hw: jax.Array | None = None
) -> jax.Array:
    """Applies one operation as torchvision does to a Pillow image (nearest neighbour, black fill).

    Args:
      image: [H, W, 3], grey levels 0..255, any dtype; rounded to whole levels first, as Pillow has.
      op: int, an `Op`; may be traced.
      magnitude: float, in the unit of the operation, signed.
      hw: int [2], where the image is the top left part of a canvas; its size otherwise.

    Returns:
      float32 [H, W, 3], whole levels. Beyond hw the values mean nothing.
    """
    hw = jnp.array(image.shape[:2] if hw is None else hw, jnp.int32)
    magnitude = jnp.asarray(magnitude, jnp.float32)
    x = jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
    # At most one of the three changes anything, so their order is free, and every statistic is taken of
    # the input: those of a result XLA would compute anew for each neighbour.
    table = _levels(op, magnitude, histogram(jnp.where(_inside(x, hw), x, 0), hw))
    x = _look_up(table, _enhance(x, op, magnitude, hw))
    return _warp(x, _inverse_affine(op, magnitude, hw), hw).astype(jnp.float32)


def blend(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """other + factor (image - other), clipped to 0..255 and cut to whole levels; uint8.

    Pillow's `Image.blend`, which its brightness, colour, contrast and sharpness are made of: they
    differ in `other` alone (black, grey, mean grey, smoothed). Factor 1 gives the image.
    """
    other, image = other.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(other + factor * (image - other), 0, 255).astype(jnp.uint8)


def grey(x: jax.Array) -> jax.Array:
    """uint8 [..., 3] to luma int32 [...] by ITU-R 601-2, in Pillow's 16-bit fixed point."""
    r, g, b = jnp.moveaxis(x.astype(jnp.int32), -1, 0)
    return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16


def mean_grey(x: jax.Array, hw: jax.Array) -> jax.Array:
    """The rounded mean luma of the valid part, int32 scalar."""
    total = jnp.where(_inside(x, hw)[..., 0], grey(x), 0).astype(jnp.uint32).sum()
    count = (hw[0] * hw[1]).astype(jnp.uint32)
    return ((total + count // 2) // count).astype(jnp.int32)


def smooth(x: jax.Array, hw: jax.Array) -> jax.Array:
    """Pillow's SMOOTH filter, (1 1 1; 1 5 1; 1 1 1) / 13; the outermost pixels stay. uint8."""
    padded = jnp.pad(x.astype(jnp.int32), ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    filtered = (2 * (around + 4 * x.astype(jnp.int32)) + 13) // 26  # rounded
    y, x_ = _grid(x)
    inner = (y > 0) & (y < hw[0] - 1) & (x_ > 0) & (x_ < hw[1] - 1)
    return jnp.where(inner[..., None], filtered, x).astype(jnp.uint8)


def histogram(x: jax.Array, hw: jax.Array) -> jax.Array:
    """Counts of the levels of each channel, int32 [256, 3].

    Args:
      x: uint8 [H, W, 3], zero outside the valid part.
      hw: int32 [2], the valid part.
    """
    height, width = x.shape[:2]
    count = jax.lax.platform_dependent(x, tpu=_count_by_comparing, default=_count_by_adding)
    return count.at[0].add(hw[0] * hw[1] - height * width)


def _count_by_adding(x: jax.Array) -> jax.Array:
    place = x.astype(jnp.int32) * 3 + jnp.arange(3)
    count = jnp.zeros(256 * 3, jnp.int32)
    return count.at[place.reshape(-1)].add(1, mode="promise_in_bounds").reshape(256, 3)


def _count_by_comparing(x: jax.Array) -> jax.Array:
    """A TPU adds to single places one after the other; comparing is vectorised.

    Row by row, because the comparisons of a whole image at once could be laid down in memory.
    """

    def add_row(count, row) -> tuple[jax.Array, None]:
        equal = row[None].astype(jnp.int32) == jnp.arange(256)[:, None, None]
        return count + equal.sum(1, dtype=jnp.int32), None

    return jax.lax.scan(add_row, jnp.zeros((256, 3), jnp.int32), x)[0]


def _look_up(table: jax.Array, x: jax.Array) -> jax.Array:
    place = x.astype(jnp.int32) * 3 + jnp.arange(3)
    return table.reshape(-1).at[place].get(mode="promise_in_bounds")


def _warp(x: jax.Array, matrix: jax.Array, hw: jax.Array) -> jax.Array:
    """The pixel under matrix @ (x + 1/2, y + 1/2, 1) for every pixel, black outside.

    In Pillow's 16-bit fixed point, so that pixel borders fall to the same side.
    """
    start = matrix[:, 2] + (matrix[:, 0] + matrix[:, 1]) / 2
    fixed = jnp.floor(jnp.column_stack([matrix[:, :2], start]) * 65536 + 0.5).astype(jnp.int32)
    y, x_ = _grid(x)
    column, row = ((a * x_ + b * y + c) >> 16 for a, b, c in fixed)
    inside = (column >= 0) & (column < hw[1]) & (row >= 0) & (row < hw[0])
    found = x.at[jnp.where(inside, row, 0), jnp.where(inside, column, 0)].get(
        mode="promise_in_bounds"
    )
    return jnp.where(inside[..., None], found, 0)


def _inverse_affine(op: jax.Array, magnitude: jax.Array, hw: jax.Array) -> jax.Array:
    """[2, 3]: from a place in the result to the place in the image that is seen there.

    Shears fix the top left corner, the rotation the centre.
    """
    radians = jnp.where(op == Op.ROTATE, jnp.deg2rad(magnitude), 0)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    cy, cx = hw / 2
    shift = jnp.trunc(magnitude)
    return jnp.stack(
        [
            cos,
            jnp.where(op == Op.SHEAR_X, magnitude, -sin),
            jnp.where(op == Op.TRANSLATE_X, -shift, cx - cos * cx + sin * cy),
            jnp.where(op == Op.SHEAR_Y, magnitude, sin),
            cos,
            jnp.where(op == Op.TRANSLATE_Y, -shift, cy - sin * cx - cos * cy),
        ]
    ).reshape(2, 3)


def _enhance(x: jax.Array, op: jax.Array, magnitude: jax.Array, hw: jax.Array) -> jax.Array:
    other = jnp.where(op == Op.CONTRAST, mean_grey(x, hw), 0)
    other = jnp.where(op == Op.COLOR, grey(x)[..., None], other)
    other = jnp.where(op == Op.SHARPNESS, smooth(x, hw), other)
    enhances = (op >= Op.BRIGHTNESS) & (op <= Op.SHARPNESS)
    return blend(other, x, jnp.where(enhances, 1 + magnitude, 1))


def _levels(op: jax.Array, magnitude: jax.Array, count: jax.Array) -> jax.Array:
    """The table of the operation, uint8 [256, 3], given the histogram [256, 3]."""
    level = jnp.broadcast_to(jnp.arange(256)[:, None], (256, 3))

    mask = 256 - (1 << (8 - jnp.clip(magnitude, 0, 8).astype(jnp.int32)))
    solarized = jnp.where(level < magnitude, level, 255 - level)

    low = jnp.argmax(count > 0, axis=0)
    high = 255 - jnp.argmax(count[::-1] > 0, axis=0)
    span = high - low
    stretched = jnp.clip((level - low) * 255 // jnp.maximum(span, 1), 0, 255)

    # As many pixels a step of the result as the levels below the highest hold, on average.
    step = (count.sum(0) - jnp.take_along_axis(count, high[None], axis=0)[0]) // 255
    below = jnp.cumsum(count, axis=0) - count
    equalized = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)

    tables = {
        Op.POSTERIZE: level & mask,
        Op.SOLARIZE: solarized,
        Op.AUTO_CONTRAST: jnp.where(span > 0, stretched, level),
        Op.EQUALIZE: jnp.where(step > 0, equalized, level),
        Op.INVERT: 255 - level,
    }
    chosen = jnp.array(list(tables)) == op
    changes = jnp.stack([table - level for table in tables.values()])
    # A product and not a select: it is computed once, where XLA would compute a select anew for
    # every pixel that looks it up. Whole numbers up to 255 are exact in any precision.
    change = jnp.einsum("t,tlc->lc", chosen.astype(jnp.float32), changes.astype(jnp.float32))
    return (level + change.astype(jnp.int32)).astype(jnp.uint8)


def _grid(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row and column of every pixel, int32 [H, 1] and [1, W]."""
    return jnp.arange(x.shape[0])[:, None], jnp.arange(x.shape[1])[None]


def _inside(x: jax.Array, hw: jax.Array) -> jax.Array:
    y, x_ = _grid(x)
    return ((y < hw[0]) & (x_ < hw[1]))[..., None]
