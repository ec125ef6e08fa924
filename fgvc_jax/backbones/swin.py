"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030), version 1, as in timm."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fgvc_jax.backbones.features import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Edit,
    Features,
    Info,
    Preprocessing,
    Recorder,
    Tap,
)
from fgvc_jax.backbones.vit import Attention, Mlp
from fgvc_jax.errors import UserError
from fgvc_jax.layers import remat as checkpointing
from fgvc_jax.layers.initializers import normal

PATCH = 4


def _norm(width: int, **kw):
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, **kw)


def _pad(x_BHWC, rows: int, columns: int):
    """Zeros below and to the right, up to the next multiples."""
    below, right = -x_BHWC.shape[1] % rows, -x_BHWC.shape[2] % columns
    return jnp.pad(x_BHWC, ((0, 0), (0, below), (0, right), (0, 0)))


def resize_bias_table(table_RH: jax.Array, window: int) -> jax.Array:
    """Relative position biases of one window size for another, [(2 v - 1)^2, heads] -> [(2 w - 1)^2, heads].

    As timm: the given biases are taken to stand at distances that grow geometrically from the
    centre (ratio between 1.01 and 1.5, by bisection to 1e-6) so far that they reach the ends of the
    new table, and between them goes linear interpolation. A table of the right size is returned as
    it is.
    """
    side, wanted = math.isqrt(table_RH.shape[0]), 2 * window - 1
    if side == wanted:
        return table_RH
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (side // 2)) / (1 - ratio) > wanted // 2:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(side // 2))
    places = np.concatenate([-distances[::-1], [0.0], distances])
    targets = np.arange(wanted) - wanted // 2
    weights = np.stack([np.interp(targets, places, unit) for unit in np.eye(side)], axis=1)
    weights = jnp.asarray(weights, table_RH.dtype)
    table = table_RH.reshape(side, side, -1)
    table = jnp.einsum("ai,bj,ijh->abh", weights, weights, table, precision="highest")
    return table.reshape(wanted**2, -1)


def _relative_positions(window: int) -> np.ndarray:
    """Row of the table for every query and key of a window, [N, N] with N = window^2."""
    y, x = np.divmod(np.arange(window**2), window)
    dy, dx = (a[:, None] - a[None, :] + window - 1 for a in (y, x))
    return dy * (2 * window - 1) + dx


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    """For one axis after the shift: parts that were not neighbours before it, [length]."""
    places = np.arange(length)
    return (places >= length - window).astype(int) + (places >= length - shift)


class WindowAttention(Attention):
    """Attention within windows, with a learnt bias for every relative position.

    On an axis where the map is no larger than the window nothing is shifted. Otherwise a shifted
    map is rolled by half a window, and cells that became neighbours only by that do not attend to
    each other. Maps are padded to multiples of the window after the roll, and the zeros take part
    as tokens: both as in timm. torchvision pads before it rolls, which differs in a shifted block
    whose map is no multiple of the window.
    """

    def __init__(self, width: int, heads: int, window: int, shifted: bool, **kw):
        super().__init__(width, heads, **kw)
        self.window = window
        self.shifted = shifted
        self.relative_position_bias_table = nnx.Param(
            normal(0.02)(kw["rngs"].params(), ((2 * window - 1) ** 2, heads), kw["param_dtype"])
        )

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        (_, height, width, channels), window = x_BHWC.shape, self.window
        shift = tuple(
            window // 2 if self.shifted and length > window else 0 for length in (height, width)
        )
        x = _pad(jnp.roll(x_BHWC, (-shift[0], -shift[1]), (1, 2)), window, window)
        batch, padded_height, padded_width, _ = padded = x.shape
        rows, columns = padded_height // window, padded_width // window

        def to_windows(x_BHWC):
            x = x_BHWC.reshape(-1, rows, window, columns, window, x_BHWC.shape[-1])
            return x.swapaxes(2, 3).reshape(-1, rows * columns, window**2, x_BHWC.shape[-1])

        table = self.relative_position_bias_table[...]
        bias = table[_relative_positions(window)].transpose(2, 0, 1)  # [heads, N, N]
        bias = bias.astype(jnp.promote_types(bias.dtype, jnp.float32))
        if any(shift):
            down = _regions(padded_height, window, shift[0])
            across = _regions(padded_width, window, shift[1])
            regions = to_windows((3 * down[:, None] + across)[None, :, :, None])[0, :, :, 0]
            apart = jnp.asarray(regions)[:, None, :, None] != jnp.asarray(regions)[:, None, None, :]
            bias = jnp.where(apart, bias - 100, bias)  # [windows, heads, N, N]

        y = super().__call__(to_windows(x), bias)
        y = y.reshape(batch, rows, columns, window, window, channels).swapaxes(2, 3)
        y = y.reshape(padded)[:, :height, :width]
        return jnp.roll(y, shift, (1, 2))


class Block(nnx.Module):
    """Pre-norm transformer block on a map."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool, **kw):
        self.norm1 = _norm(width, **kw)
        self.attn = WindowAttention(width, heads, window, shifted, **kw)
        self.norm2 = _norm(width, **kw)
        self.mlp = Mlp(width, 4 * width, **kw)

    def __call__(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nnx.Module):
    """Each 2 x 2 cells into one of twice the channels; odd maps are padded."""

    def __init__(self, width: int, **kw):
        self.norm = _norm(4 * width, **kw)
        self.reduction = nnx.Linear(
            4 * width, 2 * width, use_bias=False, kernel_init=normal(0.02), **kw
        )

    def __call__(self, x_BHWC):
        x = _pad(x_BHWC, 2, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # Among the four the row varies fastest.
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x))


class Stage(nnx.Module):
    """Patch merging, except in the first stage, and blocks whose windows are shifted in every second."""

    def __init__(self, width: int, depth: int, heads: int, window: int, merge: bool, **kw):
        self.downsample = PatchMerging(width // 2, **kw) if merge else None
        self.blocks = nnx.List(
            [Block(width, heads, window, shifted=i % 2 == 1, **kw) for i in range(depth)]
        )


class Swin(nnx.Module):
    """Swin Transformer without its classifier.

    Taps: 'layer1' to 'layer4', each after the last block of its stage and before the next one's
    patch merging (strides 4, 8, 16, 32), and 'layer1/0', 'layer1/1', ... after the earlier blocks.
    `pooled` is the mean over the cells of layer4 after the final norm.

    Args:
      depths: blocks in each of the four stages.
      width: channels of the first stage; they double with each stage.
      heads: attention heads in each of the four stages.
      window: side of a window in cells. In stages whose map is smaller for images of `image_size`,
        it is that map's side, as in timm. (torchvision pads such a map instead.)
      image_size: side in pixels, a multiple of 4. Images of another size (any multiple) are taken
        too, in the same windows.
      remat: compute each block again for the gradient, instead of keeping what is inside.
    """

    def __init__(
        self,
        name: str,
        *,
        depths: Sequence[int],
        width: int,
        heads: Sequence[int],
        window: int,
        image_size: int,
        crop_fraction: float = 0.9,
        remat: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dtype = dtype
        self.remat = remat
        self.patch_embed = nnx.Conv(
            3,
            width,
            (PATCH, PATCH),
            (PATCH, PATCH),
            padding="VALID",
            # torch's default standard deviation for a convolution
            kernel_init=normal(1 / math.sqrt(3 * 3 * PATCH**2)),
            **kw,
        )
        self.patch_norm = _norm(width, **kw)
        stages, taps = [], []
        for i, depth in enumerate(depths):
            stride = PATCH * 2**i
            side = -(-image_size // stride)
            channels = width * 2**i
            stages.append(Stage(channels, depth, heads[i], min(window, side), i > 0, **kw))
            names = [*(f"layer{i + 1}/{block}" for block in range(depth - 1)), f"layer{i + 1}"]
            taps += [Tap(tap, channels, stride) for tap in names]
        self.layers = nnx.List(stages)
        self.norm = _norm(channels, **kw)

        self.info = Info(
            name=name,
            taps=tuple(taps),
            default_taps=("layer1", "layer2", "layer3", "layer4"),
            cam_tap="layer4",
            width=channels,
            preprocessing=Preprocessing(
                image_size, IMAGENET_MEAN, IMAGENET_STD, crop_fraction, "bicubic"
            ),
        )

    def __call__(
        self,
        images_BHWC: jax.Array,
        taps: Sequence[str] | None = None,
        edit: Edit | None = None,
    ) -> Features:
        """Features of normalised images [B, H, W, 3], H and W multiples of 4.

        Args:
          taps: names of the maps to return; None for `info.default_taps`.
          edit: edit(name, map) -> map, called at every tap, before the next layer reads the map.

        Raises:
          UserError: for an image size or a tap that does not fit.
        """
        record = Recorder(self.info, taps, edit)
        check_size(self.info.name, *images_BHWC.shape[1:3])
        x = self.patch_norm(self.patch_embed(images_BHWC.astype(self.dtype)))
        names = iter(self.info.taps)
        for stage in self.layers:
            x = x if stage.downsample is None else stage.downsample(x)
            for block in stage.blocks:
                x = record(next(names).name, checkpointing.call(self.remat, block, x))
        pooled = self.norm(x)
        pooled = pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32)).mean((1, 2))
        return Features(record.maps, pooled, None)


def check_size(name: str, height: int, width: int) -> None:
    if height % PATCH or width % PATCH or min(height, width) < PATCH:
        raise UserError(
            f"{name} takes images whose sides are multiples of {PATCH} pixels, not {height} x {width}."
        )


TINY = {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}
SMALL = {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)}
BASE = {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
LARGE = {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)}
AT_224 = {"window": 7, "image_size": 224}
AT_384 = {"window": 12, "image_size": 384, "crop_fraction": 1.0}
VARIANTS = {
    "swin_tiny_patch4_window7_224": TINY | AT_224,
    "swin_small_patch4_window7_224": SMALL | AT_224,
    "swin_base_patch4_window7_224": BASE | AT_224,
    "swin_base_patch4_window12_384": BASE | AT_384,
    "swin_large_patch4_window7_224": LARGE | AT_224,
    "swin_large_patch4_window12_384": LARGE | AT_384,
}
ARGUMENTS = ("width", "depths", "heads", "window")


def create(name: str, *, image_size: int | None = None, **arguments) -> Swin:
    """The named Swin Transformer; `arguments` as in `Swin`."""
    arguments = VARIANTS[name] | arguments
    if image_size is not None:
        arguments["image_size"] = image_size
    check_size(name, arguments["image_size"], arguments["image_size"])
    width, depths, heads = arguments["width"], arguments["depths"], arguments["heads"]
    if len(depths) != 4 or min(depths) < 1:
        raise UserError(f"{name}: depths={depths} must be four numbers of blocks, each at least 1.")
    if len(heads) != 4 or any(width * 2**i % count for i, count in enumerate(heads)):
        raise UserError(
            f"{name}: heads={heads} must be four numbers that divide {width}, {2 * width}, "
            f"{4 * width} and {8 * width} channels."
        )
    if arguments["window"] < 1:
        raise UserError(f"{name}: window={arguments['window']} must be at least 1.")
    return Swin(name, **arguments | {"depths": tuple(depths), "heads": tuple(heads)})
