"""PIM's released checkpoints (chou141253/FGVC-PIM): around Swin-L at 384 pixels, CUB and NABirds.

`torch.save({'model': ...})`. Reference: `swin_large_patch4_window12_384` and method 'pim' with width=1536,
num_selects=(2048, 512, 128, 32), upsample='tokens'. The combiner's 'adj1' is a plain matrix, not transposed.
"""

import re

from fgvc_jax.weights import swin
from fgvc_jax.weights.tables import LAST

# The classifier of ImageNet-22k and constants of the attention.
UNUSED = (
    r"backbone\.head\..*",
    r".*\.(relative_position_index|attn_mask)",
)

_swin = next(layout.key for layout in swin.TABLE.layouts if layout.name == "Microsoft")
_COMBINER = {
    "pool": "param_pool0",
    "adjacency": "adj1",
    "alpha": "alpha1",
    "query": "conv_q1",
    "key": "conv_k1",
    "conv": "conv1",
    "bn": "batch_norm1",
    "merge": "param_pool1",
    "head": "classifier",
}


def key(path: str) -> str:
    """'levels/0/project/fc1/kernel' -> 'fpn.Proj_layer1.0.weight'."""
    first, _, rest = path.partition("/")
    if first == "backbone":
        return f"backbone.{_swin(rest)}"
    parents, _, last = rest.rpartition("/")
    if first == "combiner":
        return (
            f"combiner.{_COMBINER[parents]}.{LAST[last]}"
            if parents
            else f"combiner.{_COMBINER[last]}"
        )
    number, part, *layer = re.fullmatch(r"(\d+)/(\w+)(?:/(\w+))?", parents).groups()
    names = {
        "project": "fpn.Proj_layer{}.{}.",
        "up": "fpn.Up_layer{}.",
        "classifier": "fpn_classifier_layer{}.{}.",
    }
    places = {"project": {"fc1": 0, "fc2": 2}, "classifier": {"fc1": 0, "bn": 1, "fc2": 3}}
    place = places[part][layer[0]] if part in places else None
    return names[part].format(int(number) + 1, place) + LAST[last]
