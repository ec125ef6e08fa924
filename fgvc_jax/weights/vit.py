"""Vision Transformer files of timm, DINOv2, MIIL, torchvision and Google.

All but Google's keep q, k and v in one matrix, in this order.
"""

import functools
import math
import re

import numpy as np

from fgvc_jax.backbones.features import IMAGENET_MEAN, IMAGENET_STD
from fgvc_jax.backbones.vit import resize_positions
from fgvc_jax.weights.readers import Entry
from fgvc_jax.weights.tables import LAST, Layout, Table

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
    return ".".join([*parents, LAST.get(last, last)])


def _torchvision(path: str) -> str:
    """'blocks/0/attn/qkv/kernel' -> 'encoder.layers.encoder_layer_0.self_attention.in_proj_weight'."""
    if "/" not in path:
        return _TORCHVISION[path]
    parents, last = path.rsplit("/", 1)
    prefix = ""
    if parents.startswith("blocks/"):
        _, number, parents = parents.split("/", 2)
        prefix = f"encoder.layers.encoder_layer_{number}."
    return prefix + _TORCHVISION[parents] + LAST[last]


def _dinov2(entries: dict[str, Entry]) -> dict[str, Entry]:
    """A file of the DINOv2 repository as timm has it.

    `mask_token` was for training and is dropped. With registers, the class token's row of the
    position embedding is added to the token, which is the same sum made earlier.
    """
    entries = {key: entry for key, entry in entries.items() if key != "mask_token"}
    token, positions = entries.get("cls_token"), entries.get("pos_embed")
    if "register_tokens" not in entries or not token or not positions or len(positions.shape) != 3:
        return entries
    one, rows, width = positions.shape
    entries["reg_token"] = entries.pop("register_tokens")
    entries["cls_token"] = Entry(
        token.shape, token.dtype, lambda: token.load() + positions.load()[:, :1]
    )
    entries["pos_embed"] = Entry(
        (one, rows - 1, width), positions.dtype, lambda: positions.load()[:, 1:]
    )
    return entries


def _miil(entries: dict[str, Entry]) -> dict[str, Entry]:
    """With the zeros that stand for the missing bias of q, k and v."""
    zeros = {
        key.removesuffix("weight") + "bias": Entry(
            entry.shape[:1], entry.dtype, functools.partial(np.zeros, entry.shape[:1], entry.dtype)
        )
        for key, entry in entries.items()
        if key.endswith(".attn.qkv.weight")
    }
    return entries | zeros


