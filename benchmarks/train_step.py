"""Speed of the train step against torch's, in one run.

    python benchmarks/train_step.py --backbone=resnet50 --batch=16

The input is constant and already on the device, the optimizer SGD with momentum. Measured in turn, round
after round, so that a busy machine slows all alike:

    ours            forward, loss, backward and update of the project's own train step
    ours_augmented  the whole step as it trains: random crop, flip and normalisation in front
    ours_resident   `ours_augmented` with the images in device memory, gathered by the step
    ours_sam        SAM around `ours`
    torch           what `ours` does, by torchvision's or timm's model (channels_last for a ResNet)
    torch_compiled  the same through torch.compile

Every rate is images/s over one round; ratios are of rates within a round.
"""

import argparse
import dataclasses
import functools
import os
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # the other half is torch's
# torch's threads otherwise spin while they wait; where cores are shared that slows it several times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import jax.numpy as jnp
import numpy as np
from result import add_out, facts, import_torchvision, spread, write

from fgvc_jax import heap
from fgvc_jax import mesh as meshes
from fgvc_jax.backbones import names
from fgvc_jax.data.cache import Canvases
from fgvc_jax.data.feed import Feed, gather, make_resident
from fgvc_jax.images.batch import random_views
from fgvc_jax.images.view import View
from fgvc_jax.model import Specification
from fgvc_jax.train import optim, tree
from fgvc_jax.train import step as steps
from fgvc_jax.train.sam import sam

CLASSES, RATE, MOMENTUM, DECAY = 200, 1e-3, 0.9, 1e-4
SEED = np.uint32(0)

# Dense bfloat16 TFLOP/s by the makers' data sheets, by a part of jax's device_kind.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197}


def ours(args):
    """{name: step() -> None, waits for its result}, and what is known of `ours` without running it."""
    mesh = meshes.make()
    view = View(args.size, args.size, (0.5,) * 3, (0.25,) * 3)
    module = Specification(
        args.backbone,
        "baseline",
        tuple(map(str, range(CLASSES))),
        view,
        canvas=args.size,
        dtype=args.dtype,
    ).build()
    module.train()
    static, params, stats = tree.split(module)
    recipe = steps.Recipe(
        optimizer=optim.optimizer("sgd", list(params), momentum=MOMENTUM, weight_decay=DECAY),
        learning_rate=optim.schedule("constant", peak=RATE, total=1),
        total_steps=1,
        steps_per_epoch=1.0,
    )
    state = steps.init_state(params, stats, recipe)
    state = jax.device_put(state, meshes.shardings(state, mesh))

    side = args.size * 8 // 7  # 256 for 224
    rng = np.random.default_rng(0)
    canvases = Canvases(
        rng.integers(0, 256, (8 * args.batch, side, side, 3), np.uint8),
        np.full((8 * args.batch, 2), side, np.int32),
    )
    rows = rng.permutation(8 * args.batch)[: args.batch]
    labels = rng.integers(0, CLASSES, args.batch, dtype=np.int32)
    batch = Feed([canvases], mesh).batch(rows[:, None], label=labels)
    resident = (make_resident(canvases, mesh),)
    ordered = Feed([canvases], mesh, resident).batch(rows[:, None], label=labels)
    dtype = jnp.dtype(args.dtype)
    images = jax.random.normal(jax.random.key(0), (args.batch, args.size, args.size, 3), dtype)
    ready = batch | {"pixels": jax.device_put(images[:, None], batch["pixels"].sharding)}

    augment = functools.partial(random_views, view=view, dtype=dtype)

    def as_given(keys, pixels, sizes):
        return pixels[:, 0]

    def compile_step(batch, resident=(), preprocess=augment, **kw):
        function = steps.train_step(
            *(module, state, dataclasses.replace(recipe, **kw)),
            mesh=mesh,
            gather=functools.partial(gather, mesh=mesh),
            preprocess=preprocess,
        )
        start = time.perf_counter()
        compiled = function.lower(state, resident, batch, SEED).compile()
        return compiled, round(time.perf_counter() - start, 1)

    compiled = {"ours": compile_step(ready, preprocess=as_given)}
    if args.sam:
        compiled["ours_sam"] = compile_step(ready, preprocess=as_given, wrap=lambda g: sam(g, 0.05))
    if args.augmented:
        compiled["ours_augmented"] = compile_step(batch)
        compiled["ours_resident"] = compile_step(ordered, resident)
    inputs = {
        "ours": ((), ready),
        "ours_sam": ((), ready),
        "ours_augmented": ((), batch),
        "ours_resident": (resident, ordered),
    }

    def run(name):
        nonlocal state
        for _ in range(args.steps):
            state, metrics = compiled[name][0](state, *inputs[name], SEED)
        assert np.isfinite(metrics["loss"]), f"{name}: the loss is no longer finite"
        jax.block_until_ready(state)

    def forward(params, stats, images):
        return tree.merge(static, params, stats).predict(images)["scores"]

    step = compiled["ours"][0]
    cost = step.cost_analysis()
    facts = {
        # Of the products and convolutions, times 3 for forward and backward: what utilisation counts.
        "model_gflop_per_image": 3 * 2e-9 * macs(forward, params, stats, images) / args.batch,
        "xla_gflop_per_step": cost["flops"] / 1e9,
        "xla_gbytes_per_step": cost["bytes accessed"] / 1e9,
        "temporary_gbytes": step.memory_analysis().temp_size_in_bytes / 1e9,
        "compile_seconds": {name: seconds for name, (_, seconds) in compiled.items()},
    }
    return {name: functools.partial(run, name) for name in compiled}, facts


