"""PIM: a pyramid over several maps, whose tokens are classified one by one; the surest are put together.

Every level of a feature pyramid has a classifier of its tokens. The tokens of which it is surest are
selected, a small graph network combines those of all levels, and the others are taught to belong to no class.

Source: Chou et al. 2022, "A Novel Plug-in Module for Fine-Grained Visual Classification", arXiv 2202.03822;
METHODS.md E.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fgvc_jax.backbones.features import wide
from fgvc_jax.errors import choose
from fgvc_jax.layers import remat
from fgvc_jax.layers.dropout import check_rate, dropout, fold
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods._base import Method as Base
from fgvc_jax.methods._base import accuracy, check_smoothing, torch_linear
from fgvc_jax.ops.losses import cross_entropy

GROUP = 32  # selected tokens for one node of the graph


class Projection(nnx.Module):
    """Linear to as many channels, ReLU, Linear to the pyramid's: cell by cell."""

    def __init__(self, inputs: int, outputs: int, **kw):
        self.fc1 = torch_linear(inputs, inputs, bias="torch", **kw)
        self.fc2 = torch_linear(inputs, outputs, bias="torch", **kw)

    def __call__(self, x_BHWC):
        return self.fc2(jax.nn.relu(self.fc1(x_BHWC)))


class Classifier(nnx.Module):
    """Linear, BatchNorm, ReLU, Linear to the classes: token by token."""

    def __init__(self, width: int, classes: int, **kw):
        self.fc1 = torch_linear(width, width, bias="torch", **kw)
        self.bn = BatchNorm(width, **kw)
        self.fc2 = torch_linear(width, classes, bias="torch", **kw)

    def __call__(self, x_BSF):
        return self.fc2(jax.nn.relu(self.bn(self.fc1(x_BSF))))


class Level(nnx.Module):
    """What belongs to one map.

    Args:
      channels: of the map.
      width: F, of the pyramid.
      up: (tokens, tokens of the level before) for a learnt upsampling to it; None without one.
    """

    def __init__(self, channels: int, width: int, classes: int, up: tuple[int, int] | None, **kw):
        self.project = Projection(channels, width, **kw)
        self.up = torch_linear(*up, bias="torch", **kw) if up else None
        self.classifier = Classifier(width, classes, **kw)

    def raised(self, x_BHWF, size: tuple[int, int]):
        """The level in the size of the one before: as it is, learnt, or bilinear."""
        if x_BHWF.shape[1:3] == size:
            return x_BHWF
        batch, *_, width = x_BHWF.shape
        if self.up is None:
            return jax.image.resize(x_BHWF, (batch, *size, width), "bilinear")
        x_BFS = self.up(x_BHWF.reshape(batch, -1, width).swapaxes(1, 2))
        return x_BFS.swapaxes(1, 2).reshape(batch, *size, width)


