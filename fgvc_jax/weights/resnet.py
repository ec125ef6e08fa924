"""ResNet and ResNeXt files: torchvision and timm name the arrays alike."""

from fgvc_jax.weights.readers import Entry
from fgvc_jax.weights.tables import LAST, Layout, Table


def _key(path: str) -> str:
    """'layer1/0/downsample/bn/mean' -> 'layer1.0.downsample.1.running_mean'."""
    *parents, last = path.split("/")
    if "downsample" in parents:
        parents[-1] = {"conv": "0", "bn": "1"}[parents[-1]]
    return ".".join([*parents, LAST[last]])


def _is_miil(entries: dict[str, Entry]) -> bool:
    """MIIL's ImageNet-21K-P (Ridnik et al. 2021): the only files with a classifier of 11,221 classes."""
    return "fc.weight" in entries and entries["fc.weight"].shape[0] == 11_221


MARKER = "layer1.0.conv1.weight"
TABLE = Table(
    layouts=(
        # Trained on pixels from 0 to 1 as they are.
        Layout(
            "MIIL",
            MARKER,
            _key,
            {
                "mean": (0.0, 0.0, 0.0),
                "std": (1.0, 1.0, 1.0),
                "crop_fraction": 0.875,
                "interpolation": "bilinear",
            },
            when=_is_miil,
        ),
        Layout(
            "torchvision/timm",
            MARKER,
            _key,
            head="fc",
            arguments={"depths": "layers"},
        ),
    ),
)
