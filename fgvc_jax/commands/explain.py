"""fgvc explain RUN PATHS ... --out=DIR [--kind=gradcam] [--classes=predicted,second,true] [--run2=RUN2]
    [--occlude=mean] [--scores] [--evidence] [--why] [--boxes=FILE]
fgvc explain RUN --pairs=12 --out=DIR

Draws where a finished run looks: heat maps on each image, for some classes, as PNG; the numbers as npz. The
true class is known where an image lies in a folder that is called like a class. With --run2 another run's
maps stand below.

--kind is gradcam, hirescam or eigencam (--cam says which of these are computed); rollout, of a ViT, one map
for all classes; or occlusion, how far a class's probability drops when a patch covers a place. --occlude
covers the hottest part and looks again. --scores removes and puts in pixels, hottest first, and writes
scores.csv. --evidence draws what the method itself has picked out: boxes, tokens, strips. --why adds the
nearest training photo of the predicted and of the second class, with the heat maps of both. --boxes writes
how much of the heat lies inside boxes around the object, boxes.csv: FILE is CUB's bounding_boxes.txt or a
CSV file,x,y,width,height. --pairs draws the hardest mined pairs of a run with a comparator, and what speaks
for and against one class in both photos: pairs.png, pairs.csv.
docs/explain.md says what each is, where it comes from, and what it does not show.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgvc_jax.errors import UserError, choose

UNREADABLE = 3  # exit status: some images could not be read
CLASSES = ("predicted", "second", "true")


def main() -> int:
    """Draws the images of the command line; returns the exit status, 0 or 3."""
    parser = argparse.ArgumentParser(
        "fgvc explain",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("paths", nargs="*", help="images, or folders that are searched for images")
    parser.add_argument("--out", required=True, help="the folder to write to")
    parser.add_argument("--run2", default="", help="a second run, to compare with")
    parser.add_argument("--classes", default="predicted,second", help="predicted, second, true")
    parser.add_argument(
        "--kind",
        default="",
        help="gradcam, hirescam, eigencam, rollout, occlusion; the first of --cam",
    )
    parser.add_argument(
        "--cam", default="gradcam,hirescam,eigencam", help="those of the first three to compute"
    )
    parser.add_argument(
        "--patch", type=int, help="of kind occlusion: its side in pixels; a quarter of the image's"
    )
    parser.add_argument(
        "--stride", type=int, help="of kind occlusion: pixels from patch to patch; an eighth"
    )
    parser.add_argument(
        "--occlude", default="", help="cover the hottest part with a colour: mean or black"
    )
    parser.add_argument(
        "--scores", action="store_true", help="deletion and insertion, also in scores.csv"
    )
    parser.add_argument("--steps", type=int, default=20, help="of deletion and insertion")
    parser.add_argument(
        "--evidence", action="store_true", help="what the method itself has picked out"
    )
    parser.add_argument(
        "--why",
        action="store_true",
        help="the nearest training photos of the two likeliest classes",
    )
    parser.add_argument("--boxes", default="", help="a file of boxes around the objects")
    parser.add_argument("--pairs", type=int, help="how many of the hardest mined pairs to draw")
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    arguments = parser.parse_args()
    wanted = [name.strip() for name in arguments.classes.split(",")]
    for name in wanted:
        choose(name, CLASSES, "--classes")
    if arguments.why:
        wanted = list(CLASSES[:2])
    for name in ("batch", "steps", "patch", "stride", "pairs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name}={getattr(arguments, name)}; it must be at least 1.")
    if not arguments.paths and not arguments.pairs:
        raise UserError("nothing to explain: name images or folders, or --pairs=12.")
    from fgvc_jax import methods
    from fgvc_jax.data.sources import read_image
    from fgvc_jax.explain import cam, curves, draw, heat, inside, occlusion, why
    from fgvc_jax.inference import load

    cams = tuple(choose(name.strip(), cam.KINDS, "--cam") for name in arguments.cam.split(","))
    kind = choose(arguments.kind or cams[0], heat.KINDS, "--kind")
    if kind in cam.KINDS and kind not in cams:
        raise UserError(f"--kind={kind} is to be drawn and is not among --cam={arguments.cam}.")
    asked = heat.Asked(
        kind=kind,
        cams=cams,
        patch=arguments.patch or 0,
        stride=arguments.stride or 0,
        occlude=choose(arguments.occlude, ("", *occlusion.COLOURS), "--occlude"),
        steps=arguments.steps if arguments.scores else 0,
        evidence=arguments.evidence,
    )
    boxes = inside.read_boxes(arguments.boxes) if arguments.boxes else {}
    out = Path(arguments.out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}.") from error
    runs = [run for run in (arguments.run, arguments.run2) if run]
    classifiers = [load(run) for run in runs]
    if arguments.pairs:
        if kind not in cam.KINDS:
            raise UserError(f"--pairs draws maps of kind {', '.join(cam.KINDS)}, not {kind}.")
        _draw_pairs(arguments.run, classifiers[0], arguments.pairs, kind, arguments.batch, out)
    if not arguments.paths:
        return 0
    files = classifiers[0].find_images(arguments.paths)
    for run, classifier in zip(runs, classifiers, strict=True):
        method = classifier.specification.method
        if asked.evidence and methods.get(method).evidence is methods.Method.evidence:
            print(f"{run}: its method, {method}, picks out nothing of its own", file=sys.stderr)

    def truth(classifier):
        place = {name: number for number, name in enumerate(classifier.classes)}
        return lambda file: place.get(Path(file).parent.name, -1)

    def look(run, classifier):
        heats = heat.explain(classifier, files, truth(classifier), asked, arguments.batch)
        if arguments.why:
            try:
                gallery = why.Gallery(classifier)
            except UserError as error:
                print(f"{run}: training photos are left out: {error}.", file=sys.stderr)
            else:
                comparator = why.comparator(classifier.phase)
                return why.neighbours(gallery, comparator, heats, asked, arguments.batch)
        return ((one, []) for one in heats)

    found = list(map(look, runs, classifiers))
    digits, bad, scores, shares = len(str(len(files))), [], [], []
    for number, heats in enumerate(zip(*found, strict=True), 1):
        file = files[number - 1]
        if heats[0][0].error:
            bad.append(heats[0][0].error)
            continue
        stem = out / f"{number:0{digits}d}_{Path(file).stem}"
        rows, arrays = [], {}
        for place, (of_run, near) in enumerate(heats):
            run, classifier = runs[place], classifiers[place]
            title = Path(file).name
            title = title if len(runs) == 1 else f"{title}, {run}"
            seen, note = of_run.seen, "as the net sees it"
            if box := inside.box_for(boxes, file):
                specification = classifier.specification
                size = read_image(file).shape[:2]
                box = inside.in_view(box, *size, specification.canvas, specification.view)
                share, chance = inside.predicted(of_run, kind, box)
                name = classifier.classes[of_run.classes[0]]
                shares.append(
                    {"file": file, "run": run, "class": name, "inside": share, "chance": chance}
                )
                seen = draw.outlined(seen, {"box": np.round(box - [0, 0, 1, 1]).astype(int)[None]})
                note = (
                    f"{100 * share:.0f} % of the heat in the box, {100 * chance:.0f} % of the area"
                )
            pictures = [(seen, title, note)]
            pictures += _maps(of_run, classifier.classes, asked.kind, wanted)
            if of_run.occluded:
                pictures += _occluded(of_run, classifier.classes, asked.kind)
            pictures += draw.evidence(of_run.seen, of_run.evidence)
            rows.append(draw.row(pictures))
            for label, photo in zip(of_run.classes, near, strict=False):
                if photo:
                    name = classifier.classes[label]
                    rows.append(draw.row(_photo(photo, name, classifier.classes, asked.kind)))
            numbers = _numbers(of_run, near)
            arrays |= {f"run{1 + place}_{name}": x for name, x in numbers.items()}
            if of_run.curves:
                areas = {name: float(curves.area(x)) for name, x in of_run.curves.items()}
                best = of_run.classes[0]
                answer = {"class": classifier.classes[best], "p": of_run.probabilities[best]}
                scores.append({"file": file, "run": run, **answer, **areas})
        draw.column(rows).save(f"{stem}.png")
        np.savez_compressed(f"{stem}.npz", **arrays)
    print(f"{len(files) - len(bad):,} images drawn in {out}")
    if scores:
        _write_scores(out / "scores.csv", scores)
    if boxes:
        _write_shares(out / "boxes.csv", shares, arguments.boxes)
    for reason in bad[:10]:
        print(reason, file=sys.stderr)
    if bad:
        print(f"{len(bad):,} of {len(files):,} images could not be read.", file=sys.stderr)
    return UNREADABLE if bad else 0


def _maps(
    found, classes: Sequence[str], kind: str, wanted: Sequence[str], whose: str = ""
) -> list[tuple]:
    """The pictures of the wanted classes, as `draw.row` takes them; `whose` in place of these words."""
    from fgvc_jax.explain import draw, heat

    pictures, side, box = [], len(found.seen), heat.box_of(kind, found.box)
    for name in wanted[:1] if kind == "rollout" else wanted:
        place = CLASSES.index(name)
        label = int(found.classes[place])
        if label < 0:
            continue  # its true class is not known
        whole = draw.placed(found.maps[kind][place], box, side)
        title, note = classes[label], f"{whose or name}, {100 * found.probabilities[label]:.1f} %"
        if kind == "rollout":
            title, note = "attention rollout", "one map for all classes"
        if kind == "occlusion":
            note += f", drops by {100 * max(found.drop[place].max(), 0):.1f}"
        pictures.append((draw.overlay(found.seen, whole), title, note))
    return pictures


def _photo(near, name: str, classes: Sequence[str], kind: str) -> list[tuple]:
    """The pictures of the nearest training photo of the class `name`, with the heat maps of both classes."""
    note = f"cosine {near.cosine:.2f}"
    if near.same is not None:
        note += f", same class {100 * near.same:.0f} %"
    maps = _maps(near.heat, classes, kind, CLASSES[:2], "this photo")
    return [(near.heat.seen, f"nearest {name} in training", note), *maps]


def _occluded(found, classes: Sequence[str], kind: str) -> list[tuple]:
    """The covered image, and its heat map."""
    from fgvc_jax.explain import draw, heat

    label, now = int(found.classes[0]), found.occluded
    whole = draw.placed(now.map, heat.box_of(kind, now.box), len(now.seen))
    change = f"{100 * found.probabilities[label]:.1f} % -> {100 * now.probability:.1f} %"
    title = "hottest part covered" if now.covered[2] >= 0 else "nothing is hot"
    return [
        (now.seen, title, f"{classes[label]}, {change}"),
        (draw.overlay(now.seen, whole), classes[label], f"covered, {100 * now.probability:.1f} %"),
    ]


def _numbers(found, near: Sequence) -> dict[str, np.ndarray]:
    """What is saved of an image, by name."""
    arrays = found.maps | (found.curves or {})
    arrays |= {"classes": found.classes, "probabilities": found.probabilities}
    arrays |= {f"evidence {name}": x for name, x in found.evidence.items()}
    if found.box is not None:
        arrays["box"] = found.box
    if any(near):  # of the predicted and of the second class
        arrays["nearest"] = np.array([str(x.heat.image) if x else "" for x in near])
        for name in ("cosine", "same"):
            values = [getattr(x, name) if x else None for x in near]
            arrays[f"nearest_{name}"] = np.array(values, float)  # NaN for None
    if found.drop is not None:
        arrays["drop"] = found.drop
    if found.occluded:
        now = found.occluded._asdict()
        arrays |= {f"occluded_{k}": now[k] for k in ("covered", "map", "probability")}
    return arrays


def _draw_pairs(run: str, classifier, count: int, kind: str, batch: int, out: Path) -> None:
    """The hardest mined pairs as pairs.png and pairs.csv."""
    from fgvc_jax.explain import draw, pairs, why

    comparator = why.comparator(classifier.phase)
    if comparator is None:
        raise UserError(
            f"{run} has trained no comparator (method 'pairs'), so --pairs has none to ask."
        )
    found = list(pairs.hardest(comparator.model, kind, count, batch))
    draw.column([draw.row(pairs.pictures(one)) for one in found]).save(out / "pairs.png")
    rows = [
        {
            "query": one.query,
            "neighbour": one.neighbour,
            "class_of_query": one.classes[0],
            "class_of_neighbour": one.classes[1],
            "similarity": one.similarity,
            "same": one.same,
        }
        for one in found
    ]
    _write_rows(out / "pairs.csv", rows)
    fooled = sum(one.same > 0.5 for one in found)
    print(f"{len(found)} pairs in {out / 'pairs.png'}; of {fooled} the comparator says one class")


def _write_rows(path: Path, rows: Sequence[dict]) -> None:
    with path.open("w", newline="", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_shares(path: Path, shares: Sequence[dict], boxes: str) -> None:
    """A row an image and run, and prints each run's means."""
    if not shares:
        raise UserError(
            f"--boxes={boxes} names none of the images. A name there must be how an image's path ends."
        )
    _write_rows(path, shares)
    for run in dict.fromkeys(row["run"] for row in shares):
        own = [row for row in shares if row["run"] == run]
        inside, chance = (np.nanmean([row[key] for row in own]) for key in ("inside", "chance"))
        print(
            f"{run}: {100 * inside:.1f} % of the heat lies in the boxes, which cover {100 * chance:.1f} % of "
            f"the image ({len(own):,} images)"
        )


def _write_scores(path: Path, scores: Sequence[dict]) -> None:
    """A row an image and run, and prints each run's means."""
    _write_rows(path, scores)
    for run in dict.fromkeys(row["run"] for row in scores):
        rows = [row for row in scores if row["run"] == run]

        def mean(name, rows=rows) -> str:
            return f"{np.mean([row[name] for row in rows]):.3f}"

        print(
            f"{run}: deletion {mean('deletion')} (a random map: {mean('random_deletion')}; less is better), "
            f"insertion {mean('insertion')} ({mean('random_insertion')}; more is better)"
        )
