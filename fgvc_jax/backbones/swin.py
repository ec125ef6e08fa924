"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030), version 1, as in timm or as in torchvision."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fgvc_jax.backbones.base import (
    Backbone,
    Variant,
    check_depths,
    require,
    sides,
)
from fgvc_jax.backbones.features import Info, Recorder, Tap, imagenet, stage_taps, wide
from fgvc_jax.errors import choose
from fgvc_jax.layers import remat
from fgvc_jax.layers.attention import Attention, Mlp, linear
from fgvc_jax.layers.conv import convolution
from fgvc_jax.layers.dropout import drop_path, fold, linear_rates
from fgvc_jax.layers.initializers import normal, torch_std
from fgvc_jax.layers.norm import layer_norm

PATCH = 4
EPSILON = 1e-5


def _pad(x_BHWC, rows: int, columns: int):
    """Zeros below and to the right, up to the next multiples."""
    below, right = -x_BHWC.shape[1] % rows, -x_BHWC.shape[2] % columns
    return jnp.pad(x_BHWC, ((0, 0), (0, below), (0, right), (0, 0)))


def resize_bias_table(table_RH: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Relative position biases of a square window for another window (height, width).

    [(2 v - 1)^2, heads] -> [(2 height - 1) * (2 width - 1), heads]. As timm: on each axis the given
    biases are taken to stand at distances that grow geometrically from the centre (ratio between
    1.01 and 1.5, by bisection to 1e-6) so far that they reach the ends of the new table, and between
    them goes linear interpolation. A table of the right size is returned as it is.
    """
    side, wanted = math.isqrt(table_RH.shape[0]), [2 * length - 1 for length in window]
    if [side, side] == wanted:
        return table_RH
    down, across = (jnp.asarray(_interpolation(side, n), table_RH.dtype) for n in wanted)
    table = table_RH.reshape(side, side, -1)
    table = jnp.einsum("ai,bj,ijh->abh", down, across, table, precision="highest")
    return table.reshape(math.prod(wanted), -1)


def _interpolation(side: int, wanted: int) -> np.ndarray:
    """Weights of the `side` given biases of one axis for the `wanted` ones, [wanted, side]."""
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
    return np.stack([np.interp(targets, places, unit) for unit in np.eye(side)], axis=1)


def _relative_positions(height: int, width: int) -> np.ndarray:
    """Row of the table for every query and key of a window, [N, N] with N = height * width."""
    y, x = np.divmod(np.arange(height * width), width)
    dy = y[:, None] - y[None, :] + height - 1
    dx = x[:, None] - x[None, :] + width - 1
    return dy * (2 * width - 1) + dx


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    """For one axis after the shift: parts that were not neighbours before it, [length]."""
    places = np.arange(length)
    return (places >= length - window).astype(int) + (places >= length - shift)


class WindowAttention(Attention):
    """Attention within windows, with a learnt bias for every relative position.

    A shifted map is rolled by half a window, and cells that became neighbours only by that do not
    attend to each other. Maps are padded with zeros to multiples of the window, and the zeros take
    part as tokens.

    Args:
      window: (height, width) in cells.
      shift: (down, across) in cells, by which the map is rolled; 0 on an axis without a shift.
      pad_first: pad the map before it is rolled, and shift no axis that one window covers (torchvision);
        else roll it, then pad it (timm).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: tuple[int, int],
        shift: tuple[int, int],
        pad_first: bool,
        **kw,
    ):
        super().__init__(width, heads, **kw)
        self.window = window
        self.shift = shift
        self.pad_first = pad_first
        rows = math.prod(2 * length - 1 for length in window)
        self.relative_position_bias_table = nnx.Param(
            normal(0.02)(kw["rngs"].params(), (rows, heads), kw["param_dtype"])
        )

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        height, width, channels = x_BHWC.shape[1:]
        window, shift = self.window, self.shift
        if self.pad_first:
            x = _pad(x_BHWC, *window)
            shift = tuple(
                0 if length <= side else by
                for length, side, by in zip(x.shape[1:3], window, shift, strict=True)
            )
            x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        else:
            x = _pad(jnp.roll(x_BHWC, (-shift[0], -shift[1]), (1, 2)), *window)
        batch, padded_height, padded_width, _ = padded = x.shape
        rows, columns = padded_height // window[0], padded_width // window[1]

        def to_windows(x_BHWC):
            x = x_BHWC.reshape(-1, rows, window[0], columns, window[1], x_BHWC.shape[-1])
            return x.swapaxes(2, 3).reshape(-1, rows * columns, math.prod(window), x.shape[-1])

        table = self.relative_position_bias_table[...]
        bias = table[_relative_positions(*window)].transpose(2, 0, 1)  # [heads, N, N]
        bias = bias.astype(jnp.promote_types(bias.dtype, jnp.float32))
        if any(shift):
            down = _regions(padded_height, window[0], shift[0])
            across = _regions(padded_width, window[1], shift[1])
            regions = to_windows((3 * down[:, None] + across)[None, :, :, None])[0, :, :, 0]
            apart = jnp.asarray(regions)[:, None, :, None] != jnp.asarray(regions)[:, None, None, :]
            bias = jnp.where(apart, bias - 100, bias)  # [windows, heads, N, N]

        y = super().__call__(to_windows(x), bias)
        y = y.reshape(batch, rows, columns, *window, channels).swapaxes(2, 3).reshape(padded)
        if self.pad_first:
            return jnp.roll(y, shift, (1, 2))[:, :height, :width]
        return jnp.roll(y[:, :height, :width], shift, (1, 2))


