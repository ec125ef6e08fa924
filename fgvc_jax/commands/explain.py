"""fgvc explain RUN PATHS ... --out=DIR [--run2=RUN2] [--classes=predicted,second,true] [--kind=gradcam]

Draws where a finished run looks: heat maps on each image, for some classes, as PNG; the numbers as npz.
--kind is gradcam, hirescam, eigencam, or, of a ViT, rollout, which has one map for all classes. The true
class is known where an image lies in a folder that is called like a class. With --run2 another run's maps
stand below.
docs/explain.md says what each kind is, where it comes from, and what it does not show.
"""

import argparse
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
    parser.add_argument("paths", nargs="+", help="images, or folders that are searched for images")
    parser.add_argument("--out", required=True, help="the folder to write to")
    parser.add_argument("--run2", default="", help="a second run, to compare with")
    parser.add_argument("--classes", default="predicted,second", help="predicted, second, true")
    parser.add_argument("--kind", default="gradcam", help="gradcam, hirescam, eigencam, rollout")
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    arguments = parser.parse_args()
    wanted = [name.strip() for name in arguments.classes.split(",")]
    for name in wanted:
        choose(name, CLASSES, "--classes")
    if arguments.batch < 1:
        raise UserError(f"--batch={arguments.batch}; it must be at least 1.")
    from fgvc_jax.explain import draw, heat
    from fgvc_jax.inference import load

    kind = choose(arguments.kind, heat.KINDS, "--kind")
    out = Path(arguments.out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}.") from error
    runs = [run for run in (arguments.run, arguments.run2) if run]
    classifiers = [load(run) for run in runs]
    files = classifiers[0].find_images(arguments.paths)

    def truth(classifier):
        place = {name: number for number, name in enumerate(classifier.classes)}
        return lambda file: place.get(Path(file).parent.name, -1)

    found = [heat.explain(c, files, truth(c), kind, arguments.batch) for c in classifiers]
    digits, bad = len(str(len(files))), []
    for number, heats in enumerate(zip(*found, strict=True), 1):
        if heats[0].error:
            bad.append(heats[0].error)
            continue
        stem = out / f"{number:0{digits}d}_{Path(files[number - 1]).stem}"
        rows, arrays = [], {}
        for run, classifier, of_run in zip(runs, classifiers, heats, strict=True):
            title = Path(files[number - 1]).name
            title = title if len(runs) == 1 else f"{title}, {run}"
            pictures = [(of_run.seen, title, "as the net sees it")]
            pictures += _maps(of_run, classifier.classes, kind, wanted)
            rows.append(draw.row(pictures))
            key = f"run{len(rows)}"
            arrays |= {f"{key}_{name}": maps for name, maps in of_run.maps.items()}
            arrays |= {
                f"{key}_classes": of_run.classes,
                f"{key}_probabilities": of_run.probabilities,
            }
        draw.column(rows).save(f"{stem}.png")
        np.savez_compressed(f"{stem}.npz", **arrays)
    print(f"{len(files) - len(bad):,} images drawn in {out}")
    for reason in bad[:10]:
        print(reason, file=sys.stderr)
    if bad:
        print(f"{len(bad):,} of {len(files):,} images could not be read.", file=sys.stderr)
    return UNREADABLE if bad else 0


def _maps(heat, classes: Sequence[str], kind: str, wanted: Sequence[str]) -> list[tuple]:
    """The pictures of the wanted classes, as `draw.row` takes them."""
    from fgvc_jax.explain import draw

    pictures, side = [], heat.seen.shape[0]
    for name in wanted[:1] if kind == "rollout" else wanted:
        place = CLASSES.index(name)
        label = int(heat.classes[place])
        if label < 0:
            continue  # its true class is not known
        whole = draw.placed(heat.maps[kind][place], heat.box_of(kind), side)
        title, note = classes[label], f"{name}, {100 * heat.probabilities[label]:.1f} %"
        if kind == "rollout":
            title, note = "attention rollout", "one map for all classes"
        pictures.append((draw.overlay(heat.seen, whole), title, note))
    return pictures
