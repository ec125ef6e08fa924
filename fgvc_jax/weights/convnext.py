"""ConvNeXt files of torchvision and of timm."""

from fgvc_jax.weights.readers import Entry
from fgvc_jax.weights.tables import LAST, Layout, Table

_TORCHVISION = {"conv_dw": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5"}


def _timm(path: str) -> str:
    """'layers/1/blocks/0/fc1/kernel' -> 'stages.1.blocks.0.mlp.fc1.weight'."""
    match path.split("/"):
        case ["stem", last]:
            return f"stem.0.{LAST[last]}"
        case ["stem_norm", last]:
            return f"stem.1.{LAST[last]}"
        case ["norm", last]:
            return f"head.norm.{LAST[last]}"
        case ["layers", stage, "norm" | "conv" as part, last]:
            return f"stages.{stage}.downsample.{int(part == 'conv')}.{LAST[last]}"
        case ["layers", stage, "blocks", number, "gamma"]:
            return f"stages.{stage}.blocks.{number}.gamma"
        case ["layers", stage, "blocks", number, part, last]:
            part = f"mlp.{part}" if part.startswith("fc") else part
            return f"stages.{stage}.blocks.{number}.{part}.{LAST[last]}"


def _torchvision(path: str) -> str:
    """'layers/1/blocks/0/fc1/kernel' -> 'features.3.0.block.3.weight'."""
    match path.split("/"):
        case ["stem", last]:
            return f"features.0.0.{LAST[last]}"
        case ["stem_norm", last]:
            return f"features.0.1.{LAST[last]}"
        case ["norm", last]:
            return f"classifier.0.{LAST[last]}"
        case ["layers", stage, "norm" | "conv" as part, last]:
            return f"features.{2 * int(stage)}.{int(part == 'conv')}.{LAST[last]}"
        case ["layers", stage, "blocks", number, "gamma"]:
            return f"features.{2 * int(stage) + 1}.{number}.layer_scale"
        case ["layers", stage, "blocks", number, part, last]:
            place = f"features.{2 * int(stage) + 1}.{number}"
            return f"{place}.{_TORCHVISION[part]}.{LAST[last]}"


def _flat_scales(entries: dict[str, Entry]) -> dict[str, Entry]:
    """torchvision's layer scales [C, 1, 1] as [C]."""

    def flat(entry: Entry) -> Entry:
        return Entry(entry.shape[:1], entry.dtype, lambda: entry.load().reshape(-1))

    return {
        key: flat(entry) if key.endswith("layer_scale") and entry.shape[1:] == (1, 1) else entry
        for key, entry in entries.items()
    }


TABLE = Table(
    layouts=(
        Layout(
            "timm",
            "stem.0.weight",
            _timm,
            {"crop_fraction": 0.875, "interpolation": "bicubic"},
            head="head.fc",
            arguments={"depths": "depths"},
        ),
        Layout("torchvision", "features.0.0.weight", _torchvision, translate=_flat_scales),
    ),
)