class Block(nnx.Module):
    """Pre-norm transformer block on a map."""

    def __init__(self, width: int, heads: int, window, shift, pad_first: bool, drop: float, **kw):
        self.drop = drop
        self.norm1 = layer_norm(width, EPSILON, **kw)
        self.attn = WindowAttention(width, heads, window, shift, pad_first, **kw)
        self.norm2 = layer_norm(width, EPSILON, **kw)
        self.mlp = Mlp(width, 4 * width, **kw)

    def __call__(self, x, keys=None):
        x = x + drop_path(self.attn(self.norm1(x)), fold(keys, 0), self.drop)
        return x + drop_path(self.mlp(self.norm2(x)), fold(keys, 1), self.drop)


class PatchMerging(nnx.Module):
    """Each 2 x 2 cells into one of twice the channels; odd maps are padded."""

    def __init__(self, width: int, **kw):
        self.norm = layer_norm(4 * width, EPSILON, **kw)
        self.reduction = linear(4 * width, 2 * width, use_bias=False, **kw)

    def __call__(self, x_BHWC):
        x = _pad(x_BHWC, 2, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # Among the four the row varies fastest.
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x))


class Stage(nnx.Module):
    """Patch merging, except in the first stage, and blocks whose windows are shifted in every second.

    Args:
      window: side of the windows in cells.
      drops: of each block, the probability that it is skipped in training.
      size: (height, width) of the map, for images of the size that the net is made for.
    """

    def __init__(
        self,
        width: int,
        drops: list[float],
        heads: int,
        window: int,
        size: tuple[int, int],
        convention: str,
        merge: bool,
        **kw,
    ):
        self.downsample = PatchMerging(width // 2, **kw) if merge else None
        pad_first = convention == "torchvision"
        windows = (window, window) if pad_first else tuple(min(window, n) for n in size)
        # timm shifts by half of the window that was asked for, where the map is larger than the window.
        shift = tuple(window // 2 if pad_first or n > window else 0 for n in size)
        self.blocks = nnx.List(
            [
                Block(width, heads, windows, shift if i % 2 else (0, 0), pad_first, drop, **kw)
                for i, drop in enumerate(drops)
            ]
        )


class Swin(Backbone):
    """Swin Transformer. Takes images whose sides are any multiples of 4.

    Taps: 'layer1' to 'layer4', each after the last block of its stage and before the next one's
    patch merging (strides 4, 8, 16, 32), 'layer1/0', 'layer1/1', ... after the earlier blocks, and
    'merged1' to 'merged3' after the patch merging that follows each stage (strides 8, 16, 32).
    `pooled` is the mean over the cells of layer4 after the final norm.

    Args:
      depths: blocks in each of the four stages.
      width: channels of the first stage; they double with each stage.
      heads: attention heads in each of the four stages.
      window: side of a window in cells.
      convention: how a map that is no multiple of the window is treated; the weights of a library
        want its own. 'timm' (and Microsoft's code): windows shrink to the maps that images of
        `image_size` give, an axis is shifted where that map is larger than the window, and the map
        is rolled, then padded. 'torchvision': windows keep their size, the map is padded, then
        rolled, and an axis is shifted where the padded map is larger than the window. Where every
        map is a multiple of the window, both compute the same.
      stochastic_depth: probability that what the last block adds is dropped in training; it rises
        linearly from 0 at the first block. The published Swin-T was trained with 0.2.
      image_size: side in pixels, or (height, width), multiples of 4. Images of another size (any
        multiples) are taken too, in the same windows.
    """

    oblong = True

    @staticmethod
    def check(
        name: str,
        *,
        width,
        depths,
        heads,
        window,
        convention,
        stochastic_depth,
        crop_fraction,
    ) -> None:
        check_depths(name, depths, width)
        channels = [width * 2**i for i in range(4)]
        divide = all(n >= 1 and c % n == 0 for c, n in zip(channels, heads, strict=True))
        allowed = "four numbers that divide {}, {}, {} and {} channels".format(*channels)
        require(divide, name, allowed, heads=heads)
        require(window >= 1, name, "at least 1", window=window)
        choose(convention, ("timm", "torchvision"), f"{name}: convention")

    def build(
        self,
        name,
        image_size,
        kw: dict,
        *,
        width,
        depths,
        heads,
        window,
        convention,
        stochastic_depth,
        crop_fraction,
    ) -> Info:
        self.convention = convention
        init = normal(torch_std(3 * PATCH**2))
        self.patch_embed = convolution(3, width, PATCH, PATCH, bias=True, init=init, **kw)
        self.patch_norm = layer_norm(width, EPSILON, **kw)
        self.conventions_agree = True  # for images of image_size
        rates = iter(linear_rates(stochastic_depth, sum(depths)))
        stages, taps = [], []
        for i, depth in enumerate(depths):
            stride, channels = PATCH * 2**i, width * 2**i
            size = tuple(-(-side // stride) for side in sides(image_size))
            self.conventions_agree &= not any(length % window for length in size)
            drops = [next(rates) for _ in range(depth)]
            stages.append(Stage(channels, drops, heads[i], window, size, convention, i > 0, **kw))
            if i > 0:
                taps.append(Tap(f"merged{i}", channels, stride))
            taps += stage_taps(i + 1, depth, channels, stride)
        self.layers = nnx.List(stages)
        self.norm = layer_norm(channels, EPSILON, **kw)
        wants = imagenet(max(sides(image_size)), crop_fraction, "bicubic")
        pyramid = ("merged1", "merged2", "merged3", "layer4")
        return Info(name, tuple(taps), channels, wants, pyramid_taps=pyramid)

    def forward(self, x_BHWC: jax.Array, record: Recorder, keys=None) -> tuple[jax.Array, None]:
        number = 0
        x = self.patch_norm(self.patch_embed(x_BHWC))
        for stage in self.layers:
            x = x if stage.downsample is None else record(stage.downsample(x))
            for block in stage.blocks:
                x = record(remat.call(self.remat, block, x, fold(keys, number)))
                number += 1
        return wide(self.norm(x)).mean((1, 2)), None


# The patches and three mergings divide the sides by 32; smaller maps would be merged with zeros.
def _variant(
    width: int, depth: int, heads: int, window: int, image_size: int, crop_fraction: float
) -> Variant:
    arguments = {
        "width": width,
        "depths": (2, 2, depth, 2),
        "heads": (heads, 2 * heads, 4 * heads, 8 * heads),
        "window": window,
        "convention": "timm",
        "stochastic_depth": 0.0,
    }
    fixed = {"crop_fraction": crop_fraction}
    return Variant(Swin, image_size, 32, PATCH, arguments, fixed)


_at_224 = functools.partial(_variant, window=7, image_size=224, crop_fraction=0.9)
_at_384 = functools.partial(_variant, window=12, image_size=384, crop_fraction=1.0)
VARIANTS = {
    "swin_tiny_patch4_window7_224": _at_224(96, 6, 3),
    "swin_small_patch4_window7_224": _at_224(96, 18, 3),
    "swin_base_patch4_window7_224": _at_224(128, 18, 4),
    "swin_base_patch4_window12_384": _at_384(128, 18, 4),
    "swin_large_patch4_window7_224": _at_224(192, 18, 6),
    "swin_large_patch4_window12_384": _at_384(192, 18, 6),
}
