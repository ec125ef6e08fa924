"""Vision Transformer, patches of 16 pixels, class token (Dosovitskiy et al. 2021), as in timm."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones.features import Edit, Features, Info, Preprocessing, Recorder, Tap
from fgvc_jax.backbones.initializers import normal
from fgvc_jax.errors import UserError

PATCH = 16


def resize_positions(positions_1ND: jax.Array, height: int, width: int) -> jax.Array:
    """Position embedding for a grid of height x width patches, the class token's row untouched.

    [1, 1 + N, D] with N a square -> [1, 1 + height * width, D]. Bicubic (a = -0.5) with
    antialiasing, which is what timm does; a table of the right size is returned as it is.
    """
    count, channels = positions_1ND.shape[1] - 1, positions_1ND.shape[2]
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(f"A position embedding of {count} patches is no square grid.")
    if (side, side) == (height, width):
        return positions_1ND
    token, grid = positions_1ND[:, :1], positions_1ND[:, 1:].reshape(side, side, channels)
    grid = jax.image.resize(grid, (height, width, channels), "cubic", antialias=True)
    return jnp.concatenate([token, grid.reshape(1, height * width, channels)], axis=1)


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

    def __call__(self, x_BND):
        batch, count, width = x_BND.shape
        qkv = self.qkv(x_BND).reshape(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits = jnp.einsum("bnhd,bmhd->bhnm", q / math.sqrt(width // self.heads), k)
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        weights = jax.nn.softmax(logits.astype(wide)).astype(v.dtype)
        out = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
        return self.proj(out.reshape(batch, count, width))


class Mlp(nnx.Module):
    def __init__(self, width: int, hidden: int, **kw):
        self.fc1 = _linear(width, hidden, **kw)
        self.fc2 = _linear(hidden, width, **kw)

    def __call__(self, x):
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, **kw):
        self.norm1 = _norm(width, **kw)
        self.attn = Attention(width, heads, **kw)
        self.norm2 = _norm(width, **kw)
        self.mlp = Mlp(width, 4 * width, **kw)

    def __call__(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """Vision Transformer without its classifier.

    Taps: 'embed', the patch tokens that enter the first block, and 'block0', 'block1', ... after
    each block, all as grids; an edit reaches the patch tokens, the class token passes by.

    `pooled` is the class token after the final norm. It reads patch tokens only through attention,
    so the patch tokens that leave the last block reach nothing (their gradient is exactly zero);
    `cam_tap` is therefore the input of the last block.

    Args:
      image_size: side in pixels that the position embedding is made for, a multiple of 16. Images
        of another size (any multiple of 16) are taken too; the embedding is then resized.
    """

    def __init__(
        self,
        name: str,
        *,
        depth: int,
        width: int,
        heads: int,
        image_size: int,
        crop_fraction: float = 0.9,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        count = (image_size // PATCH) ** 2
        self.dtype = dtype
        self.patch_embed = nnx.Conv(
            3,
            width,
            (PATCH, PATCH),
            (PATCH, PATCH),
            padding="VALID",
            # torch's default standard deviation for a convolution
            kernel_init=normal(1 / math.sqrt(3 * 3 * PATCH**2)),
            **kw,
        )
        self.cls_token = nnx.Param(normal(1e-6)(rngs.params(), (1, 1, width), param_dtype))
        self.pos_embed = nnx.Param(normal(0.02)(rngs.params(), (1, 1 + count, width), param_dtype))
        self.blocks = nnx.List([Block(width, heads, **kw) for _ in range(depth)])
        self.norm = _norm(width, **kw)

        names = [f"block{i}" for i in range(depth)]
        quarters = [math.ceil(depth * k / 4) - 1 for k in (1, 2, 3, 4)]
        self.info = Info(
            name=name,
            taps=tuple(Tap(n, width, PATCH) for n in ("embed", *names)),
            default_taps=tuple(dict.fromkeys(names[i] for i in quarters)),
            cam_tap=("embed", *names)[depth - 1],
            width=width,
            preprocessing=Preprocessing(
                image_size, (0.5,) * 3, (0.5,) * 3, crop_fraction, "bicubic"
            ),
        )

    def __call__(
        self,
        images_BHWC: jax.Array,
        taps: Sequence[str] | None = None,
        edit: Edit | None = None,
    ) -> Features:
        """Features of normalised images [B, H, W, 3], H and W multiples of 16 (else UserError).

        Args:
          taps: names of the maps to return; None for `info.default_taps`. Unknown: UserError.
          edit: edit(name, map) -> map, called at every tap, before the next layer reads the map.
        """
        record = Recorder(self.info, taps, edit)
        check_size(self.info.name, *images_BHWC.shape[1:3])
        x = self.patch_embed(images_BHWC.astype(self.dtype))
        batch, height, width, channels = x.shape
        positions = resize_positions(self.pos_embed[...], height, width).astype(x.dtype)
        token = self.cls_token[...].astype(x.dtype) + positions[:, :1]
        token = jnp.broadcast_to(token, (batch, 1, channels))
        patches = x + positions[:, 1:].reshape(1, height, width, channels)

        patches = record("embed", patches)
        for number, block in enumerate(self.blocks):
            tokens = jnp.concatenate([token, patches.reshape(batch, -1, channels)], axis=1)
            tokens = block(tokens)
            token, patches = tokens[:, :1], tokens[:, 1:].reshape(patches.shape)
            patches = record(f"block{number}", patches)
        pooled = self.norm(token[:, 0])
        pooled = pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))
        return Features(record.maps, pooled, pooled)


def check_size(name: str, height: int, width: int) -> None:
    if height % PATCH or width % PATCH or min(height, width) < PATCH:
        raise UserError(
            f"{name} takes images whose sides are multiples of {PATCH} pixels, not {height} x {width}."
        )


VARIANTS = {
    "vit_tiny_patch16_224": {"depth": 12, "width": 192, "heads": 3, "image_size": 224},
    "vit_small_patch16_224": {"depth": 12, "width": 384, "heads": 6, "image_size": 224},
    "vit_base_patch16_224": {"depth": 12, "width": 768, "heads": 12, "image_size": 224},
    "vit_base_patch16_384": {
        "depth": 12,
        "width": 768,
        "heads": 12,
        "image_size": 384,
        "crop_fraction": 1.0,
    },
}
ARGUMENTS = ("depth", "width", "heads")


def create(name: str, *, image_size: int | None = None, **arguments) -> ViT:
    """The named ViT; `arguments` as in `ViT`."""
    arguments = VARIANTS[name] | arguments
    if image_size is not None:
        arguments["image_size"] = image_size
    check_size(name, arguments["image_size"], arguments["image_size"])
    if arguments["depth"] < 1 or arguments["width"] % arguments["heads"]:
        raise UserError(
            f"{name}: depth={arguments['depth']} must be at least 1, and width={arguments['width']} "
            f"a multiple of heads={arguments['heads']}."
        )
    return ViT(name, **arguments)
