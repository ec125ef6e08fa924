"""Does FineNet's pipeline beat plain fine-tuning for as many images? On produce31, from scratch.

    python benchmarks/produce31.py --data=produce31 --workdir=runs/produce31    # 2 hours of one core
    python benchmarks/produce31.py --data=produce31 --workdir=runs/quick --quick

produce31 is 31 classes of fruit and vegetables of the Grocery Store Dataset, as train/, val/, test/. Its own
validation split has 113 images of 23 classes, too few to choose on: train and val are joined and cut into
five stratified folds. Run k trains with seed k on all folds but the k-th, which is its validation. In order:

    base       fine-tune, embeddings, mined pairs and the same/different phase, by pair rate and fold
    heads      retrained heads on features of the interpolated backbones, compared on validation alone
    pipelines  the retraining and its variants as phases, and the control; then all are scored on the test
               split, which nothing before has read

What is done stays in the workdir, and the same command goes on from there.
"""

import argparse
import csv
from pathlib import Path

import jax
import numpy as np
from result import add_out, facts, write
from retrain_head import Recipe, accuracy, fresh_head, train_head
from sklearn.model_selection import StratifiedKFold

from fgvc_jax import mesh as meshes
from fgvc_jax import recipes
from fgvc_jax.config import base as base_config
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.data import doctor
from fgvc_jax.data.load import load
from fgvc_jax.files import cache_folder
from fgvc_jax.phases import _starts as starts
from fgvc_jax.phases import complete, section
from fgvc_jax.phases.train import phase_seed
from fgvc_jax.report import summary
from fgvc_jax.run import run, use_compilation_cache
from fgvc_jax.tracking.logs import to_stdout
from fgvc_jax.train import tree
from fgvc_jax.train.initial import class_mean_head
from fgvc_jax.train.predict import predict_all

# What each variant of the retraining changes.
VARIANTS = {
    "alpha_08": {"init": {"alpha": 0.8}},
    # the fine-tune's backbone: alpha = 1
    "no_pairs": {"init": {"interpolate": "", "batch_norm": "keep"}},
    "bn_kept": {"init": {"batch_norm": "keep"}},
    "last": {"init": {"checkpoint": "last"}},
    "before": {  # the recipe that this one replaced
        "init": {"head": "fresh", "batch_norm": "keep"},
        "optimizer": {"rate_scale": ()},
        "schedule": {"warmup": "0 steps"},
    },
}
BASE = ("finetune", "embed", "mine", "pairs")
BATCH = 32
VIEWS = 3  # augmented draws of each training image, which a head that is compared sees in turn
CHOSEN = 4e-4  # the pair phase's rate; 0.01 ruins the backbone, as the stage `heads` shows
# Pair rate, alpha, BatchNorm statistics of the backbones that heads are compared on.
BACKBONES = (
    (CHOSEN, 1.0, "keep"),
    (CHOSEN, 0.8, "estimate"),
    (CHOSEN, 0.5, "estimate"),
    (CHOSEN, 0.5, "keep"),
    (CHOSEN, 0.2, "estimate"),
    (0.01, 0.8, "estimate"),
    (0.01, 0.5, "estimate"),
)
RATES = (1e-3, 1e-2, 0.05, 0.1, 0.2)


def write_folds(data: Path, out: Path, folds: int = 5) -> None:
    """fold_<k>.csv for `data.source=list`: fold k of train + val is 'val', the rest 'train'."""
    out.mkdir(parents=True, exist_ok=True)
    files = {split: sorted((data / split).glob("*/*.jpg")) for split in ("train", "val", "test")}
    pool = files["train"] + files["val"]
    labels = [file.parent.name for file in pool]
    cut = StratifiedKFold(folds, shuffle=True, random_state=0).split(pool, labels)
    for number, (_, held) in enumerate(cut):
        rows = [(file, "val" if i in set(held) else "train") for i, file in enumerate(pool)]
        rows += [(file, "test") for file in files["test"]]
        with open(out / f"fold_{number}.csv", "w", newline="") as target:
            writer = csv.writer(target)
            writer.writerow(("path", "label", "split"))
            for file, split in rows:
                writer.writerow((file.relative_to(data), file.parent.name, split))


