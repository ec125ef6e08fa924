"""Vision Transformers with a class token, as in timm.

ViT: Dosovitskiy et al. 2021, arXiv 2010.11929. DINOv2: Oquab et al. 2024, arXiv 2304.07193, with
registers Darcet et al. 2024, arXiv 2309.16588.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones.base import Backbone, Variant, require
from fgvc_jax.backbones.features import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Info,
    Preprocessing,
    Recorder,
    Tap,
    wide,
)
from fgvc_jax.errors import UserError
from fgvc_jax.layers import remat
from fgvc_jax.layers.attention import Attention, Mlp
from fgvc_jax.layers.conv import convolution
from fgvc_jax.layers.dropout import drop_path, fold, linear_rates
from fgvc_jax.layers.initializers import normal, torch_std
from fgvc_jax.layers.norm import layer_norm

EPSILON = 1e-6


def resize_positions(positions_1ND: jax.Array, height: int, width: int) -> jax.Array:
    """Position embedding for a grid of height x width patches.

    [1, N, D] -> [1, height * width, D] where N is a square, and [1, 1 + N, D] ->
    [1, 1 + height * width, D] with the class token's row untouched. Bicubic (a = -0.5) with
    antialiasing, which is what timm does; a table of the right size is returned as it is.
    """
    rows, channels = positions_1ND.shape[1:]
    side = math.isqrt(rows)
    token = rows - side * side  # no two squares are 1 apart
    if token > 1:
        raise UserError(f"A position embedding of {rows} rows is no square grid.")
    if (side, side) == (height, width):
        return positions_1ND
    grid = positions_1ND[:, token:].reshape(side, side, channels)
    grid = jax.image.resize(grid, (height, width, channels), "cubic", antialias=True)
    grid = grid.reshape(1, height * width, channels)
    return jnp.concatenate([positions_1ND[:, :token], grid], axis=1)


class LayerScale(nnx.Module):
    """One factor a channel, nearly 0 at first (Touvron et al. 2021)."""

    def __init__(self, width: int, param_dtype):
        self.gamma = nnx.Param(jnp.full(width, 1e-5, param_dtype))

    def __call__(self, x):
        return x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, layer_scale: bool, drop: float, **kw):
        self.drop = drop
        self.norm1 = layer_norm(width, EPSILON, **kw)
        self.attn = Attention(width, heads, **kw)
        self.norm2 = layer_norm(width, EPSILON, **kw)
        self.mlp = Mlp(width, 4 * width, **kw)
        self.ls1 = LayerScale(width, kw["param_dtype"]) if layer_scale else jax.nn.identity
        self.ls2 = LayerScale(width, kw["param_dtype"]) if layer_scale else jax.nn.identity

    def __call__(self, x, keys=None):
        x = x + drop_path(self.ls1(self.attn(self.norm1(x))), fold(keys, 0), self.drop)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), fold(keys, 1), self.drop)


class ViT(Backbone):
    """Vision Transformer. Takes images whose sides are any multiples of the patch.

    Taps: 'embed', the patch tokens that enter the first block, and 'block0', 'block1', ... after
    each block, all as grids; an edit reaches the patch tokens, the class token passes by.

    `pooled` is the class token after the final norm. It reads patch tokens only through attention,
    so the patch tokens that leave the last block reach nothing (their gradient is exactly zero);
    `cam_tap` is therefore the input of the last block.

    Args:
      depth: transformer blocks.
      width: length of a token, a multiple of `heads`.
      heads: attention heads.
      patch: side of a patch in pixels.
      registers: learnt tokens beside the class token (Darcet et al. 2024), which no tap shows. The
        position embedding then has no row for the class token, as in timm.
      layer_scale: a learnt factor for each channel of what a block adds.
      stochastic_depth: probability that what the last block adds is dropped in training; it rises
        linearly from 0 at the first block.
      image_size: side in pixels that the position embedding is made for; it is resized for others.
    """

    @staticmethod
    def check(
        name: str, *, depth: int, width: int, heads: int, stochastic_depth: float, **fixed
    ) -> None:
        require(depth >= 1, name, "a number of blocks, at least 1", depth=depth)
        require(heads >= 1, name, "a number of attention heads, at least 1", heads=heads)
        allowed = f"a multiple of heads={heads}, at least {heads}"
        require(width >= 1 and width % heads == 0, name, allowed, width=width)

    def build(
        self,
        name: str,
        image_size: int,
        kw: dict,
        *,
        depth: int,
        width: int,
        heads: int,
        stochastic_depth: float,
        patch: int,
        registers: int = 0,
        layer_scale: bool = False,
        mean: tuple[float, float, float] = (0.5,) * 3,
        std: tuple[float, float, float] = (0.5,) * 3,
        crop_fraction: float = 0.9,
    ) -> Info:
        init = normal(torch_std(3 * patch**2))
        self.patch_embed = convolution(3, width, patch, patch, bias=True, init=init, **kw)

        def learnt(std, rows):
            shape = (1, rows, width)
            return nnx.Param(normal(std)(kw["rngs"].params(), shape, kw["param_dtype"]))

        count = (image_size // patch) ** 2
        self.cls_token = learnt(1e-6, 1)
        self.pos_embed = learnt(0.02, count if registers else 1 + count)
        self.reg_token = learnt(1e-6, registers) if registers else None
        self.blocks = nnx.List(
            [
                Block(width, heads, layer_scale, drop, **kw)
                for drop in linear_rates(stochastic_depth, depth)
            ]
        )
        self.norm = layer_norm(width, EPSILON, **kw)

        names = [f"block{i}" for i in range(depth)]
        quarters = [math.ceil(depth * k / 4) - 1 for k in (1, 2, 3, 4)]
        return Info(
            name,
            tuple(Tap(n, width, patch) for n in ("embed", *names)),
            width,
            Preprocessing(image_size, mean, std, crop_fraction, "bicubic"),
            default_taps=tuple(dict.fromkeys(names[i] for i in quarters)),
            cam_tap=("embed", *names)[depth - 1],
            pyramid_taps=tuple(names[-4:]),
        )

    def forward(
        self, x_BHWC: jax.Array, record: Recorder, keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        first, patches = self.embed(x_BHWC)
        batch, *_, channels = grid = patches.shape
        patches = record(patches)
        for number, block in enumerate(self.blocks):
            tokens = jnp.concatenate([first, patches.reshape(batch, -1, channels)], axis=1)
            tokens = remat.call(self.remat, block, tokens, fold(keys, number))
            # Slices: with jnp.split XLA:CPU takes 1.5 times as long for the whole training step.
            first, patches = tokens[:, : first.shape[1]], tokens[:, first.shape[1] :]
            patches = record(patches.reshape(grid))
        pooled = wide(self.norm(first[:, 0]))
        return pooled, pooled

    def embed(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What enters the first block: class token and registers [B, K, D], patches [B, h, w, D]."""
        x = self.patch_embed(x_BHWC)
        batch, height, width, channels = x.shape
        positions = resize_positions(self.pos_embed[...], height, width).astype(x.dtype)
        patches = x + positions[:, -height * width :].reshape(1, height, width, channels)
        first = self.cls_token[...].astype(x.dtype)
        if self.reg_token is None:
            first += positions[:, :1]
        else:
            first = jnp.concatenate([first, self.reg_token[...].astype(x.dtype)], axis=1)
        return jnp.broadcast_to(first, (batch, *first.shape[1:])), patches


