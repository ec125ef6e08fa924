"""Swin Transformer (version 1) files of timm, of Microsoft and of torchvision."""

import functools
import math
import re

from fgvc_jax.backbones.swin import resize_bias_table
from fgvc_jax.weights.readers import Entry
from fgvc_jax.weights.tables import LAST, Layout, Table


def _timm(path: str) -> str:
    """'layers/1/blocks/0/attn/qkv/kernel' -> 'layers.1.blocks.0.attn.qkv.weight'."""
    *parents, last = path.split("/")
    parents = {"patch_embed": ["patch_embed", "proj"], "patch_norm": ["patch_embed", "norm"]}.get(
        parents[0], parents
    )
    return ".".join([*parents, LAST.get(last, last)])


def _microsoft(path: str) -> str:
    """As timm's, but patch merging belongs to the stage before it: so does timm before 0.9."""
    return re.sub(
        r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", _timm(path)
    )


def _torchvision(path: str) -> str:
    """'layers/1/blocks/0/mlp/fc2/kernel' -> 'features.3.0.mlp.3.weight'."""
    *parents, last = path.split("/")
    match parents:
        case ["patch_embed"]:
            parents = ["features", "0", "0"]
        case ["patch_norm"]:
            parents = ["features", "0", "2"]
        case ["layers", stage, "downsample", part]:
            parents = ["features", str(2 * int(stage)), part]
        case ["layers", stage, "blocks", *rest]:
            parents = ["features", str(2 * int(stage) + 1), *rest]
    parents = [{"fc1": "0", "fc2": "3"}.get(part, part) for part in parents]
    return ".".join([*parents, LAST.get(last, last)])


def _without_buffers(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Without the constants of attention, which follow from the sizes."""
    constants = ("relative_position_index", "attn_mask")
    return {key: entry for key, entry in entries.items() if not key.endswith(constants)}


def _resize(backbone, path: str, there: tuple[int, ...], here: tuple[int, ...]):
    """For the relative position biases of one window, to be used in another.

    A table whose length is a square is taken for that of a square window, as in timm.
    """
    if not path.endswith("relative_position_bias_table") or len(there) != 2 or there[1] != here[1]:
        return None
    side = math.isqrt(there[0])
    if side**2 != there[0] or side % 2 == 0:
        return None
    _, stage, _, block, *_ = path.split("/")
    window = backbone.layers[int(stage)].blocks[int(block)].attn.window
    if window == ((side + 1) // 2, (side + 1) // 2):
        return None
    return functools.partial(resize_bias_table, window=window)


def _timm_wants(name: str) -> dict[str, str]:
    return {"convention": "timm"}


def _torchvision_layout(short_side: int, when) -> Layout:
    return Layout(
        "torchvision",
        "features.0.0.weight",
        _torchvision,
        {"crop_fraction": 224 / short_side},
        when,
        _without_buffers,
        wants=lambda name: {"convention": "torchvision"},
    )


TABLE = Table(
    layouts=(
        Layout(
            "Microsoft",
            "layers.0.downsample.reduction.weight",
            _microsoft,
            translate=_without_buffers,
            wants=_timm_wants,
        ),
        Layout(
            "timm",
            "patch_embed.proj.weight",
            _timm,
            translate=_without_buffers,
            wants=_timm_wants,
            agrees=lambda backbone: backbone.conventions_agree,
            head="head.fc",
            arguments={
                "image_size": "img_size",
                "depths": "depths",
                "width": "embed_dim",
                "heads": "num_heads",
                "window": "window_size",
            },
        ),
        # swin_b, swin_s and swin_t: each was evaluated with a crop of its own.
        _torchvision_layout(
            238, lambda entries: entries["features.0.0.weight"].shape[:1] == (128,)
        ),
        _torchvision_layout(246, lambda entries: "features.5.6.norm1.weight" in entries),
        _torchvision_layout(232, lambda entries: True),
    ),
    resize=_resize,
)
