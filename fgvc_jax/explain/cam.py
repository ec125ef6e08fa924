"""Class activation maps at a tap of the backbone, for any method: it hands `edit` to the backbone.

Grad-CAM: Selvaraju et al. 2017 (arXiv 1610.02391). HiResCAM: Draelos & Carin 2020 (arXiv 2011.08891).
Eigen-CAM: Muhammad & Yeasin 2020 (arXiv 2008.00299), here of the weighted map, as `eigen_smooth` of the
usual package draws it (METHODS.md I.4).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgvc_jax.errors import UserError

CANCELS = (
    1e-3  # of the sum of absolute values: rounding, and the epsilon of a LayerNorm, stay below
)


class Tapped(NamedTuple):
    """One forward pass and its gradients at a tap.

    Attributes:
      outputs: what `predict` gave, its 'scores' [B, C] among them.
      activations: the map [B, h, w, D].
      gradients: [K, B, h, w, D], of the K scores of each example that were asked for.
    """

    outputs: dict[str, jax.Array]
    activations: jax.Array
    gradients: jax.Array


def at_tap(
    predict: Callable, images_BHWC: jax.Array, tap: str, classes: Callable | jax.Array
) -> Tapped:
    """The map at a tap and the gradients of some class scores with respect to it.

    The score's whole way from the tap counts, also where other taps are edited by the method itself. An
    example's score depends on no other example, so the gradient of the sum is everybody's own.

    Args:
      predict: a method's, called as predict(images, edit=edit).
      classes: int [B, K], or a function of the scores [B, C] that gives them.

    Raises:
      UserError: the method does not hand `edit` on.
    """

    def run(delta, found: dict) -> dict[str, jax.Array]:
        def edit(name, x):
            if name != tap:
                return x
            found[tap] = x
            return x if delta is None else x + delta

        return predict(images_BHWC, edit=edit)

    def shape_of(images):
        found: dict = {}
        run(None, found)
        if tap not in found:
            raise UserError(
                f"the method does not hand `edit` to its backbone: {tap!r} was not reached."
            )
        return found[tap]

    shape = jax.eval_shape(shape_of, images_BHWC)

    def scores_of(delta):
        found: dict = {}
        outputs = run(delta, found)
        return outputs["scores"], (outputs, found[tap])

    scores, pull, (outputs, activations) = jax.vjp(
        scores_of, jnp.zeros(shape.shape, shape.dtype), has_aux=True
    )
    wanted = classes(scores) if callable(classes) else classes
    # One after the other: under vmap the gradient of a convolution is many times slower on a CPU.
    gradients = [
        pull(jax.nn.one_hot(wanted[:, k], scores.shape[1], dtype=scores.dtype))[0]
        for k in range(wanted.shape[1])
    ]
    return Tapped(outputs, activations, jnp.stack(gradients))


def grad_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """[B, h, w, D], [B, h, w, D] -> heat [B, h, w], 0 or more: channels weighted by their mean gradient."""
    weights = gradients.mean((1, 2), keepdims=True)
    return jax.nn.relu((weights * activations).sum(-1))


def hires_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """As `grad_cam`, each cell weighted by its own gradient.

    0 everywhere where the sums over the channels cancel but for rounding, as in a ViT or a Swin: a LayerNorm
    of each cell follows their taps, and to that a step along the cell's own vector is no step.
    """
    products = gradients * activations
    heat, size = products.sum(-1), jnp.abs(products).sum(-1)
    cancels = jnp.abs(heat).max((1, 2)) < CANCELS * size.max((1, 2))
    return jnp.where(cancels[:, None, None], 0, jax.nn.relu(heat))


def eigen_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """As `grad_cam`, by the first principal component over the channels in place of their sum.

    Its sign means nothing; it is turned to where the sum of the weighted channels is larger.
    """
    weights = gradients.mean((1, 2), keepdims=True)
    batch, height, width, channels = activations.shape
    weighted = (weights * activations).reshape(batch, height * width, channels)
    centred = weighted - weighted.mean(1, keepdims=True)
    _, _, directions = jnp.linalg.svd(centred, full_matrices=False)
    projected = jnp.einsum("bnd,bd->bn", centred, directions[:, 0], precision="highest")
    along = (projected * weighted.sum(-1)).sum(1, keepdims=True)
    return jax.nn.relu(jnp.where(along < 0, -projected, projected)).reshape(batch, height, width)


KINDS = {"gradcam": grad_cam, "hirescam": hires_cam, "eigencam": eigen_cam}


def unit(heat_BHW: jax.Array) -> jax.Array:
    """Each map from 0 to 1; all 0 where it is constant."""
    low = heat_BHW.min((-2, -1), keepdims=True)
    span = heat_BHW.max((-2, -1), keepdims=True) - low
    return jnp.where(span > 0, (heat_BHW - low) / jnp.where(span > 0, span, 1), 0)
