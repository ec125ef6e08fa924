"""Backbones: `create('resnet50', rngs=nnx.Rngs(0))` and what all of them share (`base`, `features`)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones import convnext, efficientnet, resnet, swin, vit
from fgvc_jax.backbones.base import Backbone, Variant
from fgvc_jax.backbones.features import Features, Info, Preprocessing, Tap
from fgvc_jax.errors import choose

__all__ = [
    "Backbone",
    "Features",
    "Info",
    "Preprocessing",
    "Tap",
    "Variant",
    "arguments",
    "create",
    "names",
    "variant",
]

FAMILIES = (resnet, efficientnet, convnext, vit, swin)


def names() -> list[str]:
    """Every backbone that `create` knows."""
    return [name for family in FAMILIES for name in family.VARIANTS]


def variant(name: str) -> Variant:
    """The net of a name: class, image size, arguments. UserError for a name that does not exist."""
    choose(name, names(), "backbone")
    return next(family.VARIANTS[name] for family in FAMILIES if name in family.VARIANTS)


def arguments(name: str) -> dict[str, Any]:
    """The arguments that `create` takes for a name, with their defaults.

    {'width': 64, 'depths': (2, 2, 2, 2)} for resnet18. UserError for a name that does not exist.
    """
    return dict(variant(name).arguments)


def create(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    remat: str = "none",
    rngs: nnx.Rngs,
    **arguments,
) -> Backbone:
    """A backbone with random weights.

    Args:
      name: one of `names()`, as timm spells it.
      image_size: side of the input in pixels; None for the size that the published weights use. Swin
        takes (height, width) too.
      dtype: of the computation (bfloat16 on accelerators); parameters are kept in `param_dtype`.
      remat: gradient checkpointing: what of each block is computed again for the gradient, see
        `fgvc_jax.layers.remat.call`. Less memory on accelerators, up to a third more time in training.
      arguments: those of `arguments(name)`.

    Raises:
      UserError: for a name, an argument or a size that does not exist.
    """
    found = variant(name)
    return found.net(
        name,
        found,
        image_size=image_size,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        rngs=rngs,
        **arguments,
    )
