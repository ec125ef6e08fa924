"""FBSD and CMAL-Net in torch, under the names of their authors' checkpoints, written from METHODS.md C and F.

Loops over images and strips where ours are batched, numbers and slices where ours are masks and matrices.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from fgvc_jax.backbones.base import Backbone, Variant
from fgvc_jax.backbones.features import Info, imagenet, stage_taps
from fgvc_jax.layers.conv import convolution
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods import Context
from fgvc_jax.ops.pool import max_pool
from fgvc_jax.train import tree

torch.set_num_threads(1)


class BasicBlock(nn.Module):
    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride > 1 or inputs != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class PlainBlock(nn.Module):
    """A convolution and BatchNorm: a block of the backbone `Plain` below."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x)))


class Bottleneck(nn.Module):
    """For its names: it is never run."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        widths = (inputs, planes, planes, 4 * planes)
        for i in (1, 2, 3):
            setattr(
                self, f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], 2 * (i == 2) + 1, bias=False)
            )
            setattr(self, f"bn{i}", nn.BatchNorm2d(widths[i]))
        if inputs != 4 * planes:
            convolution = nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(4 * planes))


def resnet(width, depths=(1, 1, 1, 1), block=BasicBlock, expansion=1):
    """The children of a ResNet, by torchvision's numbers; a narrow and shallow ResNet-18."""
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    stages, channels = [], width
    for stage, depth in enumerate(depths):
        blocks = []
        for number in range(depth):
            blocks.append(block(channels, width * 2**stage, 2 if stage and not number else 1))
            channels = width * 2**stage * expansion
        stages.append(nn.Sequential(*blocks))
    return [*stem, nn.MaxPool2d(3, 2, 1), *stages]


def resnet50():
    return resnet(64, (3, 4, 6, 3), Bottleneck, 4)


class Block(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, momentum=0.01)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def classifier(inputs, hidden, classes):
    return nn.Sequential(
        nn.BatchNorm1d(inputs),
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ELU(),
        nn.Linear(hidden, classes),
    )


class Skeleton(nn.Module):
    """Branches and classifiers of three maps with these channels."""

    def __init__(self, channels, hidden, width, classes):
        super().__init__()
        for i, inputs in enumerate(channels, 1):
            branch = nn.Sequential(Block(inputs, hidden, 1), Block(hidden, width, 3))
            setattr(self, f"conv_block{i}", branch)
            setattr(self, f"classifier{i}", classifier(width, hidden, classes))
        self.classifier_concat = classifier(len(channels) * width, hidden, classes)

    def classify(self, pooled):
        logits = [getattr(self, f"classifier{i}")(x) for i, x in enumerate(pooled, 1)]
        return [*logits, self.classifier_concat(torch.cat(pooled, 1))]


class FBSM(nn.Module):
    def __init__(self, channels, count, alpha=0.5, beta=0.5, per_strip=True, dim=2):
        super().__init__()
        self.stripconv = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(1), nn.ReLU())
        self.count, self.alpha, self.beta = count, alpha, beta
        self.per_strip, self.dim = per_strip, dim

    def forward(self, x):
        strips = x.chunk(self.count, self.dim)
        if self.per_strip:
            scored = [self.stripconv(strip) for strip in strips]
        else:
            scored = self.stripconv(x).chunk(self.count, self.dim)
        self.weights = torch.stack([s.mean((1, 2, 3)) for s in scored], 1).softmax(1)
        boosted, suppressed = [], []
        for i, strip in enumerate(strips):
            b = self.weights[:, i].view(-1, 1, 1, 1)
            largest = b.flatten() == self.weights.max(1).values
            factor = torch.ones_like(b)
            factor[largest] = self.beta
            boosted.append(strip + self.alpha * b * strip)
            suppressed.append(factor.detach() * strip)
        return torch.cat(boosted, self.dim), torch.cat(suppressed, self.dim)


