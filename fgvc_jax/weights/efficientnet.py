"""EfficientNet files of torchvision and of timm, and which arithmetic belongs to them."""

from fgvc_jax.weights.tables import LAST, Layout, Table

_TORCHVISION_ENDS = {"stem": "features.0", "head": "features.8"}
_TIMM_ENDS = {
    "stem/conv": "conv_stem",
    "stem/bn": "bn1",
    "head/conv": "conv_head",
    "head/bn": "bn2",
}
_TIMM = {
    "expand/conv": "conv_pw",
    "expand/bn": "bn1",
    "depthwise/conv": "conv_dw",
    "depthwise/bn": "bn2",
    "se/fc1": "se.conv_reduce",
    "se/fc2": "se.conv_expand",
    "project/conv": "conv_pwl",
    "project/bn": "bn3",
}
# The first stage's blocks, which do not expand.
_TIMM_FIRST = _TIMM | {"depthwise/bn": "bn1", "project/conv": "conv_pw", "project/bn": "bn2"}
_TORCHVISION = ("expand", "depthwise", "se", "project")


def _torchvision(path: str) -> str:
    """'layers/1/0/project/bn/mean' -> 'features.2.0.block.3.1.running_mean'."""
    *parents, part, last = path.split("/")
    part = {"conv": "0", "bn": "1"}.get(part, part)
    if parents[0] in _TORCHVISION_ENDS:
        return f"{_TORCHVISION_ENDS[parents[0]]}.{part}.{LAST[last]}"
    _, stage, number, name = parents
    place = _TORCHVISION.index(name) - (stage == "0")
    return f"features.{int(stage) + 1}.{number}.block.{place}.{part}.{LAST[last]}"


def _timm(path: str) -> str:
    """'layers/1/0/project/bn/mean' -> 'blocks.1.0.bn3.running_mean'."""
    *parents, part, last = path.split("/")
    if parents[0] != "layers":
        return f"{_TIMM_ENDS[f'{parents[0]}/{part}']}.{LAST[last]}"
    _, stage, number, name = parents
    names = _TIMM_FIRST if stage == "0" else _TIMM
    return f"blocks.{stage}.{number}.{names[f'{name}/{part}']}.{LAST[last]}"


def _torchvision_refuses(backbone, file: str) -> str:
    name = backbone.info.name
    if name.startswith("tf_"):
        return (
            f"torchvision's weights want symmetric padding, {name} pads as TensorFlow does: "
            f"name the backbone {name.removeprefix('tf_')}"
        )
    return ""


def _timm_refuses(backbone, file: str) -> str:
    name, tensorflow = backbone.info.name, backbone.info.name.startswith("tf_")
    other = name.removeprefix("tf_") if tensorflow else f"tf_{name}"
    if file.startswith("efficientnet_b" if tensorflow else "tf_efficientnet_b"):
        return (
            f"it is called {file}, and those weights want the padding of {other}, which is another "
            f"at stride 2: name the backbone {other}"
        )
    return ""


def _torchvision_wants(name: str) -> dict[str, float]:
    return {"eps": 1e-5 if int(name[-1]) < 5 else 1e-3}


def _timm_wants(name: str) -> dict[str, float]:
    return {"eps": 1e-3 if name.startswith("tf_") else 1e-5}


TABLE = Table(
    layouts=(
        Layout(
            "torchvision",
            "features.0.0.weight",
            _torchvision,
            wants=_torchvision_wants,
            refuses=_torchvision_refuses,
        ),
        Layout(
            "timm",
            "conv_stem.weight",
            _timm,
            wants=_timm_wants,
            refuses=_timm_refuses,
            head="classifier",
        ),
    ),
)
