"""Stochastic depth and dropout: whose draws they are, what is dropped, and at which rates."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax.layers.dropout import drop_path, dropout, fold

NETS = {
    "vit_tiny_patch16_224": {"depth": 2, "width": 16, "heads": 2, "image_size": 32},
    "swin_tiny_patch4_window7_224": {
        **{"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "image_size": 32}
    },
    "convnext_tiny": {"width": 8, "depths": (1, 1, 1, 1), "image_size": 32},
    "efficientnet_b0": {"width": 0.25, "depth": 1.0, "image_size": 32},
}


def make(name, rate):
    module = backbones.create(name, **NETS[name], stochastic_depth=rate, rngs=nnx.Rngs(0))
    if name == "convnext_tiny":  # whose blocks add next to nothing at first
        for stage in module.layers:
            for block in stage.blocks:
                block.gamma.set_raw_value(jnp.ones_like(block.gamma[...]))
    module.eval()
    return module


@pytest.mark.parametrize("name", NETS)
def test_an_examples_draw_is_its_own_and_evaluation_draws_nothing(name):
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 5)
    module, plain = make(name, 0.9), make(name, 0.0)
    run = nnx.jit(lambda module, images, keys: module(images, keys=keys).pooled)
    drawn, usual = run(module, images, keys), run(module, images, None)
    assert np.abs(drawn - usual).max() > 1e-3 * np.abs(usual).max()
    # float32, sums over a batch in another order
    turned = run(module, images[::-1], keys[::-1])
    np.testing.assert_allclose(turned[::-1], drawn, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(plain, images, keys), usual)  # rate 0
    # Gradient checkpointing draws the same again.
    module.remat = "full"
    np.testing.assert_allclose(run(module, images, keys), drawn, rtol=1e-5, atol=1e-5)


def test_a_skipped_branch_adds_nothing_and_a_kept_one_more():
    """The last block of a ViT, by hand: both branches, each kept with probability 0.4 and then 2.5 times."""
    count = 400
    with jax.enable_x64(True):
        module = backbones.create(
            "vit_tiny_patch16_224",
            **NETS["vit_tiny_patch16_224"],
            stochastic_depth=0.6,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
        block = module.blocks[1]
        x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 16)))
        keys = jax.random.split(jax.random.key(0), count)
        got = np.asarray(nnx.jit(lambda b, x, k: b(x, k))(block, jnp.tile(x, (count, 1, 1)), keys))
        results = []
        for first, second in itertools.product((0, 2.5), repeat=2):
            y = x + first * block.attn(block.norm1(x))
            results.append(np.asarray(y + second * block.mlp(block.norm2(y))))
    which = [np.flatnonzero([np.abs(g - r[0]).max() < 1e-12 for r in results]) for g in got]
    assert all(len(w) == 1 for w in which)
    shares = np.bincount(np.concatenate(which), minlength=4) / count
    # Four standard deviations of a binomial share, for this seed.
    expected = np.array([0.36, 0.24, 0.24, 0.16])
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / count)).all()


def test_dropout_keeps_the_mean_and_is_drawn_for_each_value():
    keys = jax.random.split(jax.random.key(1), 50)
    x = jnp.ones((50, 40, 30))
    y = np.asarray(dropout(x, keys, 0.25))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    # Four standard deviations of a mean of 60,000 values: 4 sqrt(0.25 / 0.75 / 60000).
    assert abs(y.mean() - 1) < 0.0095
    assert dropout(x, None, 0.25) is x and dropout(x, keys, 0.0) is x
    whole = np.asarray(drop_path(x, keys, 0.25))
    assert (whole == whole[:, :1, :1]).all() and len(np.unique(whole)) == 2
    assert fold(None, 1) is None
    assert not np.array_equal(y, np.asarray(dropout(x, fold(keys, 1), 0.25)))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(
        Exception, match=r"stochastic_depth=.* must be at least 0 and below 1|a number"
    ):
        backbones.create("vit_tiny_patch16_224", stochastic_depth=rate, rngs=nnx.Rngs(0))
