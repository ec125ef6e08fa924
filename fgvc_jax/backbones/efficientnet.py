"""EfficientNet-B0 to B7 (Tan & Le 2019), as in torchvision and timm, and as in TensorFlow."""

import math

import jax
from flax import nnx

from fgvc_jax.backbones.base import Backbone, Variant, require
from fgvc_jax.backbones.features import Info, Recorder, Tap, imagenet, stage_taps, wide
from fgvc_jax.layers import remat
from fgvc_jax.layers.conv import ConvNorm, convolution
from fgvc_jax.layers.dropout import drop_path, fold

# Table 1 of the paper: expansion, kernel, stride, channels and blocks of the seven stages of B0.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM = 32


def _channels(base: int, width: float) -> int:
    """base * width to the nearest multiple of 8, but not more than a tenth below it."""
    scaled = base * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class SqueezeExcitation(nnx.Module):
    """A factor for every channel, from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, **kw):
        self.fc1 = convolution(channels, squeezed, 1, bias=True, **kw)
        self.fc2 = convolution(squeezed, channels, 1, bias=True, **kw)

    def __call__(self, x_BHWC):
        mean = wide(x_BHWC).mean((1, 2), keepdims=True).astype(x_BHWC.dtype)
        return x_BHWC * jax.nn.sigmoid(self.fc2(jax.nn.silu(self.fc1(mean))))


class MBConv(nnx.Module):
    """Inverted residual: 1x1 up, depthwise, squeeze and excitation, 1x1 down."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        kernel: int,
        stride: int,
        drop: float,
        *,
        norm,
        **kw,
    ):
        self.drop = drop
        inside = inputs * expansion
        self.expand = ConvNorm(inputs, inside, **norm, **kw) if expansion > 1 else None
        self.depthwise = ConvNorm(inside, inside, kernel, stride, inside, **norm, **kw)
        self.se = SqueezeExcitation(inside, inputs // 4, **kw)
        self.project = ConvNorm(inside, outputs, **norm, **kw)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x, keys=None):
        y = x if self.expand is None else jax.nn.silu(self.expand(x))
        y = self.project(self.se(jax.nn.silu(self.depthwise(y))))
        return x + drop_path(y, keys, self.drop) if self.residual else y


class EfficientNet(Backbone):
    """EfficientNet (without the dropout before the classifier).

    Taps: 'layer1' to 'layer7', each after the last block of its stage (strides 2, 4, 8, 16, 16, 32,
    32), 'layer2/0', ... after the earlier blocks, and 'head' after the last convolution. `pooled` is
    the mean over the cells of head.

    Weights are worth something only in the arithmetic that they were trained in, which a name
    stands for. torchvision and timm pad symmetrically; eps is 1e-5, but in torchvision's B5 to B7
    1e-3. The weights that come from TensorFlow are timm's `tf_efficientnet_b*`: 'SAME' padding
    (asymmetric at stride 2), eps 1e-3.

    Args:
      width, depth: factors on the channels and on the blocks of B0.
      same: 'SAME' padding.
      stochastic_depth: probability that a block is skipped in training, for a block behind the last; it
        rises linearly from 0 at the first. The published weights were trained with 0.2.
      eps, momentum: of BatchNorm. timm's efficientnet_b5 to b7, unlike torchvision's, want eps=1e-5.
    """

    @staticmethod
    def check(name: str, *, width, depth, eps, momentum, stochastic_depth, **fixed) -> None:
        factors = "factors on the channels and blocks of B0, above 0 and at most 100"
        require(
            0 < min(width, depth) <= max(width, depth) <= 100,
            name,
            factors,
            width=width,
            depth=depth,
        )
        require(eps > 0, name, "above 0", eps=eps)
        require(0 <= momentum < 1, name, "at least 0 and below 1", momentum=momentum)

    def build(
        self,
        name,
        image_size: int,
        kw: dict,
        *,
        width,
        depth,
        eps,
        momentum,
        stochastic_depth,
        same,
        crop_fraction,
    ) -> Info:
        norm = {"same": same, "eps": eps, "momentum": momentum}
        self.eps = eps
        channels, total = _channels(STEM, width), 2
        self.stem = ConvNorm(3, channels, 3, 2, **norm, **kw)
        all_blocks = sum(math.ceil(stage[-1] * depth) for stage in STAGES)
        stages, taps, before = [], [], 0
        for i, (expansion, kernel, stride, base, repeats) in enumerate(STAGES):
            blocks, count = [], math.ceil(repeats * depth)
            total *= stride
            for number in range(count):
                outputs, steps = _channels(base, width), stride if number == 0 else 1
                drop = stochastic_depth * before / all_blocks
                blocks.append(
                    MBConv(channels, outputs, expansion, kernel, steps, drop, norm=norm, **kw)
                )
                channels, before = outputs, before + 1
            stages.append(nnx.List(blocks))
            taps += stage_taps(i + 1, count, channels, total)
        self.layers = nnx.List(stages)
        self.head = ConvNorm(channels, 4 * channels, **norm, **kw)
        return Info(
            name,
            (*taps, Tap("head", 4 * channels, total)),
            4 * channels,
            imagenet(image_size, crop_fraction, "bicubic"),
            default_taps=("layer2", "layer3", "layer5", "layer7"),  # the last of each stride
            cam_tap="head",
            pyramid_taps=("layer4", "layer5", "layer6", "layer7"),
        )

    def forward(self, x_BHWC: jax.Array, record: Recorder, keys=None) -> tuple[jax.Array, None]:
        number = 0
        x = jax.nn.silu(self.stem(x_BHWC))
        for blocks in self.layers:
            for block in blocks:
                x = record(remat.call(self.remat, block, x, fold(keys, number)))
                number += 1
        x = record(jax.nn.silu(self.head(x)))
        return wide(x).mean((1, 2)), None


# Factors on width and depth, image size, and the crop fractions of torchvision and of timm's tf_.
_SCALES = (
    (1.0, 1.0, 224, 224 / 256, 0.875),
    (1.0, 1.1, 240, 240 / 256, 0.882),
    (1.1, 1.2, 260, 1.0, 0.890),
    (1.2, 1.4, 300, 300 / 320, 0.904),
    (1.4, 1.8, 380, 380 / 384, 0.922),
    (1.6, 2.2, 456, 1.0, 0.934),
    (1.8, 2.6, 528, 1.0, 0.942),
    (2.0, 3.1, 600, 1.0, 0.949),
)


def _variant(number: int, crop: int, same: bool, eps: float, momentum: float) -> Variant:
    width, depth, size, *crops = _SCALES[number]
    arguments = {
        "width": width,
        "depth": depth,
        "eps": eps,
        "momentum": momentum,
        "stochastic_depth": 0.0,
    }
    # 16 pixels as for a ResNet: the same five halvings, padded alike.
    return Variant(
        EfficientNet, size, 16, 1, arguments, {"same": same, "crop_fraction": crops[crop]}
    )


_TORCH = (0, False, 1e-5, 0.9)
_TORCH_LARGE = (0, False, 1e-3, 0.99)
_TENSORFLOW = (1, True, 1e-3, 0.9)
VARIANTS = {
    **{f"efficientnet_b{i}": _variant(i, *(_TORCH if i < 5 else _TORCH_LARGE)) for i in range(8)},
    **{f"tf_efficientnet_b{i}": _variant(i, *_TENSORFLOW) for i in range(8)},
}
