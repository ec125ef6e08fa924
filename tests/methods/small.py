"""A small size of every method and of every family of backbones, and what cannot go together."""

import pytest

# Arguments of each method on the maps of 64 pixels.
METHODS = {
    "baseline": {"dropout": 0.1},
    "bilinear": {"reduction": 16},
    "cmal": {"hidden": 8, "width": 16},
    "fbsd": {"hidden": 8, "width": 16, "dropout": 0.1},
    "mmal": {"windows": "2 of 1x1, 1 of 1x2 2x1"},
    "pairs": {"hidden": 8},
    "pim": {"width": 16, "num_selects": (32, 16, 4, 1)},
    "triplet": {"embedding": 16},
}


def some(names, *quick):
    """The names as test parameters; those that are not quick are marked slow."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


# A net of each family with arguments that make it small; stochastic depth, so that draws are tried too.
BACKBONES = {
    "resnet18": {"width": 8, "depths": (1, 1, 1, 2)},
    "efficientnet_b0": {"width": 0.25, "depth": 0.3, "stochastic_depth": 0.1},
    "convnext_tiny": {"width": 8, "depths": (1, 1, 1, 2), "stochastic_depth": 0.1},
    "vit_tiny_patch16_224": {"depth": 4, "width": 16, "heads": 2, "stochastic_depth": 0.1},
    "swin_tiny_patch4_window7_224": {
        **{"width": 8, "depths": (1, 1, 1, 2), "heads": (1, 1, 2, 2), "window": 4},
        "stochastic_depth": 0.1,
    },
}
