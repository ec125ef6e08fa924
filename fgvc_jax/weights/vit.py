"""Vision Transformer files of timm and of torchvision. Both keep q, k and v in one matrix, in this order."""

import math

from fgvc_jax.backbones.features import IMAGENET_MEAN, IMAGENET_STD
from fgvc_jax.backbones.vit import resize_positions
from fgvc_jax.weights.tables import Layout, Table

_LAST = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TORCHVISION = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed": "conv_proj.",
    "norm": "encoder.ln.",
    "norm1": "ln_1.",
    "norm2": "ln_2.",
    "attn/qkv": "self_attention.in_proj_",
    "attn/proj": "self_attention.out_proj.",
    "mlp/fc1": "mlp.0.",
    "mlp/fc2": "mlp.3.",
}


def _timm(path: str) -> str:
    """'blocks/0/attn/qkv/kernel' -> 'blocks.0.attn.qkv.weight'."""
    *parents, last = path.split("/")
    if parents == ["patch_embed"]:
        parents.append("proj")
    return ".".join([*parents, _LAST.get(last, last)])


def _torchvision(path: str) -> str:
    """'blocks/0/attn/qkv/kernel' -> 'encoder.layers.encoder_layer_0.self_attention.in_proj_weight'."""
    if "/" not in path:
        return _TORCHVISION[path]
    parents, last = path.rsplit("/", 1)
    prefix = ""
    if parents.startswith("blocks/"):
        _, number, parents = parents.split("/", 2)
        prefix = f"encoder.layers.encoder_layer_{number}."
    return prefix + _TORCHVISION[parents] + _LAST[last]


def _resize(path: str, there: tuple[int, ...], here: tuple[int, ...]):
    """For the position embedding of one square grid of patches, to be used on another."""
    if path != "pos_embed" or len(there) != 3 or (there[0], there[2]) != (here[0], here[2]):
        return None
    if there[1] < 2 or math.isqrt(there[1] - 1) ** 2 != there[1] - 1:
        return None
    side = math.isqrt(here[1] - 1)
    return lambda array: resize_positions(array, side, side)


TABLE = Table(
    layouts=(
        Layout("timm", "patch_embed.proj.weight", _timm),
        Layout(
            "torchvision",
            "conv_proj.weight",
            _torchvision,
            {
                "mean": IMAGENET_MEAN,
                "std": IMAGENET_STD,
                "crop_fraction": 0.875,
                "interpolation": "bilinear",
            },
        ),
    ),
    resize=_resize,
    # torchvision before 0.13, in which its published file is written
    old_names=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
)
