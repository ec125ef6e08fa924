"""A training step of every method: over the baseline's, and over the same method's in plain torch.

    python benchmarks/methods.py --backbone=resnet18 --size=128 --batch=8

On the CPU, float32, SGD with momentum. A step goes from images that are there to updated weights, with every
update of CMAL-Net and all branches of MMAL-Net. Measured in turn, round after round, so that a busy machine
slows all alike; ratios are of times within a round.

Both sides start from the same weights. A method is timed against torch only where the losses of its first
step are the same on both; without dropout, whose draws no two libraries share. How near the momentum (the sum
of gradients) is after it is printed too, but decides nothing: fresh deep nets enlarge float32's roundings too
much (with a ResNet-50 torch's own, of the bilinear method, is 15 % off torch's in float64). The tests compare
gradients in float64.

Memory is this process's, measured alike for both sides: what it holds between two steps (weights, statistics,
momentum, images: the same on both) plus the most by which its resident memory grows during a step
(activations, gradients, workspace). Beside it what XLA's `memory_analysis` counts for the compiled step,
arguments and temporaries: without what a convolution takes at run time, so comparable with ours alone.
"""

import argparse
import ctypes
import gc
import importlib
import math
import os
import time
from pathlib import Path

# torch's threads otherwise spin while they wait; where cores are shared that slows it several times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from result import add_out, facts, import_torchvision, spread, write

from fgvc_jax import backbones, methods
from fgvc_jax import mesh as meshes
from fgvc_jax.images.view import View
from fgvc_jax.model import Specification
from fgvc_jax.train import optim, tree
from fgvc_jax.train import step as steps
from fgvc_jax.weights import torch_axes
from fgvc_jax.weights.resnet import TABLE
from fgvc_jax.weights.tables import LAST

# A small rate: CMAL-Net's five updates else enlarge roundings from one to the next.
CLASSES, RATE, MOMENTUM, DECAY = 200, 1e-5, 0.9, 1e-4
SEED = np.uint32(0)
# Of the losses of the first step, relative: float32's roundings of 1e-7 through BatchNorm over few values.
TOLERANCE = 1e-4
MISSING = dict.fromkeys(("min", "median", "max"), math.nan)
# Small enough for the maps of 128 pixels; heads in proportion to a ResNet-18.
ARGUMENTS = {
    "bilinear": {"reduction": 128},
    "cmal": {"hidden": 128, "width": 256},
    "fbsd": {"hidden": 128, "width": 256},
    "mmal": {"windows": "2 of 2x2 1x3 3x1, 2 of 3x3 2x4 4x2", "dropout": 0.0},
    "pim": {"width": 256, "num_selects": (64, 32, 16, 16), "dropout": 0.0},
}


class Ours:
    """The project's own train step of one method, compiled."""

    def __init__(self, name, args):
        view = View(args.size, args.size, (0.5,) * 3, (0.25,) * 3)
        module = Specification(
            args.backbone,
            name,
            tuple(map(str, range(CLASSES))),
            view,
            canvas=args.size,
            method_arguments=ARGUMENTS.get(name, {}),
        ).build()
        module.train()
        mesh = meshes.make()
        _, params, stats = tree.split(module)
        self.arrays = {path: np.array(x) for path, x in (params | stats).items()}
        recipe = steps.Recipe(
            optimizer=optim.optimizer("sgd", list(params), momentum=MOMENTUM, weight_decay=DECAY),
            learning_rate=optim.schedule("constant", peak=RATE, total=1),
            total_steps=1,
            steps_per_epoch=1.0,
        )
        # The second epoch, in which every loss of MMAL-Net counts.
        state = steps.init_state(params, stats, recipe) | {"step": jnp.ones((), jnp.int32)}
        self.state = jax.device_put(state, meshes.shardings(state, mesh))
        views = module.images_per_example
        rng = np.random.default_rng(0)
        images = rng.normal(size=(args.batch, views, args.size, args.size, 3)).astype(np.float32)
        self.images = images if views > 1 else images[:, 0]
        # Two images of every class, and as many pairs of the same class as others.
        self.labels = np.arange(args.batch, dtype=np.int32) % 2
        if module.trains_on == "images":
            self.labels = np.arange(args.batch, dtype=np.int32) // 2 % CLASSES
        self.batch = jax.device_put({"pixels": self.images, "label": self.labels})

        function = steps.train_step(
            *(module, self.state, recipe),
            mesh=mesh,
            gather=lambda resident, batch: (batch["pixels"], None),
            preprocess=lambda keys, pixels, sizes: pixels,
        )
        start = time.perf_counter()
        self.compiled = function.lower(self.state, (), self.batch, SEED).compile()
        self.compile_seconds = time.perf_counter() - start
        self.updates, self.passes = len(module.updates), module.cost.forward
        self.parameters = sum(x.size for x in params.values())
        held = (self.state, self.batch)
        self.held = sum(x.nbytes for x in jax.tree.leaves(held))

    def __call__(self) -> list[float]:
        """A step; the losses of its updates."""
        self.state, metrics = self.compiled(self.state, (), self.batch, SEED)
        names = [f"loss_{n + 1}" for n in range(self.updates)] if self.updates > 1 else ["loss"]
        losses = [float(metrics[name]) for name in names]
        jax.block_until_ready(self.state)
        return losses

    def momentum(self) -> dict[str, np.ndarray]:
        """By torch's names and in its axes."""
        trace = optax.tree_utils.tree_get(self.state["opt"], "trace")
        return {torch_name(path): torch_axes(path, np.asarray(x)) for path, x in trace.items()}

    def between_steps(self) -> None:
        """Nothing is kept but the state."""

    def xla_bytes(self) -> int:
        found = self.compiled.memory_analysis()
        return found.argument_size_in_bytes + found.temp_size_in_bytes


