"""The arrays of a file of weights that a backbone took, and those that did not fit."""

import difflib
from dataclasses import dataclass, field

from fgvc_jax.backbones.features import Preprocessing

_SHOWN = 8  # lines of each kind; a wholly wrong file has hundreds


@dataclass
class Report:
    """Every key of the file and every array of the backbone, each in exactly one place.

    Attributes:
      source: the name that it was asked for by, and the path of the file.
      layout: whose naming it has, with the file's format.
      backbone: which was to be filled.
      used: our path -> key in the file.
      resized: our paths whose array was fitted to another size.
      missing: our path -> (key looked for, shape): not in the file.
      unexpected: key -> shape: in the file, with no place in the backbone.
      misshaped: our path -> (key, shape in the file, shape wanted), in the file's order of axes.
      head: key -> shape of the classifier, left out because the head is new.
      ignored: keys that carry no weights (counters, numbers, strings).
      preprocessing: what images must go through for these weights.
      licence: 'unknown' where nobody says.
      architecture: timm's name of the net that these weights belong to; '' where nobody says.
      refused: why the backbone would compute other numbers than the net of these weights; '' = it would not.
      remark: what else is to be said.
    """

    source: str
    layout: str
    backbone: str
    used: dict[str, str] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    missing: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    misshaped: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    head: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    preprocessing: Preprocessing | None = None
    licence: str = "unknown"
    architecture: str = ""
    refused: str = ""
    remark: str = ""

    @property
    def text(self) -> str:
        """A few lines for the log."""
        lines = [f"{self.source}: {len(self.used)} arrays for {self.backbone} ({self.layout})"]
        if self.head:
            lines.append(f"  left out, the head is new: {', '.join(self.head)}")
        if self.ignored:
            lines.append(f"  no weights, ignored: {len(self.ignored)} (as {self.ignored[0]})")
        if self.resized:
            lines.append(f"  resized to the model's image size: {', '.join(self.resized)}")
        if self.preprocessing:
            p = self.preprocessing
            lines.append(
                f"  preprocessing: {p.size} px, {p.interpolation}, crop {p.crop_fraction:g}, "
                f"mean {_numbers(p.mean)}, std {_numbers(p.std)}"
            )
        noncommercial = ": not for commercial use" if "-nc" in self.licence.lower() else ""
        lines.append(f"  licence: {self.licence}{noncommercial}")
        if self.remark:
            lines.append(f"  {self.remark}")
        if self.architecture not in ("", self.backbone):
            lines.append(
                f"  published as {self.architecture!r}, loaded into {self.backbone}: the names and shapes "
                "agree, which does not show that both compute alike"
            )
        if self.different:
            lines.append("  allowed to differ; what the file lacks stays random:")
        return "\n".join(lines + self.differences())

    @property
    def different(self) -> list[str]:
        """Our paths and keys of the file that do not fit, or only in part."""
        return [*self.missing, *self.misshaped, *self.unexpected]

    def differences(self) -> list[str]:
        """Lines on what is missing, unexpected and mis-shaped, with the nearest name on the other side."""
        wanted = [key for key, _ in self.missing.values()]
        missing = [
            f"{path}: no {key!r} {_shape(shape)}{_nearest(key, self.unexpected)}"
            for path, (key, shape) in self.missing.items()
        ]
        unexpected = [
            f"{key!r} {_shape(shape)}{_nearest(key, wanted)}"
            for key, shape in self.unexpected.items()
        ]
        misshaped = [
            f"{path}: {key!r} is {_shape(there)} in the file, {_shape(here)} in the backbone"
            for path, (key, there, here) in self.misshaped.items()
        ]
        return [
            *_section("missing in the file", missing),
            *_section("in the file, but not in the backbone", unexpected),
            *_section("of another shape", misshaped),
        ]


def _section(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"    ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"  {len(lines)} {title}:", *(f"    {line}" for line in lines[:_SHOWN]), *more]


def _nearest(name: str, others) -> str:
    close = difflib.get_close_matches(name, list(others)[:200], n=1)
    return f" (nearest: {close[0]!r})" if close else ""


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _numbers(values) -> str:
    return " ".join(f"{value:g}" for value in values)
