"""Prints how far three steps on two devices are from three steps on one, in float64: devices.py METHOD ..."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["JAX_ENABLE_X64"] = "1"

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import small
from flax import nnx

from fgvc_jax import backbones, contract, methods
from fgvc_jax import mesh as meshes


def build(method):
    kw = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    name = "resnet18"
    body = backbones.create(name, image_size=64, rngs=nnx.Rngs(0), **kw, **small.BACKBONES[name])
    module = methods.create(
        *(method, body, contract.CLASSES),
        image_size=64,
        rngs=nnx.Rngs(1),
        **kw,
        **small.METHODS[method],
    )
    module.eval()
    return module


def trained(method, devices):
    mesh = meshes.make(devices=jax.devices()[:devices])
    made = contract.made_batch(methods.get(method), 64)
    program, state, batch = contract.trainer(build(method), made, mesh=mesh)
    for _ in range(3):
        state, _ = program.step(state, (), batch, np.uint32(0))
    return jax.device_get({kind: state[kind] for kind in ("params", "batch_stats", "opt")})


def difference(method):
    one, two = trained(method, 1), trained(method, 2)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(1, np.abs(a).max()), one, two)
    return float(functools.reduce(max, jax.tree.leaves(apart)))


print(json.dumps({method: difference(method) for method in sys.argv[1:]}))
