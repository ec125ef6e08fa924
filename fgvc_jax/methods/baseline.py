"""The plain classifier: backbone, pooled features, one linear layer, cross-entropy."""

import jax.numpy as jnp
from flax import nnx

from fgvc_jax.ops.losses import cross_entropy


def update(module, batch, carry, rngs, progress):
    """One update on batch['image'] [B, S, S, 3] and batch['label'] int [B]."""
    logits = module.head(module.backbone(batch["image"]).pooled)
    loss = cross_entropy(logits, batch["label"], module.label_smoothing)
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == batch["label"])
    return loss, carry, {"accuracy": accuracy}


class Method(nnx.Module):
    task = "classify"
    views = 1
    updates = (update,)

    def __init__(
        self,
        backbone,
        num_classes,
        *,
        rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        label_smoothing=0.0,
    ):
        if not 0 <= label_smoothing < 1:  # TypeError for what is no number
            raise ValueError(f"label_smoothing={label_smoothing} must lie in 0 to below 1")
        self.backbone = backbone
        self.head = nnx.Linear(
            backbone.info.width,
            num_classes,
            # torch's default for a linear layer, and small enough not to disturb pretrained features
            kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.label_smoothing = label_smoothing

    def predict(self, images):
        """Images [B, S, S, 3] -> class scores (logits) [B, C] and the embedding [B, D]."""
        pooled = self.backbone(images).pooled
        return {"scores": self.head(pooled), "embedding": pooled}
