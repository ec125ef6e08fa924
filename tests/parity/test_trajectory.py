"""The engine's own train step against torch's training loop, in float64, 20 steps of SGD and of SAM.

Trajectories of networks with BatchNorm part by arithmetic alone, so every step starts from torch's weights,
statistics and momentum of that step and its update is compared. Left alone, the first steps still agree.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import load_pretrained, note, randomise, to_torch
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax import mesh as meshes
from fgvc_jax.data.cache import Canvases
from fgvc_jax.data.feed import Feed, gather
from fgvc_jax.methods import baseline
from fgvc_jax.train import optim, tree
from fgvc_jax.train import step as steps
from fgvc_jax.train.sam import sam

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")
torchvision = pytest.importorskip("torchvision", reason="parity needs torchvision")
timm = pytest.importorskip("timm", reason="parity needs timm")

STEPS, BATCH, SIZE, CLASSES = 20, 4, 32, 5
RATE, MOMENTUM, DECAY, RHO = 2.0**-6, 0.9, 1e-3, 0.05  # the rate is the same in float32
# Float64 rounding, 1e-16, amplified by a backward pass through normalisation; gradients are held to 1e-10.
UPDATE = 1e-9


def resnet(path):
    block = torchvision.models.resnet.BasicBlock
    model = randomise(torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=CLASSES)).double()
    torch.save(model.state_dict(), path)
    return model, "fc", backbones.create("resnet18", depths=(1, 1, 1, 1), **kw())


def vit(path):
    shape = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.models.VisionTransformer(img_size=SIZE, num_classes=CLASSES, **shape)
    torch.save(randomise(model).double().state_dict(), path)
    size = {"image_size": SIZE, "depth": 2, "width": 48, "heads": 3}
    return model, "head", backbones.create("vit_tiny_patch16_224", **size, **kw())


def kw():
    return {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield rng.normal(size=(BATCH, SIZE, SIZE, 3)), rng.integers(0, CLASSES, BATCH)


class Torch:
    """torch's training loop, and its weights, statistics and momentum under our paths."""

    def __init__(self, model, head, used):
        self.model = model.train()
        self.optimizer = torch.optim.SGD(
            model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY
        )
        self.keys = {f"backbone/{path}": key for path, key in used.items()}
        self.keys |= {"head/kernel": f"{head}.weight", "head/bias": f"{head}.bias"}

    def loss(self, images, labels):
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        return loss.item()

    def step(self, images, labels, with_sam):
        images, labels = to_torch(images), torch.from_numpy(labels)
        loss = self.loss(images, labels)
        if with_sam:  # Foret et al., eq. 2, the running statistics those of the first pass
            params = list(self.model.parameters())
            norm = torch.sqrt(sum((p.grad**2).sum() for p in params))
            before = [p.detach().clone() for p in params]
            statistics = {name: b.clone() for name, b in self.model.named_buffers()}
            with torch.no_grad():
                for p in params:
                    p.add_(p.grad, alpha=float(RHO / (norm + 1e-12)))
            self.loss(images, labels)
            with torch.no_grad():
                for p, old in zip(params, before, strict=True):
                    p.copy_(old)
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(statistics[name])
        self.optimizer.step()
        return loss

    def arrays(self, paths) -> dict:
        state = self.model.state_dict()
        return {path: ours_axes(path, state[self.keys[path]].numpy()) for path in paths}

    def momentum(self, paths) -> dict:
        params = dict(self.model.named_parameters())

        def buffer(path):
            p = params[self.keys[path]]
            held = self.optimizer.state[p].get("momentum_buffer")
            return ours_axes(path, np.zeros(p.shape) if held is None else held.numpy())

        return {path: buffer(path) for path in paths}


def ours_axes(path, array):
    array = array.copy()
    if path.endswith("kernel"):
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array


