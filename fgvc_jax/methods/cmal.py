"""CMAL-Net: experts at several depths train on what the others attend to, in N + 2 updates a batch.

An expert is the backbone up to a tap, a branch and a classifier. Its attention is the class activation map of
its own prediction; the box around it, cut out and enlarged, is what another expert may get to see. The scores
are the mean of the logits of all N experts and of their concatenation, on the image and on the region to
which all experts attend together (the authors' sum, divided by its terms, so that probabilities are usable).

Source: Liu et al. 2023, "Learn from each other to classify better: Cross-layer mutual attention learning for
fine-grained visual classification", Pattern Recognition 140, 109550; METHODS.md F.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fgvc_jax.backbones.features import wide
from fgvc_jax.layers.dropout import fold
from fgvc_jax.methods._base import Cost, accuracy, check_smoothing
from fgvc_jax.methods._base import Method as Base
from fgvc_jax.methods._multi_granularity import Heads, choose_taps
from fgvc_jax.ops.align_corners import crop_align_corners
from fgvc_jax.ops.losses import cross_entropy


class Method(Base):
    def __init__(
        self,
        backbone,
        num_classes,
        *,
        image_size,
        rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        taps=(),
        threshold=0.5,
        padding=0.1,
        hidden=512,
        width=1024,
        label_smoothing=0.0,
    ):
        """Arguments of its own:
        taps: names of the maps at which the experts end, shallow to deep; () = the three deepest of the
          backbone's usual four.
        threshold: a box holds all of an attention map, which goes from 0 to 1, that is at least this; above 0
          to 1.
        padding: by which the box is then larger on every side, as a share of the image's side, 0 to below 1.
        hidden, width: channels inside a branch, and of its map.
        label_smoothing: the share of the target that is spread evenly over all classes, 0 to below 1.
        """
        check_smoothing(label_smoothing)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold} must lie above 0, up to 1")
        if not 0 <= padding < 1:
            raise ValueError(f"padding={padding} must lie in 0 to below 1")
        chosen = choose_taps(backbone.info, taps)
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone = backbone
        self.taps = tuple(tap.name for tap in chosen)
        self.heads = Heads(chosen, hidden, width, num_classes, **types)
        self.threshold, self.padding, self.label_smoothing = threshold, padding, label_smoothing

    @property
    def cam_tap(self):
        return self.taps[-1]

    @property
    def updates(self):
        """The deepest expert, the others deep to shallow, all on their region, all on the image."""
        others = reversed(range(len(self.taps) - 1))
        experts = [functools.partial(self.expert, index) for index in others]
        return (self.deepest, *experts, self.region, self.whole)

    @property
    def cost(self):
        """A full pass for every update, though the gradient of a shallow expert ends at its tap."""
        return Cost(forward=len(self.updates), backward=len(self.updates), predict=2)

    def deepest(self, batch, carry, context):
        """Trains the deepest expert; hands on the maps and predictions of all, [B, ...] an expert."""
        logits, _, maps = self.forward(batch["image"], keys=context.keys)
        *experts, _ = logits
        carry = {
            "maps": [lax.stop_gradient(x) for x in maps],
            "predicted": [jnp.argmax(x, axis=1) for x in experts],
        }
        return self._outcome(experts[-1], batch, carry)

    def expert(self, index, batch, carry, context):
        """Trains one of the others, on the box of another expert or on the image, one draw for the batch."""
        images = batch["image"]
        if (
            "maps" in carry
        ):  # after the first update, whose weights the attention is to be read with
            carry = {"boxes": self.boxes(carry["maps"], carry["predicted"], images.shape[1])}
        others = [i for i in reversed(range(len(self.taps))) if i != index]
        drawn = jax.random.randint(context.key, (), 0, len(others) + 1)
        which = jnp.array(others)[jnp.minimum(drawn, len(others) - 1)]
        seen = jnp.where(drawn < len(others), crop(images, carry["boxes"][:, which]), images)
        logits, _, _ = self.forward(seen, keys=context.keys)
        return self._outcome(logits[index], batch, carry)

    def region(self, batch, carry, context):
        """Trains all on the region to which the experts attend together."""
        seen = crop(batch["image"], carry["boxes"][:, -1])
        logits, _, _ = self.forward(seen, keys=context.keys)
        *experts, concat = [cross_entropy(x, batch["label"], self.label_smoothing) for x in logits]
        return sum(experts) + 2 * concat, {}, {"accuracy": accuracy(sum(logits), batch["label"])}

    def whole(self, batch, carry, context):
        """Trains the concatenation on the image."""
        logits, _, _ = self.forward(batch["image"], keys=context.keys)
        loss, carry, metrics = self._outcome(logits[-1], batch, {})
        return 2 * loss, carry, metrics

    def predict(self, images, edit=None):
        """Images [B, S, S, 3] -> class scores (logits) [B, C], the embedding [B, N * width] and the boxes.

        'boxes' int32 [B, N + 1, 4]: first row, first column, last row, last column in pixels, inclusive, of
        the attention of each expert, shallow to deep, and of all. `edit` goes to the pass of the whole image
        alone, since the maps of the region lie elsewhere.
        """
        logits, embedding, maps = self.forward(images, edit)
        predicted = [jnp.argmax(x, axis=1) for x in logits[:-1]]
        boxes = self.boxes(maps, predicted, images.shape[1])
        closer, _, _ = self.forward(crop(images, boxes[:, -1]))
        every = [*logits, *closer]
        scores = sum(every) / len(every)
        return {"scores": scores, "embedding": embedding, "boxes": boxes}

    def evidence(self, images):
        """What each expert attends to, shallow to deep, and all together."""
        boxes = self.predict(images)["boxes"]
        return {"experts": boxes[:, :-1], "together": boxes[:, -1:]}

    def forward(self, images, edit=None, keys=None):
        """(logits [B, C] of each expert and of all together, embedding, maps [B, h, w, width])."""
        features = self.backbone(images, taps=self.taps, edit=edit, keys=fold(keys, 0))
        maps = [
            branch(features.maps[name])
            for name, branch in zip(self.taps, self.heads.branches, strict=True)
        ]
        return *self.heads.classify([wide(max_cell(x)) for x in maps]), maps

    def boxes(self, maps, predicted, size):
        """Boxes int32 [B, N + 1, 4] of the experts' attention and of their sum, see `predict`.

        Args:
          maps: [B, h, w, width] an expert.
          predicted: int [B] an expert, the class whose activation map it is.
          size: side of the images in pixels.
        """
        attention = []
        for x, classes, classifier in zip(maps, predicted, self.heads.classifiers, strict=True):
            # The class activation map through both linear layers, as if nothing lay between (METHODS.md F.2).
            of_class = wide(classifier.fc2.kernel[...]).T[classes]
            vector = jnp.einsum(
                "dh,bh->bd", wide(classifier.fc1.kernel[...]), of_class, precision="highest"
            )
            map_ = jnp.einsum("bhwd,bd->bhw", wide(x), vector, precision="highest")
            attention.append(_between_0_and_1(_enlarge(map_, size)))
        attention.append(_between_0_and_1(sum(attention)))
        found = [box_around(x >= self.threshold, self.padding) for x in attention]
        return lax.stop_gradient(jnp.stack(found, axis=1))

    def _outcome(self, logits, batch, carry):
        labels = batch["label"]
        loss = cross_entropy(logits, labels, self.label_smoothing)
        return loss, carry, {"accuracy": accuracy(logits, labels)}


def max_cell(maps_BHWD: jax.Array) -> jax.Array:
    """The largest value of every channel [B, D]; of equal ones the first, as torch's max-pooling has it.

    By its index, because the gradient of `max` looks for the value again: compiled, the two may be computed
    apart and differ in the last bit, and the gradient is then lost or not finite.
    """
    cells = maps_BHWD.reshape(maps_BHWD.shape[0], -1, maps_BHWD.shape[-1])
    first = jnp.argmax(cells, axis=1, keepdims=True)
    return jnp.take_along_axis(cells, first, axis=1)[:, 0]


def crop(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Boxes [B, 4] of images [B, S, S, 3], each enlarged to S x S; the dtype of the images."""
    size = images.shape[1]
    cut = jax.vmap(lambda image, box: crop_align_corners(image, box, size))(images, boxes)
    return cut.astype(images.dtype)