class FBSD(Skeleton):
    def __init__(
        self,
        children,
        channels,
        hidden,
        width,
        classes,
        strips=(8, 4, 2),
        factor=0.001,
        sim="cos",
        **fbsm,
    ):
        super().__init__(channels, hidden, width, classes)
        self.features = nn.Module()
        self.features.layer0_2 = nn.Sequential(*children[:6])
        self.features.layer3 = nn.Sequential(children[6])
        self.features.layer4 = nn.Sequential(children[7])
        for i, (inputs, count) in enumerate(zip(channels, strips, strict=True), 1):
            setattr(self.features, f"strip{i}", FBSM(inputs, count, **fbsm))
        self.factor, self.sim = factor, sim

    def forward(self, x):
        maps = []
        for i, stage in enumerate(("layer0_2", "layer3", "layer4"), 1):
            boosted, x = getattr(self.features, f"strip{i}")(getattr(self.features, stage)(x))
            maps.append(getattr(self, f"conv_block{i}")(boosted).flatten(2))  # [B, D, S]
        added = []
        for j, there in enumerate(maps):
            total = 0
            for i, here in enumerate(maps):
                if i != j:
                    a, b = (here, there)
                    if self.sim == "cos":
                        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
                    weights = (-(a.transpose(1, 2) @ b)).softmax(1)  # [B, S of i, M of j]
                    total = total + self.factor * (here @ weights)
            added.append(there + total)
        return self.classify([x.topk(min(5, x.shape[2]), dim=2).values.mean(2) for x in added])


class CMAL(Skeleton):
    def __init__(self, children, channels, hidden, width, classes):
        super().__init__(channels, hidden, width, classes)
        self.Features = nn.Module()
        for number, child in enumerate(children):
            child = child if isinstance(child, nn.Sequential) else nn.Sequential(child)
            setattr(self.Features, f"net_layer_{number}", child)

    def forward(self, x):
        maps = []
        for number in range(8):
            x = getattr(self.Features, f"net_layer_{number}")(x)
            if number > 4:
                maps.append(getattr(self, f"conv_block{number - 4}")(x))
        return self.classify([x.amax((2, 3)) for x in maps]), [x.detach() for x in maps]

    def attention(self, index, map_, logits, size):
        """The enlarged class activation maps of one expert [B, size, size]."""
        head = getattr(self, f"classifier{index + 1}")
        found = []
        for image in range(len(map_)):
            weights = head[4].weight[logits[image].argmax()].detach() @ head[1].weight.detach()
            found.append(sum(w * channel for w, channel in zip(weights, map_[image], strict=True)))
        found = torch.stack(found)[:, None]
        return F.interpolate(found, (size, size), mode="bilinear", align_corners=True)[:, 0]


def normalised(map_):
    return (map_ - map_.min()) / (map_.max() - map_.min() + 1e-6)


def box(map_, padding=0.1, threshold=0.5):
    """(top, left, bottom, right), the last two exclusive, of one normalised map."""
    rows, columns = np.nonzero(np.asarray(map_) >= threshold)
    size, ends = len(map_), []
    if not len(rows):
        return 0, 0, size, size
    for positions in (rows, columns):
        ends.append(max(int(positions.min() - padding * size), 0))
        ends.append(min(int(positions.max() + padding * size), size))
    top, bottom, left, right = ends
    return top, left, bottom, right


def cut(images, boxes):
    size = images.shape[-1]
    crops = [
        F.interpolate(
            image[None, :, top:bottom, left:right],
            (size, size),
            mode="bilinear",
            align_corners=True,
        )
        for image, (top, left, bottom, right) in zip(images, boxes, strict=True)
    ]
    return torch.cat(crops)


# Between the two


class OursPlainBlock(nnx.Module):
    def __init__(self, inputs, planes, stride, **kw):
        self.conv1 = convolution(inputs, planes, 3, stride, **kw)
        self.bn1 = BatchNorm(planes, **kw)

    def __call__(self, x):
        return jax.nn.relu(self.bn1(self.conv1(x)))


class Plain(Backbone):
    """`resnet(width, block=PlainBlock)`, a ResNet that compiles quickly."""

    def __init__(self, width, **kw):
        variant = Variant(type(self), 64, 16, 1, {"width": width})
        super().__init__("plain", variant, width=width, rngs=nnx.Rngs(0), **kw)

    @staticmethod
    def check(name, **arguments):
        pass

    def build(self, name, image_size, kw, *, width):
        self.conv1 = convolution(3, width, 7, 2, **kw)
        self.bn1 = BatchNorm(width, **kw)
        taps, channels = [], width
        for stage in range(4):
            planes = width * 2**stage
            made = OursPlainBlock(channels, planes, 2 if stage else 1, **kw)
            setattr(self, f"layer{stage + 1}", nnx.List([made]))
            channels = planes
            taps += stage_taps(stage + 1, 1, planes, 4 * 2**stage)
        return Info(name, tuple(taps), channels, imagenet(image_size, 1.0, "bilinear"))

    def forward(self, x, record, keys=None):
        x = max_pool(jax.nn.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for (block,) in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = record(block(x))
        return x.mean((1, 2)), None


def to_torch(images):
    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())