def config_of(args, fold: int, pair_rate: float = CHOSEN):
    """The pipeline for one fold: a ResNet-18 of half the usual width at 96 px, from scratch."""
    config, size = base_config(), 32 if args.quick else 96
    config.data.source, config.data.images = "list", str(args.data.resolve())
    config.data.root = str((args.workdir / "folds" / f"fold_{fold}.csv").resolve())
    config.data.canvas = 2 * size
    config.image.size, config.image.crop_scale = size, (0.25, 1.0)
    config.model.backbone = "resnet18"
    config.model.arguments = {"width": 8 if args.quick else 32}
    config.seed = fold
    config.log.tensorboard = False
    finetune = {
        "length": f"{args.epochs} epochs",
        "batch": BATCH,
        "optimizer": {"learning_rate": 0.05, "rate_scale": ()},
        "validation": {"every": "20 %"},
    }
    recipes.finer(
        config,
        finetune=recipes.merge(recipes.PLAIN, finetune),
        mine={"sheet_rows": 0},
        pairs={
            "optimizer": {
                "learning_rate": pair_rate,
                "momentum": 0.95,
                "weight_decay": 5e-4,
            },
            "batch": BATCH // 2,
            "length": f"{15 / args.epochs:g} x finetune",  # as long, however long the fine-tune was
            "validation": {"every": "100 %"},
        },
        retrain=recipes.RETRAIN,
    )
    for name, changes in VARIANTS.items():
        plain = {"init": {"phase": "finetune", "interpolate": "pairs"}, "batch": BATCH}
        settings = recipes.merge(recipes.merge(plain, recipes.RETRAIN), changes)
        config[name] = section("train", **settings)
    config.phases = (*BASE, "retrain", "control", *VARIANTS, "evaluate")
    if args.quick:
        for name in ("finetune", "retrain"):
            config[name].length = config[name].validation.every = "2 epochs"
        config.phases = (*BASE, "retrain", "control", "evaluate")
    return complete(config)


def features(
    folder: Path, config, alpha: float, which: str, batch_norm: str
) -> dict[str, np.ndarray]:
    """Embeddings of augmented and plain images by an interpolated backbone, the fine-tune's head, labels."""
    path = folder / "features" / f"{which}_{alpha:g}_{batch_norm}.npz"
    if path.exists():
        return dict(np.load(path))
    manifest, view = load(config.data), view_of(config)
    mesh = meshes.make()
    seen = doctor.look(
        manifest,
        cache_folder(),
        resize=view.resize,
        squash=view.squash,
        canvas=config.data.canvas,
    )
    data = Data(manifest, config.data, mesh, seen)
    models = Models(config, folder, manifest, mesh, view, data.canvas)
    specification, module, first = models.trained("finetune", which)
    _, _, second = models.trained("pairs", which)
    weights = {
        kind: tree.interpolate(first[kind], second[kind], alpha, "backbone/") for kind in first
    }
    if batch_norm == "estimate":
        module = specification.build()
        seed = phase_seed(config.seed, "retrain/batch_norm")
        found = starts.estimated_batch_norm(module, weights, data, models, BATCH, seed)
        weights["batch_stats"] = found
    weights = jax.device_put(weights, meshes.shardings(weights, mesh))
    labels = {split: data.labels(split) for split in ("train", "val")}

    def embed(split: str, seed: int | None = None) -> np.ndarray:
        step = models.predictor(tree.split(module)[0], random=seed is not None)
        return predict_all(step, weights, data.whole(split, 64), seed=seed or 0)["embedding"]

    found = {
        "views": np.stack([embed("train", 1 + view) for view in range(VIEWS)]),
        "train": embed("train"),
        "val": embed("val"),
        "kernel": np.asarray(weights["params"]["head/kernel"]),
        "bias": np.asarray(weights["params"]["head/bias"]),
    }
    found |= {f"{split}_labels": x for split, x in labels.items()}
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **found)
    return found


