"""ConvNeXt (Liu et al. 2022), as in torchvision and timm."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones.base import Backbone, Variant, check_depths
from fgvc_jax.backbones.features import Info, Recorder, imagenet, stage_taps, wide
from fgvc_jax.layers import remat
from fgvc_jax.layers.conv import convolution
from fgvc_jax.layers.dropout import drop_path, fold, linear_rates
from fgvc_jax.layers.initializers import normal
from fgvc_jax.layers.norm import layer_norm
from fgvc_jax.ops.gelu import gelu

EPSILON = 1e-6

_conv = functools.partial(convolution, bias=True, init=normal(0.02))


class Block(nnx.Module):
    """7x7 depthwise, norm, and an MLP in every cell, with a learnt scale for every channel."""

    def __init__(self, width: int, drop: float, **kw):
        self.drop = drop
        self.conv_dw = _conv(width, width, 7, groups=width, **kw)
        self.norm = layer_norm(width, EPSILON, **kw)
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=normal(0.02), **kw)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=normal(0.02), **kw)
        self.gamma = nnx.Param(jnp.full(width, 1e-6, kw["param_dtype"]))

    def __call__(self, x, keys=None):
        # In two dimensions: with four the gradients of the linear layers take XLA:CPU three times as long.
        y = self.conv_dw(x).reshape(-1, x.shape[-1])
        y = self.fc2(gelu(self.fc1(self.norm(y))))
        y = (self.gamma[...].astype(y.dtype) * y).reshape(x.shape)
        return x + drop_path(y, keys, self.drop)


class Stage(nnx.Module):
    """Norm and 2x2 convolution to half the size, except in the first stage; then blocks."""

    def __init__(self, inputs: int, width: int, drops: list[float], **kw):
        first = inputs == width
        self.norm = None if first else layer_norm(inputs, EPSILON, **kw)
        self.conv = None if first else _conv(inputs, width, 2, 2, **kw)
        self.blocks = nnx.List([Block(width, drop, **kw) for drop in drops])


class ConvNeXt(Backbone):
    """ConvNeXt. Rows and columns that fill no patch are left out, as in torch: no multiple of 32 is needed.

    Taps: 'layer1' to 'layer4', each after the last block of its stage (strides 4, 8, 16, 32), and
    'layer1/0', 'layer1/1', ... after the earlier blocks. `pooled` is the mean over the cells of layer4
    after the final norm.

    Args:
      depths: blocks in each of the four stages.
      width: channels of the first stage; they double with each stage.
      stochastic_depth: probability that the last block is skipped in training; it rises linearly from 0
        at the first block.
    """

    @staticmethod
    def check(
        name: str,
        *,
        width: int,
        depths: tuple[int, ...],
        stochastic_depth: float,
        crop_fraction: float,
    ) -> None:
        check_depths(name, depths, width)

    def build(
        self, name, image_size: int, kw: dict, *, width, depths, stochastic_depth, crop_fraction
    ) -> Info:
        drops = iter(linear_rates(stochastic_depth, sum(depths)))
        self.stem = _conv(3, width, 4, 4, **kw)
        self.stem_norm = layer_norm(width, EPSILON, **kw)
        stages, taps, channels = [], [], width
        for i, depth in enumerate(depths):
            stages.append(Stage(channels, width * 2**i, [next(drops) for _ in range(depth)], **kw))
            channels = width * 2**i
            taps += stage_taps(i + 1, depth, channels, 4 * 2**i)
        self.layers = nnx.List(stages)
        at_least_float32 = {"dtype": jnp.promote_types(kw["dtype"], jnp.float32)}
        self.norm = layer_norm(channels, EPSILON, **kw | at_least_float32)
        return Info(name, tuple(taps), channels, imagenet(image_size, crop_fraction, "bilinear"))

    def forward(self, x_BHWC: jax.Array, record: Recorder, keys=None) -> tuple[jax.Array, None]:
        number = 0
        x = self.stem_norm(self.stem(x_BHWC))
        for stage in self.layers:
            x = x if stage.conv is None else stage.conv(stage.norm(x))
            for block in stage.blocks:
                x = record(remat.call(self.remat, block, x, fold(keys, number)))
                number += 1
        return self.norm(wide(x).mean((1, 2))), None


def _variant(depths: tuple[int, ...], width: int, short_side: int) -> Variant:
    # The stem and three stages divide the sides by 32 without padding. The short side, to which images are
    # resized before the crop, is torchvision's.
    arguments = {"width": width, "depths": depths, "stochastic_depth": 0.0}
    return Variant(ConvNeXt, 224, 32, 1, arguments, {"crop_fraction": 224 / short_side})


VARIANTS = {
    "convnext_tiny": _variant((3, 3, 9, 3), 96, 236),
    "convnext_small": _variant((3, 3, 27, 3), 96, 230),
    "convnext_base": _variant((3, 3, 27, 3), 128, 232),
}