TINY = {"depth": 12, "width": 192, "heads": 3}
SMALL = {"depth": 12, "width": 384, "heads": 6}
BASE = {"depth": 12, "width": 768, "heads": 12}
LARGE = {"depth": 24, "width": 1024, "heads": 16}
DINOV2 = {"layer_scale": True, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_fraction": 1.0}


# The smallest image is one patch.
def _variant(arguments: dict, image_size: int, patch: int = 16, **fixed) -> Variant:
    arguments = arguments | {"stochastic_depth": 0.0}
    return Variant(ViT, image_size, patch, patch, arguments, {"patch": patch} | fixed)


VARIANTS = {
    "vit_tiny_patch16_224": _variant(TINY, 224),
    "vit_small_patch16_224": _variant(SMALL, 224),
    "vit_base_patch16_224": _variant(BASE, 224),
    "vit_base_patch16_384": _variant(BASE, 384, crop_fraction=1.0),
    "vit_large_patch16_224": _variant(LARGE, 224),
    "vit_large_patch16_384": _variant(LARGE, 384, crop_fraction=1.0),
    "vit_small_patch14_dinov2": _variant(SMALL, 518, 14, **DINOV2),
    "vit_base_patch14_dinov2": _variant(BASE, 518, 14, **DINOV2),
    "vit_small_patch14_reg4_dinov2": _variant(SMALL, 518, 14, **DINOV2, registers=4),
    "vit_base_patch14_reg4_dinov2": _variant(BASE, 518, 14, **DINOV2, registers=4),
}