def engine(module, with_sam):
    """state, step(state, images, labels) of the project's own train step."""
    method = baseline.Method(module, CLASSES, image_size=SIZE, **kw())
    method.train()
    _, params, stats = tree.split(method)
    recipe = steps.Recipe(
        optimizer=optim.optimizer("sgd", list(params), momentum=MOMENTUM, weight_decay=DECAY),
        learning_rate=optim.schedule("constant", peak=RATE, total=STEPS),
        total_steps=STEPS,
        steps_per_epoch=1.0,
        wrap=(lambda gradient: sam(gradient, RHO)) if with_sam else (lambda gradient: gradient),
    )
    state, mesh = steps.init_state(params, stats, recipe), meshes.make()
    step = steps.train_step(
        *(method, state, recipe),
        mesh=mesh,
        gather=functools.partial(gather, mesh=mesh),
        preprocess=lambda keys, pixels, sizes: pixels[
            :, 0
        ],  # the views are given: no crop, no flip
    )
    canvases = Canvases(np.zeros((BATCH, 8, 8, 3), np.uint8), np.full((BATCH, 2), 8, np.int32))
    empty = Feed([canvases], mesh).batch(np.arange(BATCH)[:, None])

    def run(state, images, labels):
        batch = empty | {"pixels": images[:, None], "label": labels.astype(np.int32)}
        return step(state, (), batch, np.uint32(0))

    return state, run


def forced(state, theirs: Torch):
    """Our state with torch's weights, statistics and momentum."""

    def trace(node):
        if isinstance(node, optax.TraceState):
            return optax.TraceState(trace=theirs.momentum(node.trace))
        return node

    new = {name: theirs.arrays(state[name]) for name in ("params", "batch_stats")}
    new["opt"] = jax.tree.map(
        trace, state["opt"], is_leaf=lambda node: isinstance(node, optax.TraceState)
    )
    return jax.tree.map(np.array, state | new)  # copies: the step gives away its buffers


@pytest.mark.parametrize(
    ("build", "with_sam"),
    [
        pytest.param(resnet, False, id="resnet-sgd"),
        pytest.param(resnet, True, id="resnet-sam", marks=pytest.mark.slow),
        pytest.param(vit, False, id="vit-sgd", marks=pytest.mark.slow),
        pytest.param(vit, True, id="vit-sam"),
    ],
)
def test_updates_of_20_steps(build, with_sam, tmp_path):
    with jax.enable_x64(True):
        model, head, module = build(tmp_path / "model.pth")
        _, report = load_pretrained(module, str(tmp_path / "model.pth"))
        theirs = Torch(model, head, report.used)
        state, run = engine(module, with_sam)
        free = forced(state, theirs)
        apart = []
        for images, labels in batches():
            before = theirs.arrays(state["params"])
            state, metrics = run(forced(state, theirs), images, labels)
            free, free_metrics = run(free, images, labels)
            loss = theirs.step(images, labels, with_sam)
            after = theirs.arrays(state["params"])
            assert abs(float(metrics["loss"]) - loss) <= 1e-12 * loss
            apart.append(abs(float(free_metrics["loss"]) - loss) / loss)

            moves = {path: after[path] - before[path] for path in before}
            whole = np.sqrt(sum(np.linalg.norm(move) ** 2 for move in moves.values()))
            assert whole > 1e-3  # it does move
            for path, move in moves.items():
                error = np.linalg.norm(np.asarray(state["params"][path]) - before[path] - move)
                # Some true gradients are zero (a key's bias under softmax): hence the floor.
                error /= max(np.linalg.norm(move), 1e-6 * whole)
                assert note("SAM update" if with_sam else "SGD update", error) <= UPDATE, path
            for path, there in theirs.arrays(state["batch_stats"]).items():
                error = np.linalg.norm(state["batch_stats"][path] - there)
                assert error <= 1e-12 * np.linalg.norm(there), path
        # Only rounding parts them; through BatchNorm a step may enlarge it a hundredfold.
        assert all(error <= 1e-14 * 100**step for step, error in enumerate(apart[:5]))
        if not state["batch_stats"]:
            assert max(apart) <= 1e-12
