"""What FBSD and CMAL-Net have in common: a branch and a classifier at each of several maps of a backbone.

The skeleton is that of Du et al. 2020 (PMG, arXiv 2003.03836); METHODS.md C.3, C.4 and F.1.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.backbones.features import Info, Tap, wide
from fgvc_jax.errors import did_you_mean
from fgvc_jax.layers.conv import convolution
from fgvc_jax.layers.initializers import normal, torch_std
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods._base import torch_linear


class Branch(nnx.Module):
    """1x1 convolution to `hidden` channels and 3x3 to `width`, each with BatchNorm and ReLU.

    [B, H, W, inputs] -> [B, H, W, width]. The running statistics move slowly, by 1 % (torch's momentum
    0.01), as the authors have it.
    """

    def __init__(self, inputs: int, hidden: int, width: int, **kw):
        self.conv1 = convolution(inputs, hidden, 1, init=normal(torch_std(inputs)), **kw)
        self.bn1 = BatchNorm(hidden, momentum=0.99, **kw)
        self.conv2 = convolution(hidden, width, 3, init=normal(torch_std(9 * hidden)), **kw)
        self.bn2 = BatchNorm(width, momentum=0.99, **kw)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.bn1(self.conv1(x_BHWC)))
        return jax.nn.relu(self.bn2(self.conv2(x)))


class Classifier(nnx.Module):
    """BatchNorm, linear to `hidden`, BatchNorm, ELU, linear to the classes: [B, inputs] -> logits [B, C].

    The logits are in at least float32, since several of them are summed.
    """

    def __init__(self, inputs: int, hidden: int, num_classes: int, **kw):
        self.bn1 = BatchNorm(inputs, **kw)
        self.fc1 = torch_linear(inputs, hidden, bias="torch", **kw)
        self.bn2 = BatchNorm(hidden, **kw)
        self.fc2 = torch_linear(hidden, num_classes, bias="torch", **kw)

    def __call__(self, x_BD: jax.Array) -> jax.Array:
        return wide(self.fc2(jax.nn.elu(self.bn2(self.fc1(self.bn1(x_BD))))))


class Heads(nnx.Module):
    """A branch and its classifier for each tap, and one classifier of all branches together.

    Raises ValueError for numbers of channels below 1.
    """

    def __init__(self, taps: list[Tap], hidden: int, width: int, num_classes: int, **kw):
        for name, value in (("hidden", hidden), ("width", width)):
            if value < 1:
                raise ValueError(f"{name}={value} must be a number of channels, at least 1")
        self.branches = nnx.List([Branch(tap.channels, hidden, width, **kw) for tap in taps])
        self.classifiers = nnx.List([Classifier(width, hidden, num_classes, **kw) for _ in taps])
        self.concat = Classifier(len(taps) * width, hidden, num_classes, **kw)

    def classify(self, pooled: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        """Pooled maps [B, width], one a branch -> (logits of the branches and of all, embedding [B, D])."""
        embedding = jnp.concatenate(pooled, axis=1)
        logits = [classifier(x) for classifier, x in zip(self.classifiers, pooled, strict=True)]
        return [*logits, self.concat(embedding)], embedding


def choose_taps(info: Info, taps: tuple[str, ...]) -> list[Tap]:
    """The taps with these names; the three deepest of `info.default_taps` where none is named.

    Raises:
      ValueError: an unknown name, fewer than two taps, or taps that are not in the backbone's order.
    """
    names = tuple(taps) or info.default_taps[-3:]
    known = {tap.name: tap for tap in info.taps}
    for name in names:
        if name not in known:
            raise ValueError(f"{info.name} has no tap {name!r}{did_you_mean(name, known)}")
    if len(names) < 2:
        raise ValueError(
            f"taps={names}: it needs at least two maps of different depth; the taps of {info.name} are "
            f"{', '.join(known)}"
        )
    order = [list(known).index(name) for name in names]
    if sorted(set(order)) != order:
        raise ValueError(f"taps={names} must be distinct and in the order shallow to deep")
    return [known[name] for name in names]
