"""What every backbone says about itself and what it returns."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax

from fgvc_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Edit = Callable[[str, jax.Array], jax.Array]


class Tap(NamedTuple):
    """A place in a backbone where a feature map can be read and edited."""

    name: str
    channels: int
    stride: int  # input pixels for one cell of the map


class Preprocessing(NamedTuple):
    """What the weights were trained to see: evaluation crop, normalisation (on the scale 0..1)."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float  # the image's short side is first resized to size / crop_fraction
    interpolation: str  # 'bilinear' or 'bicubic'


@dataclass(frozen=True)
class Info:
    """Static description of a backbone, all that a method needs to size itself.

    Attributes:
      taps: every tap, shallow to deep.
      default_taps: the four taps read when none are named, shallow to deep (a net of fewer blocks
        has fewer).
      cam_tap: the deepest tap whose every cell still reaches `pooled`, for Grad-CAM.
      width: length of the pooled vector.
    """

    name: str
    taps: tuple[Tap, ...]
    default_taps: tuple[str, ...]
    cam_tap: str
    width: int
    preprocessing: Preprocessing


class Features(NamedTuple):
    """Output of a backbone.

    Attributes:
      maps: [B, H, W, C] by tap, in the compute dtype.
      pooled: [B, width], at least float32.
      class_token: [B, width], at least float32, or None in nets without one.
    """

    maps: dict[str, jax.Array]
    pooled: jax.Array
    class_token: jax.Array | None


class Recorder:
    """Edits and keeps the maps of one forward pass: `x = record(name, x)` at every tap."""

    def __init__(self, info: Info, taps: Sequence[str] | None, edit: Edit | None):
        self.wanted = info.default_taps if taps is None else tuple(taps)
        self.edit = edit
        self.maps: dict[str, jax.Array] = {}
        known = [tap.name for tap in info.taps]
        for name in self.wanted:
            if name not in known:
                raise UserError(f"{info.name} has no tap {name!r}. Its taps: {', '.join(known)}.")

    def __call__(self, name: str, x_BHWC: jax.Array) -> jax.Array:
        if self.edit is not None:
            x_BHWC = self.edit(name, x_BHWC)
        if name in self.wanted:
            self.maps[name] = x_BHWC
        return x_BHWC


def unknown(kind: str, name: str, allowed: Sequence[str]) -> UserError:
    """The error for a misspelt name: what was wrong, the nearest name, all names."""
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} There are: {', '.join(allowed)}.")
