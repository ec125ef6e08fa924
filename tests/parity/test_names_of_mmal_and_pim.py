"""The tables of names for authors' checkpoints: one to one onto modules that have the authors' names."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvc_jax import backbones, methods
from fgvc_jax.train import tree
from fgvc_jax.weights import originals
from fgvc_jax.weights.originals import mmal, pim

torch = pytest.importorskip("torch", reason="the reference is a torch module")
timm = pytest.importorskip("timm", reason="the reference is timm's nets")
from torch import nn  # noqa: E402


def ours(method, name, size, classes, body=None, **own):
    def build():
        net = backbones.create(name, image_size=size, rngs=nnx.Rngs(0), **(body or {}))
        types = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        own_rngs = {"image_size": size, "rngs": nnx.Rngs(1)}
        return methods.create(method, net, classes, **own_rngs, **types, **own)

    return nnx.eval_shape(build)


def check(module, layout, state):
    """Names one to one, and every array of ours in torch's order of axes in the shape of theirs."""
    unused = (*layout.UNUSED, r".*\.num_batches_tracked")
    state = {k: v for k, v in state.items() if not tree.matches(unused, k)}
    arrays = tree.weights(module)
    arrays = arrays["params"] | arrays["batch_stats"]
    keys = {path: layout.key(path) for path in arrays}
    assert len(set(keys.values())) == len(keys) and set(keys.values()) == set(state)
    for path, x in arrays.items():
        found = originals._ours(path, state[keys[path]].numpy(), len(x.shape))
        assert found.shape == x.shape, path


def test_mmal():
    theirs = nn.Module()
    theirs.pretrained_model = timm.create_model("resnet50")
    theirs.rawcls_net = nn.Linear(2048, 200)
    check(ours("mmal", "resnet50", 448, 200), mmal, theirs.state_dict())


# A Swin as deep as Swin-L, but narrow; at 128 pixels its maps after merging have 16, 8, 4 and 4 cells a side.
WIDTH, CELLS, CHANNELS, F, CLASSES = 8, (256, 64, 16, 16), (16, 32, 64, 64), 12, 7
SELECTS = (40, 16, 4, 4)


def authors_pim():
    """The authors' module by its names (timm 0.4.12's Swin, whose patch merging ends a stage)."""
    theirs = nn.Module()
    kw = {"embed_dim": WIDTH, "num_heads": (1, 1, 1, 1), "img_size": 128, "window_size": 4}
    theirs.backbone = timm.create_model("swin_large_patch4_window12_384", num_classes=9, **kw)
    theirs.fpn = nn.Module()
    for i, (channels, cells) in enumerate(zip(CHANNELS, CELLS, strict=True), 1):
        layers = nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, F)
        theirs.fpn.add_module(f"Proj_layer{i}", nn.Sequential(*layers))
        if i > 1 and cells != CELLS[i - 2]:
            theirs.fpn.add_module(f"Up_layer{i}", nn.Conv1d(cells, CELLS[i - 2], 1))
        layers = nn.Conv1d(F, F, 1), nn.BatchNorm1d(F), nn.ReLU(), nn.Conv1d(F, CLASSES, 1)
        theirs.add_module(f"fpn_classifier_layer{i}", nn.Sequential(*layers))
    theirs.combiner = c = nn.Module()
    c.param_pool0, c.param_pool1 = nn.Linear(64, 2), nn.Linear(2, 1)
    c.adj1, c.alpha1 = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))
    c.conv1, c.batch_norm1 = nn.Conv1d(F, F, 1), nn.BatchNorm1d(F)
    c.conv_q1, c.conv_k1 = nn.Conv1d(F, F // 4, 1), nn.Conv1d(F, F // 4, 1)
    c.classifier = nn.Linear(F, CLASSES)
    state = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("backbone.head.fc", "backbone.head")
        number = re.match(r"backbone\.layers\.(\d)\.downsample", name)
        if number:
            name = name.replace(f"layers.{number[1]}.", f"layers.{int(number[1]) - 1}.")
        state[name] = value
    state["backbone.layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1)
    return state


def test_pim():
    body = {"width": WIDTH, "heads": (1, 1, 1, 1), "window": 4}
    own = {"width": F, "num_selects": SELECTS, "upsample": "tokens"}
    module = ours("pim", "swin_large_patch4_window12_384", 128, CLASSES, body, **own)
    check(module, pim, authors_pim())


def test_the_graph_of_pim_is_not_transposed():
    array = np.arange(4.0).reshape(2, 2)
    assert pim.key("combiner/adjacency") == "combiner.adj1"
    np.testing.assert_array_equal(originals._ours("combiner/adjacency", array, 2), array)
    np.testing.assert_array_equal(
        originals._ours("levels/1/up/kernel", array[..., None], 2), array.T
    )
