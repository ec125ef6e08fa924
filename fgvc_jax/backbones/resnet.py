"""ResNet v1.5 (He et al. 2016, with the stride in the 3x3 convolution) and ResNeXt (Xie et al. 2017).

Both as in torchvision.
"""

import jax
from flax import nnx

from fgvc_jax.backbones.base import Backbone, Variant, check_depths, require
from fgvc_jax.backbones.features import Info, Recorder, imagenet, stage_taps, wide
from fgvc_jax.layers import remat
from fgvc_jax.layers.conv import ConvNorm, convolution
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.ops.pool import max_pool


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; ResNet-18 and 34."""

    expansion = 1
    groups = 1

    def __init__(self, inputs: int, planes: int, stride: int, **kw):
        self.conv1 = convolution(inputs, planes, 3, stride, **kw)
        self.bn1 = BatchNorm(planes, **kw)
        self.conv2 = convolution(planes, planes, 3, **kw)
        self.bn2 = BatchNorm(planes, **kw)
        if stride != 1 or inputs != planes:
            self.downsample = ConvNorm(inputs, planes, 1, stride, **kw)
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
        self.conv1 = convolution(inputs, inside, 1, **kw)
        self.bn1 = BatchNorm(inside, **kw)
        self.conv2 = convolution(inside, inside, 3, stride, self.groups, **kw)
        self.bn2 = BatchNorm(inside, **kw)
        self.conv3 = convolution(inside, outputs, 1, **kw)
        self.bn3 = BatchNorm(outputs, **kw)
        if stride != 1 or inputs != outputs:
            self.downsample = ConvNorm(inputs, outputs, 1, stride, **kw)
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


class ResNet(Backbone):
    """ResNet or ResNeXt.

    Taps: 'layer1' to 'layer4', each after the last block of its stage (strides 4, 8, 16, 32), and
    'layer1/0', 'layer1/1', ... after the earlier blocks. `pooled` is the mean over the cells of layer4.

    Args:
      depths: blocks in each of the four stages.
      width: channels of the stem, 64 in the published nets; all others scale with it.
    """

    @staticmethod
    def check(name: str, *, width: int, depths: tuple[int, ...], block: type[nnx.Module]) -> None:
        check_depths(name, depths, width)
        if block.groups > 1:
            least = 64 // block.base_width
            allowed = f"a multiple of {least}, so that each of the {block.groups} groups has whole channels"
            require(width % least == 0, name, allowed, width=width)

    def build(self, name: str, image_size: int, kw: dict, *, width, depths, block) -> Info:
        self.conv1 = convolution(3, width, 7, 2, **kw)
        self.bn1 = BatchNorm(width, **kw)
        taps, channels = [], width
        for stage, depth in enumerate(depths):
            blocks = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride, **kw))
                channels = width * 2**stage * block.expansion
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
            taps += stage_taps(stage + 1, depth, channels, 4 * 2**stage)
        return Info(name, tuple(taps), channels, imagenet(image_size, 0.875, "bilinear"))

    def forward(self, x_BHWC: jax.Array, record: Recorder, keys=None) -> tuple[jax.Array, None]:
        x = max_pool(jax.nn.relu(self.bn1(self.conv1(x_BHWC))), 3, 2, 1)
        for blocks in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in blocks:
                x = record(remat.call(self.remat, block, x))
        return wide(x).mean((1, 2)), None


# The last map has stride 32. Down to 16 pixels only the last of the five halvings is left without a
# second row to halve; below, several stages would see one cell and the zeros around it.
def _variant(block: type[nnx.Module], *depths: int) -> Variant:
    return Variant(ResNet, 224, 16, 1, {"width": 64, "depths": depths}, {"block": block})


VARIANTS = {
    "resnet18": _variant(BasicBlock, 2, 2, 2, 2),
    "resnet34": _variant(BasicBlock, 3, 4, 6, 3),
    "resnet50": _variant(Bottleneck, 3, 4, 6, 3),
    "resnet101": _variant(Bottleneck, 3, 4, 23, 3),
    "resnet152": _variant(Bottleneck, 3, 8, 36, 3),
    "resnext50_32x4d": _variant(ResNeXt32x4d, 3, 4, 6, 3),
    "resnext101_32x8d": _variant(ResNeXt32x8d, 3, 4, 23, 3),
    "resnext101_64x4d": _variant(ResNeXt64x4d, 3, 4, 23, 3),
}
