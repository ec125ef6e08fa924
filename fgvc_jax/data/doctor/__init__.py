"""The doctor: what is wrong with a data set, and what it means for training."""

import dataclasses
import os
from pathlib import Path

from fgvc_jax import files
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.doctor import facts, page
from fgvc_jax.data.doctor.findings import Findings
from fgvc_jax.data.doctor.report import describe
from fgvc_jax.data.doctor.rules import judge, list_rows
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.errors import UserError, choose

PAGE = "data.html"  # in the workdir of a run


def examine(
    manifest: Manifest,
    directory: str | os.PathLike,
    *,
    size: int = 224,
    canvas: int = 512,
    group: str = "",
) -> Findings:
    """Reads every image once, through the manifest, and says what is wrong or remarkable.

    What was seen in the images is kept in the directory; while no file changes, a second call reads
    none of them.

    Args:
      manifest: the data set; its labels have been checked.
      directory: where caches lie; made if missing.
      size: of the images in training, pixels.
      canvas: at most the side that images are cached with, pixels.
      group: regular expression for what stays in one split, see `fgvc_jax.data.split.groups`; '' = as the
        names of the files suggest.
    """
    rows = list_rows(manifest)
    found = facts.collect(manifest, rows.files, directory)
    return judge(manifest, rows, found, size=size, canvas=canvas, group=group)


def leave_out(manifest: Manifest, findings: Findings) -> Manifest:
    """The manifest without the bad training images, which stand in `excluded` with their reasons.

    These are unreadable ones and equals of images of another split or class. Validation, test and
    unlabelled images are never left out.

    Raises:
      UserError: where a class has no training image any more.
    """
    if not findings.exclude:
        return manifest
    names, labels = manifest.splits["train"]
    keep = [row for row, file in enumerate(names) if file not in findings.exclude]
    train = Split(tuple(names[row] for row in keep), labels[keep])
    result = dataclasses.replace(
        manifest, splits=manifest.splits | {"train": train}, excluded=findings.exclude
    )
    manifests.check(result)
    return result


def stop_at_errors(findings: Findings, on_bad: str) -> None:
    """Raises UserError where training must not start.

    Args:
      on_bad: 'stop', at every error, or 'skip', where `leave_out` has mended what it can: then only
        unreadable images of other splits than train are left.
    """
    choose(on_bad, ("stop", "skip"), "config.data.on_bad")
    errors = findings.of("error")
    if on_bad == "stop" and errors:
        lines = [line for finding in errors for line in describe(finding)]
        if findings.exclude:
            lines.append(
                "With --config.data.on_bad=skip these images of train are left out and listed in "
                f"manifest.json, {len(findings.exclude):,} in all; images of other splits never are."
            )
        raise UserError("\n".join([f"{findings.title()} is not fit for training.", *lines]))
    if findings.stuck:
        lines = "".join(f"\n  {case}" for case in findings.stuck[:10])
        raise UserError(
            f"{findings.title()}: {len(findings.stuck):,} images outside train cannot be read:{lines}\n"
            "Evaluation never skips. Replace them, or take them out of the data set yourself."
        )


def save(findings: Findings, manifest: Manifest, folder: Path) -> None:
    """Writes data.html and data.json; nothing where they say the same already."""
    content = as_json(findings)
    if (
        not (folder / PAGE).exists()
        or (folder / "data.json").read_text("utf-8", "surrogateescape") != content
    ):
        page.write(folder / PAGE, findings, manifest)
        files.write_text(folder / "data.json", content)


def as_json(findings: Findings) -> str:
    """Everything, as JSON."""
    return files.to_json(dataclasses.asdict(findings))