def base(args, fold: int, pair_rate: float) -> Path:
    """Runs the phases up to the pairs, the fine-tune once a fold; the workdir."""
    folder = args.workdir / f"pairs_{pair_rate:g}_{fold}"
    config = config_of(args, fold, pair_rate)
    config.phases = BASE
    first = args.workdir / f"pairs_{CHOSEN:g}_{fold}"
    run(config, folder, reuse=first if folder != first else "")
    return folder


def heads(args, folds: range) -> list[dict]:
    """Validation accuracy of retrained heads, mean over the folds, by backbone and recipe."""
    lines = []
    recipes_ = [Recipe(start, 0.0, 0) for start in ("means", "keep")]
    epochs = 2 if args.quick else 10
    recipes_ += [Recipe(start, r, epochs) for start in ("fresh", "means", "keep") for r in RATES]
    print(f"{'':<32}{'not trained':>14}   after {epochs} epochs at a rate of {RATES}")
    for pair_rate, alpha, batch_norm in BACKBONES[2:3] if args.quick else BACKBONES:
        found = []
        for fold in folds:
            folder, config = base(args, fold, pair_rate), config_of(args, fold, pair_rate)
            x = features(folder, config, alpha, "last", batch_norm)
            labels, classes = x["train_labels"], len(x["bias"])
            starts = {
                "fresh": fresh_head(x["train"].shape[1], classes, fold),
                "means": class_mean_head(x["train"], labels, classes),
                "keep": (x["kernel"], x["bias"]),
            }
            trained = [
                train_head(x["views"], labels, starts[r.start], r, fold, BATCH)
                if r.epochs
                else starts[r.start]
                for r in recipes_
            ]
            found.append([accuracy(x["val"], x["val_labels"], head) for head in trained])
        mean = dict(zip(recipes_, np.mean(found, axis=0), strict=True))
        for start in ("fresh", "means", "keep"):
            cells = [f"{100 * a:7.1f}" for r, a in mean.items() if r.start == start and r.epochs]
            plain = [
                f"{100 * a:14.1f}" for r, a in mean.items() if r.start == start and not r.epochs
            ]
            name = f"pairs {pair_rate:g} alpha {alpha:g} {batch_norm:<9}{start}"
            print(f"{name:<32}{''.join(plain) or ' ' * 14}   {''.join(cells)}", flush=True)
        lines += [
            {"pair_rate": pair_rate, "alpha": alpha, "batch_norm": batch_norm, "start": r.start}
            | {"rate": r.rate, "epochs": r.epochs, "val": round(float(a), 4)}
            for r, a in mean.items()
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of produce31")
    parser.add_argument("--workdir", type=Path, required=True, help="gets everything that is made")
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs, each on its own fold; at most 5"
    )
    parser.add_argument("--epochs", type=int, default=15, help="of the fine-tune")
    parser.add_argument("--quick", action="store_true", help="one tiny run, to see that all works")
    add_out(parser)
    args = parser.parse_args()
    folds = range(1 if args.quick else args.seeds)
    write_folds(args.data, args.workdir / "folds")
    to_stdout()
    use_compilation_cache()
    compared = heads(args, folds)
    results = []
    for fold in folds:
        folder = args.workdir / f"pipelines_{fold}"
        reuse = args.workdir / f"pairs_{CHOSEN:g}_{fold}"
        results += run(config_of(args, fold), folder, reuse=reuse).values()
    if len(results) > 1:
        print(*summary.over_seeds(results), sep="\n")
    if args.out:
        rows = [r["evaluate"]["rows"] for r in results]
        verdicts = [r["evaluate"]["comparison"] for r in results]
        found = {"heads": compared, "rows": rows, "comparisons": verdicts}
        write(facts(("jax", "flax", "optax", "numpy")) | found, args.out)


if __name__ == "__main__":
    main()
