"""How far training on several devices is from training on one, in float64, as JSON by run.

devices.py STEPS METHOD[+sam]:DEVICES/FSDP ...
"""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
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
from fgvc_jax.train.sam import sam

meshes.SMALLEST = 64  # so that the kernels of a small net are split


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


@functools.cache
def trained(name, devices, fsdp):
    method, _, sharp = name.partition("+")
    mesh = meshes.make(fsdp, jax.devices()[:devices])
    made = contract.made_batch(methods.get(method), 64)
    wrap = (lambda gradient: sam(gradient, 0.05)) if sharp else (lambda gradient: gradient)
    program, state, batch = contract.trainer(build(method), made, mesh=mesh, wrap=wrap)
    split = [p for p, x in state["params"].items() if not x.sharding.is_fully_replicated]
    assert (len(split) > 5) == (fsdp > 1), split
    for _ in range(steps):
        state, _ = program.step(state, (), batch, np.uint32(0))
    return jax.device_get({kind: state[kind] for kind in ("params", "batch_stats", "opt")})


def difference(run):
    name, _, layout = run.partition(":")
    one, several = trained(name, 1, 1), trained(name, *map(int, layout.split("/")))
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(1, np.abs(a).max()), one, several)
    return float(functools.reduce(max, jax.tree.leaves(apart)))


steps = int(sys.argv[1])
print(json.dumps({run: difference(run) for run in sys.argv[2:]}))
