"""Mixup and CutMix: each image of a batch together with a partner, and its share of the label."""

import jax
import jax.numpy as jnp

from fgvc_jax.errors import UserError


def mix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    probability: float = 1.0,
    switch: float = 0.5,
    per_example: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899), as in timm.

    An example's partner stands at its place in the reversed batch; the middle one of an odd batch is its
    own. The share lambda is drawn from Beta(alpha, alpha). Mixup gives lambda x + (1 - lambda) partner.
    CutMix puts a rectangle of the partner into x: 1 - lambda of the area, less the part beyond the border.
    Its share is that of the pixels of x which are left.

    Args:
      key: the batch's own.
      images: float [B, H, W, 3], normalised.
      labels: int [B].
      mixup, cutmix: their alpha, static; 0 leaves that one out, and with both 0 the images are returned as
        they are.
      probability: that anything is mixed.
      switch: probability of CutMix in place of mixup, where both are on.
      per_example: draw all of this for each example, in place of once for the batch (timm's mode 'elem').

    Returns:
      images: as they came in shape and dtype, computed in at least float32.
      targets: label int [B]; partner int [B], the partner's label; share float32 [B] in 0..1, of the label.
        The loss is share CE(label) + (1 - share) CE(partner): `fgvc_jax.ops.losses.cross_entropy`.

    Raises:
      UserError: a negative alpha, or a probability outside 0..1.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if alpha < 0:
            raise UserError(
                f"{name} = {alpha}; it is the alpha of Beta(alpha, alpha): above 0, or 0."
            )
    for name, chance in (("probability", probability), ("switch", switch)):
        if not 0 <= chance <= 1:
            raise UserError(f"{name} = {chance} of mixup and CutMix; a probability lies in 0 to 1.")

    batch, hw = images.shape[0], images.shape[1:3]
    targets = {"label": labels, "partner": labels[::-1], "share": jnp.ones(batch, jnp.float32)}
    if not (mixup or cutmix) or not probability:
        return images, targets
    if not (mixup and cutmix):
        switch = float(cutmix > 0)

    def draw(key) -> tuple[jax.Array, jax.Array]:
        """(share [], weight of each pixel [H, W]) of one example."""
        key_use, key_switch, key_share, key_place = jax.random.split(key, 4)
        use = jax.random.uniform(key_use, (), jnp.float32) < probability
        cut = jax.random.uniform(key_switch, (), jnp.float32) < switch
        share = symmetric_beta(key_share, jnp.where(cut, cutmix or 1.0, mixup or 1.0))
        share = jnp.where(use, share, 1)
        centre = jax.random.randint(key_place, (2,), 0, jnp.array(hw), jnp.int32)
        kept = outside(cut_box(share, centre, hw), hw)
        return jnp.where(cut, kept.mean(), share), jnp.where(cut, kept, share)

    keys = jax.random.split(key, batch if per_example else 1)
    share, weight = jax.vmap(draw)(keys)
    targets["share"] = jnp.broadcast_to(share, batch)
    return combine(images, weight), targets


def symmetric_beta(key: jax.Array, alpha: jax.Array) -> jax.Array:
    """A draw of Beta(alpha, alpha), float32 scalar, for any alpha > 0; may be traced.

    Exact, from two uniform numbers: Student's t with 2 alpha degrees of freedom in Bailey's polar form
    (1994), then (1 + t / sqrt(2 alpha + t^2)) / 2. `jax.random.beta` is a rejection loop; it takes seconds to
    compile.
    """
    u, v = jax.random.uniform(key, (2,), jnp.float32)
    power = jnp.log1p(-u) / alpha  # log of a uniform number to the 1 / alpha
    cosine = jnp.cos(2 * jnp.pi * v)
    radius = -jnp.expm1(power) * cosine**2
    rest = jnp.exp(power) / (jnp.exp(power) + radius)  # 1 - r^2 of a result (1 +- r) / 2
    small = rest / (2 * (1 + jnp.sqrt(1 - rest)))  # (1 - r) / 2 without cancellation
    return jnp.where(cosine < 0, small, 1 - small).astype(jnp.float32)


def cut_box(share: jax.Array, centre: jax.Array, hw: tuple[int, int]) -> jax.Array:
    """CutMix's rectangle, int32 [4] (top, left, bottom, right), the last two exclusive.

    As timm 1.0 places it; torchvision and the paper's code make an odd side shorter by one pixel.

    Args:
      share: float scalar; the rectangle has 1 - share of the image's area and its aspect.
      centre: int [2], (row, column); what reaches over the border there is cut off.
      hw: height and width of the image.
    """
    sides = jnp.floor(jnp.array(hw) * jnp.sqrt(1 - share)).astype(jnp.int32)
    corners = jnp.concatenate([centre - sides // 2, centre + (sides + 1) // 2])
    return jnp.clip(corners, 0, jnp.array([*hw, *hw]))


def outside(box: jax.Array, hw: tuple[int, int]) -> jax.Array:
    """float32 [H, W]: 0 within the box (top, left, bottom, right), 1 elsewhere."""
    top, left, bottom, right = box
    y, x = jnp.arange(hw[0])[:, None], jnp.arange(hw[1])
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return 1 - inside.astype(jnp.float32)


def combine(images: jax.Array, weight: jax.Array) -> jax.Array:
    """weight x + (1 - weight) partner, the partner from the batch reversed.

    Args:
      images: float [B, H, W, 3].
      weight: float32 [B or 1, H, W] in 0..1.

    Returns:
      the shape and dtype of images; weight 1 gives x exactly.
    """
    x = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    weight = weight[..., None]
    return (weight * x + (1 - weight) * x[::-1]).astype(images.dtype)
