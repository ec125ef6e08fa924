"""fgvc compare RUN RUN ... --out=FILE.md|csv|tex|html [--parents=FILE]

Puts finished runs beside each other, a row each. Where they were scored on the same images, each two are
compared by McNemar's test (with Holm's correction for all of them) and by the paired bootstrap, and a row has
the mean of their probabilities. The page (html) adds curves and differences by class.

--parents names a CSV whose header is 'class,family' or has more levels: how often the parent is right.
docs/report.md says what the numbers are.
"""

import argparse
from pathlib import Path

from fgvc_jax.errors import UserError, choose

FORMATS = (".md", ".csv", ".tex", ".html")


def main() -> int:
    parser = argparse.ArgumentParser(
        "fgvc compare",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", help="the runs' workdirs")
    parser.add_argument("--out", required=True, help="the file to write; its ending says what")
    parser.add_argument("--parents", default="", help="a CSV: class,family,...")
    arguments = parser.parse_args()
    out = Path(arguments.out).expanduser()
    choose(out.suffix, FORMATS, f"--out={out}: ending")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out={out}: {out.resolve().parent} is no folder.")
    from fgvc_jax import files
    from fgvc_jax.pages import compare, formats
    from fgvc_jax.pages.render import render

    entries = compare.read(arguments.runs)
    reason = compare.why_not(entries)
    if arguments.parents and any(e.run.classes != entries[0].run.classes for e in entries):
        raise UserError("--parents wants runs of the same classes.")
    parents = (
        compare.read_parents(arguments.parents, entries[0].run.classes) if arguments.parents else {}
    )
    rows = [compare.row(entry, parents) for entry in entries]
    tests, note = [], ""
    if reason:
        note = f"Not compared image by image: {reason}."
    else:
        tests = compare.tests(entries)
        rows.append(compare.ensemble(entries, parents))
        several = [entry.name for entry in entries if len(entry.run.parts) > 1]
        if several:
            note = f"Of {', '.join(several)} one seed stands in the paired tests and the ensemble."
    if out.suffix == ".html":
        text = render(
            "compare.html",
            rows=[formats.cells(row) for row in rows],
            tests=[formats.test_cells(test) | {"holds": test["p_holm"] < 0.05} for test in tests],
            note=note,
            curves=compare.overlaid(entries),
            classes=[] if reason else compare.by_class(entries),
            headline=compare.headline(rows[: len(entries)], tests),
            names=[entry.name for entry in entries],
        )
    else:
        write = {".md": formats.markdown, ".csv": formats.comma, ".tex": formats.latex}[out.suffix]
        text = write(rows, tests, note)
    try:
        files.write_text(out, text)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from error
    print(formats.markdown(rows, tests, note) if out.suffix != ".html" else out)
    return 0
