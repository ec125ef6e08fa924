"""ResNet files: torchvision and timm name the arrays alike."""

from fgvc_jax.weights.tables import Layout, Table

_LAST = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _key(path: str) -> str:
    """'layer1/0/downsample/bn/mean' -> 'layer1.0.downsample.1.running_mean'."""
    *parents, last = path.split("/")
    if "downsample" in parents:
        parents[-1] = {"conv": "0", "bn": "1"}[parents[-1]]
    return ".".join([*parents, _LAST[last]])


TABLE = Table(
    layouts=(Layout("torchvision/timm", "layer1.0.conv1.weight", _key),),
    resize=lambda path, there, here: None,
)
