"""Convolutions with torch's padding."""

import jax
from flax import nnx
from jax.nn.initializers import Initializer

from fgvc_jax.layers.initializers import kaiming_fan_out
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.ops.conv import conv


def convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    same: bool = False,
    bias: bool = False,
    init: Initializer | None = None,
    **kw,
) -> nnx.Conv:
    """A square convolution [B, H, W, inputs] -> [B, H', W', outputs].

    Padded by (kernel - 1) / 2 on all sides, as in torch; not at all where kernel = stride, which cuts
    the map into patches. 'SAME' is another thing at stride 2.

    Args:
      same: TensorFlow's 'SAME' padding in place of it.
      init: initializer of the kernel; None = He et al.'s, of the fan-out.
      kw: dtype, param_dtype and rngs, for nnx.Conv.
    """
    pad = 0 if kernel == stride else (kernel - 1) // 2
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        (stride, stride),
        padding="SAME" if same else ((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=init or kaiming_fan_out(kernel, outputs),
        conv_general_dilated=conv,
        **kw,
    )


class ConvNorm(nnx.Module):
    """Convolution without bias, and BatchNorm; the arguments are `convolution`'s and `BatchNorm`'s."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        same: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.9,
        **kw,
    ):
        self.conv = convolution(inputs, outputs, kernel, stride, groups, same=same, **kw)
        self.bn = BatchNorm(outputs, eps=eps, momentum=momentum, **kw)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.bn(self.conv(x_BHWC))
