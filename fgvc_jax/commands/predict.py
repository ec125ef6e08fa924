"""fgvc predict RUN PATHS ... --out=FILE [--format=csv|json|parquet|competition|kaggle] [--precision=0.95]

Classifies images with a finished run, or with a model folder (RUN/model). By --format:

  csv, json,   a row for each image: file, class, id, probability, second, second_probability, margin,
  parquet      decision (accept or review), nearest (training image), nearest_class, distance (1 - cosine),
               unlike (further from all training images than 99 % of the validation images), class_3 and so
               on with --topk, error
  competition  JSON {"images": {"IMAGE.jpg": "CLASS ID"}, "groupname": NAME}; ids as in the names of the
               training folders, with their leading zeros. For runs whose classes have ids
  kaggle       CSV Id,Category: the image's name without its extension, and the class id, or the class
               name where there are no ids

An image that cannot be read is a row with the reason in 'error'; the last two formats have an empty answer
for it, and the reasons are in FILE.errors.csv. The exit status is then 3.
An answer is accepted from the probability on from which --precision of the validation images were right.
Rows are kept in FILE.partial as they are found: after Ctrl-C or a crash the same command goes on.
"""

import argparse
import csv
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_jax.errors import UserError
from fgvc_jax.images.tta import KINDS
from fgvc_jax.prediction_files import FORMATS, Partial, Row, check_parquet, row, write
from fgvc_jax.predictions import PRECISION, accept_from, predictions
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.train.stop import Interrupted, Stop

if TYPE_CHECKING:
    from fgvc_jax.inference import Classifier

UNREADABLE = 3  # exit status: the file is complete, but some images could not be read


def main() -> int:
    """Classifies the images of the command line; returns the exit status, 0 or 3."""
    arguments = _arguments()
    out = Path(arguments.out).expanduser()
    from fgvc_jax.inference import load

    classifier = load(arguments.run)
    classifier.check_classes()
    if arguments.rerank:
        classifier.check_comparator()
    if arguments.format == "competition" and not classifier.class_ids:
        raise UserError(
            f"--format=competition wants class ids, but the classes of {arguments.run} have names only "
            f"({', '.join(classifier.classes[:3])}, ...): its training folders were not all called "
            "<classID>_<className>. Use --format=kaggle or csv."
        )
    files = classifier.find_images(arguments.paths)
    if arguments.format in ("competition", "kaggle"):
        _check_names(files, with_extension=arguments.format == "competition")
    settings = [arguments.topk, arguments.precision, arguments.tta, arguments.rerank]
    key = [str(classifier.phase), str(classifier.metrics), str(settings), *files]
    try:
        partial = Partial(out, key)
        if partial.other:
            _say(f"{partial.path} was of another command and is replaced.")
        if partial.done:
            _say(f"{partial.done:,} of {len(files):,} images were classified before; going on.")
        try:
            _classify(classifier, files, partial, arguments)
            bad = _finish(out, partial, arguments)
        finally:
            partial.close()
    except OSError as error:
        raise UserError(
            f"{error.filename or out} cannot be written: {error.strerror}. The rows so far are kept; the "
            "same command goes on from them."
        ) from error
    print(f"{len(files) - bad:,} images, classified by {classifier.phase}: {out}")
    if bad:
        where = "the column 'error' says why"
        if arguments.format in ("competition", "kaggle"):
            where = (
                f"they have an empty answer, which a server may refuse; {out}.errors.csv says why"
            )
        _say(f"{bad:,} of {len(files):,} images could not be read; {where}.")
    return UNREADABLE if bad else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "fgvc predict",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", help="a run's workdir, one of its training phases, or a model folder"
    )
    parser.add_argument("paths", nargs="+", help="images, or folders that are searched for images")
    parser.add_argument("--out", required=True, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, default="csv")
    parser.add_argument("--topk", type=int, default=2, help="classes of each image, at least 2")
    text = "share of the accepted answers that should be right (0.95)"
    parser.add_argument("--precision", type=float, default=PRECISION, help=text)
    text = "mean over an image and its mirror image, or over the central crop and those of four corners"
    parser.add_argument("--tta", choices=tuple(KINDS), default="", help=text)
    text = "weigh the first classes by the run's comparator (phase 'pairs')"
    parser.add_argument("--rerank", action="store_true", help=text)
    parser.add_argument("--group-name", default="", help="the 'groupname' of a competition's file")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    arguments = parser.parse_args()
    folder = Path(arguments.out).expanduser().resolve().parent
    if Path(arguments.out).expanduser().is_dir():
        raise UserError(f"--out={arguments.out} is a folder; name a file, such as preds.csv in it.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out={arguments.out}: {folder} is no folder that can be written to.")
    for name, lowest in (("batch", 1), ("topk", 2)):
        if getattr(arguments, name) < lowest:
            raise UserError(f"--{name}={getattr(arguments, name)}; it must be at least {lowest}.")
    if not 0 < arguments.precision <= 1:
        raise UserError(
            f"--precision={arguments.precision:g}; it must be above 0 and at most 1 (0.95 = 95 %)."
        )
    if arguments.group_name and arguments.format != "competition":
        raise UserError("--group-name belongs to --format=competition.")
    if arguments.format == "parquet":
        check_parquet()
    return arguments


