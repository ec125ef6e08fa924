"""fgvc evolution RUN [--out=DIR] [--run2=RUN2] [--split=test]

Draws how a run's embedding changed while it was trained, from the embeddings that the run has saved
(config.PHASE.validation.embeddings). Writes to DIR (RUN/evolution where none is named):

  evolution.html  t-SNE of every saved point behind a slider, mean cosines of pairs of one class and of two by
                  epoch, and their histograms; with --run2 two runs side by side
  evolution.gif   the t-SNE alone
  cosines.csv     the mean cosines

docs/evolution.md says how.
"""

import argparse
import csv
import io
from pathlib import Path

from fgvc_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        "fgvc evolution",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", help="the run's workdir, or the training phase that saved embeddings"
    )
    parser.add_argument("--run2", default="", help="a second run, drawn beside it")
    parser.add_argument("--out", default="", help="the folder to write to; RUN/evolution")
    parser.add_argument("--split", default="test", help="whose images: train, val or test")
    arguments = parser.parse_args()
    from fgvc_jax import files
    from fgvc_jax.evolution import draw
    from fgvc_jax.evolution.measure import measure, read

    found = [read(Path(run), arguments.split) for run in (arguments.run, arguments.run2) if run]
    out = Path(arguments.out or Path(arguments.run, "evolution")).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}.") from error
    runs = []
    for saved in found:
        points = f"{len(saved.labels):,} images at {len(saved.steps)} points"
        print(f"projecting {saved.name}: {points} ...", flush=True)
        runs.append((saved, measure(saved)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "step", "epoch", "same_class", "different_class"])
    for saved, measured in runs:
        columns = saved.steps, saved.epochs, measured.same, measured.different
        writer.writerows([saved.name, *row] for row in zip(*columns, strict=True))
    files.write_text(out / "cosines.csv", text.getvalue())
    draw.gif(out / "evolution.gif", runs)
    draw.page(out / "evolution.html", runs, arguments.split)
    for saved, measured in runs:
        ends = (f"{measured.same[i]:.3f} and {measured.different[i]:.3f}" for i in (0, -1))
        print(
            f"{saved.name}: mean cosine of one class and of two {next(ends)}, at the end {next(ends)}"
        )
    print(out / "evolution.html")
