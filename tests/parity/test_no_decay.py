"""Which parameters the default recipe leaves without weight decay: timm's own choice."""

import pytest
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax.recipes import NO_DECAY
from fgvc_jax.train import tree
from fgvc_jax.weights import TABLES

timm = pytest.importorskip("timm", reason="the reference is timm's parameter groups")
from timm.optim import param_groups_weight_decay  # noqa: E402


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "efficientnet_b0", "convnext_tiny", "swin_tiny_patch4_window7_224"),
        *("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"),
    ],
)
def test_it_is_timms_choice(name):
    module = nnx.eval_shape(lambda: backbones.create(name, rngs=nnx.Rngs(0)))
    layout = next(layout for layout in TABLES[type(module)].layouts if layout.head)
    _, params, _ = tree.split(module)
    ours = {layout.key(p) for p in params if tree.matches(NO_DECAY, f"backbone/{p}")}
    model = timm.create_model(name, num_classes=3)
    names = {id(p): key for key, p in model.named_parameters()}
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=skip)
    theirs = {
        names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]
    }
    known = {layout.key(p) for p in params}
    assert ours == theirs & known and len(ours) > 10
