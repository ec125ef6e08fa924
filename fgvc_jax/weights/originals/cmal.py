"""CMAL-Net's checkpoints (github.com/Dichao-Liu/CMAL): the state dict of a model on torchvision's ResNet-50.

Its authors save the whole model (`torch.save(net)`), which runs code of theirs when it is read; save
`net.state_dict()` of it first.
"""

from fgvc_jax.weights import resnet
from fgvc_jax.weights.originals._multi_granularity import heads_key

UNUSED: tuple[str, ...] = ()

# torchvision's children by number; 2 and 3 hold no arrays.
_BACKBONE = {
    "conv1": "net_layer_0.0",
    "bn1": "net_layer_1.0",
    "layer1": "net_layer_4",
    "layer2": "net_layer_5",
    "layer3": "net_layer_6",
    "layer4": "net_layer_7",
}


def key(path: str) -> str:
    """'backbone/layer3/0/conv1/kernel' -> 'Features.net_layer_6.0.conv1.weight'."""
    part, rest = path.split("/", 1)
    if part == "heads":
        return heads_key(path)
    child, rest = resnet.TABLE.layouts[-1].key(rest).split(".", 1)
    return f"Features.{_BACKBONE[child]}.{rest}"
