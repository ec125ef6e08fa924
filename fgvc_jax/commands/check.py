"""fgvc check DIR

Looks at every image of a data set: what is broken, doubled or stands in two splits, and what it means for
training. Exit status 0 where training can start, 2 where errors stop it. Other keys of config.data can be
given as for training, such as --config.data.val_fraction=0.2.
"""

import argparse
import re
from pathlib import Path

from ml_collections import ConfigDict

from fgvc_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser("fgvc check", description=__doc__.partition("\n\n")[2])
    parser.add_argument("root", help="the folder or list of the images: config.data.root")
    parser.add_argument("--source", default="folder", help="how they lie there: config.data.source")
    parser.add_argument("--group", default="", help="what stays in one split: config.data.group")
    parser.add_argument("--size", type=int, default=224, help="of the images in training, pixels")
    parser.add_argument(
        "--on-bad",
        default="stop",
        choices=("stop", "skip"),
        help="what training does with bad images: config.data.on_bad",
    )
    parser.add_argument("--html", type=Path, help="a page with pictures to write")
    parser.add_argument("--json", type=Path, help="a file with all findings to write")
    arguments, rest = parser.parse_known_args()

    for path in (arguments.html, arguments.json):
        if path and not path.resolve().parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}.")
    from fgvc_jax import files
    from fgvc_jax.config import base
    from fgvc_jax.data import doctor, load, patch
    from fgvc_jax.data.doctor import page, report

    data = base().data
    data.source, data.root, data.group = arguments.source, arguments.root, arguments.group
    _override(data, rest)
    manifest = load.read(data)
    if data.labels_patch:
        print(patch.told(data.labels_patch, patch.read(data.labels_patch)))
    facts = doctor.collect(manifest, files.cache_folder(data.cache))
    manifest = load.split(manifest, data, facts)
    findings = doctor.judge(
        manifest,
        facts,
        size=arguments.size,
        canvas=data.canvas,
        group=data.group,
        classify=data.splits == "official",
    )
    if arguments.html:
        page.write(arguments.html, findings, manifest)
    if arguments.json:
        files.write_text(arguments.json, doctor.as_json(findings))
    *lines, verdict = report.report(findings)
    print(*lines, sep="\n")
    if arguments.on_bad == "skip" and findings.of("error"):
        doctor.leave_out(manifest, findings)
        doctor.stop_at_errors(findings, "skip")
        left_out = len(findings.exclude)
        print(f"Ready for training, which leaves these images of train out: {left_out:,}.")
    elif findings.of("error"):
        raise UserError(verdict)
    else:
        print(verdict)


def _override(data: ConfigDict, arguments: list[str]) -> None:
    """Sets '--config.data.KEY=VALUE'."""
    from fgvc_jax.errors import choose

    for argument in arguments:
        match = re.fullmatch(r"--config\.data\.(\w+)=(.*)", argument, re.DOTALL)
        if not match:
            raise UserError(f"fgvc check does not know {argument!r}; --help lists what it knows.")
        key, text = match.groups()
        choose(key, data.keys(), "config.data: key")
        kind = type(data[key])
        try:
            data[key] = tuple(filter(None, text.split(","))) if kind is tuple else kind(text)
        except ValueError:
            raise UserError(f"{argument}: {text!r} is no {kind.__name__}.") from None
