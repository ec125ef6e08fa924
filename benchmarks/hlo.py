"""What a train step takes of an accelerator that need not be there, and whether its program is as meant.

    python benchmarks/hlo.py --on=v5e:2x2 --chips=1 --backbone=resnet50
    python benchmarks/hlo.py --on=v5e:2x4 --backbone=vit_base_patch16_224 --fsdp=8
    python benchmarks/hlo.py --on=h200 --backbone=vit_base_patch16_224 --batch=256

Compiles a fine-tuning on CUB's 5,394 training images for the chips of `--on`; reads each chip's arithmetic,
memory traffic, temporaries and memory in all; then again with one thing done another way (`VARIANTS`). Of the
program as it is, it also lists

    wide          products and convolutions of float32 arrays, by the place in the code that they are from
    calls         custom calls by target; a callback to the host would be one
    copies        operations with a result as large as the resident images
    in place      arrays of the state whose memory the new state takes, and how many there are
    sent          collectives by kind: count and bytes

'--on=v5e:...' needs `pip install 'fgvc_jax[plan]'`, '--on=h200' 'fgvc_jax[plan-cuda]'.
"""

import argparse
import collections
import contextlib
import re
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from result import add_out, facts, write

from fgvc_jax import checks, config, phases, recipes
from fgvc_jax import mesh as meshes
from fgvc_jax.backbones import names, vit
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.data.counts import Counts
from fgvc_jax.forecast import Shelf
from fgvc_jax.hardware import chips, collectives, compiled, devices, hlo, traffic
from fgvc_jax.layers import attention, norm, remat
from fgvc_jax.layers.dropout import fold
from fgvc_jax.ops import conv

IMAGES, SIDE, CLASSES = 5394, 512, 200
PRODUCTS = re.compile(r'custom_call_target="__(cublas|cudnn\$conv)')  # a GPU's libraries
NAMES = (
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "opt-barrier",
)  # copy nothing


class AsOnCpus:
    """`jax.lax`, but where a layer has a form for CPUs, that one is taken."""

    def __getattr__(self, name):
        return getattr(jax.lax, name)

    @staticmethod
    def platform_dependent(*arguments, default, **forms):
        return forms.get("cpu", default)(*arguments)


def two_passes(x):
    x = norm._wide(x)
    mean = x.mean(range(1, x.ndim - 1), keepdims=True)
    return mean, jnp.square(x - mean).mean(range(1, x.ndim - 1), keepdims=True)


def derived(x, scale, bias, eps):
    mean, var = norm._moments(x)
    return norm._affine(norm._wide(x), mean, var, scale, bias, eps), mean, var


def two_passes_derived(x, scale, bias, eps):
    mean, var = two_passes(x)
    return norm._affine(norm._wide(x), mean, var, scale, bias, eps), mean, var


def with_split(self, x, record, keys=None):
    """`ViT.forward` with `jnp.split` where it has slices."""
    first, patches = self.embed(x)
    batch, *_, channels = grid = patches.shape
    patches = record(patches)
    for number, block in enumerate(self.blocks):
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, channels)], axis=1)
        tokens = remat.call(self.remat, block, tokens, fold(keys, number))
        first, patches = jnp.split(tokens, [first.shape[1]], axis=1)
        patches = record(patches.reshape(grid))
    pooled = vit.wide(self.norm(first[:, 0]))
    return pooled, pooled


def by_xla(q, k, v):
    out = jax.nn.dot_product_attention(*(jnp.moveaxis(x, 1, 2) for x in (q, k, v)))
    return jnp.moveaxis(out, 2, 1)


def patch(place, name, value):
    return lambda: mock.patch.object(place, name, value)


# What is done another way: keys of the config, or what is put in place of what.
VARIANTS = {
    "as it is": {},
    "BatchNorm: two passes": patch(norm, "_moments", two_passes),
    "BatchNorm: gradient derived": patch(norm, "_normalise", derived),
    "BatchNorm: two passes, gradient derived": patch(norm, "_normalise", two_passes_derived),
    "1x1 convolutions as products, as on CPUs": patch(conv, "lax", AsOnCpus()),
    "remat=products": {"model.remat": "products"},
    "remat=full": {"model.remat": "full"},
    "attention=plain": {"model.attention": "plain"},
    "attention by dot_product_attention (XLA)": patch(attention, "_on_gpus", by_xla),
    "split in place of slices": patch(vit.ViT, "forward", with_split),
    "fsdp left to the partitioner": patch(meshes, "gathered", lambda params, mesh, dtype: params),
}


