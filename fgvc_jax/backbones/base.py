"""The constructor and the call that all families of backbones share."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones.features import Edit, Features, Recorder
from fgvc_jax.errors import UserError, choose


class Variant(NamedTuple):
    """The net that a backbone's name stands for.

    Attributes:
      net: class of the family.
      image_size: side in pixels, for which the published weights are made.
      smallest: the smallest side in pixels that makes sense.
      multiple: of which the sides have to be multiples, in pixels.
      arguments: those that a user may change, with their defaults.
      fixed: those that make the name what it is.
    """

    net: type["Backbone"]
    image_size: int
    smallest: int
    multiple: int
    arguments: dict[str, Any]
    fixed: dict[str, Any] = {}  # noqa: RUF012


class _Draws:
    """The keys that `rngs.params()` gives one after another, counted in Python.

    nnx counts in an array that it writes by index, which makes tracing quadratic on jax 0.10: it took two
    thirds of the time in which a deep net is built as shapes.
    """

    def __init__(self, rngs: nnx.Rngs):
        self.stream, self.drawn = rngs.params, 0
        self.key, self.start = self.stream.key[...], self.stream.count[...]

    def params(self) -> jax.Array:
        key = jax.random.fold_in(self.key, self.start + self.drawn)
        self.drawn += 1
        return key

    def done(self) -> None:
        """What draws from these Rngs next goes on behind the last key."""
        self.stream.count[...] = self.start + self.drawn


class Backbone(nnx.Module):
    """A net without its classifier; `info` describes it.

    A family defines three methods: `check(name, **arguments)` raises UserError for arguments that make
    no net; `build(name, image_size, kw, **arguments)` makes the layers with `kw` (dtype, param_dtype,
    rngs) and returns the `Info`; `forward(x_BHWC, record, keys)` returns (pooled, class token or None)
    and passes the map at every tap through `record`, in the order of `info.taps`.

    Args:
      name: for `info` and for messages.
      image_size: side in pixels, or (height, width) in families that are made for both; None for the
        variant's.
      remat: which inner results of blocks are computed again for the gradient, see `layers.remat.call`.
      dtype: of the computation; parameters and statistics are kept in `param_dtype`.
      arguments: of the family; the variant's where they are not given.

    Raises:
      UserError: for an argument or a size that makes no net.
    """

    oblong = False  # whether image_size may be (height, width)

    def __init__(
        self,
        name: str,
        variant: Variant,
        *,
        image_size: int | tuple[int, int] | None = None,
        remat: str = "none",
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
        **arguments,
    ):
        for key, value in arguments.items():
            choose(key, variant.arguments, f"the argument of {name}")
            arguments[key] = _typed(name, key, value, variant.arguments[key])
        arguments = variant.fixed | variant.arguments | arguments
        image_size = variant.image_size if image_size is None else image_size
        if isinstance(image_size, tuple | list) and not self.oblong:
            raise UserError(f"{name}: image_size={image_size} must be one number of pixels.")
        self.smallest, self.multiple = variant.smallest, variant.multiple
        self._check_size(name, *sides(image_size))
        drop = arguments.get("stochastic_depth", 0.0)
        require(0 <= drop < 1, name, "at least 0 and below 1", stochastic_depth=drop)
        self.drops = drop > 0
        self.check(name, **arguments)
        self.dtype = dtype
        self.remat = remat
        draws = _Draws(rngs)
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": draws}
        self.info = self.build(name, image_size, kw, **arguments)
        draws.done()

    def __call__(
        self,
        images_BHWC: jax.Array,
        taps: Sequence[str] | None = None,
        edit: Edit | None = None,
        keys: jax.Array | None = None,
    ) -> Features:
        """Features of normalised images [B, H, W, 3].

        Args:
          taps: names of the maps to return; None for `info.default_taps`.
          edit: edit(name, map) -> map, called at every tap, before the next layer reads the map.
          keys: [B], a draw for each example, for stochastic depth in training; None = nothing is dropped.

        Raises:
          UserError: for an image size or a tap that does not fit.
        """
        self._check_size(self.info.name, *images_BHWC.shape[1:3])
        record, keys = Recorder(self.info, taps, edit), keys if self.drops else None
        pooled, class_token = self.forward(images_BHWC.astype(self.dtype), record, keys)
        return Features(record.maps, pooled, class_token)

    def map_sizes(self, image_size: int, taps: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(height, width) in cells of the maps at these taps, for images of this side; traced on shapes.

        Raises:
          UserError: for an image size or a tap that does not fit.
        """
        graphdef, state = nnx.split(self)

        def maps(state, images) -> dict[str, jax.Array]:
            backbone = nnx.merge(graphdef, state)
            backbone.eval()
            return backbone(images, taps).maps

        images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        found = jax.eval_shape(maps, nnx.to_pure_dict(state), images)
        return {name: found[name].shape[1:3] for name in taps}

    def _check_size(self, name: str, height: int, width: int) -> None:
        if min(height, width) < self.smallest:
            raise UserError(
                f"{name} takes images of at least {self.smallest} x {self.smallest} pixels, not "
                f"{height} x {width}."
            )
        if height % self.multiple or width % self.multiple:
            raise UserError(
                f"{name} takes images whose sides are multiples of {self.multiple} pixels, not "
                f"{height} x {width}."
            )


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image size, which is one number where both are the same."""
    height, width = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    return height, width


def require(holds: bool, name: str, allowed: str, **arguments) -> None:
    """UserError '<name>: width=0 must be <allowed>.' unless it holds."""
    if not holds:
        given = " and ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(f"{name}: {given} must be {allowed}.")


def check_depths(name: str, depths: tuple[int, ...], width: int) -> None:
    """UserError unless every stage has a block and the first a channel."""
    require(width >= 1, name, "a number of channels, at least 1", width=width)
    require(min(depths) >= 1, name, "four numbers of blocks, each at least 1", depths=depths)


def _typed(name: str, key: str, value: Any, default: Any) -> Any:
    """The value in the type of the default; UserError where it has another."""

    def whole(value) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if isinstance(default, tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(default)
        require(fits and all(map(whole, value)), name, "four whole numbers", **{key: value})
        return tuple(value)
    if isinstance(default, int):
        require(whole(value), name, "a whole number", **{key: value})
    elif isinstance(default, float):
        fits = whole(value) or (isinstance(value, float) and math.isfinite(value))
        require(fits, name, "a number", **{key: value})
    else:
        require(isinstance(value, str), name, "a word", **{key: value})
    return value
