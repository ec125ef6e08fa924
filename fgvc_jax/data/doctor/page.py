"""The findings as one HTML file that needs no other."""

import html
import os

import numpy as np

from fgvc_jax import files
from fgvc_jax.data.doctor.findings import Case, Finding, Findings, shown
from fgvc_jax.data.doctor.report import verdict
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.data.thumbnails import thumbnail
from fgvc_jax.errors import UserError

THUMB = 160  # longer side of a picture, pixels
CASES = {"error": 24, "warning": 24, "note": 6}  # drawn at most of one finding
CLASSES = 60  # drawn at most, one image each

STYLE = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --grey: #6b6b6b; --line: #ddd;
  --error: #b3261e; --warning: #8a5a00; --note: #1b5fa8 }
@media (prefers-color-scheme: dark) { :root { --paper: #161616; --ink: #eaeaea; --grey: #9b9b9b;
  --line: #3a3a3a; --error: #ff8a80; --warning: #ffc166; --note: #8ab8f0 } }
body { background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 0 }
.verdict { font-size: 1.1rem; margin-top: .2rem } .quiet { color: var(--grey); margin: .2rem 0 }
.error { color: var(--error) } .warning { color: var(--warning) } .note { color: var(--note) }
.cases { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; margin-top: .6rem }
.case { border-top: 1px solid var(--line); padding-top: .5rem } .case > div { display: flex; gap: 6px }
figure { margin: 0; width: 160px } figcaption { font-size: 12px; overflow-wrap: anywhere }
img { max-width: 160px; display: block }
table { border-collapse: collapse; margin-top: .6rem } td, th { padding: .1rem .8rem .1rem 0;
  text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
"""


def write(path: str | os.PathLike, findings: Findings, manifest: Manifest) -> None:
    """Writes the page, atomically: findings with pictures, pairs side by side, counts by class."""
    splits = list(manifest.splits)
    total = " + ".join(f"{len(manifest.splits[s].files):,} {s}" for s in splits)
    state = "error" if findings.of("error") else "warning" if findings.of("warning") else "quiet"
    training = "".join(f"<li>{html.escape(line)}</li>" for line in findings.training)
    body = [
        f"<h1>{html.escape(shown(findings.name))}</h1>",
        f'<p class="verdict {state}">{html.escape(verdict(findings))}</p>',
        f'<p class="quiet">{len(findings.counts)} classes, {total} images</p>',
        *(_finding(finding, manifest) for finding in findings.items),
        f"<h2>For training</h2><ul>{training}</ul>",
        "<h2>Images by class</h2>",
        _table(findings, splits),
        *_examples(manifest),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(shown(findings.name))}</title><style>\n{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    files.write_text(path, page)


def _finding(finding: Finding, manifest: Manifest) -> str:
    drawn = finding.cases[: CASES[finding.severity]]
    more = len(finding.cases) - len(drawn)
    return "".join(
        [
            f'<h2><span class="{finding.severity}">{finding.severity}</span> '
            f"{html.escape(finding.text)}</h2>",
            f'<p class="quiet">{html.escape(finding.advice)}</p>' if finding.advice else "",
            '<div class="cases">' if drawn else "",
            *(_case(case, manifest) for case in drawn),
            "</div>" if drawn else "",
            f'<p class="quiet">and {more:,} more</p>' if more > 0 else "",
        ]
    )


def _case(case: Case, manifest: Manifest) -> str:
    drawn = list(zip(case.files, case.places, strict=True))[:4]
    figures = "".join(_figure(file, place, manifest) for file, place in drawn)
    more = f"and {len(case.files) - 4} more" if len(case.files) > 4 else ""
    remark = html.escape(shown(", ".join(filter(None, (case.remark, more)))))
    return f'<div class="case"><div>{figures}</div><p class="quiet">{remark}</p></div>'


def _figure(file: str, place: str, manifest: Manifest) -> str:
    try:
        source = f'<img alt="" src="{thumbnail(manifest.read(file), THUMB)}">'
    except UserError:  # the remark says why
        source = ""
    name, place = html.escape(shown(file)), html.escape(shown(place))
    return f"<figure>{source}<figcaption>{place}<br>{name}</figcaption></figure>"


def _table(findings: Findings, splits: list[str]) -> str:
    head = "".join(f"<th>{html.escape(s)}</th>" for s in splits)
    rows = "".join(
        f"<tr><td>{html.escape(shown(name))}</td>"
        + "".join(f"<td>{by_split[s]:,}</td>" for s in splits)
        + "</tr>"
        for name, by_split in sorted(findings.counts.items(), key=lambda item: -item[1]["train"])
    )
    return f"<table><tr><th>class</th>{head}</tr>{rows}</table>"


def _examples(manifest: Manifest) -> list[str]:
    """The first training image of each class."""
    names, labels = manifest.splits["train"]
    _, first = np.unique(labels, return_index=True)
    figures = [
        _figure(names[row], manifest.classes[labels[row]], manifest) for row in first[:CLASSES]
    ]
    more = f", the first {CLASSES}" if len(first) > CLASSES else ""
    return [f'<h2>The classes{more}</h2><div class="cases">', *figures, "</div>"]
