"""Same or different class? One backbone for both images and a small comparator on the two embeddings.

FineNet's third phase. The pair enters as [0, f(query), 0, f(neighbour)]; the zeros stand where
the authors' separators stand and keep the layer's shape. It is ordered, not symmetric.
"""

import jax.numpy as jnp
from flax import nnx

from fgvc_jax.errors import choose
from fgvc_jax.layers.dropout import fold
from fgvc_jax.layers.initializers import torch_bias
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods._base import Method as Base
from fgvc_jax.ops.gelu import gelu
from fgvc_jax.ops.losses import binary_cross_entropy

INITS = {
    "xavier": nnx.initializers.glorot_normal(),
    "torch": nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


class Comparator(nnx.Module):
    """Linear 192, BatchNorm, GELU, Linear h, BatchNorm, GELU, Linear 2, Linear 1 -> logit [B]."""

    def __init__(self, width, hidden, init, *, rngs, dtype, param_dtype):
        torch = init == "torch"

        def linear(inputs, outputs):
            return nnx.Linear(
                inputs,
                outputs,
                kernel_init=INITS[init],
                bias_init=torch_bias(inputs) if torch else nnx.initializers.zeros_init(),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        def norm(features):
            return BatchNorm(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.fc1, self.bn1 = linear(2 * width + 2, 192), norm(192)
        self.fc2, self.bn2 = linear(192, hidden), norm(hidden)
        self.fc3, self.fc4 = linear(hidden, 2), linear(2, 1)

    def __call__(self, query, neighbour):
        zero = jnp.zeros_like(query[:, :1])
        x = jnp.concatenate([zero, query, zero, neighbour], axis=1)
        x = gelu(self.bn1(self.fc1(x)))
        x = gelu(self.bn2(self.fc2(x)))
        return self.fc4(self.fc3(x))[:, 0]


class Method(Base):
    evaluator = "verify"
    trains_on = "pairs"
    images_per_example = 2

    def __init__(
        self,
        backbone,
        num_classes,
        *,
        image_size,
        rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        hidden=32,
        init="xavier",
        joint=True,
    ):
        """Arguments of its own:
        hidden: width of the comparator's second layer (the authors': 32 for a ResNet, 192 for a ViT).
        init: of its weights, 'xavier' (the authors' for a ResNet) or 'torch' (theirs for a ViT).
        joint: both images through one batch of 2B with one set of BatchNorm statistics, or, as the
          authors do, one batch of B after the other.
        """
        choose(init, INITS, "argument of method 'pairs': init")
        self.backbone = backbone
        self.comparator = Comparator(
            backbone.info.width, hidden, init, rngs=rngs, dtype=dtype, param_dtype=param_dtype
        )
        self.joint = joint

    def update(self, batch, carry, context):
        """One update on batch['image'] [B, 2, S, S, 3] and batch['label'] [B], 1 for the same class."""
        logits = self.compare(batch["image"], keys=context.keys)
        loss = binary_cross_entropy(logits, batch["label"])
        return loss, carry, {"accuracy": jnp.mean((logits > 0) == (batch["label"] == 1))}

    def compare(self, images, edit=None, keys=None):
        """Images [B, 2, S, S, 3] (query, neighbour) -> logit [B]."""
        first, second = fold(keys, 0), fold(keys, 1)
        if self.joint:
            both_keys = None if keys is None else jnp.stack([first, second], axis=1).reshape(-1)
            both = images.reshape(-1, *images.shape[2:])
            both = self.backbone(both, edit=edit, keys=both_keys).pooled
            both = both.reshape(*images.shape[:2], -1)
            return self.comparator(both[:, 0], both[:, 1])
        return self.comparator(
            self.backbone(images[:, 0], edit=edit, keys=first).pooled,
            self.backbone(images[:, 1], edit=edit, keys=second).pooled,
        )

    def same(self, query, neighbour):
        """Embeddings [B, D] of queries and neighbours -> logit of "same class" [B]."""
        return self.comparator(query, neighbour)

    def predict(self, images, edit=None):
        """Images [B, 2, S, S, 3] -> the logit of "same class" [B]; [B, S, S, 3] -> embedding [B, D] only."""
        if images.ndim == 4:
            return {"embedding": self.backbone(images, edit=edit).pooled}
        return {"scores": self.compare(images, edit)}
