"""What the parity tests share: torch modules with random weights, and errors measured against them."""

import jax
import numpy as np
import pytest
from flax import nnx

from fgvc_jax import backbones, weights

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")

# Relative error of a float32 forward pass. torch's own against float64 is about 1e-6.
FLOAT32 = 1e-5


# torchvision's names where they are not ours.
TORCHVISION = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_large_patch16_224": "vit_l_16",
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_small_patch4_window7_224": "swin_s",
    "swin_base_patch4_window7_224": "swin_b",
}

# What was measured, for docs/parity.md: {(backbone, layout, what): largest error}; see conftest.py.
MEASURED: dict[tuple[str, str, str], float] = {}
_loaded = ("", "")


def load_pretrained(module: nnx.Module, source: str, **kw):
    """The project's own; what is measured next is noted under its backbone and layout."""
    global _loaded
    module, report = weights.load_pretrained(module, source, **kw)
    _loaded = module.info.name, report.layout.partition(",")[0].removeprefix("layout of ")
    return module, report


def note(what: str, error: float) -> float:
    key = (*_loaded, what)
    MEASURED[key] = max(float(error), MEASURED.get(key, 0.0))
    return error


def randomise(model: "torch.nn.Module", seed: int = 0) -> "torch.nn.Module":
    """Statistics, scales, biases and embeddings far from their initial 0 and 1; in place.

    Linear layers keep the size of what passes through them, so that no part of a block is negligible.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim <= 1 and tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            positive = name.endswith(("running_var", "weight"))
            tensor.copy_(0.5 + noise if positive else 0.4 * (noise - 0.5))
        elif tensor.ndim == 2:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[1] ** 0.5)
        elif "token" in name or "pos_embed" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()


def images(size: int, batch: int = 2, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(dtype)


def to_torch(x_BHWC: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(x_BHWC.transpose(0, 3, 1, 2).copy())


def relative(ours, theirs) -> float:
    """Largest error, relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape
    return note("forward", np.abs(ours - theirs).max() / np.abs(theirs).max())


def hook(modules: dict) -> dict:
    """Outputs by name, filled when the torch model runs."""
    outputs: dict = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda m, i, out, name=name: outputs.update({name: out}))
    return outputs


def forward(module: nnx.Module, x: np.ndarray) -> backbones.Features:
    module.eval()
    taps = [tap.name for tap in module.info.taps]
    graphdef, state = nnx.split(module)
    state = nnx.to_pure_dict(state)
    return jax.jit(lambda s, x: nnx.merge(graphdef, s)(x, taps))(state, x)


def gradients(module, x, weights):
    """Gradients of sum(weights * pooled^2) by path, and the statistics that the pass left, in training."""
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(params, rest):
        merged = nnx.merge(graphdef, params, rest)
        value = (weights * merged(x).pooled ** 2).sum()
        return value, nnx.to_pure_dict(nnx.split(merged, nnx.Param, ...)[2])

    run = jax.jit(jax.grad(loss, has_aux=True))
    grads, stats = run(nnx.to_pure_dict(params), nnx.to_pure_dict(rest))
    flat = {**nnx.traversals.flatten_mapping(grads), **nnx.traversals.flatten_mapping(stats)}
    return {"/".join(map(str, path)): value for path, value in flat.items()}


def torch_axes(path: str, value) -> np.ndarray:
    value = np.asarray(value)
    if path.endswith("kernel"):
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value


def check_gradients(module, report, model, x, pooled):
    weights = np.random.default_rng(1).normal(size=(x.shape[0], module.info.width))
    model.train()
    (torch.from_numpy(weights) * pooled(to_torch(x)) ** 2).sum().backward()
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    theirs |= {name: b.numpy() for name, b in model.named_buffers()}
    ours = gradients(module, x, weights)
    assert ours.keys() == report.used.keys()

    whole = np.sqrt(
        sum((np.linalg.norm(p.grad) ** 2) for p in model.parameters() if p.grad is not None)
    )
    for path, key in report.used.items():
        there, here = theirs[key], torch_axes(path, ours[path])
        assert here.dtype == np.float64
        error = np.linalg.norm(here - there)
        if path.endswith(("mean", "var")):  # running statistics after this one step
            assert note("statistics", error / np.linalg.norm(there)) <= 1e-12, path
        else:
            # Some true gradients are zero (a key's bias under softmax): hence the floor.
            size = max(np.linalg.norm(there), 1e-6 * whole)
            assert note("gradient", error / size) <= 1e-10, path