def _classify(
    classifier: "Classifier", files: Sequence[str], partial: Partial, arguments: argparse.Namespace
) -> None:
    """Adds the rows that are missing to the partial file, a batch at a time; Ctrl-C is met between two."""
    found = predictions(
        classifier,
        files[partial.done :],
        topk=arguments.topk,
        precision=arguments.precision,
        tta=arguments.tta,
        rerank=arguments.rerank,
        batch=arguments.batch,
    )
    rows = (row(one, classifier.classes, classifier.class_ids, arguments.topk) for one in found)
    first = partial.done
    with Stop() as stop, Progress("predict", len(files), 1, first_step=first) as progress:
        while some := list(itertools.islice(rows, arguments.batch)):
            partial.write(some)
            progress.update(len(some))
            try:
                stop.check()
            except Interrupted:
                found.close()
                _say(
                    f"stopped; {progress.step:,} of {len(files):,} rows are in {partial.path}, and the same "
                    "command goes on from there."
                )
                raise
    accept = accept_from(classifier, arguments.precision, rerank=arguments.rerank)
    if accept is None:
        _say(
            "no decisions: the model has no calibration. The folder RUN/model has one, where the run had "
            "validation images; the run's command, started again, writes it."
        )
    elif accept.value is None:
        _say(
            f"no answer is accepted: on validation none is sure enough for {arguments.precision:.1%}."
        )
    else:
        _say(
            f"accepted from probability {accept.value:.4f} on: {accept.accepted:.1%} of the validation "
            f"images, of which {accept.precision:.1%} are right (95 % interval from {accept.low:.1%})."
        )


def _finish(out: Path, partial: Partial, arguments: argparse.Namespace) -> int:
    """Writes the file of the format, removes the partial one; returns how many images are not read."""
    decisions = dict.fromkeys(("accept", "review", "unlike", "error"), 0)

    def counted() -> Iterator[Row]:
        for one in partial.rows():
            decisions[one["decision"] or "error"] += bool(one["decision"] or one["error"])
            decisions["unlike"] += bool(one["unlike"])
            yield one

    write(out, arguments.format, counted(), arguments.topk, arguments.group_name)
    if decisions["accept"] or decisions["review"]:
        _say("{accept:,} accepted, {review:,} to review, {unlike:,} unlike.".format(**decisions))
    if decisions["error"] and arguments.format in ("competition", "kaggle"):
        with open(f"{out}.errors.csv", "w", newline="", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "error"))
            writer.writerows((r["file"], r["error"]) for r in partial.rows() if r["error"])
    partial.remove()
    return decisions["error"]


def _check_names(files: Sequence[str], with_extension: bool) -> None:
    """UserError where two files have the same name without their folders."""
    first: dict[str, str] = {}
    for file in files:
        name = Path(file).name if with_extension else Path(file).stem
        if name in first:
            raise UserError(
                f"{first[name]} and {file} are both called {name!r}, which is all that this --format tells "
                "of an image. Use --format=csv, or predict them one by one."
            )
        first[name] = file


def _say(text: str) -> None:
    print(text, file=sys.stderr)
