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
import sys
import time
from pathlib import Path

from result import add_out, facts, write

from fgvc_jax.commands.plan import planned

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "configs"))

import cub_finer


def settings(model: str, size: int):
    """The config of a row."""
    config = cub_finer.get_config(model)
    config.phases = ("finetune",)
    config.data.canvas, config.data.val_fraction = 504, 0.0
    config.image.size, config.image.resize = size, size * 8 // 7
    return config


def row(on: str, model: str, size: int, largest: bool) -> dict:
    """What the train step takes of a chip, and the largest batch."""
    _, _, mesh, chip, programs, tracing = planned(settings(model, size), on, largest=largest)
    start = time.perf_counter()
    with tracing():
        (step,) = programs
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
        "by": found.bound_by(chip),
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
