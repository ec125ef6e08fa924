"""MMAL-Net: the image, the object in it, and the object's strongest parts, by one net and one classifier.

The whole image is classified. Where the last two maps of the net are strong lies the object, which is cropped
to the full size and classified. On its last map the windows with the largest means, of several shapes and
hardly overlapping, are the parts, which are cropped to half the size and classified too, in training. In use
the object's logits count.

Source: Zhang et al. 2020, "Multi-branch and Multi-scale Attention Learning for Fine-Grained Visual
Categorization", arXiv 2003.09150; METHODS.md D.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fgvc_jax.backbones.features import wide
from fgvc_jax.layers.dropout import check_rate, dropout, fold
from fgvc_jax.methods._base import Cost, accuracy, check_smoothing, torch_linear
from fgvc_jax.methods._base import Method as Base
from fgvc_jax.ops import windows as window_ops
from fgvc_jax.ops.align_corners import crop_align_corners
from fgvc_jax.ops.components import bounding_box, largest_component
from fgvc_jax.ops.losses import cross_entropy

OVERLAP = 0.25  # intersection over union, above which two windows are the same part
WINDOWS = {  # the authors', for maps of 14 x 14 cells
    "cub": "2 of 4x4 3x5 5x3, 3 of 6x6 5x7 7x5, 2 of 8x8 6x10 10x6 7x9 9x7 7x10 10x7",
    "cars": "3 of 6x6 5x7 7x5, 2 of 8x8 6x10 10x6 7x9 9x7, 1 of 10x10 9x11 11x9 8x12 12x8",
}


class Scale(NamedTuple):
    """Windows of about one size, and how many of them become parts."""

    count: int
    shapes: tuple[tuple[int, int], ...]  # height and width in cells


def parse(windows: str) -> tuple[Scale, ...]:
    """The scales that a name of `WINDOWS`, or a text as there, stands for; ValueError for neither."""
    text, scales = WINDOWS.get(windows, windows), []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([1-9]\d*) of((?: +[1-9]\d*x[1-9]\d*)+)\s*", part)
        if not found:
            raise ValueError(
                f"windows={windows!r}: {part.strip()!r} is no scale. Give {' or '.join(map(repr, WINDOWS))}, "
                "or for each scale how many parts, 'of', and heights x widths in cells, as "
                "'2 of 2x2 1x3, 1 of 3x3'"
            )
        shapes = tuple(tuple(map(int, shape.split("x"))) for shape in found[2].split())
        scales.append(Scale(int(found[1]), shapes))
    return tuple(scales)


def crop(images_BHWC: jax.Array, boxes_B4: jax.Array, out: int) -> jax.Array:
    """Each image's box, [B, out, out, 3].

    No weight lies before an image, so a gradient goes through its pixels only where somebody asks for the
    images' own.
    """
    return jax.vmap(crop_align_corners, (0, 0, None))(images_BHWC, boxes_B4, out)


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
        windows="cub",
        dropout=0.5,
        label_smoothing=0.0,
    ):
        """Arguments of its own:
        windows: of the parts: 'cub' (7 parts of 917 windows at 448 pixels), 'cars' (6 of 591; also Aircraft),
          or a text such as '2 of 2x2 1x3, 1 of 3x3': for each scale how many parts it gives, and the heights
          x widths of its windows in cells of the last map.
        dropout: the share of the pooled features that is zeroed in training, 0 to below 1.
        label_smoothing: the share of the target that is spread evenly over all classes, 0 to below 1.

        The object is found on the last two maps of the largest stride that all reach `pooled` (up to
        `info.cam_tap`): of a ResNet the last two blocks, of a ViT the inputs of its last two.
        """
        check_rate(dropout, "dropout")
        check_smoothing(label_smoothing)
        info = backbone.info
        names = [tap.name for tap in info.taps]
        taps = info.taps[: names.index(info.cam_tap) + 1]
        taps = [tap for tap in taps if tap.stride == taps[-1].stride][-2:]
        if len(taps) < 2:
            raise ValueError(
                f"{info.name} has one map of stride {taps[-1].stride} ({taps[-1].name!r}), and the object is "
                "found on two: give its last stage at least two blocks"
            )
        self.taps, self.stride, self.size = tuple(t.name for t in taps), taps[-1].stride, image_size
        self.scales = parse(windows)
        self.cells = backbone.map_sizes(image_size, self.taps)[self.taps[-1]]
        longest = max(side for scale in self.scales for shape in scale.shapes for side in shape)
        if longest > min(self.cells):
            raise ValueError(
                f"windows={windows!r} are up to {longest} cells long, and the last map of {info.name} has "
                f"{self.cells[0]} x {self.cells[1]} at image_size={image_size}: use "
                f"image_size={self.stride * longest} or larger, or smaller windows"
            )
        step, least = backbone.multiple, backbone.smallest
        self.part_size = (image_size // 2 + step // 2) // step * step
        if self.part_size < least:
            raise ValueError(
                f"parts of half the image, {image_size // 2} pixels, are too small for {info.name}, which "
                f"takes {least} or more: use image_size={2 * least} or larger"
            )
        self.backbone, self.dropout, self.label_smoothing = backbone, dropout, label_smoothing
        self.head = torch_linear(
            info.width, num_classes, bias="torch", dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    @property
    def parts(self) -> int:
        """Parts an example."""
        return sum(scale.count for scale in self.scales)

    @property
    def cost(self):
        passes = 2 + self.parts * (self.part_size / self.size) ** 2
        return Cost(forward=passes, backward=passes, predict=2)

    def update(self, batch, carry, context):
        """One update on batch['image'] [B, S, S, 3] and batch['label'] int [B].

        In the first epoch the whole image's loss alone counts, since the maps find no object yet; all three
        branches run all the same, and move the running statistics in the order image, object, parts.
        """
        images, labels, keys = batch["image"], batch["label"], context.keys
        features, logits = self.classify(images, fold(keys, 0))
        objects = crop(images, self.find_object(features.maps), self.size)
        features, object_logits = self.classify(objects, fold(keys, 1))
        boxes = self.find_parts(features.maps)
        parts = jax.vmap(crop, (None, 1, None), 1)(objects, boxes, self.part_size)
        part_keys = jnp.stack([fold(keys, 2 + n) for n in range(self.parts)], axis=1)
        # As one batch of B * N images, the parts of an example together.
        parts, part_keys = parts.reshape(-1, *parts.shape[2:]), part_keys.reshape(-1)
        _, part_logits = self.classify(parts, part_keys)
        part_labels, smoothing = jnp.repeat(labels, self.parts), self.label_smoothing
        loss = cross_entropy(logits, labels, smoothing)
        later = cross_entropy(object_logits, labels, smoothing)
        later += cross_entropy(part_logits, part_labels, smoothing)
        metrics = {
            "accuracy": accuracy(object_logits, labels),
            "image_accuracy": accuracy(logits, labels),
            "parts_accuracy": accuracy(part_logits, part_labels),
        }
        return loss + jnp.where(context.epoch < 1, 0, later), carry, metrics

    def predict(self, images, edit=None):
        """Images [B, S, S, 3] -> the object's scores (logits) [B, C] and embedding [B, D], and its box.

        'box' is int32 [B, 4]: first row, first column, last row, last column in pixels, inclusive. `edit`
        reaches the object's pass, whose logits are the scores; the pass that finds it stays as it is.
        """
        box = self.find_object(self.backbone(images, taps=self.taps).maps)
        pooled = self.backbone(crop(images, box, self.size), edit=edit).pooled
        return {"scores": self.head(pooled), "embedding": pooled, "box": box}

    def evidence(self, images):
        """The object, and the parts that training looks at, in pixels of the image."""
        box = self.find_object(self.backbone(images, taps=self.taps).maps)
        parts = self.find_parts(self.backbone(crop(images, box, self.size), taps=self.taps).maps)
        # The crop's first and last pixels are the box's own.
        first = jnp.tile(box[:, None, :2], 2)
        extent = jnp.tile(box[:, None, 2:] - box[:, None, :2], 2)
        parts = jnp.round(first + parts * extent / (self.size - 1)).astype(jnp.int32)
        return {"object": box[:, None], "parts": parts}

    def classify(self, images, keys):
        """Images [B, S, S, 3] -> the backbone's features and logits [B, C], in training."""
        features = self.backbone(images, taps=self.taps, keys=fold(keys, 0))
        return features, self.head(dropout(features.pooled, fold(keys, 1), self.dropout))

    def find_object(self, maps):
        """Maps at `self.taps` -> the object's box in pixels, int32 [B, 4] as in `predict` (METHODS.md D.2).

        The largest connected part of where the last map, summed over channels, is above its mean, as far as
        the map before is above its own there; the whole image where nothing is left.
        """

        def strong(name) -> jax.Array:
            total = wide(lax.stop_gradient(maps[name])).sum(-1)
            return total > total.mean((1, 2), keepdims=True)

        before, last = map(strong, self.taps)
        cells = jax.vmap(bounding_box)(jax.vmap(largest_component)(last) & before)
        return jnp.clip(self.stride * cells - 1, 0, self.size - 1)

    def find_parts(self, maps):
        """Maps of the object at `self.taps` -> boxes of its parts in pixels, int32 [B, N, 4], by scale."""
        total = wide(lax.stop_gradient(maps[self.taps[-1]])).sum(-1)

        def of(count, shapes) -> jax.Array:
            boxes = window_ops.boxes(shapes, self.cells, self.stride, self.size)
            choose = jax.vmap(lambda scores: window_ops.suppress(scores, boxes, count, OVERLAP))
            return jnp.asarray(boxes)[choose(window_ops.means(total, shapes))]

        return jnp.concatenate([of(*scale) for scale in self.scales], axis=1)
