"""ResNet v1.5 (He et al. 2016, with the stride in the 3x3 convolution) and ResNeXt (Xie et al. 2017).

Both as in torchvision.
"""

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
from fgvc_jax.layers.initializers import kaiming_fan_out
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.ops.conv import conv
from fgvc_jax.ops.pool import max_pool


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups=1, *, dtype, param_dtype, rngs
):
    # Padding as torch's (kernel - 1) / 2 on both sides; 'SAME' is another thing at stride 2.
    pad = (kernel - 1) // 2
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=kaiming_fan_out(kernel, outputs),
        conv_general_dilated=conv,
        rngs=rngs,
    )


class Downsample(nnx.Module):
    """1x1 convolution and BatchNorm on the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, **kw):
        self.conv = _conv(inputs, outputs, 1, stride, **kw)
        self.bn = BatchNorm(outputs, **kw)

    def __call__(self, x):
        return self.bn(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; ResNet-18 and 34."""

    expansion = 1
    groups = 1

    def __init__(self, inputs: int, planes: int, stride: int, **kw):
        self.conv1 = _conv(inputs, planes, 3, stride, **kw)
        self.bn1 = BatchNorm(planes, **kw)
        self.conv2 = _conv(planes, planes, 3, 1, **kw)
        self.bn2 = BatchNorm(planes, **kw)
        if stride != 1 or inputs != planes:
            self.downsample = Downsample(inputs, planes, stride, **kw)
        else:
            self.downsample = None

    def __call__(self, x):
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride), 1x1; ResNet-50 and deeper.

    The 3x3 convolution has `groups` groups, each of `base_width` channels for every 64 planes.
    """

    expansion = 4
    groups = 1
    base_width = 64

    def __init__(self, inputs: int, planes: int, stride: int, **kw):
        outputs = planes * self.expansion
        inside = planes * self.base_width // 64 * self.groups
        self.conv1 = _conv(inputs, inside, 1, 1, **kw)
        self.bn1 = BatchNorm(inside, **kw)
        self.conv2 = _conv(inside, inside, 3, stride, self.groups, **kw)
        self.bn2 = BatchNorm(inside, **kw)
        self.conv3 = _conv(inside, outputs, 1, 1, **kw)
        self.bn3 = BatchNorm(outputs, **kw)
        if stride != 1 or inputs != outputs:
            self.downsample = Downsample(inputs, outputs, stride, **kw)
        else:
            self.downsample = None

    def __call__(self, x):
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNeXt32x4d(Bottleneck):
    groups = 32
    base_width = 4


class ResNeXt32x8d(Bottleneck):
    groups = 32
    base_width = 8


class ResNeXt64x4d(Bottleneck):
    groups = 64
    base_width = 4


class ResNet(nnx.Module):
    """ResNet or ResNeXt without its classifier.

    Taps: 'layer1' to 'layer4', each after the last block of its stage (strides 4, 8, 16, 32), and
    'layer1/0', 'layer1/1', ... after the earlier blocks. `pooled` is the mean over the cells of layer4.

    Args:
      depths: blocks in each of the four stages.
      width: channels of the stem, 64 in the published nets; all others scale with it.
      remat: compute each block again for the gradient, instead of keeping what is inside.
    """

    def __init__(
        self,
        name: str,
        *,
        block: type[nnx.Module],
        depths: Sequence[int],
        width: int = 64,
        image_size: int | None = None,
        remat: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dtype = dtype
        self.remat = remat
        self.conv1 = _conv(3, width, 7, 2, **kw)
        self.bn1 = BatchNorm(width, **kw)

        taps: list[Tap] = []
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride, **kw))
                channels = width * 2**stage * block.expansion
                tap = f"layer{stage + 1}" + (f"/{number}" if number < depth - 1 else "")
                taps.append(Tap(tap, channels, 4 * 2**stage))
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))

        self.info = Info(
            name=name,
            taps=tuple(taps),
            default_taps=("layer1", "layer2", "layer3", "layer4"),
            cam_tap="layer4",
            width=channels,
            preprocessing=Preprocessing(
                image_size or 224, IMAGENET_MEAN, IMAGENET_STD, 0.875, "bilinear"
            ),
        )

    def __call__(
        self,
        images_BHWC: jax.Array,
        taps: Sequence[str] | None = None,
        edit: Edit | None = None,
    ) -> Features:
        """Features of normalised images [B, H, W, 3] of any size.

        Args:
          taps: names of the maps to return; None for `info.default_taps`. Unknown: UserError.
          edit: edit(name, map) -> map, called at every tap, before the next layer reads the map.
        """
        record = Recorder(self.info, taps, edit)
        x = self.conv1(images_BHWC.astype(self.dtype))
        x = max_pool(jax.nn.relu(self.bn1(x)), 3, 2, 1)
        names = iter(self.info.taps)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self, stage):
                x = record(next(names).name, remat.call(self.remat, block, x))
        pooled = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return Features(record.maps, pooled, None)


VARIANTS = {
    "resnet18": {"block": BasicBlock, "depths": (2, 2, 2, 2)},
    "resnet34": {"block": BasicBlock, "depths": (3, 4, 6, 3)},
    "resnet50": {"block": Bottleneck, "depths": (3, 4, 6, 3)},
    "resnet101": {"block": Bottleneck, "depths": (3, 4, 23, 3)},
    "resnet152": {"block": Bottleneck, "depths": (3, 8, 36, 3)},
    "resnext50_32x4d": {"block": ResNeXt32x4d, "depths": (3, 4, 6, 3)},
    "resnext101_32x8d": {"block": ResNeXt32x8d, "depths": (3, 4, 23, 3)},
    "resnext101_64x4d": {"block": ResNeXt64x4d, "depths": (3, 4, 23, 3)},
}
ARGUMENTS = ("width", "depths")


def create(name: str, **arguments) -> ResNet:
    """The named ResNet; `arguments` as in `ResNet`."""
    arguments = VARIANTS[name] | arguments
    depths = arguments["depths"]
    if len(depths) != 4 or min(depths) < 1:
        raise UserError(f"{name}: depths={depths} must be four numbers of blocks, each at least 1.")
    block, width = arguments["block"], arguments.get("width", 64)
    if block.groups > 1 and width * block.base_width % 64:
        raise UserError(
            f"{name}: width={width} must be a multiple of {64 // block.base_width}, so that each of "
            f"the {block.groups} groups has whole channels."
        )
    return ResNet(name, **arguments | {"depths": tuple(depths)})
