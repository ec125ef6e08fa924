"""fgvc audit RUN [--out=DIR] [--show=100]

Ranks the training images of a finished run by how likely their label is wrong, and writes to DIR (RUN/audit
where none is named):

  audit.html        the first of them, each with its label, the suggested one and the nearest photos of both,
                    to keep, relabel or drop; it makes labels_patch.csv of what was chosen
  audit.csv         all of them, ranked
  labels_patch.csv  the same suggestions, every one commented out; once it has been edited it is kept, and
                    they are in suggestions.csv

Nothing is changed: train or check with --config.data.labels_patch=FILE. docs/audit.md says what the score is
and how good it was.
"""

import argparse
import csv
import io
from pathlib import Path

from fgvc_jax.errors import UserError, at_least

COLUMNS = (
    "rank",
    "file",
    "label",
    "suggestion",
    "score",
    "probability",  # the probe's, of the label
    "probability_of_suggestion",
    "neighbours_with_another_label",
    "suspect",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        "fgvc audit",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("--out", default="", help="the folder to write to; RUN/audit")
    parser.add_argument("--show", type=int, default=100, help="images on the page, at most")
    parser.add_argument("--checkpoint", default="best", help="best (by validation) or last")
    parser.add_argument("--neighbours", type=int, default=10, help="of an image that are asked")
    parser.add_argument("--folds", type=int, default=5, help="of the probe")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    arguments = parser.parse_args()
    for name, lowest in (("show", 1), ("neighbours", 1), ("folds", 2), ("batch", 1)):
        at_least(getattr(arguments, name), lowest, f"--{name}")
    from fgvc_jax import files
    from fgvc_jax import photos as run_photos
    from fgvc_jax.audit import page
    from fgvc_jax.audit.score import score
    from fgvc_jax.inference import load
    from fgvc_jax.model_folder import is_model_folder
    from fgvc_jax.trained import run_of

    classifier = load(arguments.run, which=arguments.checkpoint)
    photos = run_photos.of_phase(classifier.phase)
    run = Path(arguments.run).expanduser()
    if is_model_folder(run):  # which is shown to others as it is
        run = run_of(classifier.phase)
    out = Path(arguments.out or run / "audit").expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}.") from error
    print(f"embedding {len(photos.files):,} training images by {classifier.phase} ...", flush=True)
    embeddings = classifier.embed(map(photos.read, photos.files), arguments.batch)
    scores = score(
        embeddings,
        photos.labels,
        len(photos.classes),
        folds=arguments.folds,
        neighbours=arguments.neighbours,
    )
    files.write_text(out / "audit.csv", _ranking(photos, scores))
    patch = out / "labels_patch.csv"
    if _edited(patch):
        print(f"{patch} has been edited and is kept; the new suggestions: {out}/suggestions.csv")
        patch = out / "suggestions.csv"
    files.write_text(patch, _patch(photos, scores, arguments.show))
    page.write(
        out / "audit.html", Path(arguments.run).resolve().name, photos, embeddings, scores, arguments.show
    )  # fmt: skip
    wrong, count = int(scores.suspect.sum()), len(photos.files)
    print(
        f"{wrong:,} of {count:,} labels are suspect; the likeliest wrong ones: {out / 'audit.html'}"
    )
    alone = int((scores.suggestion < 0).sum())
    if alone:
        print(f"{alone:,} images are alone in their class and cannot be judged; they stand last.")


def _edited(patch: Path) -> bool:
    """Whether somebody has taken a '# ' away in an earlier file of suggestions."""
    if not patch.exists():
        return False
    lines = patch.read_text("utf-8", "surrogateescape").splitlines()
    return len([line for line in lines if line.strip() and not line.startswith("#")]) > 1


def _ranking(photos, scores) -> str:
    """All images, the likeliest wrong label first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rank, row in enumerate(scores.order.tolist(), 1):
        label, other = int(photos.labels[row]), int(scores.suggestion[row])
        found = ["", "", "", "", "", ""]
        if other >= 0:
            values = scores.score[row], scores.probe[row, label], scores.probe[row, other]
            numbers = [f"{value:.6f}" for value in (*values, scores.other[row])]
            found = [photos.classes[other], *numbers, int(scores.suspect[row])]
        writer.writerow([rank, photos.files[row], photos.classes[label], *found])
    return text.getvalue()


def _patch(photos, scores, count: int) -> str:
    """The suggestions as comments: a patch that changes nothing before somebody has looked."""
    text = io.StringIO()
    text.write(
        "# Suggestions of fgvc audit. Look at them in audit.html, which makes such a file of your choices.\n"
        "# Here: take the '# ' away before a line to relabel its image; 'drop' as the third entry\n"
        "# leaves it out.\n"
        "file,label,new_label\n"
    )
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in scores.order[:count].tolist():
        if scores.suggestion[row] >= 0:
            text.write("# ")
            names = photos.classes[photos.labels[row]], photos.classes[scores.suggestion[row]]
            writer.writerow([photos.files[row], *names])
    return text.getvalue()
