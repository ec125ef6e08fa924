"""A metric learnt from triplets: an anchor nearer to its own class than to any other, by a margin.

Sources: FaceNet (Schroff et al. 2015, arXiv 1503.03832), Hermans et al. 2017 (arXiv 1703.07737); METHODS.md
B. The triplets are those of the batch, so train with `sampler.name = 'classes_by_images'`.

A loss that stays at the margin exactly (at log 2 with `soft`), with `negative_distance` near 0, has
collapsed: all images lie on one point. Lower the learning rate, warm up, or begin with 'batch_all' or
'semi_hard' and go on with 'batch_hard' in a second phase.
"""

import math

import jax
import jax.numpy as jnp

from fgvc_jax.errors import choose
from fgvc_jax.layers import dropout as drop
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods._base import Method as Base
from fgvc_jax.methods._base import torch_linear

DISTANCES = ("euclidean", "squared")


class Method(Base):
    evaluator = "retrieve"
    compares_examples = True

    def __init__(
        self,
        backbone,
        num_classes,
        *,
        image_size,
        rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        embedding=128,
        hidden=0,
        batch_norm=False,
        leaky_relu=False,
        dropout=0.0,
        normalize=True,
        mining="batch_hard",
        distance="euclidean",
        margin=0.2,
        soft=False,
    ):
        """Arguments of its own:
        embedding: length of the embedding, at least 1.
        hidden: width of a linear layer before; 0 = none.
        batch_norm, leaky_relu (slope 0.01), dropout (share, 0 to below 1): in this order before the last
          linear layer, on the hidden layer, or, without one, on the pooled features.
        normalize: embeddings of length 1, in training and in use. The evaluator ranks by cosine either way.
        mining: 'batch_all', 'batch_hard' or 'semi_hard'; see the functions of these names.
        distance: 'euclidean' or its square, 'squared'.
        margin: above 0.
        soft: log(1 + exp(x)) in place of max(0, margin + x); for 'batch_hard', without a margin then.
        """
        if embedding < 1 or hidden < 0:
            raise ValueError(f"embedding={embedding}, hidden={hidden} must be at least 1 and 0")
        drop.check_rate(dropout, "dropout")
        choose(mining, MINING, "argument of method 'triplet': mining")
        choose(distance, DISTANCES, "argument of method 'triplet': distance")
        if not (margin > 0 and math.isfinite(margin)):
            raise ValueError(f"margin={margin} must be above 0: at 0 one point for all has no loss")
        if soft and mining != "batch_hard":
            raise ValueError(f"soft=True is for mining='batch_hard', not {mining!r}")
        self.backbone = backbone
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = hidden or backbone.info.width
        self.fc = torch_linear(backbone.info.width, hidden, **types) if hidden else None
        self.bn = BatchNorm(width, **types) if batch_norm else None
        self.head = torch_linear(width, embedding, **types)
        self.leaky_relu, self.dropout, self.normalize = leaky_relu, dropout, normalize
        self.mining, self.distance, self.margin, self.soft = mining, distance, margin, soft

    def update(self, batch, carry, context):
        """One update on batch['image'] [B, S, S, 3] and batch['label'] int [B].

        Its metrics: `active`, the share of what is averaged (triplets, anchors or pairs) that still has a
        loss, and the mean distances of pairs of the same and of different classes.
        """
        pooled = self.backbone(batch["image"], keys=drop.fold(context.keys, 0)).pooled
        distances = pairwise(self.embed(pooled, drop.fold(context.keys, 1)), self.distance)
        same, other = relations(batch["label"])
        margin = None if self.soft else self.margin
        loss, active = MINING[self.mining](distances, same, other, margin)
        metrics = {"active": active}
        for name, mask in (("positive", same), ("negative", other)):
            metrics[f"{name}_distance"] = _mean(distances, mask)
        return loss, carry, metrics

    def embed(self, pooled, keys=None):
        """Pooled features [B, W] -> the embedding [B, D] that is compared, at least float32."""
        x = pooled if self.fc is None else self.fc(pooled)
        x = x if self.bn is None else self.bn(x)
        x = jax.nn.leaky_relu(x, 0.01) if self.leaky_relu else x
        x = self.head(drop.dropout(x, keys, self.dropout))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if not self.normalize:
            return x
        # As torch's F.normalize; the gradient stays finite where all is 0.
        return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(1, keepdims=True), 1e-24))

    def predict(self, images, edit=None):
        """Images [B, S, S, 3] -> the embedding [B, D], as training compares it."""
        return {"embedding": self.embed(self.backbone(images, edit=edit).pooled)}


