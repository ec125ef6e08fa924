"""Does `fgvc audit` find wrong labels? On produce31, with 3 % of the training labels swapped by a seed.

    python benchmarks/audit_produce31.py --data=produce31 --workdir=runs/audit
    python benchmarks/audit_produce31.py --data=produce31 --workdir=runs/audit24 --epochs=24 --swaps=any

A ResNet-18 of half the usual width is trained from scratch on the swapped labels, as the baseline of
produce31_methods.py with fewer epochs; its first fold validates, its test split is read by nobody. Then the
training images are ranked, by the score of `fgvc audit` and by others beside it, among them those that the
score is made of, and the model's own confidence, which was trained on these very labels. Two kinds of swaps,
each a run: to any other class ('any'), and to one of the same kind of fruit ('alike'), which is harder.
"""

import argparse
import csv
import json
from pathlib import Path

import jax
import numpy as np
from produce31 import write_folds
from produce31_methods import config_of
from result import add_out, facts, write

import fgvc_jax
from fgvc_jax import photos as run_photos
from fgvc_jax.audit import score as scores
from fgvc_jax.run import run, use_compilation_cache
from fgvc_jax.tracking.logs import to_stdout

SHARE = 0.03
KINDS = (  # of the classes that are told apart by a glance only, by docs/methods.md
    ("Golden-Delicious", "Granny-Smith", "Pink-Lady", "Red-Delicious", "Royal-Gala"),
    ("Cantaloupe", "Galia-Melon", "Honeydew-Melon", "Watermelon"),
    ("Anjou", "Conference", "Kaiser"),
    ("Green-Bell-Pepper", "Orange-Bell-Pepper", "Red-Bell-Pepper", "Yellow-Bell-Pepper"),
    ("Floury-Potato", "Solid-Potato", "Sweet-Potato"),
    ("Beef-Tomato", "Regular-Tomato", "Vine-Tomato"),
    ("Lemon", "Lime", "Orange", "Red-Grapefruit", "Satsumas"),
    ("Nectarine", "Peach", "Plum", "Mango"),
)


def swap(fold: Path, out: Path, among: str, seed: int) -> dict[str, str]:
    """Writes a fold's list with SHARE of its training labels swapped; {path: its true label} of these."""
    with fold.open(newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == "train"]
    classes = sorted({row["label"] for row in train})
    rng, swapped = np.random.default_rng(seed), {}
    for number in rng.permutation(len(train))[: round(SHARE * len(train))]:
        row = train[number]
        kind = next(kind for kind in KINDS if row["label"] in kind)
        others = [c for c in (kind if among == "alike" else classes) if c != row["label"]]
        swapped[row["path"]] = row["label"]
        row["label"] = others[rng.integers(len(others))]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("path", "label", "split"))
        writer.writeheader()
        writer.writerows(rows)
    return swapped


def found(ranking: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Of a ranking (higher = more suspect): precision and recall at the number of swaps and twice it."""
    order, count = np.argsort(-ranking, kind="stable"), int(wrong.sum())
    hits = wrong[order].cumsum()
    return {
        "precision": round(hits[count - 1] / count, 3),  # equals recall there
        "recall_at_twice": round(hits[2 * count - 1] / count, 3),
        "average_precision": round(float((hits / np.arange(1, len(hits) + 1))[wrong[order]].mean()), 3),
    }  # fmt: skip


def measure(args, among: str) -> dict:
    folder = args.workdir / among
    fold = folder / "folds" / "fold_0.csv"
    swapped = swap(args.workdir / "folds" / "fold_0.csv", fold, among, args.seed)
    settings = argparse.Namespace(**vars(args) | {"workdir": folder})
    config = config_of(settings, "baseline", 0)
    config.phases = ("train",)
    done = run(config, folder / "run")[""]["train"]
    rows = {}
    for which in ("best", "last"):
        if (
            which == "last"
            and done["validation"]["last"]["step"] == done["validation"]["best"]["step"]
        ):
            continue
        classifier = fgvc_jax.load(folder / "run", which=which)
        photos = run_photos.of_phase(classifier.phase)
        wrong = np.array([file in swapped for file in photos.files])
        true = [swapped.get(file) for file in photos.files]
        embeddings = classifier.embed(map(photos.read, photos.files))
        labels, classes = photos.labels, len(photos.classes)
        audit = scores.score(embeddings, labels, classes)
        own = classifier.predict(map(photos.read, photos.files)).astype(float)
        hit = [photos.classes[s] == t for s, t in zip(audit.suggestion, true, strict=True) if t]
        count = int(wrong.sum())
        rows[which] = {
            "step": done["validation"][which]["step"],
            "wrong_labels_learnt": round(float((own.argmax(1) == labels)[wrong].mean()), 3),
            "score": found(audit.score, wrong)
            | {"suggestion_is_true_label": round(float(np.mean(hit)), 3)},
            "probe_alone": found(scores.margin(audit.probe, labels)[0], wrong),
            "neighbours_alone": found(audit.other, wrong),
            "models_own_confidence": found(scores.margin(own, labels)[0], wrong),
            "chance": round(count / len(wrong), 3),
            "suspect": {
                "images": int(audit.suspect.sum()),
                "precision": round(float(wrong[audit.suspect].mean()), 3),
                "recall": round(float(audit.suspect[wrong].mean()), 3),
            },
        }
    return {
        "swaps": among,
        "swapped": count,
        "training_images": len(wrong),
        "seconds_of_training": done["seconds"],
        "val_top1": round(done["validation"]["best"]["selection"], 3),
        "by_checkpoint": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of produce31")
    parser.add_argument("--workdir", type=Path, required=True, help="gets everything that is made")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--width", type=int, default=32, help="of the ResNet-18")
    parser.add_argument("--seed", type=int, default=0, help="of the swaps")
    parser.add_argument("--swaps", nargs="+", default=("any", "alike"), choices=("any", "alike"))
    add_out(parser)
    args = parser.parse_args()
    write_folds(args.data, args.workdir / "folds")
    to_stdout()
    use_compilation_cache()
    rows = []
    for among in args.swaps:
        rows.append(measure(args, among))
        jax.clear_caches()
        print(json.dumps(rows[-1], indent=1), flush=True)
    if args.out:
        write(facts(("jax", "scikit-learn", "numpy")) | {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
