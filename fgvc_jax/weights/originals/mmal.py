"""MMAL-Net's released checkpoints (ZF4444/MMAL-Net): a ResNet-50 with its classifier, CUB and FGVC-Aircraft.

`torch.save({'model_state_dict': ...})`, from a DataParallel model or not ('module.' before every name).
"""

from fgvc_jax.weights import resnet

# The net's own classifier of 1000 classes, which stays unused.
UNUSED = (r"pretrained_model\.fc\..*",)


def key(path: str) -> str:
    """'backbone/layer1/0/conv1/kernel' -> 'pretrained_model.layer1.0.conv1.weight'."""
    first, _, rest = path.partition("/")
    if first == "backbone":
        return "pretrained_model." + resnet.TABLE.layouts[0].key(rest)
    return {"head/kernel": "rawcls_net.weight", "head/bias": "rawcls_net.bias"}[path]
