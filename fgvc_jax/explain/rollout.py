"""Attention rollout: how much of each patch has reached the class token, by the attention weights alone.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv 2005.00928. It is one map for all
classes, since neither the values nor the classifier take part.
"""

import jax
import jax.numpy as jnp

from fgvc_jax.backbones.vit import ViT
from fgvc_jax.errors import UserError

RESIDUAL = 0.5  # the share of a token that a block hands on as it is


def rollout(backbone: ViT, images_BHWC: jax.Array) -> jax.Array:
    """Normalised images [B, H, W, 3] -> the share of each patch in the class token, [B, h, w].

    The shares of all patches, of the registers and of the class token itself sum to 1. At least float32.

    Args:
      backbone: in eval mode; what a method adds to it or edits in it takes no part.

    Raises:
      UserError: for a net that has no class token.
    """
    if not isinstance(backbone, ViT):
        raise UserError(
            f"attention rollout follows a class token, and {backbone.info.name} has none. It is for the "
            "ViTs; gradcam, hirescam and eigencam work with every net."
        )
    first, patches = backbone.embed(images_BHWC.astype(backbone.dtype))
    batch, height, width, channels = patches.shape
    tokens = jnp.concatenate([first, patches.reshape(batch, -1, channels)], axis=1)
    layers = []
    for block in backbone.blocks:
        layers.append(block.attn.weights(block.norm1(tokens)).mean(1))  # of all heads
        tokens = block(tokens)
    # From the last block back, for the class token alone: vectors in place of products of matrices.
    share = jnp.zeros(tokens.shape[:2], layers[0].dtype).at[:, 0].set(1)
    for weights in reversed(layers):
        passed = jnp.einsum("bn,bnm->bm", share, weights, precision="highest")
        share = RESIDUAL * share + (1 - RESIDUAL) * passed
    return share[:, first.shape[1] :].reshape(batch, height, width)