# Google counts its layers from 0 for each kind (big_vision) or through a block (the older vit_jax).
_GOOGLE = (
    (r"Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"LayerNorm_0/", "norm1."),
    (r"LayerNorm_[12]/", "norm2."),
    (r"MultiHeadDotProductAttention_[01]/out/", "attn.proj."),
    (r"MultiHeadDotProductAttention_[01]/(query|key|value)/", r"attn.\1."),
    (r"MlpBlock_[03]/Dense_0/", "mlp.fc1."),
    (r"MlpBlock_[03]/Dense_1/", "mlp.fc2."),
    (r"^Transformer/encoder_norm/", "norm."),
    (r"^(Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^embedding/", "patch_embed.proj."),
    (r"^cls$", "cls_token"),
    (r"^head/", "head."),
    (r"^pre_logits/", "head.pre_logits."),
    (r"(?<=\.)(kernel|scale)$", "weight"),
)


def _google(entries: dict[str, Entry], prefix: str) -> dict[str, Entry]:
    """An .npz of Google's vit_jax or big_vision under timm's keys, in torch's order of axes.

    The state of an optimizer beside the weights is dropped, and 'pre_logits', a layer before the
    classifier in files of ImageNet-21k, counts as part of the classifier. Google trained with the
    approximation of GELU by tanh; the backbone computes it exactly, as timm does with these files.
    """
    found = {}
    for original, entry in entries.items():
        key = original.removeprefix(prefix)
        if prefix and key.startswith("opt/"):
            continue
        for pattern, replacement in _GOOGLE:
            key = re.sub(pattern, replacement, key)
        if key == "patch_embed.proj.weight" and len(entry.shape) == 4:
            entry = _transposed(entry)
        elif key.endswith(".weight") and len(entry.shape) > 1:
            entry = _matrix(entry, len(entry.shape) - 1 if key.endswith(".attn.proj.weight") else 1)
        elif key.endswith(".bias"):
            entry = _reshaped(entry, (math.prod(entry.shape),))
        found[original if key in found else key] = entry  # a second one of a name is reported

    for query in [key for key in found if ".attn.query." in key]:
        names = [query.replace("query", name) for name in ("query", "key", "value")]
        parts = [found.get(name) for name in names]
        if all(part and part.shape == parts[0].shape for part in parts):
            found[query.replace("query", "qkv")] = _joined(parts)
            for name in names:
                del found[name]

    positions = found.get("pos_embed")
    if positions and "cls_token" in found and len(positions.shape) == 3:
        one, rows, width = positions.shape
        if math.isqrt(rows) ** 2 == rows:  # big_vision's class token has no position
            none = Entry((one, 1, width), positions.dtype, lambda: np.zeros((one, 1, width)))
            found["pos_embed"] = _joined([none, positions], axis=1)
    return found


def _transposed(entry: Entry) -> Entry:
    """[height, width, in, out] -> [out, in, height, width]."""
    shape = tuple(entry.shape[axis] for axis in (3, 2, 0, 1))
    return Entry(shape, entry.dtype, lambda: entry.load().transpose(3, 2, 0, 1))


def _matrix(entry: Entry, inputs: int) -> Entry:
    """[in, ..., out, ...], of which the first `inputs` axes are summed over, -> [out, in]."""
    shape = math.prod(entry.shape[:inputs]), math.prod(entry.shape[inputs:])
    return Entry(shape[::-1], entry.dtype, lambda: entry.load().reshape(shape).T)


def _reshaped(entry: Entry, shape: tuple[int, ...]) -> Entry:
    return Entry(shape, entry.dtype, lambda: entry.load().reshape(shape))


def _joined(parts: list[Entry], axis: int = 0) -> Entry:
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return Entry(
        tuple(shape),
        parts[0].dtype,
        lambda: np.concatenate([part.load() for part in parts], axis=axis),
    )


def _resize(backbone, path: str, there: tuple[int, ...], here: tuple[int, ...]):
    """For the position embedding of one square grid of patches, to be used on another."""
    if path != "pos_embed" or len(there) != 3 or (there[0], there[2]) != (here[0], here[2]):
        return None
    if there == here:
        return None
    token = here[1] - math.isqrt(here[1]) ** 2  # 1 with a row for the class token, else 0
    if there[1] <= token or math.isqrt(there[1] - token) ** 2 != there[1] - token:
        return None
    side = math.isqrt(here[1])
    return functools.partial(resize_positions, height=side, width=side)


TABLE = Table(
    layouts=(
        Layout("DINOv2", "mask_token", _timm, translate=_dinov2),
        Layout(
            "MIIL",
            "blocks.0.attn.qkv.weight",
            _timm,
            {
                "mean": (0.0,) * 3,
                "std": (1.0,) * 3,
                "crop_fraction": 0.875,
                "interpolation": "bilinear",
            },
            when=lambda entries: "blocks.0.attn.qkv.bias" not in entries,
            translate=_miil,
        ),
        Layout(
            "timm",
            "patch_embed.proj.weight",
            _timm,
            head="head",
            arguments={
                "image_size": "img_size",
                "depth": "depth",
                "width": "embed_dim",
                "heads": "num_heads",
            },
        ),
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
        *(
            Layout(
                "Google",
                f"{prefix}embedding/kernel",
                _timm,
                translate=functools.partial(_google, prefix=prefix),
            )
            for prefix in ("", "opt/target/", "params/")
        ),
    ),
    resize=_resize,
    old_names=(
        # torchvision before 0.13, in which its published file is written
        (r"\.mlp\.linear_1\.", ".mlp.0."),
        (r"\.mlp\.linear_2\.", ".mlp.3."),
        # timm's first files of ImageNet-21k have a layer more in the classifier
        (r"^pre_logits\.", "head.pre_logits."),
    ),
)
