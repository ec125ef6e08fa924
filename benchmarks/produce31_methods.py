"""Every method for as many passes through the backbone, on produce31, from scratch.

    python benchmarks/produce31_methods.py --data=produce31 --workdir=runs/methods --out=results/methods.json

produce31 is 31 classes of fruit and vegetables of the Grocery Store Dataset, as train/, val/, test/. As in
produce31.py train and val are joined and cut into five stratified folds, and run k validates on fold k. Every
run gets the passes of the baseline's --epochs; a method whose step takes more passes takes fewer steps. The
first fold runs every method; the three that are best on its validation images run on two more. The test
split is read at the end of each run and chooses nothing. What is done stays in the workdir, and the same
command goes on from there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from flax import nnx
from produce31 import write_folds
from result import add_out, facts, write

from fgvc_jax import recipes
from fgvc_jax.config import base as base_config
from fgvc_jax.model import load_specification
from fgvc_jax.phases import complete, section
from fgvc_jax.run import run, use_compilation_cache
from fgvc_jax.tracking.logs import to_stdout
from fgvc_jax.train import tree

SIZE, BATCH = 128, 32
# Arguments of each method that fit maps of 16, 8 and 4 cells, and an example's cost in passes (forward and
# backward) of the baseline's.
METHODS = {
    "baseline": ({}, 1),
    # BatchNorm, since an untrained net gives all images nearly one embedding (cosine 0.97).
    "triplet": ({"embedding": 128, "batch_norm": True, "mining": "batch_all"}, 1),
    "bilinear": ({"reduction": 128}, 1),
    "fbsd": ({"hidden": 64, "width": 128}, 1),
    "pim": ({"width": 64, "num_selects": (64, 32, 16, 8)}, 1),
    "mmal": ({"windows": "2 of 1x1 1x2 2x1, 2 of 2x2"}, 3),
    "cmal": ({"hidden": 64, "width": 128}, 5),
}
PIPELINE = "finenet"
ROWS = (*METHODS, PIPELINE)


def config_of(args, method: str, fold: int):
    config = base_config()
    config.data.source, config.data.images = "list", str(args.data.resolve())
    config.data.root = str((args.workdir / "folds" / f"fold_{fold}.csv").resolve())
    config.data.canvas = 2 * SIZE
    config.image.size, config.image.crop_scale = SIZE, (0.25, 1.0)
    config.model.backbone, config.model.arguments = "resnet18", {"width": args.width}
    config.seed = fold
    config.log.tensorboard = False
    plain = {
        "batch": BATCH,
        "optimizer": {"learning_rate": 0.05, "rate_scale": ()},
        "validation": {"every": "20 %"},
        "arguments": {"label_smoothing": 0.0},
    }
    plain = recipes.merge(recipes.PLAIN, plain)
    if method == PIPELINE:
        # The three phases together have the passes of the others: pairs are two images a step's example, and
        # the last phase, whose backbone is frozen, counts a third.
        half = args.epochs / 2
        recipes.finer(
            config,
            finetune=plain | {"length": f"{half:g} epochs"},
            mine={"sheet_rows": 0},
            pairs={
                "optimizer": {"learning_rate": 4e-4, "momentum": 0.95, "weight_decay": 5e-4},
                "batch": BATCH // 2,
                "length": "0.8 x finetune",
            },
            retrain=recipes.RETRAIN | {"length": "0.6 x finetune"},
        )
        config.phases = ("finetune", "embed", "mine", "pairs", "retrain", "evaluate")
        return complete(config)
    arguments, cost = METHODS[method]
    settings = plain | {"length": f"{args.epochs / cost:g} epochs", "arguments": arguments}
    if method == "bilinear":  # a descriptor of length 1 with 128^2 numbers wants a faster head
        settings = recipes.merge(
            settings, {"optimizer": {"rate_scale": (("(head|reduce)/.*", 10.0),)}}
        )
    if method == "triplet":
        settings["sampler"] = {"name": "classes_by_images", "images_per_class": 4}
    config.train = section("train", method=method, **settings)
    config.evaluate = section("evaluate", batch=BATCH)
    config.phases = ("train", "evaluate")
    return complete(config)


def measure(args, method: str, fold: int) -> dict:
    """One run: accuracies, what it took, and the size of its model."""
    folder = args.workdir / f"{method}_{fold}"
    done = run(config_of(args, method, fold), folder)[""]
    last = "retrain" if method == PIPELINE else "train"
    phases = [result for result in done.values() if "passes" in result]
    row = {
        "method": method,
        "fold": fold,
        "steps": sum(phase["steps"] for phase in phases),
        "passes": round(sum(phase["passes"] for phase in phases)),
        "minutes": round(sum(result["seconds"] for result in done.values()) / 60, 2),
        "ms_a_step": round(
            1e3
            * sum(phase["seconds_by_kind"]["steps"] for phase in phases)
            / sum(phase["steps"] for phase in phases),
            1,
        ),
    }
    module = nnx.eval_shape(load_specification(folder / last / "model.json").build)
    params = tree.weights(module)["params"].values()
    row["parameters"] = sum(int(np.prod(x.shape)) for x in params)
    if method == "triplet":
        found = done["evaluate"]["retrieval"][0]
        best = {split: found[split] for split in ("val", "test")}
        return row | {
            split: {"top1": x["probe"], "knn1": x["knn1"], "map@r": x["map@r"]}
            for split, x in best.items()
        }
    found = next(x for x in done["evaluate"]["rows"] if x["name"] == last)
    keys = ("top1", "mean_class_accuracy")
    return row | {split: {k: found[split][k] for k in keys} for split in ("val", "test")}


def table(rows: list[dict]) -> list[str]:
    head = f"{'method':<10}{'folds':>6}{'steps':>8}{'ms/step':>9}{'x':>6}{'M par.':>8}"
    lines = [f"{head}{'val top-1':>16}{'test top-1':>16}{'mean class':>12}"]
    base = next(row for row in rows if row["method"] == "baseline")["ms_a_step"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        speed = np.mean([row["ms_a_step"] for row in own])
        line = f"{method:<10}{len(own):>6}{own[0]['steps']:>8,}{speed:>9.0f}{speed / base:>6.2f}"
        line += f"{own[0]['parameters'] / 1e6:>8.2f}"
        for split in ("val", "test"):
            values = 100 * np.array([row[split]["top1"] for row in own])
            spread = f" +- {values.std(ddof=1):.1f}" if len(own) > 1 else ""
            line += f"{f'{values.mean():.1f}{spread}':>16}"
        classes = [row["test"].get("mean_class_accuracy") for row in own]
        line += f"{100 * np.mean(classes):>12.1f}" if None not in classes else f"{'-':>12}"
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of produce31")
    parser.add_argument("--workdir", type=Path, required=True, help="gets everything that is made")
    parser.add_argument("--epochs", type=float, default=12, help="of the baseline, in passes")
    parser.add_argument("--width", type=int, default=32, help="of the ResNet-18")
    parser.add_argument("--methods", nargs="+", default=ROWS, choices=ROWS)
    add_out(parser)
    args = parser.parse_args()
    write_folds(args.data, args.workdir / "folds")
    to_stdout()
    use_compilation_cache()
    rows = [measure(args, method, 0) for method in args.methods]
    best = sorted(rows, key=lambda row: -row["val"]["top1"])[:3]
    print(*table(rows), sep="\n", flush=True)
    rows += [measure(args, row["method"], fold) for row in best for fold in (1, 2)]
    print(*table(rows), sep="\n")
    if args.out:
        write(facts(("jax", "flax", "optax", "numpy")) | {"rows": rows}, args.out)
    else:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
