"""fgvc report RUN [--out=DIR]

Writes the report of a finished run: report.html, one file that needs no other and prints well, and beside it
report.json, tables/*.csv and figures/*.svg. Without --out they lie in RUN/report. Only files of the run and
its images are read. docs/report.md says what stands in it.
"""

import argparse


def main() -> int:
    parser = argparse.ArgumentParser(
        "fgvc report",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the run's workdir")
    parser.add_argument("--out", default="", help="the folder to write to; RUN/report")
    arguments = parser.parse_args()
    from fgvc_jax.pages import report

    print(report.make(arguments.run, arguments.out))
    return 0
