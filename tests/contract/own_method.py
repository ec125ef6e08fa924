"""A method in a file of its own: two updates a step, the second on a crop that the first one has found."""

import jax
import jax.numpy as jnp

from fgvc_jax.methods import Cost
from fgvc_jax.methods import Method as Base
from fgvc_jax.methods._base import accuracy, torch_linear
from fgvc_jax.ops.crop import crop_resize
from fgvc_jax.ops.losses import cross_entropy


class Method(Base):
    def __init__(
        self, backbone, num_classes, *, image_size, rngs, dtype, param_dtype, zoom=2.0, experts=2
    ):
        if image_size % 2:
            raise ValueError(f"image_size={image_size} must be even")
        self.backbone, self.size, self.zoom, self.experts = backbone, image_size, zoom, experts
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = torch_linear(backbone.info.width, num_classes, **types)

    @property
    def updates(self):
        return (self.whole, *[self.part] * (self.experts - 1))

    @property
    def cost(self):
        passes = 1 + (self.experts - 1) / self.zoom**2
        return Cost(forward=passes, backward=passes)

    def whole(self, batch, carry, context):
        features = self.backbone(batch["image"], taps=[self.backbone.info.taps[-1].name])
        (cells,) = features.maps.values()  # [B, H, W, D]
        strength = jax.lax.stop_gradient(jnp.square(cells).sum(-1))
        row, column = jnp.divmod(
            jnp.argmax(strength.reshape(len(strength), -1), axis=1), strength.shape[2]
        )
        step = self.size / strength.shape[1]
        corner = jnp.stack([row, column], axis=1) * step
        corner = jnp.minimum(corner, self.size - self.size / self.zoom)
        logits = self.head(features.pooled)
        carry = {"corner": corner, "mean": strength.mean()}  # rows, and a scalar
        loss = cross_entropy(logits, batch["label"])
        return loss, carry, {"accuracy": accuracy(logits, batch["label"])}

    def part(self, batch, carry, context):
        side = self.size / self.zoom
        shift = jax.vmap(jax.random.uniform)(context.keys)[:, None]
        box = jnp.concatenate([carry["corner"] + shift, jnp.full((len(shift), 2), side)], axis=1)
        valid = jnp.array([self.size, self.size])
        crop = jax.vmap(lambda x, b: crop_resize(x, b, self.size, valid_hw=valid))
        logits = self.head(self.backbone(crop(batch["image"], box)).pooled)
        share = 1 - 0.5 * jax.random.uniform(context.key)  # one draw for the whole update
        known = {"progress": context.progress, "epoch": context.epoch, "mean": carry["mean"]}
        return share * cross_entropy(logits, batch["label"]), carry, known

    def predict(self, images, edit=None):
        pooled = self.backbone(images, edit=edit).pooled
        return {"scores": self.head(pooled), "embedding": pooled}
