"""The plain classifier: backbone, pooled features, one linear layer, cross-entropy."""

import jax.numpy as jnp

from fgvc_jax.errors import choose
from fgvc_jax.layers.dropout import check_rate, dropout, fold
from fgvc_jax.methods._base import Method as Base
from fgvc_jax.methods._base import accuracy, check_smoothing, mixed_labels, torch_linear
from fgvc_jax.ops.losses import cross_entropy


class Method(Base):
    takes_mixed_labels = True

    def __init__(
        self,
        backbone,
        num_classes,
        *,
        image_size,
        rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        label_smoothing=0.0,
        dropout=0.0,
        bias_init="zeros",
    ):
        """Arguments of its own:
        label_smoothing: the share of the target that is spread evenly over all classes, 0 to below 1.
        dropout: the share of the pooled features that is zeroed in training, 0 to below 1.
        bias_init: of the linear layer, 'zeros' or 'torch' (uniform, torch's default).
        """
        check_smoothing(label_smoothing)
        check_rate(dropout, "dropout")
        choose(bias_init, ("zeros", "torch"), "argument of method 'baseline': bias_init")
        self.backbone = backbone
        self.head = torch_linear(
            backbone.info.width,
            num_classes,
            bias=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.label_smoothing, self.dropout = label_smoothing, dropout

    def update(self, batch, carry, context):
        """One update on batch['image'] [B, S, S, 3] and batch['label'] int [B]."""
        pooled = self.backbone(batch["image"], keys=fold(context.keys, 0)).pooled
        logits = self.head(dropout(pooled, fold(context.keys, 1), self.dropout))
        labels, smoothing = batch["label"], self.label_smoothing
        loss = cross_entropy(logits, labels, smoothing, **mixed_labels(batch))
        return loss, carry, {"accuracy": accuracy(logits, labels)}

    def predict(self, images, edit=None):
        """Images [B, S, S, 3] -> class scores (logits) [B, C] and the embedding [B, D]."""
        pooled = self.backbone(images, edit=edit).pooled
        return {"scores": self.head(pooled), "embedding": pooled}
