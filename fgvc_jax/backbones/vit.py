"""Vision Transformers with a class token, as in timm.

ViT: Dosovitskiy et al. 2021, arXiv 2010.11929. DINOv2: Oquab et al. 2024, arXiv 2304.07193, with
registers Darcet et al. 2024, arXiv 2309.16588.
"""

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
from fgvc_jax.layers import remat as checkpointing
from fgvc_jax.layers.initializers import normal


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


def _linear(inputs: int, outputs: int, **kw):
    return nnx.Linear(inputs, outputs, kernel_init=normal(0.02), **kw)


def _norm(width: int, **kw):
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, **kw)


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, **kw):
        self.qkv = _linear(width, 3 * width, **kw)
        self.proj = _linear(width, width, **kw)
        self.heads = heads

    def __call__(self, x_BND: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Tokens [..., N, D] -> [..., N, D]; `bias` [..., heads, N, N] is added to the logits."""
        *batch, count, width = x_BND.shape
        qkv = self.qkv(x_BND).reshape(*batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        logits = jnp.einsum("...nhd,...mhd->...hnm", q / math.sqrt(width // self.heads), k)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if bias is not None:
            logits += bias
        weights = jax.nn.softmax(logits).astype(v.dtype)
        out = jnp.einsum("...hnm,...mhd->...nhd", weights, v)
        return self.proj(out.reshape(x_BND.shape))


class Mlp(nnx.Module):
    def __init__(self, width: int, hidden: int, **kw):
        self.fc1 = _linear(width, hidden, **kw)
        self.fc2 = _linear(hidden, width, **kw)

    def __call__(self, x):
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class LayerScale(nnx.Module):
    """One factor a channel, nearly 0 at first (Touvron et al. 2021)."""

    def __init__(self, width: int, param_dtype):
        self.gamma = nnx.Param(jnp.full(width, 1e-5, param_dtype))

    def __call__(self, x):
        return x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, layer_scale: bool, **kw):
        self.norm1 = _norm(width, **kw)
        self.attn = Attention(width, heads, **kw)
        self.norm2 = _norm(width, **kw)
        self.mlp = Mlp(width, 4 * width, **kw)
        self.ls1 = LayerScale(width, kw["param_dtype"]) if layer_scale else jax.nn.identity
        self.ls2 = LayerScale(width, kw["param_dtype"]) if layer_scale else jax.nn.identity

    def __call__(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nnx.Module):
    """Vision Transformer without its classifier.

    Taps: 'embed', the patch tokens that enter the first block, and 'block0', 'block1', ... after
    each block, all as grids; an edit reaches the patch tokens, the class token passes by.

    `pooled` is the class token after the final norm. It reads patch tokens only through attention,
    so the patch tokens that leave the last block reach nothing (their gradient is exactly zero);
    `cam_tap` is therefore the input of the last block.

    Args:
      patch: side of a patch in pixels.
      registers: learnt tokens beside the class token (Darcet et al. 2024), which no tap shows. The
        position embedding then has no row for the class token, as in timm.
      layer_scale: a learnt factor for each channel of what a block adds.
      image_size: side in pixels that the position embedding is made for, a multiple of `patch`.
        Images of another size (any multiple) are taken too; the embedding is then resized.
      remat: compute each block again for the gradient, instead of keeping what is inside.
    """

    def __init__(
        self,
        name: str,
        *,
        depth: int,
        width: int,
        heads: int,
        image_size: int,
        patch: int = 16,
        registers: int = 0,
        layer_scale: bool = False,
        mean: tuple[float, float, float] = (0.5,) * 3,
        std: tuple[float, float, float] = (0.5,) * 3,
        crop_fraction: float = 0.9,
        remat: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dtype = dtype
        self.patch = patch
        self.remat = remat
        self.patch_embed = nnx.Conv(
            3,
            width,
            (patch, patch),
            (patch, patch),
            padding="VALID",
            # torch's default standard deviation for a convolution
            kernel_init=normal(1 / math.sqrt(3 * 3 * patch**2)),
            **kw,
        )

        def learnt(std, rows):
            return nnx.Param(normal(std)(rngs.params(), (1, rows, width), param_dtype))

        count = (image_size // patch) ** 2
        self.cls_token = learnt(1e-6, 1)
        self.pos_embed = learnt(0.02, count if registers else 1 + count)
        self.reg_token = learnt(1e-6, registers) if registers else None
        self.blocks = nnx.List([Block(width, heads, layer_scale, **kw) for _ in range(depth)])
        self.norm = _norm(width, **kw)

        names = [f"block{i}" for i in range(depth)]
        quarters = [math.ceil(depth * k / 4) - 1 for k in (1, 2, 3, 4)]
        self.info = Info(
            name=name,
            taps=tuple(Tap(n, width, patch) for n in ("embed", *names)),
            default_taps=tuple(dict.fromkeys(names[i] for i in quarters)),
            cam_tap=("embed", *names)[depth - 1],
            width=width,
            preprocessing=Preprocessing(image_size, mean, std, crop_fraction, "bicubic"),
        )

    def __call__(
        self,
        images_BHWC: jax.Array,
        taps: Sequence[str] | None = None,
        edit: Edit | None = None,
    ) -> Features:
        """Features of normalised images [B, H, W, 3], H and W multiples of the patch.

        Args:
          taps: names of the maps to return; None for `info.default_taps`.
          edit: edit(name, map) -> map, called at every tap, before the next layer reads the map.

        Raises:
          UserError: for an image size or a tap that does not fit.
        """
        record = Recorder(self.info, taps, edit)
        check_size(self.info.name, self.patch, *images_BHWC.shape[1:3])
        x = self.patch_embed(images_BHWC.astype(self.dtype))
        batch, height, width, channels = x.shape
        positions = resize_positions(self.pos_embed[...], height, width).astype(x.dtype)
        patches = x + positions[:, -height * width :].reshape(1, height, width, channels)
        first = self.cls_token[...].astype(x.dtype)
        if self.reg_token is None:
            first += positions[:, :1]
        else:
            first = jnp.concatenate([first, self.reg_token[...].astype(x.dtype)], axis=1)
        first = jnp.broadcast_to(first, (batch, *first.shape[1:]))

        patches = record("embed", patches)
        for number, block in enumerate(self.blocks):
            tokens = jnp.concatenate([first, patches.reshape(batch, -1, channels)], axis=1)
            tokens = checkpointing.call(self.remat, block, tokens)
            # Slices: with jnp.split XLA:CPU takes 1.5 times as long for the whole training step.
            first, patches = tokens[:, : first.shape[1]], tokens[:, first.shape[1] :]
            patches = record(f"block{number}", patches.reshape(x.shape))
        pooled = self.norm(first[:, 0])
        pooled = pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))
        return Features(record.maps, pooled, pooled)


def check_size(name: str, patch: int, height: int, width: int) -> None:
    if height % patch or width % patch or min(height, width) < patch:
        raise UserError(
            f"{name} takes images whose sides are multiples of {patch} pixels, not {height} x {width}."
        )


TINY = {"depth": 12, "width": 192, "heads": 3}
SMALL = {"depth": 12, "width": 384, "heads": 6}
BASE = {"depth": 12, "width": 768, "heads": 12}
LARGE = {"depth": 24, "width": 1024, "heads": 16}
DINOV2 = {
    "patch": 14,
    "image_size": 518,
    "layer_scale": True,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "crop_fraction": 1.0,
}
VARIANTS = {
    "vit_tiny_patch16_224": TINY | {"image_size": 224},
    "vit_small_patch16_224": SMALL | {"image_size": 224},
    "vit_base_patch16_224": BASE | {"image_size": 224},
    "vit_base_patch16_384": BASE | {"image_size": 384, "crop_fraction": 1.0},
    "vit_large_patch16_224": LARGE | {"image_size": 224},
    "vit_large_patch16_384": LARGE | {"image_size": 384, "crop_fraction": 1.0},
    "vit_small_patch14_dinov2": SMALL | DINOV2,
    "vit_base_patch14_dinov2": BASE | DINOV2,
    "vit_small_patch14_reg4_dinov2": SMALL | DINOV2 | {"registers": 4},
    "vit_base_patch14_reg4_dinov2": BASE | DINOV2 | {"registers": 4},
}
ARGUMENTS = ("depth", "width", "heads")


def create(name: str, *, image_size: int | None = None, **arguments) -> ViT:
    """The named ViT; `arguments` as in `ViT`."""
    arguments = VARIANTS[name] | arguments
    if image_size is not None:
        arguments["image_size"] = image_size
    check_size(name, arguments.get("patch", 16), *[arguments["image_size"]] * 2)
    if arguments["depth"] < 1 or arguments["width"] % arguments["heads"]:
        raise UserError(
            f"{name}: depth={arguments['depth']} must be at least 1, and width={arguments['width']} "
            f"a multiple of heads={arguments['heads']}."
        )
    return ViT(name, **arguments)
