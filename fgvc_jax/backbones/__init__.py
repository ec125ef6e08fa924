"""Backbones: `create('resnet50', rngs=nnx.Rngs(0))` and what all of them share (`features`)."""

import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones import convnext, efficientnet, resnet, swin, vit
from fgvc_jax.backbones.features import Features, Info, Preprocessing, Tap, unknown

__all__ = ["Features", "Info", "Preprocessing", "Tap", "create", "names"]

FAMILIES = (resnet, efficientnet, convnext, vit, swin)


def names() -> list[str]:
    """Every backbone that `create` knows."""
    return [name for family in FAMILIES for name in family.VARIANTS]


def create(
    name: str,
    *,
    image_size: int | None = None,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
    **arguments,
) -> nnx.Module:
    """A backbone with random weights.

    Args:
      name: one of `names()`, as timm spells it.
      image_size: side of the input in pixels; None for the size that the published weights use.
      dtype: of the computation (bfloat16 on accelerators); parameters are kept in `param_dtype`.
      remat: gradient checkpointing: each block is computed again for the gradient, instead of
        keeping what is inside. Less memory on accelerators, about a third more time in training.
      arguments: of the family: `width`, `depths` (ResNet, ConvNeXt); `depth`, `width`, `heads` (ViT);
        `width`, `depths`, `heads`, `window` (Swin); `width`, `depth`,
        `eps`, `momentum` (EfficientNet).

    Raises:
      UserError: for a name, an argument or a size that does not exist.
    """
    for family in FAMILIES:
        if name in family.VARIANTS:
            break
    else:
        raise unknown("backbone", name, names())
    for argument in arguments:
        if argument not in family.ARGUMENTS:
            raise unknown(f"argument of {name}", argument, family.ARGUMENTS)
    return family.create(
        name,
        image_size=image_size,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        rngs=rngs,
        **arguments,
    )


def arguments(name: str) -> dict[str, object]:
    """The arguments that a backbone takes, with their defaults."""
    family = next(family for family in FAMILIES if name in family.VARIANTS)
    usual = {"width": 64} if family is resnet else {}
    return {
        key: (usual | family.VARIANTS[name])[key]
        for key in family.ARGUMENTS
        if key in usual | family.VARIANTS[name]
    }