def program(args, mesh, changes):
    """(the train step, traced; bytes of the resident images on a chip; arrays of the state)."""
    settings = config.base()
    settings.data.resident_gb = 100.0
    settings.model.backbone, settings.model.dtype = args.backbone, args.dtype
    settings.image.size, settings.image.resize = args.size, args.size * 8 // 7
    settings.devices.fsdp = args.fsdp
    usual = recipes.PLAIN | {"batch": args.batch * mesh.size}
    if args.optimizer == "adamw":
        usual = recipes.merge(usual, {"optimizer": {"name": "adamw", "nesterov": False}})
    settings.finetune = phases.section("train", **usual)
    settings.phases = ("finetune",)
    settings.update_from_flattened_dict(changes)
    settings = phases.complete(settings)
    checks.check(settings)
    counts = Counts(CLASSES, {"train": IMAGES}, SIDE, "CUB")
    models = Models(settings, Path(), counts.manifest(), mesh, view_of(settings), SIDE)
    (phase,) = phases.of(settings)
    (step, *_) = phase.passes(models)
    shelf = Shelf(counts, settings.data, mesh)
    shelf.put(step.splits)
    traced = step.trace(step.batch, SIDE, shelf.resident(step.splits))
    state = traced.in_avals[0][0]
    return traced, shelf.bytes(step.splits), len(jax.tree.leaves(state))


def figures(text, program, chips_used):
    """What one chip takes."""
    memory = compiled.memory(program)
    sent = collectives.read(text, chips_used) if chips_used > 1 else ()
    return {
        "tflop": round(((program.cost_analysis() or {}).get("flops") or 0) / 1e12, 3),
        "gb_moved": round(traffic.read(text) / 1e9, 2),
        "temporaries_gib": round(memory.temporaries / 2**30, 2),
        "memory_gib": round(memory.total / 2**30, 2),
        "sent": {c.kind: {"count": c.count, "mb": round(c.bytes / 1e6, 2)} for c in sent},
    }


def findings(text, images, arrays):
    """Whether the program is as it should be."""
    bodies = hlo.computations(text)
    runs = hlo.times(bodies, within=False)
    wide, calls, copies = collections.Counter(), collections.Counter(), []
    for name, operations in bodies.items():
        results = {operation.name: operation.result for operation in operations}
        for operation in operations:
            if operation.kind in ("convolution", "dot") or PRODUCTS.search(operation.line):
                inputs = [a for name in operation.operands for a in results.get(name, ())]
                if any(a.dtype == "f32" for a in inputs):
                    place = re.search(r'op_name="([^"]*)"', operation.line)
                    wide[place[1] if place else operation.name] += 1
            if operation.kind == "custom-call":
                calls[re.search(r'custom_call_target="([^"]*)"', operation.line)[1]] += 1
            whole = any(a.dtype == "u8" and a.bytes >= images for a in operation.result)
            if runs[name] and whole and operation.kind not in NAMES:
                copies.append(operation.name)
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", text.splitlines()[0])
    return {
        "wide": dict(wide),
        "calls": dict(calls),
        "copies": copies,
        "in place": f"{aliases[1].count('alias') if aliases else 0} of {arrays}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--on", default="v5e:2x2", help="as for fgvc plan")
    parser.add_argument("--chips", type=int, help="the first so many of them")
    parser.add_argument("--backbone", default="resnet50", choices=names())
    parser.add_argument("--batch", type=int, default=128, help="of a chip")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--optimizer", default="", choices=("", "sgd", "adamw"))
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--variants", nargs="*", default=["as it is"], choices=list(VARIANTS))
    parser.add_argument("--text", type=Path, help="file for the text of the last program")
    add_out(parser)
    args = parser.parse_args()
    if not args.optimizer:
        args.optimizer = "adamw" if args.backbone.startswith(("vit", "swin")) else "sgd"

    jax.config.update("jax_platforms", "cpu")
    target = devices.find(args.on)
    mesh = meshes.make(args.fsdp, target.devices[: args.chips])
    chip = chips.of(target.devices[0].device_kind)
    result = {**facts(("fgvc_jax", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin")), "programs": {}}
    for name in args.variants:
        change = VARIANTS[name]
        changed = contextlib.nullcontext() if isinstance(change, dict) else change()
        start = time.perf_counter()
        with changed, target.tracing():
            traced, images, arrays = program(args, mesh, change if isinstance(change, dict) else {})
            done = traced.lower().compile(target.options)
        text = done.as_text()
        found = figures(text, done, mesh.size)
        if name == "as it is":
            found |= findings(text, images, arrays)
        found["fits"] = found["memory_gib"] * 2**30 <= chip.room
        found["compiled_in_s"] = round(time.perf_counter() - start, 1)
        result["programs"][name] = found
        print(f"{name}: {found}", flush=True)
        if args.text:
            args.text.write_text(text)
    write(result, args.out)


if __name__ == "__main__":
    main()
