"""fgvc predict RUN PATHS ... --out=FILE.csv

Classifies images with a finished run, as CSV: file, class, probability, second, margin.
"""

import argparse
import csv
import os
from pathlib import Path

from fgvc_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser("fgvc predict", description=__doc__.partition("\n\n")[2])
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("paths", nargs="+", help="images, or folders that are searched for images")
    parser.add_argument("--out", required=True, help="the CSV file to write")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()

    folder = Path(arguments.out).expanduser().resolve().parent
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out={arguments.out}: {folder} is no folder that can be written to.")
    if arguments.batch < 1:
        raise UserError(f"--batch={arguments.batch}; it must be at least 1.")
    from fgvc_jax.inference import load

    classifier = load(arguments.run)
    files = classifier.find_images(arguments.paths)
    probabilities = classifier.predict(files, batch=arguments.batch)
    order = (-probabilities).argsort(axis=1, kind="stable")
    names = classifier.classes
    partial = f"{arguments.out}.partial"
    with open(partial, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["file", "class", "probability", "second", "margin"])
        for file, row, (first, second) in zip(files, probabilities, order[:, :2], strict=True):
            margin = row[first] - row[second]
            writer.writerow(
                [file, names[first], f"{row[first]:.6f}", names[second], f"{margin:.6f}"]
            )
    os.replace(partial, arguments.out)
    print(f"{len(files):,} images, classified by {classifier.phase}: {arguments.out}")
