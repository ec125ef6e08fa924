"""fgvc predict RUN PATHS ... --out=FILE [--format=csv|competition|kaggle] [--group-name=NAME]

Classifies images with a finished run. The file that is written, by --format:

  csv          file, class, probability, second, margin, error. An image that cannot be read is a row with
               the reason in 'error' and nothing between; the exit status is then 3
  competition  JSON {"images": {"IMAGE.jpg": "CLASS ID"}, "groupname": NAME}; ids as in the names of the
               training folders, with their leading zeros. For runs whose classes have ids
  kaggle       CSV Id,Category: the image's name without its extension, and the class id, or the class
               name where there are no ids

The last two have no place for a reason, and a server takes an image that is missing for a wrong answer or
refuses the file: with images that cannot be read they are not written, and the exit status is 2.
Rows are written as they are found, to FILE.partial, which takes the name FILE when it is complete.
"""

import argparse
import csv
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.tracking.progress import Progress

if TYPE_CHECKING:
    from fgvc_jax.inference import Answer, Classifier

UNREADABLE = 3  # exit status: the file is complete, but some images could not be read


def main() -> int:
    """Classifies the images of the command line; returns the exit status, 0 or 3."""
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
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
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
    classifier.check_classes()
    if arguments.format == "competition" and not classifier.class_ids:
        raise UserError(
            f"--format=competition wants class ids, but the classes of {arguments.run} have names only "
            f"({', '.join(classifier.classes[:3])}, ...): its training folders were not all called "
            "<classID>_<className>. Use --format=kaggle or csv."
        )
    files = classifier.find_images(arguments.paths)
    if arguments.format != "csv":
        names = _names(files, with_extension=arguments.format == "competition")
    bad: list[str] = []
    answers = _answers(classifier, files, arguments.batch, bad)
    out = Path(arguments.out).expanduser()
    partial = out.with_name(f"{out.name}.partial")
    try:
        with open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            if arguments.format == "csv":
                _write_csv(file, answers, classifier.classes)
            else:
                ids = classifier.class_ids or classifier.classes
                best = ("" if a.error else ids[a.probabilities.argmax()] for a in answers)
                named = zip(names, best, strict=True)
                if arguments.format == "competition":
                    content = {"images": dict(named), "groupname": arguments.group_name}
                    file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
                else:
                    csv.writer(file).writerows(itertools.chain([("Id", "Category")], named))
    except OSError as error:
        raise UserError(f"{partial} cannot be written: {error.strerror}.") from error
    if bad and arguments.format != "csv":
        partial.unlink()
        raise UserError(_refusal(bad, len(files), arguments.format))
    os.replace(partial, out)
    print(f"{len(files) - len(bad):,} images, classified by {classifier.phase}: {out}")
    if bad:
        print(
            f"{len(bad):,} of {len(files):,} images could not be read; the column 'error' says why.",
            file=sys.stderr,
        )
    return UNREADABLE if bad else 0


def _answers(
    classifier: "Classifier", files: Sequence[str], batch: int, bad: list[str]
) -> Iterator["Answer"]:
    """An answer for each file, with progress on standard error; errors are added to `bad`."""
    with Progress("predict", len(files), 1) as progress:
        for number, answer in enumerate(classifier.stream(files, batch), 1):
            if answer.error:
                bad.append(answer.error)
            yield answer
            if number % batch == 0 or number == len(files):
                progress.update(number - progress.step)


def _refusal(bad: Sequence[str], count: int, form: str) -> str:
    more = f"\n  and {len(bad) - 10:,} more" if len(bad) > 10 else ""
    return (
        f"{len(bad):,} of {count:,} images cannot be read, and --format={form} has no place to say so; "
        "nothing was written:\n  "
        + "\n  ".join(bad[:10])
        + more
        + "\nReplace or remove them, or use --format=csv, which has a column for the reason."
    )


def _names(files: Sequence[str], with_extension: bool) -> list[str]:
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


def _write_csv(out: TextIO, answers: Iterable["Answer"], classes: Sequence[str]) -> None:
    writer = csv.writer(out)
    writer.writerow(["file", "class", "probability", "second", "margin", "error"])
    for file, row, error in answers:
        if error:
            writer.writerow([file, "", "", "", "", error.removeprefix(f"{file}: ")])
            continue
        first, second = np.argsort(-row, kind="stable")[:2]
        margin = row[first] - row[second]
        writer.writerow(
            [file, classes[first], f"{row[first]:.6f}", classes[second], f"{margin:.6f}", ""]
        )
