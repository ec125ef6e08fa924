"""Bilinear CNN: products of all pairs of channels of two maps, averaged over the image, classified linearly.

Sources: Lin et al. 2015 (ICCV) and 2018 (TPAMI); METHODS.md G. Symmetric: both maps are those of one
backbone. With `second` the other map is a second backbone's, such as a transformer's beside a CNN's.

Train in two phases, as the authors do: first with both backbones frozen (`optimizer.freeze =
('backbone/.*', 'second/.*')`), then all of it from that phase (`init.phase`). All at once diverges.

Both backbones see one view. `config.model.second_pretrained` fills the second one and sets `second_scale`
and `second_shift` where its weights were trained with another mean and deviation; size and interpolation of
the view should suit both.
"""

import math

import jax.numpy as jnp
import numpy as np

from fgvc_jax import backbones
from fgvc_jax.backbones.features import wide
from fgvc_jax.errors import choose
from fgvc_jax.layers import dropout as drop
from fgvc_jax.methods._base import Cost, accuracy, check_smoothing, mixed_labels, torch_linear
from fgvc_jax.methods._base import Method as Base
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
        second="",
        second_arguments=(),
        second_scale=(1.0, 1.0, 1.0),
        second_shift=(0.0, 0.0, 0.0),
        tap="",
        second_tap="",
        reduction=512,
        dropout=0.0,
        label_smoothing=0.0,
    ):
        """Arguments of its own:
        second: name of a second backbone; '' = none, both maps are the first one's.
        second_arguments: its arguments, (('width', 32), ('depths', (1, 1, 1, 1))).
        second_scale, second_shift: by channel; it is given scale * image + shift.
        tap, second_tap: of the maps; '' = the backbone's deepest, of a ViT the patch tokens after its last
          block.
        reduction: a map of more channels first goes through a linear layer to so many (a 1x1
          convolution); 0 = it never does. The head has a row for each pair of channels: 512^2 for 512,
          and for a ResNet-50's 2048 without reduction 4.2 million, each with a weight a class.
        dropout: the share of the descriptor that is zeroed in training, 0 to below 1.
        label_smoothing: the share of the target that is spread evenly over all classes, 0 to below 1.

        Where the maps' grids differ, cells of the finer one are averaged to the coarser by the area that they
        share: 2 x 2 means where it is twice as fine.
        """
        check_smoothing(label_smoothing)
        drop.check_rate(dropout, "dropout")
        if reduction < 0:
            raise ValueError(f"reduction={reduction} must be a number of channels, or 0 for none")
        if not second and (second_arguments or second_tap):
            raise ValueError("second_arguments and second_tap need second, the name of a backbone")
        for name, numbers in (("second_scale", second_scale), ("second_shift", second_shift)):
            if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name}={numbers} must be three numbers, one a channel")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone, self.dropout, self.label_smoothing = backbone, dropout, label_smoothing
        self.tap = _tap(backbone.info, tap, "tap")
        self.taps = (self.tap.name,)
        self.reduce = _reduction(self.tap, reduction, types)
        widths = [min(self.tap.channels, reduction or self.tap.channels)] * 2
        if second:
            self.second = backbones.create(
                second,
                image_size=image_size,
                remat=backbone.remat,
                **types,
                **dict(second_arguments),
            )
            self.second_scale, self.second_shift = tuple(second_scale), tuple(second_shift)
            self.second_tap = _tap(self.second.info, second_tap, "second_tap")
            self.taps += (f"second/{self.second_tap.name}",)
            self.second_reduce = _reduction(self.second_tap, reduction, types)
            widths[1] = min(self.second_tap.channels, reduction or self.second_tap.channels)
        self.head = torch_linear(widths[0] * widths[1], num_classes, **types)

    @property
    def cam_tap(self):
        return self.tap.name

    @property
    def cost(self):
        """A pass through each backbone counts one, whatever its size."""
        passes = 1 if self.second is None else 2
        return Cost(forward=passes, backward=passes, predict=passes)

    def update(self, batch, carry, context):
        """One update on batch['image'] [B, S, S, 3] and batch['label'] int [B]."""
        descriptor, _ = self.describe(batch["image"], keys=context.keys)
        logits = self.head(drop.dropout(descriptor, drop.fold(context.keys, 1), self.dropout))
        labels, smoothing = batch["label"], self.label_smoothing
        loss = cross_entropy(logits, labels, smoothing, **mixed_labels(batch))
        return loss, carry, {"accuracy": accuracy(logits, labels)}

    def describe(self, images, edit=None, keys=None):
        """Images [B, S, S, 3] -> (descriptor [B, C D] of length 1, the maps' means [B, ...])."""
        first = self.backbone(images, [self.tap.name], edit, drop.fold(keys, 0)).maps[self.tap.name]
        if self.second is None:
            mean, first = _mean(first), _through(self.reduce, first)
            return bilinear(first, first), mean
        scale, shift = (np.asarray(x, images.dtype) for x in (self.second_scale, self.second_shift))
        found = self.second(
            images * scale + shift,
            [self.second_tap.name],
            # By names of their own, as both backbones may have a 'layer4'.
            edit and (lambda name, x: edit(f"second/{name}", x)),
            drop.fold(keys, 2),
        )
        other = found.maps[self.second_tap.name]
        mean = jnp.concatenate([_mean(first), _mean(other)], axis=1)
        grid = tuple(map(min, first.shape[1:3], other.shape[1:3]))
        first = _through(self.reduce, average_to(first, grid))
        other = _through(self.second_reduce, average_to(other, grid))
        return bilinear(first, other), mean

    def predict(self, images, edit=None):
        """Images [B, S, S, 3] -> class scores (logits) [B, C] and an embedding [B, D].

        The embedding is the mean of each map over the image, not the descriptor, whose 512^2 numbers an
        image would fill the host's memory. `edit` sees the second backbone's taps as 'second/<tap>'.
        """
        descriptor, mean = self.describe(images, edit)
        return {"scores": self.head(descriptor), "embedding": mean}


