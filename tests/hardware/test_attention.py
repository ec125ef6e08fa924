"""Attention in the form of each platform: cuDNN's on NVIDIA GPUs, products and a softmax elsewhere."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvc_jax.hardware import cuda
from fgvc_jax.layers.attention import Attention

WIDTH, HEADS, TOKENS = 64, 2, 197  # an odd number, as ViTs have; cuDNN's kernels want eights


def loss_of(dtype, kind="auto"):
    """(the loss of a layer by its parameters and tokens, the parameters)."""
    layer = Attention(WIDTH, HEADS, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.kind = kind
    graph, params = nnx.split(layer)

    def loss(params, x):
        return jnp.square(nnx.merge(graph, params)(x).astype(jnp.float32)).sum()

    return loss, params


def kernels(platform, dtype, kind="auto"):
    """The names of cuDNN's kernels in a layer and its gradient, lowered for a platform."""
    loss, params = loss_of(dtype, kind)
    x = jax.ShapeDtypeStruct((2, TOKENS, WIDTH), dtype)
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(params, x)
    return set(
        re.findall(r"__cudnn\$(\w+)", traced.lower(lowering_platforms=(platform,)).as_text())
    )


def test_cudnn_is_asked_on_nvidia_gpus_alone_in_16_bits():
    with cuda.tracing():
        assert kernels("cuda", jnp.bfloat16) == {"fmhaSoftmax", "fmhaSoftmaxBackward"}
        assert kernels("tpu", jnp.bfloat16) == kernels("cpu", jnp.bfloat16) == set()
        assert kernels("cuda", jnp.float32) == set()
        assert kernels("cuda", jnp.bfloat16, "plain") == set()


def test_gpus_before_ampere_get_no_kernel_that_cudnn_has_not_for_them(monkeypatch):
    found = {}
    for capability in ("7.5", "8.0", "9.0"):
        gpu = types.SimpleNamespace(platform="gpu", compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda gpu=gpu: [gpu])
        with cuda.tracing():
            found[capability] = bool(kernels("cuda", jnp.bfloat16))
    assert found == {"7.5": False, "8.0": True, "9.0": True}


@pytest.mark.accelerator
def test_both_forms_agree_on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU")
    x = jax.random.normal(jax.random.key(0), (2, TOKENS, WIDTH), jnp.bfloat16)
    results = {}
    for kind in ("auto", "plain"):
        loss, params = loss_of(jnp.bfloat16, kind)
        results[kind] = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), results)
    ours, plain = jax.tree.leaves(wide["auto"]), jax.tree.leaves(wide["plain"])
    for a, b in zip(ours, plain, strict=True):
        # bfloat16 has eight bits, and each form rounds the weights, or sums of them, in its own places.
        assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(b)
