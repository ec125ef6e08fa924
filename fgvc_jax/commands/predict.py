"""fgvc predict RUN PATHS ... --out=FILE [--format=csv|competition|kaggle] [--group-name=NAME]

Classifies images with a finished run. The file that is written, by --format:

  csv          file, class, probability, second, margin
  competition  JSON {"images": {"IMAGE.jpg": "CLASS ID"}, "groupname": NAME}; ids as in the names of the
               training folders, with their leading zeros. For runs whose classes have ids
  kaggle       CSV Id,Category: the image's name without its extension, and the class id, or the class
               name where there are no ids
"""

import argparse
import csv
import json
import os
from pathlib import Path
from typing import TextIO

import numpy as np

from fgvc_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        "fgvc predict",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("paths", nargs="+", help="images, or folders that are searched for images")
    parser.add_argument("--out", required=True, help="the file to write")
    parser.add_argument("--format", choices=("csv", "competition", "kaggle"), default="csv")
    parser.add_argument("--group-name", default="", help="the 'groupname' of a competition's file")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()

    folder = Path(arguments.out).expanduser().resolve().parent
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out={arguments.out}: {folder} is no folder that can be written to.")
    if arguments.batch < 1:
        raise UserError(f"--batch={arguments.batch}; it must be at least 1.")
    if arguments.group_name and arguments.format != "competition":
        raise UserError("--group-name belongs to --format=competition.")
    from fgvc_jax.inference import load

    classifier = load(arguments.run)
    if arguments.format == "competition" and not classifier.class_ids:
        raise UserError(
            f"--format=competition wants class ids, but the classes of {arguments.run} have names only "
            f"({', '.join(classifier.classes[:3])}, ...): its training folders were not all called "
            "<classID>_<className>. Use --format=kaggle or csv."
        )
    files = classifier.find_images(arguments.paths)
    if arguments.format != "csv":
        names = _names(files, with_extension=arguments.format == "competition")
    probabilities = classifier.predict(files, batch=arguments.batch)
    ids = classifier.class_ids or classifier.classes
    best = [ids[label] for label in probabilities.argmax(axis=1)]
    partial = f"{arguments.out}.partial"
    with open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        if arguments.format == "competition":
            content = {
                "images": dict(zip(names, best, strict=True)),
                "groupname": arguments.group_name,
            }
            out.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        elif arguments.format == "kaggle":
            csv.writer(out).writerows([("Id", "Category"), *zip(names, best, strict=True)])
        else:
            _write_csv(out, files, classifier.classes, probabilities)
    os.replace(partial, arguments.out)
    print(f"{len(files):,} images, classified by {classifier.phase}: {arguments.out}")


def _names(files: list[str], with_extension: bool) -> list[str]:
    """The files' names without their folders; UserError where two are the same."""
    first: dict[str, str] = {}
    for file in files:
        name = Path(file).name if with_extension else Path(file).stem
        if name in first:
            raise UserError(
                f"{first[name]} and {file} are both called {name!r}, which is all that this --format tells "
                "of an image. Use --format=csv, or predict them one by one."
            )
        first[name] = file
    return list(first)


def _write_csv(out: TextIO, files: list[str], classes: tuple[str, ...], probabilities) -> None:
    order = np.argsort(-probabilities, axis=1, kind="stable")
    writer = csv.writer(out)
    writer.writerow(["file", "class", "probability", "second", "margin"])
    for file, row, (first, second) in zip(files, probabilities, order[:, :2], strict=True):
        margin = row[first] - row[second]
        writer.writerow(
            [file, classes[first], f"{row[first]:.6f}", classes[second], f"{margin:.6f}"]
        )