def bilinear(first, second, eps=1e-5):
    """Maps [B, H, W, C] and [B, H, W, D] -> descriptor [B, C D] of length 1, at least float32.

    The mean over the image of the products of every two channels, then sign(x) sqrt(|x| + eps), whose
    gradient at 0 is 0, then the L2 norm. A sum in place of the mean would differ in the weight of eps alone.
    """
    dtype = jnp.promote_types(first.dtype, jnp.float32)
    cells = first.shape[1] * first.shape[2]
    products = jnp.einsum(
        "bhwc,bhwd->bcd", first, second, preferred_element_type=dtype, precision="highest"
    )
    products /= cells
    x = products.reshape(products.shape[0], -1)
    x = jnp.sign(x) * jnp.sqrt(jnp.abs(x) + eps)
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(1, keepdims=True), 1e-24))


def average_to(x_BHWC, grid):
    """The map on a coarser grid: each of its cells is the mean over the area that it covers."""
    for axis, cells in enumerate(grid, start=1):
        if x_BHWC.shape[axis] != cells:
            x = wide(x_BHWC)
            weights = jnp.asarray(_areas(x.shape[axis], cells), x.dtype)
            x = jnp.tensordot(x, weights, (axis, 1), precision="highest")
            x_BHWC = jnp.moveaxis(x, -1, axis).astype(x_BHWC.dtype)
    return x_BHWC


def _areas(fine, coarse):
    """[coarse, fine]: which share of a coarse cell each fine one covers; rows sum to 1."""
    step = fine / coarse
    start, cell = np.arange(coarse)[:, None] * step, np.arange(fine)
    overlap = np.minimum(start + step, cell + 1) - np.maximum(start, cell)
    return np.maximum(overlap, 0) / step


def _tap(info, name, argument):
    """The tap of a name; '' = the deepest."""
    taps = {tap.name: tap for tap in info.taps}
    name = name or info.taps[-1].name
    choose(name, taps, f"argument of method 'bilinear': {argument}")
    return taps[name]


def _reduction(tap, reduction, types):
    if reduction and tap.channels > reduction:
        return torch_linear(tap.channels, reduction, **types)
    return None


def _through(layer, x):
    return x if layer is None else layer(x)


def _mean(x_BHWC):
    return x_BHWC.mean((1, 2), dtype=jnp.promote_types(x_BHWC.dtype, jnp.float32))
