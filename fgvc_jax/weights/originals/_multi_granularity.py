"""The names that FBSD's and CMAL-Net's authors share: of `fgvc_jax.methods._multi_granularity.Heads`."""

from fgvc_jax.weights.tables import LAST

_BRANCH = {"conv1": "0.conv", "bn1": "0.bn", "conv2": "1.conv", "bn2": "1.bn"}
_CLASSIFIER = {"bn1": "0", "fc1": "1", "bn2": "2", "fc2": "4"}


def heads_key(path: str) -> str:
    """'heads/branches/0/conv1/kernel' -> 'conv_block1.0.conv.weight'."""
    _, part, *number, layer, last = path.split("/")
    if part == "concat":
        return f"classifier_concat.{_CLASSIFIER[layer]}.{LAST[last]}"
    number = int(number[0]) + 1
    if part == "branches":
        return f"conv_block{number}.{_BRANCH[layer]}.{LAST[last]}"
    return f"classifier{number}.{_CLASSIFIER[layer]}.{LAST[last]}"