class Torchs:
    """The same by torch."""

    def __init__(self, name, args, ours: Ours):
        import torch
        import torch_methods

        arguments = ARGUMENTS.get(name, {})
        model = torch_methods.NAMES[name](args.backbone, CLASSES, args.size, **arguments)
        state = model.state_dict()
        left = {key for key in state if not key.endswith("num_batches_tracked")}
        for path, array in ours.arrays.items():
            key = torch_name(path)
            state[key].copy_(torch.tensor(torch_axes(path, array)).reshape(state[key].shape))
            left.remove(key)
        assert not left, f"{name}: torch's {sorted(left)} have no weights of ours"
        self.model = model.to(memory_format=torch.channels_last).train()
        # [B, ..., 3, S, S] that lie in memory as ours do: channels_last, which is faster.
        self.images = torch.tensor(ours.images).movedim(-1, -3)
        self.labels = torch.tensor(ours.labels).long()
        self.optimizer = torch.optim.SGD(
            model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY
        )

    def __call__(self) -> list[float]:
        losses = self.model.step(self.images, self.labels, self.optimizer)
        return [loss.item() for loss in losses]

    def first(self) -> list[float]:
        """The first step, in which CMAL-Net's experts are shown what ours shows them."""
        if not hasattr(self.model, "draw"):
            return self()
        keys = [steps.update_key(SEED, 1, 1 + number) for number in (1, 2)]
        keys = [jax.random.fold_in(key, steps._WHOLE) for key in keys]
        drawn = iter([int(jax.random.randint(key, (), 0, 3)) for key in keys])
        self.model.draw = lambda stop: next(drawn)
        losses = self()
        del self.model.draw  # random from now on
        return losses

    def momentum(self) -> dict[str, np.ndarray]:
        state = self.optimizer.state
        return {
            name: state[parameter]["momentum_buffer"].numpy()
            for name, parameter in self.model.named_parameters()
        }

    def between_steps(self) -> None:
        """Frees the gradients, which else are kept to the next step."""
        self.optimizer.zero_grad(set_to_none=True)


def torch_name(path: str) -> str:
    """The name that an array of ours has in a twin."""
    if path.startswith("backbone/"):
        return "backbone." + TABLE.layouts[-1].key(path.removeprefix("backbone/"))
    *parents, last = path.split("/")
    return ".".join([*parents, LAST.get(last, last)])


def compare(ours: Ours, torchs: Torchs) -> dict[str, float]:
    """The largest relative error of the losses of the first step, and that of its momentum as a whole."""
    losses = zip(ours(), torchs.first(), strict=True)
    here, there = ours.momentum(), torchs.momentum()
    error = sum(
        np.square(x.reshape(there[name].shape) - there[name]).sum() for name, x in here.items()
    )
    whole = sum(np.square(x).sum() for x in there.values())
    return {
        "losses": max(abs(a - b) / abs(b) for a, b in losses),
        "momentum": float(np.sqrt(error / whole)),
    }


