"""EfficientNet-B0 to B7 (Tan & Le 2019), as in torchvision and timm, and as in TensorFlow."""

import math
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


class ConvNorm(nnx.Module):
    """Convolution and BatchNorm; 'SAME' padding as TensorFlow's, else (kernel - 1) / 2 on all sides."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        same: bool,
        eps: float,
        momentum: float,
        dtype,
        param_dtype,
        rngs,
    ):
        pad = (kernel - 1) // 2
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            (stride, stride),
            padding="SAME" if same else ((pad, pad), (pad, pad)),
            feature_group_count=groups,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kaiming_fan_out(kernel, outputs),
            conv_general_dilated=conv,
            rngs=rngs,
        )
        self.bn = BatchNorm(
            outputs, eps=eps, momentum=momentum, dtype=dtype, param_dtype=param_dtype
        )

    def __call__(self, x):
        return self.bn(self.conv(x))


class SqueezeExcitation(nnx.Module):
    """A factor for every channel, from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, **kw):
        def linear(inputs, outputs):  # a 1x1 convolution, as in the files
            init = kaiming_fan_out(1, outputs)
            return nnx.Conv(
                inputs, outputs, (1, 1), kernel_init=init, conv_general_dilated=conv, **kw
            )

        self.fc1 = linear(channels, squeezed)
        self.fc2 = linear(squeezed, channels)

    def __call__(self, x_BHWC):
        wide = jnp.promote_types(x_BHWC.dtype, jnp.float32)
        mean = x_BHWC.astype(wide).mean((1, 2), keepdims=True).astype(x_BHWC.dtype)
        return x_BHWC * jax.nn.sigmoid(self.fc2(jax.nn.silu(self.fc1(mean))))


class MBConv(nnx.Module):
    """Inverted residual: 1x1 up, depthwise, squeeze and excitation, 1x1 down."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, *, norm, **kw
    ):
        inside = inputs * expansion
        self.expand = ConvNorm(inputs, inside, **norm, **kw) if expansion > 1 else None
        self.depthwise = ConvNorm(inside, inside, kernel, stride, inside, **norm, **kw)
        self.se = SqueezeExcitation(inside, inputs // 4, **kw)
        self.project = ConvNorm(inside, outputs, **norm, **kw)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x):
        y = x if self.expand is None else jax.nn.silu(self.expand(x))
        y = self.project(self.se(jax.nn.silu(self.depthwise(y))))
        return x + y if self.residual else y


class EfficientNet(nnx.Module):
    """EfficientNet without its classifier (and the dropout before it).

    Taps: 'layer1' to 'layer7', each after the last block of its stage (strides 2, 4, 8, 16, 16, 32,
    32), 'layer2/0', ... after the earlier blocks, and 'head' after the last convolution. `pooled` is
    the mean over the cells of head. Stochastic depth is left out: no block is ever skipped.

    Weights are worth something only in the arithmetic that they were trained in, which a name
    stands for. torchvision and timm pad symmetrically; eps is 1e-5, but in torchvision's B5 to B7
    1e-3. The weights that come from TensorFlow are timm's `tf_efficientnet_b*`: 'SAME' padding
    (asymmetric at stride 2), eps 1e-3.

    Args:
      width, depth: factors on the channels and on the blocks of B0.
      same: 'SAME' padding.
      eps, momentum: of BatchNorm. timm's efficientnet_b5 to b7, unlike torchvision's, want eps=1e-5.
      remat: compute each block again for the gradient, instead of keeping what is inside.
    """

    def __init__(
        self,
        name: str,
        *,
        width: float,
        depth: float,
        image_size: int,
        crop_fraction: float,
        same: bool,
        eps: float,
        momentum: float,
        remat: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = {"same": same, "eps": eps, "momentum": momentum}
        self.dtype = dtype
        self.remat = remat
        self.eps = eps
        channels, total = _channels(STEM, width), 2
        self.stem = ConvNorm(3, channels, 3, 2, **norm, **kw)
        stages, taps = [], []
        for i, (expansion, kernel, stride, base, repeats) in enumerate(STAGES):
            blocks, count = [], math.ceil(repeats * depth)
            total *= stride
            for number in range(count):
                outputs, steps = _channels(base, width), stride if number == 0 else 1
                blocks.append(MBConv(channels, outputs, expansion, kernel, steps, norm=norm, **kw))
                channels = outputs
                tap = f"layer{i + 1}" + (f"/{number}" if number < count - 1 else "")
                taps.append(Tap(tap, channels, total))
            stages.append(nnx.List(blocks))
        self.layers = nnx.List(stages)
        self.head = ConvNorm(channels, 4 * channels, **norm, **kw)

        self.info = Info(
            name=name,
            taps=(*taps, Tap("head", 4 * channels, total)),
            default_taps=("layer2", "layer3", "layer5", "layer7"),  # the last of each stride
            cam_tap="head",
            width=4 * channels,
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
        """Features of normalised images [B, H, W, 3] of any size.

        Args:
          taps: names of the maps to return; None for `info.default_taps`. Unknown: UserError.
          edit: edit(name, map) -> map, called at every tap, before the next layer reads the map.
        """
        record = Recorder(self.info, taps, edit)
        x = jax.nn.silu(self.stem(images_BHWC.astype(self.dtype)))
        names = iter(self.info.taps)
        for blocks in self.layers:
            for block in blocks:
                x = record(next(names).name, remat.call(self.remat, block, x))
        x = record("head", jax.nn.silu(self.head(x)))
        pooled = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return Features(record.maps, pooled, None)


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
_TORCH = {"same": False, "eps": 1e-5, "momentum": 0.9}
_TORCH_LARGE = {"same": False, "eps": 1e-3, "momentum": 0.99}
_TENSORFLOW = {"same": True, "eps": 1e-3, "momentum": 0.9}


def _variant(number: int, crop: int, arithmetic: dict) -> dict:
    width, depth, size, *crops = _SCALES[number]
    scale = {"width": width, "depth": depth, "image_size": size, "crop_fraction": crops[crop]}
    return scale | arithmetic


VARIANTS = {
    **{f"efficientnet_b{i}": _variant(i, 0, _TORCH if i < 5 else _TORCH_LARGE) for i in range(8)},
    **{f"tf_efficientnet_b{i}": _variant(i, 1, _TENSORFLOW) for i in range(8)},
}
ARGUMENTS = ("width", "depth", "eps", "momentum")


def create(name: str, *, image_size: int | None = None, **arguments) -> EfficientNet:
    """The named EfficientNet; `arguments` as in `EfficientNet`."""
    arguments = VARIANTS[name] | arguments
    if image_size is not None:
        arguments["image_size"] = image_size
    if min(arguments["width"], arguments["depth"]) <= 0:
        raise UserError(
            f"{name}: width={arguments['width']} and depth={arguments['depth']} are factors on the "
            "channels and blocks of B0, above 0."
        )
    return EfficientNet(name, **arguments)
