"""The description and the output that every backbone has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgvc_jax.errors import UserError, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Edit = Callable[[str, jax.Array], jax.Array]


class Tap(NamedTuple):
    """A place in a backbone where a feature map can be read and edited."""

    name: str
    channels: int
    stride: int  # input pixels for one cell of the map


class Preprocessing(NamedTuple):
    """The images that the weights were trained on: evaluation crop, normalisation (on the scale 0..1)."""

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
      width: length of the pooled vector.
      default_taps: the four taps read when none are named, shallow to deep (a net of fewer blocks
        has fewer).
      pyramid_taps: those that a top-down pyramid over the net reads, shallow to deep (METHODS.md E.1).
      cam_tap: the deepest tap whose every cell still reaches `pooled`, for Grad-CAM.
    """

    name: str
    taps: tuple[Tap, ...]
    width: int
    preprocessing: Preprocessing
    default_taps: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")
    cam_tap: str = "layer4"
    pyramid_taps: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")


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
    """Edits and keeps the maps of one forward pass: `x = record(x)` at every tap, in their order."""

    def __init__(self, info: Info, taps: Sequence[str] | None, edit: Edit | None):
        known = [tap.name for tap in info.taps]
        self.wanted = info.default_taps if taps is None else tuple(taps)
        self.edit = edit
        self.names = iter(known)
        self.maps: dict[str, jax.Array] = {}
        for name in self.wanted:
            if name not in known:
                raise UserError(f"{info.name} has no tap {name!r}{did_you_mean(name, known)}")

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        name = next(self.names)
        if self.edit is not None:
            x_BHWC = self.edit(name, x_BHWC)
        if name in self.wanted:
            self.maps[name] = x_BHWC
        return x_BHWC


def imagenet(size: int, crop_fraction: float, interpolation: str) -> Preprocessing:
    """Preprocessing with the usual normalisation of weights trained on ImageNet."""
    return Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD, crop_fraction, interpolation)


def stage_taps(stage: int, depth: int, channels: int, stride: int) -> list[Tap]:
    """Taps after the blocks of the stage with this number: 'layer1/0', 'layer1/1', ..., 'layer1'."""
    names = [*(f"layer{stage}/{block}" for block in range(depth - 1)), f"layer{stage}"]
    return [Tap(name, channels, stride) for name in names]


def wide(x: jax.Array) -> jax.Array:
    """In at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
