"""Every method on every family of backbones, and SAM with PIM and CMAL: `python -m pytest -m matrix -n 2 -s`.

By hand, since it compiles some fifty programs; it prints the table of docs/methods.md.
"""

import re

import numpy as np
import pytest
import small

from fgvc_jax import contract, methods
from fgvc_jax.train.sam import sam

pytestmark = pytest.mark.matrix

# Arguments that the maps of a family want at this size, in place of small.py's.
OTHERWISE = {
    ("fbsd", "vit_tiny_patch16_224"): {"strips": (4, 2, 2)},  # three maps of 4 x 4 patches
    ("pim", "vit_tiny_patch16_224"): {"num_selects": (8,)},
    ("pim", "efficientnet_b0"): {"num_selects": (16, 16, 2, 2)},  # maps of 16, 16, 4 and 4 cells
}


@pytest.mark.parametrize("backbone", small.BACKBONES)
@pytest.mark.parametrize("method", small.METHODS)
def test_a_method_on_a_family(method, backbone):
    arguments = small.METHODS[method] | OTHERWISE.get((method, backbone), {})

    said = contract.check(
        method, arguments, backbone=backbone, backbone_arguments=small.BACKBONES[backbone]
    )
    (learns,) = [line for line in said if line.startswith("learns")]
    cell = "{} -> {}".format(*re.findall(r"(\S+) to (\S+) in", learns)[0])
    print(f"\nMATRIX {method} {backbone} {cell}")


@pytest.mark.parametrize("method", ["pim", "cmal"])
def test_with_sam_too_the_loss_falls(method):
    made = contract.made_batch(methods.get(method), 64)
    name = "resnet18"
    module = contract.make(method, small.METHODS[method], name, small.BACKBONES[name], 64)
    program, state, batch = contract.trainer(
        module, made, wrap=lambda gradient: sam(gradient, 0.05)
    )
    total = []
    for _ in range(20):
        state, metrics = program.step(state, (), batch, np.uint32(0))
        total.append(sum(float(x) for key, x in metrics.items() if key.startswith("loss")))
    assert np.isfinite(total).all() and np.mean(total[-3:]) < np.mean(total[:3])
    print(f"\nMATRIX {method} {name}+SAM {np.mean(total[:3]):.4g} -> {np.mean(total[-3:]):.4g}")