def growth(side) -> int:
    """Bytes by which this process's resident memory grows at most during a step."""
    side()
    side.between_steps()
    gc.collect()
    # What is free goes back to the system, so that it counts when it is taken again; the peak is forgotten.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    side()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def prepare(name, args) -> tuple[dict, dict]:
    """What is known of a method before it is timed, and its sides by name."""
    ours = Ours(name, args)
    row = {
        "updates": ours.updates,
        "passes": ours.passes,
        "parameters": ours.parameters,
        "compile_seconds": round(ours.compile_seconds, 1),
    }
    sides = {"ours": ours}
    if args.torch:
        torchs = Torchs(name, args, ours)
        row["difference"] = compare(ours, torchs)
        if row["difference"]["losses"] <= TOLERANCE:
            sides["torch"] = torchs
        else:
            print(f"{name} is not compared with torch, the first steps differ: {row['difference']}")
    bytes_ = {side: ours.held + growth(run) for side, run in sides.items()}
    bytes_ |= {"between steps": ours.held, "by XLA": ours.xla_bytes()}
    row["memory_mb"] = {side: round(count / 1e6, 1) for side, count in bytes_.items()}
    return row, sides


def table(rows: dict) -> list[str]:
    head = f"{'':<9}{'updates':>8}{'passes':>7}{'M par.':>7}{'compile s':>10}"
    lines = [f"{head}{'ms':>7}{'torch':>7}{'/ baseline':>18}{'/ torch':>18}{'MB':>6}{'torch':>6}"]
    for name, row in rows.items():

        def time_over(other, row=row):
            return "{min:.2f} {median:.2f} {max:.2f}".format(**row["time"].get(other, MISSING))

        ms = {side: spread["median"] for side, spread in row["ms_a_step"].items()}
        lines.append(
            f"{name:<9}{row['updates']:>8}{row['passes']:>7g}{row['parameters'] / 1e6:>7.1f}"
            f"{row['compile_seconds']:>10}{ms['ours']:>7.0f}{ms.get('torch', math.nan):>7.0f}"
            f"{time_over('ours / baseline'):>18}{time_over('ours / torch'):>18}"
            f"{row['memory_mb']['ours']:>6.0f}{row['memory_mb'].get('torch', math.nan):>6.0f}"
        )
    return lines


def main():
    resnets = [name for name in backbones.names() if name.startswith("resnet")]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet18", choices=resnets)
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=8, help="examples: images, or pairs of them")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=methods.names(), choices=methods.names())
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    add_out(parser)
    args = parser.parse_args()
    if args.torch:
        try:
            args.alive = import_torchvision()
            importlib.import_module("torch_methods")
        except ImportError as error:
            print(f"torch is not measured: {error}")
            args.torch = False
    load_before = os.getloadavg()

    rows, contenders = {}, {}
    for name in dict.fromkeys(["baseline", *args.methods]):
        rows[name], sides = prepare(name, args)
        contenders |= {(name, side): run for side, run in sides.items()}
        print(f"{name}: {rows[name]}", flush=True)
    seconds = {key: [] for key in contenders}
    busy = {key: [] for key in contenders}  # of all threads: what other programs disturb least
    for number in range(args.rounds):
        for key, run in contenders.items():
            run()  # whoever comes after another pays for its memory and caches: not timed
            start, start_busy = time.perf_counter(), time.process_time()
            losses = run()
            seconds[key].append(time.perf_counter() - start)
            busy[key].append(time.process_time() - start_busy)
            assert np.isfinite(losses).all(), f"{key}: the loss is no longer finite"
        print(f"round {number + 1} of {args.rounds}", flush=True)

    def ratio(one, other):
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    for name, row in rows.items():
        sides = [side for side in ("ours", "torch") if (name, side) in contenders]
        row["ms_a_step"] = {s: spread([1e3 * x for x in seconds[name, s]]) for s in sides}
        row["cpu_ms_a_step"] = {s: spread([1e3 * x for x in busy[name, s]]) for s in sides}
        row["time"] = {
            f"{side} / baseline": spread(ratio((name, side), ("baseline", side)))
            for side in sides
            if ("baseline", side) in contenders
        }
        memory, base = row["memory_mb"], rows["baseline"]["memory_mb"]
        row["memory"] = {
            f"{s} / baseline": round(memory[s] / base[s], 3) for s in sides if s in base
        }
        if "torch" in sides:
            row["time"]["ours / torch"] = spread(ratio((name, "ours"), (name, "torch")))
            row["memory"]["ours / torch"] = round(memory["ours"] / memory["torch"], 3)
    print(*table(rows), sep="\n")
    found = facts(("fgvc_jax", "jax", "jaxlib", "flax", "optax", "torch", "torchvision"))
    found["hardware"]["load_average_before"] = load_before
    write(found | {"arguments": ARGUMENTS, "methods": rows}, args.out)


if __name__ == "__main__":
    main()
