"""Gradient checkpointing changes what is kept, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax.layers import remat
from fgvc_jax.layers.norm import BatchNorm


def step(module, images):
    """(gradient function of trees, its arguments): d sum(pooled^2) with the statistics it leaves."""
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(params, rest):
        merged = nnx.merge(graphdef, params, rest)
        out = merged(images)
        rest = nnx.to_pure_dict(nnx.split(merged, nnx.Param, ...)[2])
        return (out.pooled**2).sum(), (out.maps, rest)

    return jax.grad(loss, has_aux=True), (nnx.to_pure_dict(params), nnx.to_pure_dict(rest))


NETS = {
    "resnet18": {"width": 4, "depths": (1, 1, 1, 1)},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "width": 16, "heads": 2, "image_size": 28},
    "swin_tiny_patch4_window7_224": {
        **{"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 4},
        "image_size": 32,
    },
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_outputs_and_statistics_are_the_same(name):
    size = NETS[name].get("image_size", 32)
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        images = np.random.default_rng(0).normal(size=(3, size, size, 3))
        module = backbones.create(name, **NETS[name], **kw, remat="full", rngs=nnx.Rngs(0))
        results = []
        for kind in ("full", "products", "none"):
            module.remat = kind
            function, trees = step(module, images)
            results.append(jax.jit(function)(*trees))
            assert ("remat" in str(jax.make_jaxpr(function)(*trees))) == (kind != "none")
        # The same operations, which XLA may round otherwise in another program: 1e-11 of the largest.
        *again, plain = map(jax.tree.leaves, results)
        for found in again:
            for a, b in zip(plain, found, strict=True):
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-11 * max(np.abs(a).max(), 1e-3))


def test_statistics_move_once_and_outside_too():
    # Also without jit, where the module is written in place.
    x = np.random.default_rng(0).normal(2, 3, size=(8, 4)).astype(np.float32)
    layers = [BatchNorm(4, momentum=0.5) for _ in range(2)]
    outs = [remat.call(k, layer, x) for k, layer in zip(("none", "full"), layers, strict=True)]
    np.testing.assert_allclose(outs[1], outs[0], rtol=1e-6, atol=1e-6)  # float32
    np.testing.assert_allclose(layers[1].mean[...], 0.5 * x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(layers[1].var[...], 0.5 + 0.5 * x.var(0, ddof=1), rtol=1e-5)
    layers[1].eval()
    before = np.array(layers[1].mean[...])
    remat.call("full", layers[1], x)
    np.testing.assert_array_equal(layers[1].mean[...], before)


def test_what_is_kept_of_a_block():
    # What the forward pass hands to the backward pass, beside the parameters. (Not the memory that XLA plans:
    # its CPU compiler orders the second computation right after the first, and so gains nothing.)
    kept = {}
    for kind in remat.KINDS:
        shape = {"depth": 12, "width": 32, "heads": 2, "image_size": 64, "remat": kind}
        create = functools.partial(backbones.create, "vit_tiny_patch16_224", **shape)
        graphdef, state = nnx.split(nnx.eval_shape(lambda make=create: make(rngs=nnx.Rngs(0))))
        state = nnx.to_pure_dict(state)

        def vjp(state, images, graphdef=graphdef):
            run = lambda *args: nnx.merge(graphdef, args[0])(args[1], ()).pooled  # noqa: E731
            return jax.vjp(run, state, images)[1]

        images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
        leaves = jax.tree.leaves(jax.eval_shape(vjp, state, images))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state))
        kept[kind] = sum(leaf.size for leaf in leaves) - parameters
    # The images, for the gradient of the first layer, and an array of tokens for each of the 12 blocks.
    tokens = 4 * (1 + 4 * 4) * 32
    assert kept["full"] <= images.size + 12 * tokens
    # And what a block's products give: q, k and v, the attention's, the MLP's first (4 x wider) and second.
    more = kept["products"] - kept["full"]
    assert 12 * 4 * tokens < more <= 12 * (3 + 1 + 4 + 1) * tokens
    assert kept["none"] > 1.5 * kept["products"]
