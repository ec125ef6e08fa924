"""FBSD: each stage boosts its most salient strip for a branch and hides it from the next stage.

Three parts: FBSM at three maps of the backbone (`Strips`); a branch for each boosted map; FDM, which adds to
each branch what is least alike in the others (`diversify`). Each branch has a classifier and all together
have one; the scores are the mean of their logits.

Source: Song & Yang 2021, "Feature Boosting, Suppression, and Diversification for Fine-Grained Visual
Classification", arXiv 2103.02782; METHODS.md C.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones.features import Tap, wide
from fgvc_jax.errors import choose
from fgvc_jax.layers.conv import convolution
from fgvc_jax.layers.dropout import check_rate, dropout, fold
from fgvc_jax.layers.initializers import normal, torch_bias, torch_std
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods._base import Method as Base
from fgvc_jax.methods._base import accuracy, check_smoothing, mixed_labels
from fgvc_jax.methods._multi_granularity import Heads, choose_taps
from fgvc_jax.ops.losses import cross_entropy

TOP = 5  # the cells of a channel whose mean is its pooled value


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
        taps=(),
        strips=(8, 4, 2),
        strip_axis="height",
        strip_norm="full_map",
        alpha=0.5,
        beta=0.5,
        gamma=1.0,
        fdm_scale=0.001,
        fdm_sim="cos",
        hidden=512,
        width=1024,
        dropout=0.0,
        label_smoothing=0.0,
    ):
        """Arguments of its own:
        taps: names of the maps, shallow to deep; () = the three deepest of the backbone's usual four.
        strips: how many strips each of them is cut into; its rows must divide.
        strip_axis: 'height' cuts the rows into strips (the authors' code), 'width' the columns.
        strip_norm: batch statistics of the strips' scores, over the 'full_map', or 'per_strip', one strip
          after the other (the authors' code). Alike in use, by the running statistics.
        alpha: a boosted strip is its map times 1 + alpha times its weight; 0 or more.
        beta: factor of the suppressed strip, 0 to 1.
        gamma: of what FDM adds; 0 leaves FDM out.
        fdm_scale: a further factor on it. The authors' code has 0.001, which makes it some 6e-4 of the map it
          is added to, next to nothing (METHODS.md C.3).
        fdm_sim: similarity of two cells, 'cos' (the authors' code) or 'dot', the inner product.
        hidden, width: channels inside a branch, and of its map.
        dropout: the share of a branch's map that is zeroed in training (report 002: 0.2), 0 to below 1.
        label_smoothing: the share of the target that is spread evenly over all classes, 0 to below 1.
        """
        choose(strip_axis, ("height", "width"), "argument of method 'fbsd': strip_axis")
        choose(strip_norm, ("full_map", "per_strip"), "argument of method 'fbsd': strip_norm")
        choose(fdm_sim, ("cos", "dot"), "argument of method 'fbsd': fdm_sim")
        check_rate(dropout, "dropout")
        check_smoothing(label_smoothing)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta} must lie in 0 to 1")
        for name, value in (("alpha", alpha), ("gamma", gamma), ("fdm_scale", fdm_scale)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a number, at least 0")
        chosen = choose_taps(backbone.info, taps)
        _check_strips(backbone, chosen, tuple(strips), image_size, strip_axis)

        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone = backbone
        self.taps = tuple(tap.name for tap in chosen)
        self.strips = nnx.List(
            [
                Strips(tap.channels, count, alpha, beta, strip_axis, strip_norm, **types)
                for tap, count in zip(chosen, strips, strict=True)
            ]
        )
        self.heads = Heads(chosen, hidden, width, num_classes, **types)
        self.label_smoothing = label_smoothing
        self.fdm_factor, self.fdm_sim, self.dropout = gamma * fdm_scale, fdm_sim, dropout

    @property
    def cam_tap(self):
        return self.taps[-1]

    def update(self, batch, carry, context):
        """One update on batch['image'] [B, S, S, 3] and batch['label'] int [B]."""
        logits, _ = self.forward(batch["image"], keys=context.keys)
        labels, mixed = batch["label"], mixed_labels(batch)
        *branches, concat = [
            cross_entropy(x, labels, self.label_smoothing, **mixed) for x in logits
        ]
        return 2 * sum(branches) + concat, carry, {"accuracy": accuracy(sum(logits), labels)}

    def predict(self, images, edit=None):
        """Images [B, S, S, 3] -> class scores (logits) [B, C] and the embedding [B, branches * width].

        `edit` gets the maps as the backbone makes them, before they are boosted and suppressed.
        """
        logits, embedding = self.forward(images, edit)
        return {"scores": sum(logits) / len(logits), "embedding": embedding}

    def evidence(self, images):
        """Of each map the weights of its strips, as shares of the largest, which is boosted and hidden."""
        maps, found = {}, {}

        def keep(name, x):
            maps[name] = x
            return x

        self.forward(images, keep)
        for name, strips in zip(self.taps, self.strips, strict=True):
            weights = strips.weights(maps[name])
            shape = (-1, strips.count, 1) if strips.axis == 1 else (-1, 1, strips.count)
            found[f"strips of {name}"] = (weights / weights.max(1, keepdims=True)).reshape(shape)
        return found

    def forward(self, images, edit=None, keys=None):
        """(logits [B, C] of each branch and of all together, embedding [B, branches * width])."""
        boosted = {}

        def boost_and_suppress(name, x):
            x = x if edit is None else edit(name, x)
            if name in self.taps:
                boosted[name], x = self.strips[self.taps.index(name)](x)
            return x

        self.backbone(images, taps=(), edit=boost_and_suppress, keys=fold(keys, 0))
        maps = [
            dropout(branch(boosted[name]), fold(keys, 1 + i), self.dropout)
            for i, (name, branch) in enumerate(zip(self.taps, self.heads.branches, strict=True))
        ]
        cells = [wide(x.reshape(x.shape[0], -1, x.shape[-1])) for x in maps]
        if self.fdm_factor:
            fdm = functools.partial(diversify, factor=self.fdm_factor, similarity=self.fdm_sim)
            # Computed again for the gradient: at 448 pixels the similarities and softmaxes of an example are
            # ten million numbers, more than its three maps.
            cells = jax.checkpoint(fdm)(cells)
        return self.heads.classify([top_mean(x) for x in cells])


class Strips(nnx.Module):
    """FBSM: boosts and suppresses the strips of one map (METHODS.md C.2).

    A 1x1 convolution, BatchNorm and ReLU score every cell; the softmax of the strips' mean scores are their
    weights b, which sum to 1. Boosted is (1 + alpha b) x. Suppressed is beta x in the strip of the largest
    weight (in all of them, where weights tie) and x in the others; no gradient passes through that choice.
    """

    def __init__(self, channels, count, alpha, beta, axis, norm, **kw):
        init, bias_init = normal(torch_std(channels)), torch_bias(channels)
        self.conv = convolution(channels, 1, 1, bias=True, init=init, bias_init=bias_init, **kw)
        self.bn = BatchNorm(1, **kw)
        self.count, self.alpha, self.beta = count, alpha, beta
        self.axis, self.norm = {"height": 1, "width": 2}[axis], norm

    def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(boosted, suppressed), both in the shape of x."""
        b = self.weights(x_BHWC)
        # Not b == max: compiled, the two may be computed apart and differ in the last bit.
        largest = b >= b.max(1, keepdims=True) * (1 - 4 * jnp.finfo(b.dtype).eps)
        kept = jax.lax.stop_gradient(jnp.where(largest, self.beta, 1.0))
        return self._times(x_BHWC, 1 + self.alpha * b), self._times(x_BHWC, kept)

    def weights(self, x_BHWC: jax.Array) -> jax.Array:
        """The weights of the strips [B, count], at least float32."""
        scores = jnp.moveaxis(self.conv(x_BHWC)[..., 0], self.axis, 1)
        batch, length, across = scores.shape
        if length % self.count:
            raise ValueError(f"a map of {length} cells does not divide into {self.count} strips")
        scores = scores.reshape(batch, self.count, length // self.count * across, 1)
        if (
            self.norm == "per_strip"
        ):  # each strip by its own statistics; the running ones move every time
            scores = jnp.stack([self.bn(scores[:, i]) for i in range(self.count)], axis=1)
        else:
            scores = self.bn(scores)
        return jax.nn.softmax(wide(jax.nn.relu(scores)).mean((2, 3)), axis=1)

    def _times(self, x_BHWC: jax.Array, factor_BK: jax.Array) -> jax.Array:
        factor = jnp.repeat(factor_BK, x_BHWC.shape[self.axis] // self.count, axis=1)
        shape = [factor.shape[0], 1, 1, 1]
        shape[self.axis] = -1
        return x_BHWC * factor.reshape(shape).astype(x_BHWC.dtype)


def diversify(cells: list[jax.Array], factor: float, similarity: str) -> list[jax.Array]:
    """FDM: adds to each map what it lacks of the others (METHODS.md C.3).

    For maps A_i [S, D] and A_j [M, D] the dissimilarity of cells s and m is minus their similarity. Cell m
    of A_j gets the mean of A_i's cells, weighted by the softmax of its dissimilarities, times `factor`;
    so does every map from every other one, all before any has changed.

    Args:
      cells: [B, S, D] a map, at least float32.
      factor: of what is added.
      similarity: 'cos' or 'dot', the inner product.
    """
    units = [_unit(x) for x in cells] if similarity == "cos" else cells
    result = list(cells)
    for i in range(len(cells)):
        for j in range(i + 1, len(cells)):
            unlike = -jnp.einsum("bsd,bmd->bsm", units[i], units[j], precision="highest")
            here, there = jax.nn.softmax(unlike, axis=2), jax.nn.softmax(unlike, axis=1)
            result[i] += factor * jnp.einsum("bsm,bmd->bsd", here, cells[j], precision="highest")
            result[j] += factor * jnp.einsum("bsm,bsd->bmd", there, cells[i], precision="highest")
    return result


def top_mean(cells_BSD: jax.Array) -> jax.Array:
    """The mean of each channel's TOP largest values (of all, where there are fewer): [B, D]."""
    values, _ = jax.lax.top_k(cells_BSD.swapaxes(1, 2), min(TOP, cells_BSD.shape[1]))
    return values.mean(-1)


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1 along the last axis; a zero vector stays 0, with no gradient."""
    square = jnp.square(x).sum(-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def _check_strips(backbone, taps: list[Tap], strips: tuple[int, ...], image_size: int, axis: str):
    """ValueError where a map does not divide into its strips, with the nearest image sizes that do."""
    if len(strips) != len(taps) or any(count < 1 for count in strips):
        names = ", ".join(tap.name for tap in taps)
        raise ValueError(f"strips={strips} must be a number, at least 1, for each tap of {names}")
    sizes = backbone.map_sizes(image_size, [tap.name for tap in taps])
    cells = [sizes[tap.name][axis == "width"] for tap in taps]
    if not any(length % count for length, count in zip(cells, strips, strict=True)):
        return

    def divides(size: int) -> bool:
        return not any(size // tap.stride % n for tap, n in zip(taps, strips, strict=True))

    # Of the sizes that every stride divides and that the backbone takes; at the common multiple all divide.
    step = math.lcm(backbone.multiple, *(tap.stride for tap in taps))
    common = math.lcm(step, *(tap.stride * n for tap, n in zip(taps, strips, strict=True)))
    fitting = [
        size
        for size in range(step, image_size + common + 1, step)
        if size >= backbone.smallest and divides(size)
    ]
    nearest = [x for x in fitting if x < image_size][-1:] + [x for x in fitting if x > image_size][
        :1
    ]
    have = ", ".join(f"{tap.name} {length}" for tap, length in zip(taps, cells, strict=True))
    raise ValueError(
        f"strips={strips} do not divide the {'columns' if axis == 'width' else 'rows'} of the maps of "
        f"{backbone.info.name} at {image_size} pixels ({have}). The nearest image sizes that work: "
        f"{' and '.join(map(str, nearest))}"
    )