class Combiner(nnx.Module):
    """A graph network of one layer on the selected tokens [B, S, F] -> [B, F], and its classifier.

    Tokens are mixed into S // 32 nodes. Two nodes are joined by a learnt weight and by how much their
    queries and keys, each averaged to one number, differ.
    """

    def __init__(self, tokens: int, width: int, classes: int, **kw):
        nodes, dtype = tokens // GROUP, kw["param_dtype"]
        self.pool = torch_linear(tokens, nodes, bias="torch", **kw)
        self.adjacency = nnx.Param(jnp.eye(nodes, dtype=dtype) / 100 + 1 / 100)
        self.alpha = nnx.Param(jnp.zeros(1, dtype))
        self.query = torch_linear(width, width // 4, bias="torch", **kw)
        self.key = torch_linear(width, width // 4, bias="torch", **kw)
        self.conv = torch_linear(width, width, bias="torch", **kw)
        self.bn = BatchNorm(width, **kw)
        self.merge = torch_linear(nodes, 1, bias="torch", **kw)
        self.head = torch_linear(width, classes, bias="torch", **kw)

    def __call__(self, x_BSF):
        x = self.pool(x_BSF.swapaxes(1, 2)).swapaxes(1, 2)  # [B, J, F]
        query, key = (wide(layer(x)).mean(-1) for layer in (self.query, self.key))
        difference = jnp.tanh(query[:, :, None] - key[:, None, :])
        graph_BJJ = self.adjacency[...] + self.alpha[...] * difference
        x = jnp.einsum("bif,bij->bjf", wide(self.conv(x)), graph_BJJ, precision="highest")
        return self.merge(self.bn(x).swapaxes(1, 2))[..., 0]


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
        width=512,
        num_selects=(32,),
        upsample="bilinear",
        dropout=0.1,
        lambda_b=0.5,
        lambda_s=0.0,
        lambda_n=5.0,
        lambda_c=1.0,
        label_smoothing=0.0,
    ):
        """Arguments of its own:
        taps: the maps, shallow to deep; () = `info.pyramid_taps`: of a ResNet or ConvNeXt the four stages, of
          an EfficientNet the last four, of a Swin what leaves each patch merging and the last stage, of a ViT
          its last four blocks (the patch tokens; the authors select from them and the class token).
        width: channels of the pyramid (512; the authors' Swin-L on CUB: 1536), at least 4.
        num_selects: tokens that are selected, of each level, or one number for all. Together at least 32.
        upsample: from level to level: 'bilinear', or 'tokens', a learnt linear map from all cells of one
          level to all of the other (the authors' for Swin), which holds for images of one size.
        dropout: the share of the combined features that is zeroed in training, 0 to below 1.
        lambda_b, lambda_s, lambda_n, lambda_c: weights of the losses of each level's mean logits, of its
          selected tokens, of those left out, and of the combined features.
        label_smoothing: of the levels' and the combined loss, the share of the target that is spread evenly
          over all classes, 0 to below 1.
        """
        check_rate(dropout, "dropout")
        check_smoothing(label_smoothing)
        choose(upsample, ("bilinear", "tokens"), "argument of method 'pim': upsample")
        if width < 4:
            raise ValueError(f"width={width} must be at least 4")
        lambdas = {"b": lambda_b, "s": lambda_s, "n": lambda_n, "c": lambda_c}
        for name, value in lambdas.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"lambda_{name}={value} must be 0 or more")
        self.lambda_b, self.lambda_s, self.lambda_n, self.lambda_c = lambdas.values()
        info = backbone.info
        known = {tap.name: tap for tap in info.taps}
        self.taps = tuple(taps) or info.pyramid_taps
        for name in self.taps:
            choose(name, known, f"argument of method 'pim': a tap of {info.name}")
        order = [list(known).index(name) for name in self.taps]
        if order != sorted(set(order)):
            raise ValueError(f"taps={self.taps} must be in the net's order: {', '.join(known)}")
        selects = tuple(num_selects)
        self.selects = selects * len(self.taps) if len(selects) == 1 else selects
        if len(self.selects) != len(self.taps):
            raise ValueError(
                f"num_selects={selects} must be one number, or one for each of the {len(self.taps)} taps"
            )
        cells = backbone.map_sizes(image_size, self.taps)
        self.cells = tuple(cells.values())
        tokens = [rows * columns for rows, columns in self.cells]
        for name, count, most in zip(self.taps, self.selects, tokens, strict=True):
            if not 1 <= count <= most:
                size = max(  # of a square map with so many cells, at every tap
                    math.ceil(math.sqrt(max(1, n))) * known[tap].stride
                    for tap, n in zip(self.taps, self.selects, strict=True)
                )
                larger = f"; {self.selects} need image_size={size}" if count > most else ""
                raise ValueError(
                    f"num_selects={count} at tap {name!r} must be 1 to {most}, the cells of its map at "
                    f"image_size={image_size}{larger}"
                )
        if sum(self.selects) < GROUP:
            raise ValueError(
                f"num_selects={self.selects} are {sum(self.selects)} tokens together, and the combiner makes "
                f"one node of {GROUP}: select at least {GROUP}"
            )
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        levels, above = [], tokens[0]  # cells of the level before
        for name, count in zip(self.taps, tokens, strict=True):
            up = (count, above) if upsample == "tokens" and count != above else None
            levels.append(Level(known[name].channels, width, num_classes, up, **kw))
            above = count
        self.levels = nnx.List(levels)
        self.combiner = Combiner(sum(self.selects), width, num_classes, **kw)
        self.backbone, self.dropout, self.label_smoothing = backbone, dropout, label_smoothing

    @property
    def cam_tap(self):
        return self.taps[-1]

    def update(self, batch, carry, context):
        """One update on batch['image'] [B, S, S, 3] and batch['label'] int [B]."""
        labels, smoothing = batch["label"], self.label_smoothing
        levels, combined, _ = self.heads(batch["image"], context.keys)
        loss = self.lambda_c * cross_entropy(combined, labels, smoothing)
        for logits, selected in levels:
            loss += self.lambda_b * cross_entropy(logits.mean(1), labels, smoothing)
            loss += self.lambda_n * left_out_loss(logits, selected)
            if self.lambda_s:
                loss += self.lambda_s * selected_loss(logits, selected, labels)
        scores = together([logits.mean(1) for logits, _ in levels], combined)
        metrics = {
            "accuracy": accuracy(scores, labels),
            "combined_accuracy": accuracy(combined, labels),
        }
        return loss, carry, metrics

    def predict(self, images, edit=None):
        """Images [B, S, S, 3] -> class scores [B, C] and the combined features as embedding [B, F].

        The scores are the logarithm of the sum of five softmaxes, of the four levels' mean logits and of the
        combiner's (METHODS.md E.5).
        """
        levels, combined, embedding = self.heads(images, edit=edit)
        scores = together([logits.mean(1) for logits, _ in levels], combined)
        return {"scores": scores, "embedding": embedding}

    def evidence(self, images):
        """Of each level a map that is 1 where a token is selected, else 0."""
        levels, _, _ = self.heads(images)
        return {
            f"tokens of {name}": selected.reshape(-1, *cells).astype(jnp.float32)
            for name, cells, (_, selected) in zip(self.taps, self.cells, levels, strict=True)
        }

    def heads(self, images, keys=None, edit=None):
        """Images [B, S, S, 3] -> a list of levels, the combiner's logits [B, C], and its features [B, F].

        Of each level: logits [B, T, C] of its T tokens, and which of them are selected, bool [B, T].
        """
        maps = self.backbone(images, taps=self.taps, edit=edit, keys=fold(keys, 0)).maps
        pyramid = [
            level.project(maps[name]) for level, name in zip(self.levels, self.taps, strict=True)
        ]
        for i in range(len(pyramid) - 1, 0, -1):
            pyramid[i - 1] += self.levels[i].raised(pyramid[i], pyramid[i - 1].shape[1:3])
        levels, chosen = [], []
        for level, x, count in zip(self.levels, pyramid, self.selects, strict=True):
            tokens = x.reshape(x.shape[0], -1, x.shape[-1])
            logits = wide(remat.call(self.backbone.remat, level.classifier, tokens))
            places, selected = surest(logits, count)
            levels.append((logits, selected))
            chosen.append(jnp.take_along_axis(tokens, places[..., None], axis=1))
        features = self.combiner(jnp.concatenate(chosen, axis=1))
        combined = self.combiner.head(dropout(features, fold(keys, 1), self.dropout))
        return levels, wide(combined), wide(features)


