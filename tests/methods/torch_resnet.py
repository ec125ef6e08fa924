"""A ResNet-18 in torch as narrow and shallow as ours may be, with our weights: the twin of method tests."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax import backbones
from fgvc_jax.train import tree
from fgvc_jax.weights import resnet
from fgvc_jax.weights.tables import LAST

torch = pytest.importorskip("torch", reason="the reference is the same network in torch")
from torch import nn  # noqa: E402

torch.set_num_threads(1)  # several tests run at once, and the nets are tiny
__all__ = ["LAST", "torch"]
TYPES = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Block(nn.Module):
    """torchvision's BasicBlock, with its names."""

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != planes:
            conv = nn.Conv2d(inputs, planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(planes))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    """Stem and four stages; gives the maps by the names of our taps."""

    def __init__(self, width: int, depths: tuple[int, ...]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(Block(channels, width * 2**stage, stride))
                channels = width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x) -> dict:
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        maps = {}
        for stage in range(1, 5):
            blocks = getattr(self, f"layer{stage}")
            for number, block in enumerate(blocks):
                x = block(x)
                name = f"layer{stage}"
                maps[name if number == len(blocks) - 1 else f"{name}/{number}"] = x
        return maps


def body(rngs, width=4, depths=(1, 1, 1, 1), image_size=64):
    """Ours, in float64."""
    return backbones.create(
        "resnet18", width=width, depths=depths, image_size=image_size, rngs=rngs, **TYPES
    )


def randomise(module, seed: int = 0) -> None:
    """Biases, scales and statistics of ours away from 0 and 1; other vectors drawn small; in place."""
    draw = np.random.default_rng(seed)
    for arrays in tree.split(module)[1:]:
        for path, x in arrays.items():
            *parents, last = path.split("/")
            if x.ndim > 1:
                continue
            low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(last, (-0.3, 0.3))
            node = module
            for name in parents:
                node = node[int(name)] if name.isdigit() else getattr(node, name)
            getattr(node, last)[...] = jnp.asarray(draw.uniform(low, high, x.shape))


def torch_axes(array) -> np.ndarray:
    """A kernel of ours in torch's order of axes; vectors as they are."""
    array = np.asarray(array)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def give(module, theirs: "nn.Module", key) -> None:
    """Copies all our arrays into a torch module, where the array of a path is called key(path)."""
    state = theirs.state_dict()
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    for arrays in tree.split(module)[1:]:
        for path, x in arrays.items():
            name = key(path)
            value = torch_axes(x) if path.endswith("kernel") else np.asarray(x)
            state[name].copy_(torch.tensor(value.reshape(state[name].shape)))
            left.remove(name)
    assert not left, left


def net_key(path: str) -> str:
    """'backbone/layer1/0/conv1/kernel' -> 'net.layer1.0.conv1.weight'."""
    return "net." + resnet.TABLE.layouts[0].key(path.removeprefix("backbone/"))


def same_gradients(ours: dict, theirs: "nn.Module", key, tolerance: float) -> None:
    """Every gradient of ours against torch's, relative to its length or to 1e-4 of the longest.

    The latter for biases before a BatchNorm, whose true gradient is 0.
    """
    named = dict(theirs.named_parameters())
    longest = max(float(p.grad.norm()) for p in named.values() if p.grad is not None)
    for path, gradient in ours.items():
        there = named[key(path)].grad
        there = np.zeros(named[key(path)].shape) if there is None else there.numpy()
        here = torch_axes(gradient) if path.endswith("kernel") else np.asarray(gradient)
        error = np.linalg.norm(here.reshape(there.shape) - there)
        assert error <= tolerance * max(np.linalg.norm(there), 1e-4 * longest), path


def same_statistics(moved: dict, theirs: "nn.Module", key, tolerance: float) -> None:
    buffers = dict(theirs.named_buffers())
    for path, value in moved.items():
        there = buffers[key(path)].numpy()
        assert np.linalg.norm(np.asarray(value) - there) <= tolerance * np.linalg.norm(there), path
