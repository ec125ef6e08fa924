"""The rates of stochastic depth against timm's."""

import numpy as np
import pytest
from flax import nnx

from fgvc_jax import backbones


def rates(module):
    """The rate of every branch that can be skipped, first to last."""
    return [m.drop for _, m in nnx.iter_modules(module) if hasattr(m, "drop")]


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_tiny", "efficientnet_b0"],
)
def test_rates_rise_as_timms(name):
    timm = pytest.importorskip("timm", reason="the reference")
    theirs = timm.create_model(name, drop_path_rate=0.3)
    expected = [
        getattr(m.drop_path1 if hasattr(m, "drop_path1") else m.drop_path, "drop_prob", 0.0)
        for m in theirs.modules()
        if hasattr(m, "drop_path") or hasattr(m, "drop_path1")
    ]
    ours = nnx.eval_shape(lambda: backbones.create(name, stochastic_depth=0.3, rngs=nnx.Rngs(0)))
    # timm keeps the first ratio as a module of its own where it has no residual; ours drops nothing there.
    np.testing.assert_allclose(sorted(rates(ours)), sorted(expected), atol=1e-6)
