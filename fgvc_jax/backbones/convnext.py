"""ConvNeXt (Liu et al. 2022), as in torchvision and timm."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
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
from fgvc_jax.errors import UserError
from fgvc_jax.layers import remat
from fgvc_jax.layers.initializers import normal
from fgvc_jax.ops.conv import conv

SMALLEST = 32  # pixels; the last map has one cell for so many


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, **kw):
    """Padded to keep the size at stride 1; patches that do not overlap at stride = kernel."""
    pad = (kernel - stride) // 2
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        kernel_init=normal(0.02),
        conv_general_dilated=conv,
        **kw,
    )


def _norm(width: int, **kw):
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, **kw)


class Block(nnx.Module):
    """7x7 depthwise, norm, and an MLP in every cell, with a learnt scale for every channel."""

    def __init__(self, width: int, **kw):
        self.conv_dw = _conv(width, width, 7, 1, width, **kw)
        self.norm = _norm(width, **kw)
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=normal(0.02), **kw)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=normal(0.02), **kw)
        self.gamma = nnx.Param(jnp.full(width, 1e-6, kw["param_dtype"]))

    def __call__(self, x):
        # In two dimensions: with four the gradients of the linear layers take XLA:CPU three times as long.
        y = self.conv_dw(x).reshape(-1, x.shape[-1])
        y = self.fc2(jax.nn.gelu(self.fc1(self.norm(y)), approximate=False))
        return x + (self.gamma[...].astype(y.dtype) * y).reshape(x.shape)


class Stage(nnx.Module):
    """Norm and 2x2 convolution to half the size, except in the first stage; then blocks."""

    def __init__(self, inputs: int, width: int, depth: int, **kw):
        first = inputs == width
        self.norm = None if first else _norm(inputs, **kw)
        self.conv = None if first else _conv(inputs, width, 2, 2, **kw)
        self.blocks = nnx.List([Block(width, **kw) for _ in range(depth)])


class ConvNeXt(nnx.Module):
    """ConvNeXt without its classifier.

    Taps: 'layer1' to 'layer4', each after the last block of its stage (strides 4, 8, 16, 32), and
    'layer1/0', 'layer1/1', ... after the earlier blocks. `pooled` is the mean over the cells of layer4
    after the final norm. Stochastic depth is left out: no block is ever skipped.

    Args:
      depths: blocks in each of the four stages.
      width: channels of the first stage; they double with each stage.
      remat: compute each block again for the gradient, instead of keeping what is inside.
    """

    def __init__(
        self,
        name: str,
        *,
        depths: Sequence[int],
        width: int,
        crop_fraction: float,
        image_size: int = 224,
        remat: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dtype = dtype
        self.remat = remat
        self.stem = _conv(3, width, 4, 4, **kw)
        self.stem_norm = _norm(width, **kw)
        stages, taps, channels = [], [], width
        for i, depth in enumerate(depths):
            stages.append(Stage(channels, width * 2**i, depth, **kw))
            channels = width * 2**i
            names = [*(f"layer{i + 1}/{block}" for block in range(depth - 1)), f"layer{i + 1}"]
            taps += [Tap(tap, channels, 4 * 2**i) for tap in names]
        self.layers = nnx.List(stages)
        self.norm = _norm(channels, **kw | {"dtype": jnp.promote_types(dtype, jnp.float32)})

        self.info = Info(
            name=name,
            taps=tuple(taps),
            default_taps=("layer1", "layer2", "layer3", "layer4"),
            cam_tap="layer4",
            width=channels,
            preprocessing=Preprocessing(
                image_size, IMAGENET_MEAN, IMAGENET_STD, crop_fraction, "bilinear"
            ),
        )

    def __call__(
        self,
        images_BHWC: jax.Array,
        taps: Sequence[str] | None = None,
        edit: Edit | None = None,
    ) -> Features:
        """Features of normalised images [B, H, W, 3], H and W at least 32.

        Rows and columns that fill no patch are left out, as in torch: no multiple of 32 is needed.

        Args:
          taps: names of the maps to return; None for `info.default_taps`.
          edit: edit(name, map) -> map, called at every tap, before the next layer reads the map.

        Raises:
          UserError: for an image size or a tap that does not fit.
        """
        record = Recorder(self.info, taps, edit)
        check_size(self.info.name, *images_BHWC.shape[1:3])
        x = self.stem_norm(self.stem(images_BHWC.astype(self.dtype)))
        names = iter(self.info.taps)
        for stage in self.layers:
            x = x if stage.conv is None else stage.conv(stage.norm(x))
            for block in stage.blocks:
                x = record(next(names).name, remat.call(self.remat, block, x))
        pooled = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return Features(record.maps, self.norm(pooled), None)


def check_size(name: str, height: int, width: int) -> None:
    if min(height, width) < SMALLEST:
        raise UserError(
            f"{name} takes images of at least {SMALLEST} x {SMALLEST} pixels, not {height} x {width}."
        )


# The crop fractions are torchvision's.
VARIANTS = {
    "convnext_tiny": {"depths": (3, 3, 9, 3), "width": 96, "crop_fraction": 224 / 236},
    "convnext_small": {"depths": (3, 3, 27, 3), "width": 96, "crop_fraction": 224 / 230},
    "convnext_base": {"depths": (3, 3, 27, 3), "width": 128, "crop_fraction": 224 / 232},
}
ARGUMENTS = ("width", "depths")


def create(name: str, *, image_size: int | None = None, **arguments) -> ConvNeXt:
    """The named ConvNeXt; `arguments` as in `ConvNeXt`."""
    arguments = VARIANTS[name] | arguments
    if image_size is not None:
        check_size(name, image_size, image_size)
        arguments["image_size"] = image_size
    depths = arguments["depths"]
    if len(depths) != 4 or min(depths) < 1:
        raise UserError(f"{name}: depths={depths} must be four numbers of blocks, each at least 1.")
    return ConvNeXt(name, **arguments | {"depths": tuple(depths)})
