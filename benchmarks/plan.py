"""`fgvc plan` for FineNet's fine-tuning on CUB: models x sizes x slices, with the largest batch of each.

    python benchmarks/plan.py --on v5e:2x4 v5e:4x4 v6e:2x4 v4:2x2x1 --out=results/plan.json

A row is `fgvc plan --config=configs/cub_finer.py:MODEL --config.phases=finetune --on=ON --largest
--config.data.canvas=504 --config.data.val_fraction=0`, for 448 pixels with `--config.image.size=448
--config.image.resize=512`. The file is written after each row; rows that it has are not compiled again.
A compilation for a TPU takes 1 to 10 minutes on two cores, a search of the largest batch ten of them.
"""

import argparse
import itertools
import json
import runpy
import time
from pathlib import Path

import jax
from result import add_out, facts, write

from fgvc_jax import checks, forecast, phases
from fgvc_jax import mesh as meshes
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.data import counts as counting
from fgvc_jax.hardware import chips, devices
from fgvc_jax.images import protocols

ROOT = Path(__file__).resolve().parents[1]


def settings(model: str, size: int):
    """The config of a row, complete and checked."""
    with_configs = runpy.run_path(str(ROOT / "configs" / "cub_finer.py"))
    config = with_configs["get_config"](model)
    config.phases = ("finetune",)
    config.data.canvas, config.data.val_fraction = 504, 0.0
    config.image.size, config.image.resize = size, size * 8 // 7
    config = protocols.apply(phases.complete(config))
    checks.check(config)
    config.model.dtype, config.model.pretrained = "bfloat16", ""
    return config


def row(on: str, model: str, size: int, largest: bool) -> dict:
    """What the train step takes of a chip, and the largest batch."""
    config, target = settings(model, size), devices.find(on)
    mesh, chip = meshes.make(1, target.devices), chips.of(target.devices[0].device_kind)
    view = view_of(config)
    counts = counting.of(config.data, resize=view.resize, squash=view.squash)
    models = Models(config, Path(), counts.manifest(), mesh, view, counts.canvas)
    start = time.perf_counter()
    with target.tracing():
        (step,) = forecast.of(
            config, models, counts, chip, options=target.options, largest=largest, say=print
        )
    found, bound = step.measured, step.measured.bound(chip)
    memory = found.memory
    return {
        "batch": step.one.batch,
        "chips": mesh.size,
        "needed_gib": gib(step.needed),
        "room_gib": gib(chip.room),
        "temporaries_gib": memory and gib(memory.temporaries),
        "largest": step.largest,
        "tried_gib": {str(batch): gib(step.tried[batch]) for batch in sorted(step.tried)},
        "tflop": found.flops and round(found.flops * mesh.size / 1e12, 2),
        "gb_moved": found.bytes and round(found.bytes * mesh.size / 1e9, 1),
        "images_a_second_at_most": bound and round(step.one.batch / bound),
        "by": bound and ("arithmetic" if found.flops / chip.flops >= bound else "memory traffic"),
        "sent": {
            c.kind: {"count": c.count, "mb": round(c.bytes / 1e6, 2)} for c in found.collectives
        },
        "sending_ms": round(found.sending(chip) * 1e3, 2),
        "compiled_in_s": round(time.perf_counter() - start),
    }


def gib(count: float) -> float:
    return round(count / 2**30, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", nargs="+", default=["v5e:2x4"], help="as for fgvc plan")
    parser.add_argument("--models", nargs="+", default=["vit_b16_224", "resnet50"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448])
    parser.add_argument("--largest", action=argparse.BooleanOptionalAction, default=True)
    add_out(parser)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    rows = json.loads(args.out.read_text())["rows"] if args.out and args.out.exists() else {}
    for model, size, on in itertools.product(args.models, args.sizes, args.on):
        name = f"{model}, {size} px, {on}"
        if name in rows:
            continue
        rows[name] = row(on, model, size, args.largest)
        print(name)
        write(facts(("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")) | {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
