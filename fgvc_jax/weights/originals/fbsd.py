"""FBSD's checkpoints (github.com/chaomaer/FBSD): `net.state_dict()` of a ResNet-50 or ResNet-101."""

from fgvc_jax.weights import resnet
from fgvc_jax.weights.originals._multi_granularity import heads_key
from fgvc_jax.weights.tables import LAST

UNUSED: tuple[str, ...] = ()

# torchvision's children by number, in three parts.
_BACKBONE = {
    "conv1": "layer0_2.0",
    "bn1": "layer0_2.1",
    "layer1": "layer0_2.4",
    "layer2": "layer0_2.5",
    "layer3": "layer3.0",
    "layer4": "layer4.0",
}
_STRIPS = {"conv": "0", "bn": "1"}


def key(path: str) -> str:
    """'backbone/layer3/0/conv1/kernel' -> 'features.layer3.0.0.conv1.weight'."""
    part, rest = path.split("/", 1)
    if part == "heads":
        return heads_key(path)
    if part == "strips":
        number, layer, last = rest.split("/")
        return f"features.strip{int(number) + 1}.stripconv.{_STRIPS[layer]}.{LAST[last]}"
    child, rest = resnet.TABLE.layouts[-1].key(rest).split(".", 1)
    return f"features.{_BACKBONE[child]}.{rest}"