def surest(logits_BTC, count):
    """(int [B, count], the tokens whose largest softmax is largest, best first; bool [B, T], which they are).

    Of equals the first. Only which they are depends on the logits: no gradient goes through that.
    """
    sure_BT = jax.nn.softmax(lax.stop_gradient(logits_BTC)).max(-1)
    _, places = lax.top_k(sure_BT, count)
    nowhere = jnp.zeros(sure_BT.shape[1], bool)
    return places, jax.vmap(lambda row: nowhere.at[row].set(True))(places)


def left_out_loss(logits_BTC, selected_BT):
    """Mean of (tanh + 1)^2 over the tokens that were not selected: -1 for every class; 0 without any.

    By a mask over all tokens, which gives the same as gathering them (METHODS.md E.8).
    """
    left = ~selected_BT[..., None]
    total = jnp.sum(jnp.where(left, jnp.square(jnp.tanh(logits_BTC) + 1), 0))
    return total / (jnp.maximum(left.sum(), 1) * logits_BTC.shape[-1])


def selected_loss(logits_BTC, selected_BT, labels_B):
    """Mean cross-entropy over the selected tokens, each with the label of its image."""
    logp = jax.nn.log_softmax(logits_BTC)
    picked = jnp.take_along_axis(logp, labels_B[:, None, None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(selected_BT, picked, 0)) / selected_BT.sum()


def together(levels, combined):
    """Logits [B, C] of several heads -> the logarithm of the sum of their softmaxes, [B, C]."""
    return jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(x) for x in (*levels, combined)]), axis=0)