def pairwise(embedding, distance):
    """Embeddings [B, D] -> distances [B, B], 'euclidean' or 'squared', with 0 on the diagonal.

    The root has 1e-12 under it, so that the gradient of two equal embeddings is no NaN.
    """
    # From differences, B^2 D numbers: |a|^2 + |b|^2 - 2 a b would lose all that is near.
    found = jnp.square(embedding[:, None] - embedding[None]).sum(-1)
    if distance == "euclidean":
        found = jnp.sqrt(found + 1e-12)
    return jnp.where(jnp.eye(len(found), dtype=bool), 0, found)


def relations(labels):
    """Labels [B] -> (same class, another image; another class), bool [B, B]."""
    equal = labels[:, None] == labels[None]
    return equal & ~jnp.eye(len(labels), dtype=bool), ~equal


# Each takes distances [B, B], the two masks of `relations` and the margin, and gives (loss, active share).
# Anchors that lack a positive or a negative count nowhere; a batch without any triplet has loss 0.


def batch_all(distances, same, other, margin):
    """Hermans et al.: the mean over those of all triplets of the batch whose loss is not 0.

    Holds B^3 numbers.
    """
    valid = same[:, :, None] & other[:, None, :]
    losses = jax.nn.relu(distances[:, :, None] - distances[:, None, :] + margin)
    positive = valid & (losses > 0)
    return _mean(losses, positive), _mean(positive, valid)


def batch_hard(distances, same, other, margin):
    """Hermans et al.: for each anchor its farthest positive and its nearest negative.

    The mean over anchors; with margin None softplus in place of the hinge.
    """
    farthest = _at(distances, jnp.argmax(jnp.where(same, distances, -1), axis=1))
    nearest = _at(distances, jnp.argmin(jnp.where(other, distances, jnp.inf), axis=1))
    valid = same.any(1) & other.any(1)
    excess = jnp.where(valid, farthest - nearest, 0)
    losses = jax.nn.softplus(excess) if margin is None else jax.nn.relu(excess + margin)
    active = excess > 0 if margin is None else losses > 0
    return _mean(losses, valid), _mean(active, valid)


def semi_hard(distances, same, other, margin):
    """FaceNet: for each pair of one class the nearest negative that is farther than the positive.

    Where no negative is, the farthest one, as TensorFlow's contrib library has it. The mean over pairs.
    Holds B^3 numbers.
    """
    farther = other[:, None, :] & (distances[:, None, :] > distances[:, :, None])
    nearest = jnp.argmin(jnp.where(farther, distances[:, None, :], jnp.inf), axis=2)
    farthest = jnp.argmax(jnp.where(other, distances, -1), axis=1)[:, None]
    negative = _at(distances, jnp.where(farther.any(2), nearest, farthest))
    valid = same & other.any(1, keepdims=True)
    losses = jax.nn.relu(distances - negative + margin)
    return _mean(losses, valid), _mean(losses > 0, valid)


def _at(distances, index):
    """distances [B, B] at columns [B] or [B, N] of each row. First of equals, as torch's `max`.

    In place of `max`, whose gradient compares each value with the largest: XLA:CPU may compute both with
    other roundings, and then finds none equal.
    """
    if index.ndim == 1:
        return jnp.take_along_axis(distances, index[:, None], axis=1)[:, 0]
    return jnp.take_along_axis(distances, index, axis=1)


def _mean(values, mask):
    """The mean where the mask holds; 0 where it holds nowhere."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


MINING = {"batch_all": batch_all, "batch_hard": batch_hard, "semi_hard": semi_hard}