def macs(function, *args) -> int:
    """Multiply-adds of the products and convolutions in a function, as published counts have it."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            out = eqn.outvars[0].aval
            if eqn.primitive.name == "dot_general":
                ((contract, _), _) = eqn.params["dimension_numbers"]
                total += out.size * int(np.prod([eqn.invars[0].aval.shape[a] for a in contract]))
            elif eqn.primitive.name == "conv_general_dilated":
                spec = eqn.params["dimension_numbers"].rhs_spec
                kernel = eqn.invars[1].aval
                total += out.size * kernel.size // kernel.shape[spec[0]]
            elif eqn.primitive.name == "cond":  # platform_dependent: the same in another form
                total += count(eqn.params["branches"][-1].jaxpr)
            else:
                inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
                total += count(getattr(inner, "jaxpr", inner)) if inner is not None else 0
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def torchs(args):
    """The same by torch; none, with a line, where torch or its models are not installed."""
    try:
        args.alive = import_torchvision()
        import timm
        import torch
        import torchvision
    except ImportError as error:
        print(f"torch is not measured: {error}")
        return {}
    on_gpu = jax.default_backend() == "gpu"
    if jax.default_backend() == "tpu" or (on_gpu and not torch.cuda.is_available()):
        print(f"torch is not measured: this torch does not see the {jax.default_backend()}")
        return {}
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as jax does
    torch.backends.cudnn.benchmark = True
    resnet = args.backbone.startswith("resnet")
    if resnet:
        model = getattr(torchvision.models, args.backbone)(num_classes=CLASSES)
    else:
        model = timm.create_model(args.backbone, num_classes=CLASSES, img_size=args.size)
    layout = torch.channels_last if resnet else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    images = images.to(memory_format=layout)
    labels = torch.randint(CLASSES, (args.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    half = args.dtype != "float32"

    def loss_of(images, labels):
        with torch.autocast(device.type, getattr(torch, args.dtype), enabled=half):
            return torch.nn.functional.cross_entropy(model(images), labels)

    def run(loss_of):
        for _ in range(args.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(images, labels)
            loss.backward()
            optimizer.step()
        assert np.isfinite(loss.item())
        if on_gpu:
            torch.cuda.synchronize()

    result = {"torch": functools.partial(run, loss_of)}
    if args.torch_compile:
        compiled = functools.partial(run, torch.compile(loss_of))
        try:
            compiled()
            result["torch_compiled"] = compiled
        except Exception as error:  # no compiler, an unsupported Python, ...: torch alone, then
            print(f"torch.compile is not measured: {type(error).__name__}: {error}"[:300])
    return result


def product_tflops(dtype: str) -> float:
    """What a large matrix product reaches on this device: the best of five."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(a, a))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet50", choices=names())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="in a round; 20 or so on a GPU or TPU")
    parser.add_argument("--sam", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--augmented", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--torch-compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peak-tflops", type=float, help="of the device; known for some")
    add_out(parser)
    args = parser.parse_args()

    heap.keep_freed()  # as `fgvc train` does; it is torch's memory, too
    contenders, step = ours(args)
    if args.torch:
        contenders |= torchs(args)
    for run in contenders.values():
        run()
    seconds = {name: [] for name in contenders}
    busy = {name: [] for name in contenders}  # of all threads: what other programs disturb least
    for number in range(args.rounds):
        for name, run in contenders.items():
            run()  # whoever comes after the other library pays for its memory and caches: not timed
            start, start_busy = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - start)
            busy[name].append((time.process_time() - start_busy) / args.steps)
        latest = ", ".join(f"{n} {args.batch * args.steps / s[-1]:.4g}" for n, s in seconds.items())
        print(f"round {number + 1}: {latest} images/s", flush=True)

    rates = {n: [args.batch * args.steps / s for s in column] for n, column in seconds.items()}
    device = jax.devices()[0]
    result = {
        **facts(("fgvc_jax", "jax", "jaxlib", "flax", "optax", "torch")),
        "images_per_second": {name: spread(column) for name, column in rates.items()},
        "cpu_seconds_per_step": {name: spread(column) for name, column in busy.items()},
        "ratios": {},
        "step": step,
    }
    others = ("ours_augmented", "ours_sam", "torch", "torch_compiled")
    for one, other in [*(("ours", other) for other in others), ("ours_augmented", "ours_resident")]:
        if other in rates:
            pairs = zip(rates[one], rates[other], strict=True)
            result["ratios"][f"{one} / {other}"] = spread([a / b for a, b in pairs])

    reached = result["images_per_second"]["ours"]["median"] * step["model_gflop_per_image"] / 1e3
    reached /= jax.device_count()
    result["tflops"] = {"ours": reached, "bare_product": product_tflops(args.dtype)}
    peak = args.peak_tflops
    if peak is None and args.dtype == "bfloat16":
        peak = next((p for kind, p in PEAKS.items() if kind in device.device_kind), None)
    if peak:
        result["tflops"] |= {"peak": peak, "model_flops_utilisation": reached / peak}
    write(result, args.out)


if __name__ == "__main__":
    main()