def axes(path, array):
    """An array of ours in torch's axes."""
    array = np.asarray(array)
    if path.endswith("kernel"):
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return array


def load(model, key, arrays):
    """Gives a torch model the arrays of ours, by path; each of its own has to be named once."""
    state = {}
    for path, array in arrays.items():
        assert key(path) not in state, path
        state[key(path)] = torch.tensor(axes(path, array))
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)


def spread(module, seed=0):
    """Scales, offsets and statistics of our module far from 1 and 0, in place."""
    rng = np.random.default_rng(seed)
    state = nnx.state(module)
    for path, variable in nnx.to_flat_state(state):
        shape = variable.get_value().shape
        draw = {
            "scale": lambda shape: rng.uniform(0.5, 1.5, shape),
            "var": lambda shape: rng.uniform(0.5, 1.5, shape),
            "bias": lambda shape: rng.uniform(-0.3, 0.3, shape),
            "mean": lambda shape: rng.uniform(-0.3, 0.3, shape),
            "kernel": lambda shape: rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape),
        }[path[-1]]
        variable.set_raw_value(jnp.asarray(draw(shape)))
    nnx.update(module, state)
    return module


def an_update(static, number):
    """Jitted (params, stats, batch, carry, key, keys) -> (loss, gradients, stats, carry, metrics)."""

    def loss(params, stats, batch, carry, key, keys):
        module = tree.merge(static, params, stats)
        context = Context(key, keys, jnp.int32(0), jnp.float32(0), jnp.float32(0))
        value, carry, metrics = module.updates[number](batch, carry, context)
        return value, (tree.batch_stats(module), carry, metrics)

    def run(params, *rest):
        (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params, *rest)
        return value, gradients, *aux

    return jax.jit(run)


def check_gradients(gradients, model, key, tolerance):
    """Every gradient is torch's, relative to its size. Returns the largest error."""
    theirs = dict(model.named_parameters())
    theirs = {path: theirs[key(path)].grad for path in gradients}
    theirs = {
        p: np.zeros(axes(p, gradients[p]).shape) if g is None else g.numpy()
        for p, g in theirs.items()
    }
    whole = np.sqrt(sum(np.linalg.norm(there) ** 2 for there in theirs.values()))
    assert whole > 1e-3
    errors = {
        # Some true gradients are zero (a bias before BatchNorm): hence the floor.
        path: np.linalg.norm(axes(path, gradients[path]) - there)
        / max(np.linalg.norm(there), 1e-6 * whole)
        for path, there in theirs.items()
    }
    worst = max(errors, key=errors.get)
    assert errors[worst] <= tolerance, (worst, errors[worst])
    return errors[worst]


def check_arrays(arrays, model, key, tolerance):
    """Every array of ours is that of torch's state. Returns the largest error."""
    state, worst = model.state_dict(), 0.0
    for path, here in arrays.items():
        there = state[key(path)].numpy()
        error = np.linalg.norm(axes(path, here) - there) / max(np.linalg.norm(there), 1e-3)
        assert error <= tolerance, (path, error)
        worst = max(worst, error)
    return worst


def check_names(module, key, unused, model):
    """Our arrays and torch's state are the same names and shapes, one for one."""
    ours = {}
    weights = tree.weights(module)
    for path, array in (weights["params"] | weights["batch_stats"]).items():
        assert key(path) not in ours, path
        order = (3, 2, 0, 1) if len(array.shape) == 4 else range(len(array.shape))[::-1]
        ours[key(path)] = tuple(array.shape[i] for i in order)
    state = {
        name: tuple(x.shape)
        for name, x in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
        and not any(re.fullmatch(pattern, name) for pattern in unused)
    }
    assert ours == state