def box_around(mask_BSS: jax.Array, padding: float) -> jax.Array:
    """The box around all that is True, larger by `padding` of the side: int32 [B, 4], inside the image.

    (first row, first column, last row, last column), inclusive. Rounded as the authors do: the first towards
    0, and the last one pixel short. The whole image where nothing is True, as in a constant map.
    """
    size = mask_BSS.shape[1]
    before, after = math.ceil(padding * size), math.floor(padding * size)

    def ends(along: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.argmax(along, axis=1)
        last = size - 1 - jnp.argmax(along[:, ::-1], axis=1)
        start = jnp.maximum(first - before, 0)
        return start, jnp.maximum(jnp.minimum(last + after, size) - 1, start)

    (top, bottom), (left, right) = ends(mask_BSS.any(2)), ends(mask_BSS.any(1))
    box = jnp.stack([top, left, bottom, right], axis=1)
    whole = jnp.array([0, 0, size - 1, size - 1])
    return jnp.where(mask_BSS.any((1, 2))[:, None], box, whole).astype(jnp.int32)


def _enlarge(maps_BHW: jax.Array, size: int) -> jax.Array:
    """Resized to [B, size, size], corner on corner."""
    height, width = maps_BHW.shape[1:]
    box = jnp.array([0, 0, height - 1, width - 1])
    return jax.vmap(lambda x: crop_align_corners(x[..., None], box, size)[..., 0])(maps_BHW)


def _between_0_and_1(maps_BSS: jax.Array) -> jax.Array:
    low, high = maps_BSS.min((1, 2), keepdims=True), maps_BSS.max((1, 2), keepdims=True)
    return (maps_BSS - low) / (high - low + 1e-6)
