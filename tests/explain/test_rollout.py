"""Attention rollout against a loop in torch with whole matrices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax.errors import UserError
from fgvc_jax.explain.rollout import rollout
from fgvc_jax.train import tree

torch = pytest.importorskip("torch", reason="the reference is a loop in torch")
TOLERANCE = 1e-10  # float64: three blocks of sums of some tens of products
rng = np.random.default_rng(0)


def reference(weights, images, *, depth, heads, patch):
    """Every block by hand; rollout by products of whole matrices, I / 2 + A / 2 each."""
    p = {name: torch.tensor(np.asarray(x)) for name, x in weights.items()}
    normed = torch.nn.functional.layer_norm

    def linear(x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    x = torch.tensor(images)
    batch, height, width, _ = x.shape
    rows, columns = height // patch, width // patch
    x = x.reshape(batch, rows, patch, columns, patch, 3).permute(0, 1, 3, 2, 4, 5)
    kernel = p["patch_embed/kernel"]
    x = x.reshape(batch, rows * columns, -1) @ kernel.reshape(-1, kernel.shape[-1])
    x = x + p["patch_embed/bias"]
    channels = x.shape[-1]
    first = p["cls_token"]
    if "reg_token" in p:
        x, first = x + p["pos_embed"], torch.cat([first, p["reg_token"]], 1)
    else:
        x, first = x + p["pos_embed"][:, 1:], first + p["pos_embed"][:, :1]
    x = torch.cat([first.expand(batch, -1, -1), x], 1)
    total = torch.eye(x.shape[1], dtype=x.dtype).expand(batch, -1, -1)
    for number in range(depth):
        name = f"blocks/{number}"
        y = normed(x, (channels,), p[f"{name}/norm1/scale"], p[f"{name}/norm1/bias"], 1e-6)
        qkv = linear(y, f"{name}/attn/qkv").reshape(batch, -1, 3, heads, channels // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-1, -2) / (channels // heads) ** 0.5, -1)
        y = linear((attention @ v).transpose(1, 2).reshape(x.shape), f"{name}/attn/proj")
        x = x + y * p.get(f"{name}/ls1/gamma", 1)
        y = normed(x, (channels,), p[f"{name}/norm2/scale"], p[f"{name}/norm2/bias"], 1e-6)
        y = torch.nn.functional.gelu(linear(y, f"{name}/mlp/fc1"))
        x = x + linear(y, f"{name}/mlp/fc2") * p.get(f"{name}/ls2/gamma", 1)
        total = (torch.eye(x.shape[1]) + attention.mean(1)) / 2 @ total
    return total.numpy(), first.shape[1], rows, columns


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_rollout_is_the_product_of_all_layers(name):
    patch = int(name.partition("patch")[2][:2])
    with jax.enable_x64(True):
        net = backbones.create(
            name,
            depth=3,
            width=8,
            heads=2,
            image_size=3 * patch,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
        net.eval()
        static, params, stats = tree.split(net)
        # Larger than a fresh net's, so that attention is far from uniform.
        params = {key: jnp.asarray(rng.normal(size=x.shape)) for key, x in params.items()}
        images = rng.normal(size=(2, 3 * patch, 3 * patch, 3))
        net = tree.merge(static, params, stats)
        found = jax.jit(lambda x: rollout(tree.merge(static, params, stats), x))(images)
        total, first, rows, columns = reference(params, images, depth=3, heads=2, patch=patch)
        expected = total[:, 0, first:].reshape(2, rows, columns)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert np.ptp(expected, axis=(1, 2)).min() > 1e-3
        others = total[:, 0, :first].sum(1)  # the class token itself and the registers
        np.testing.assert_allclose(np.asarray(found).sum((1, 2)) + others, 1, atol=TOLERANCE)


def test_a_net_without_a_class_token_is_refused():
    net = backbones.create("resnet18", width=4, depths=(1, 1, 1, 1), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"resnet18 has none\. It is for the ViTs; gradcam"):
        rollout(net, jnp.zeros((1, 32, 32, 3)))
