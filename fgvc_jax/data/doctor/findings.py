"""Findings about a data set."""

import dataclasses

SEVERITIES = ("error", "warning", "note")


def shown(name: str) -> str:
    """A file name fit to print: control characters and bytes that are no text as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


@dataclasses.dataclass(frozen=True)
class Case:
    """One occurrence: a file, or several that belong together."""

    files: tuple[str, ...]
    places: tuple[str, ...]  # 'train, Apple' for each file
    remark: str = ""

    def __str__(self) -> str:
        files = [f"{file} ({place})" for file, place in zip(self.files, self.places, strict=True)]
        return shown(" and ".join(files) + (f": {self.remark}" if self.remark else ""))


@dataclasses.dataclass(frozen=True)
class Finding:
    kind: str  # such as 'unreadable'
    severity: str  # 'error' stops training, 'warning' is worth a look, 'note' is for information
    text: str  # one line, with the count
    cases: tuple[Case, ...] = ()
    advice: str = ""  # what to do


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that is to be said about a data set.

    Attributes:
      name, root: of the manifest.
      counts: class -> split -> images.
      items: the findings, the most severe first.
      training: what the sizes and counts mean for training, one line each.
      exclude: file -> reason, of the training images that on_bad='skip' leaves out.
      stuck: unreadable images outside train: evaluation never skips.
    """

    name: str
    root: str | None
    counts: dict[str, dict[str, int]]
    items: tuple[Finding, ...]
    training: tuple[str, ...]
    exclude: dict[str, str]
    stuck: tuple[Case, ...]

    def title(self) -> str:
        return shown(f"{self.name} in {self.root}" if self.root else self.name)

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.items if finding.severity == severity]
