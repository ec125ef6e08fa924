"""The doctor: what is wrong with a data set, and what it means for training.

manifest = load.read(config.data)                     # as the data come
seen = doctor.look(manifest, folder, resize=256)      # reads every image once: facts and canvases
manifest = load.split(manifest, config.data, seen.facts)
findings = doctor.judge(manifest, seen.facts, size=224, resize=256)
manifest = doctor.leave_out(manifest, findings)       # with on_bad='skip'
doctor.stop_at_errors(findings, on_bad)
seen.canvases(manifest.splits['train'].files)         # for a Feed
"""

import dataclasses
from pathlib import Path

from fgvc_jax import files
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.doctor import page
from fgvc_jax.data.doctor.facts import Facts, Look, alike, collect, look
from fgvc_jax.data.doctor.findings import Findings
from fgvc_jax.data.doctor.report import describe
from fgvc_jax.data.doctor.rules import judge
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.errors import UserError, choose

__all__ = [
    "Facts",
    "Look",
    "alike",
    "as_json",
    "collect",
    "judge",
    "leave_out",
    "look",
    "save",
    "stop_at_errors",
]

PAGE = "data.html"  # in the workdir of a run


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
        manifest,
        splits=manifest.splits | {"train": train},
        excluded=manifest.excluded | findings.exclude,
    )
    manifests.check_classification(result)
    return result


def stop_at_errors(findings: Findings, on_bad: str) -> None:
    """Raises UserError where training must not start.

    Args:
      on_bad: 'stop', at every error, or 'skip', where `leave_out` has mended what it can: then faults of
        the layout are left, and unreadable images of other splits than train.
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
    mended = ("unreadable", "contradiction", "leak")
    left = [finding for finding in errors if finding.kind not in mended]
    if left:
        lines = [line for finding in left for line in describe(finding)]
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
