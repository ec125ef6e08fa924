"""The bilinear method against METHODS.md G in torch, and its two phases on a CNN beside a transformer."""

from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import save_file

import fgvc_jax
from fgvc_jax import checks, methods, weights
from fgvc_jax.backbones.features import Features, Tap
from fgvc_jax.errors import UserError
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods import Context, bilinear
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train import tree

torch = pytest.importorskip("torch", reason="the reference is written in torch")
from torch import nn  # noqa: E402

torch.set_num_threads(1)

SIZE, CHANNELS, BATCH, CLASSES = 32, 6, 5, 3
TYPES = {"dtype": jnp.float64, "param_dtype": jnp.float64}
# float64. The root's gradient is up to 1 / (2 sqrt(1e-5)) = 158, which amplifies roundings of 1e-16.
TOLERANCE = 1e-11
IMAGES = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3))
LABELS = np.array([0, 1, 2, 1, 0])
VIT = {"depth": 2, "width": 16, "heads": 2}
SECOND = {"second": "vit_tiny_patch16_224", "second_arguments": tuple(VIT.items())}
NONE = Context(None, None, None, None, None)


class Backbone(nnx.Module):
    """Patches of 4 pixels through a linear layer and BatchNorm, twice; 'deep' is not rectified."""

    info = SimpleNamespace(
        name="stub", taps=(Tap("early", 4, 4), Tap("deep", CHANNELS, 4)), width=CHANNELS
    )
    remat = "none"

    def __init__(self, rngs):
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": rngs}
        self.fc = nnx.Linear(48, 4, **types)
        self.bn = BatchNorm(4, **types)
        self.fc2 = nnx.Linear(4, CHANNELS, **types)

    def __call__(self, images, taps=None, edit=None, keys=None):
        side = images.shape[1] // 4
        x = images.reshape(-1, side, 4, side, 4, 3).swapaxes(2, 3).reshape(-1, side, side, 48)
        edit = edit or (lambda name, x: x)
        early = edit("early", jax.nn.relu(self.bn(self.fc(x))))
        deep = edit("deep", self.fc2(early))
        return Features({"early": early, "deep": deep}, deep.mean((1, 2)), None)


class Block(nn.Module):
    """A transformer block, its layers named as timm names them."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), v).flatten(2)
        x = x + self.attn.proj(mixed)
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Images [B, 3, S, S] -> the map [B, D, S / 16, S / 16] of the patch tokens after the last block."""

    def __init__(self, width, depth, heads):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIZE // 16) ** 2, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)  # of the class token, which nothing here reads

    def forward(self, x):
        patches = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + self.pos_embed
        return self.blocks(x)[:, 1:].transpose(1, 2).unflatten(2, (SIZE // 16, SIZE // 16))


class Torch(nn.Module):
    """The method as METHODS.md G has it."""

    def __init__(self, second, reduction):
        super().__init__()
        self.fc, self.bn = nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4)
        self.fc2 = nn.Conv2d(4, CHANNELS, 1)
        self.reduce = nn.Conv2d(CHANNELS, reduction, 1) if 0 < reduction < CHANNELS else None
        self.second = self.second_reduce = None
        a = b = min(reduction or CHANNELS, CHANNELS)
        if second:
            self.second = ViT(**VIT)
            b = min(reduction or VIT["width"], VIT["width"])
            self.second_reduce = nn.Conv2d(VIT["width"], b, 1) if b < VIT["width"] else None
        self.head = nn.Linear(a * b, CLASSES)

    def forward(self, images, scale, shift):
        x = images.permute(0, 3, 1, 2)
        first = other = self.fc2(self.bn(self.fc(x)).relu())
        self.means = first.mean((2, 3))
        if self.second is not None:
            other = self.second(x * scale[:, None, None] + shift[:, None, None])
            self.means = torch.cat([self.means, other.mean((2, 3))], 1)
            first = nn.functional.adaptive_avg_pool2d(first, 2)
        first = self.reduce(first) if self.reduce is not None else first
        if self.second is None:
            other = first
        elif self.second_reduce is not None:
            other = self.second_reduce(other)
        cells = first.shape[2] * first.shape[3]
        phi = torch.stack(
            [
                sum(
                    torch.outer(a[:, i, j], b[:, i, j])
                    for i in range(a.shape[1])
                    for j in range(a.shape[2])
                )
                for a, b in zip(first, other, strict=True)
            ]
        )
        phi = phi.flatten(1) / cells
        phi = phi.sign() * (phi.abs() + 1e-5).sqrt()
        return self.head(nn.functional.normalize(phi))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def make(**arguments):
    given = {"image_size": SIZE, "rngs": nnx.Rngs(1)} | TYPES | arguments
    return methods.create("bilinear", Backbone(nnx.Rngs(0)), CLASSES, **given)


def torch_name(path: str) -> str:
    if path.startswith("second/"):
        inner = path.removeprefix("second/")
        layout = next(x for x in weights.TABLES[weights.ViT].layouts if x.name == "timm")
        return f"second.{layout.key(inner)}"
    *parts, last = path.removeprefix("backbone/").split("/")
    return ".".join([*parts, weights.tables.LAST[last]])


def both(**arguments):
    """(static in train mode, parameters, statistics) with random weights, and torch's with the same."""
    ours = make(**arguments)
    ours.train()
    static, params, stats = tree.split(ours)
    theirs = Torch("second" in arguments, arguments.get("reduction", 512)).double()
    state, draw, made = theirs.state_dict(), np.random.default_rng(7), {}
    for path, array in (params | stats).items():
        value = draw.normal(size=array.shape) * 0.4
        if path.endswith(("scale", "var")):
            value = np.abs(value) + 0.5
        made[path] = jnp.asarray(value)
        tensor = state[torch_name(path)]
        if path == "backbone/fc/kernel":  # our patches are rows of 4 x 4 x 3
            value = value.reshape(4, 4, 3, 4).transpose(3, 2, 0, 1)
        else:
            value = weights.torch_axes(path, value)
        tensor.copy_(torch.tensor(value).reshape(tensor.shape))
    taken = {torch_name(path) for path in made}
    assert {k for k in state if "num_batches" not in k} == taken
    return static, *({p: made[p] for p in flat} for flat in (params, stats)), theirs


SCALE, SHIFT = (0.5, 2.0, 1.5), (0.1, -0.2, 0.3)
CASES = {
    "symmetric": {},
    "symmetric, reduced": {"reduction": 4},
    "two nets": SECOND | {"second_scale": SCALE, "second_shift": SHIFT},
    "two nets, reduced": SECOND | {"reduction": 5},
    "two nets, not reduced": SECOND | {"reduction": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_torchs(x64, case):
    """Loss, gradients of both nets, running statistics; then scores and embedding in use."""
    arguments = CASES[case]
    static, params, stats, theirs = both(**arguments)
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}

    def loss(params):
        module = tree.merge(static, params, stats)
        value, _, metrics = module.update(batch, {}, NONE)
        return value, (tree.batch_stats(module), metrics["accuracy"])

    (value, (moved, accuracy)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    affine = [
        torch.tensor(np.asarray(arguments.get(key, default), float))
        for key, default in (("second_scale", (1, 1, 1)), ("second_shift", (0, 0, 0)))
    ]
    theirs.train()
    logits = theirs(torch.tensor(IMAGES), *affine)
    expected = nn.functional.cross_entropy(logits, torch.tensor(LABELS))
    expected.backward()
    assert float(logits.detach().std()) > 0.05
    np.testing.assert_allclose(value, expected.item(), rtol=TOLERANCE)
    assert accuracy == pytest.approx(np.mean(logits.argmax(1).numpy() == LABELS), abs=1e-6)
    named = dict(theirs.named_parameters())
    for path in params:
        gradient = named[torch_name(path)].grad
        # The final norm of a ViT comes after the tokens that are read: torch gives it no gradient at all.
        gradient = np.zeros(()) if gradient is None else gradient.numpy()
        if path == "backbone/fc/kernel":
            found = gradients[path].reshape(4, 4, 3, 4).transpose(3, 2, 0, 1)
        else:
            found = weights.torch_axes(path, np.asarray(gradients[path]))
        found = np.asarray(found).reshape(gradient.shape) if gradient.ndim else found
        np.testing.assert_allclose(found, gradient, rtol=0, atol=TOLERANCE, err_msg=path)
    for part in ("backbone", "head", *(["second"] if "second" in arguments else [])):
        assert any(np.abs(g).max() > 1e-4 for p, g in gradients.items() if p.startswith(part))
    state = theirs.state_dict()
    for path in stats:
        np.testing.assert_allclose(moved[path], state[torch_name(path)], rtol=TOLERANCE)

    module = tree.merge(static, params, moved)
    module.eval(), theirs.eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(IMAGES), *affine)
    used = module.predict(jnp.asarray(IMAGES))
    np.testing.assert_allclose(used["scores"], expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(used["embedding"], theirs.means, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("fine", "coarse"), [(8, 4), (7, 7), (37, 17), (5, 2), (3, 1)])
def test_a_coarser_cell_is_the_mean_over_the_area_that_it_covers(x64, fine, coarse):
    x = np.random.default_rng(0).normal(size=(2, fine, 3, 4))
    expected = np.zeros((2, coarse, 3, 4))
    for i in range(coarse):
        start, end = Fraction(i * fine, coarse), Fraction((i + 1) * fine, coarse)
        for j in range(fine):
            overlap = max(Fraction(0), min(end, Fraction(j + 1)) - max(start, Fraction(j)))
            expected[:, i] += float(overlap / (end - start)) * x[:, j]
    np.testing.assert_allclose(
        bilinear.average_to(jnp.asarray(x), (coarse, 3)), expected, atol=1e-13
    )
    if fine % coarse == 0:
        pooled = nn.functional.adaptive_avg_pool2d(torch.tensor(x).permute(0, 3, 1, 2), (coarse, 3))
        np.testing.assert_allclose(expected, pooled.permute(0, 2, 3, 1), atol=1e-13)
    np.testing.assert_allclose(
        bilinear.average_to(jnp.asarray(x.swapaxes(1, 2)), (3, coarse)),
        expected.swapaxes(1, 2),
        atol=1e-13,
    )


def test_the_gradient_of_a_map_of_zeros_is_finite():
    """What rectified channels often are; float32, and bfloat16 maps give a float32 descriptor."""
    gradient = jax.grad(lambda x: bilinear.bilinear(x, x).sum())(jnp.zeros((1, 2, 2, 3)))
    np.testing.assert_array_equal(gradient, 0)
    x = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    assert bilinear.bilinear(x, x).dtype == jnp.float32
    np.testing.assert_allclose(np.square(bilinear.bilinear(x, x)).sum(), 1, rtol=1e-6)


def test_an_edit_sees_the_taps_of_both_nets_by_names_of_their_own(x64):
    module = make(**SECOND)
    module.eval()
    seen, images = [], jnp.asarray(IMAGES)

    def record(name, x):
        seen.append(name)
        return x

    same = module.predict(images, edit=record)["scores"]
    expected = ["early", "deep", "second/embed", "second/block0", "second/block1"]
    assert seen == expected
    np.testing.assert_array_equal(same, module.predict(images)["scores"])
    for tap in ("deep", "second/block1"):
        edited = module.predict(images, lambda name, x, tap=tap: x * (name != tap))["scores"]
        assert np.abs(edited - same).max() > 1e-4
    other = make(**SECOND, tap="early", second_tap="embed")
    other.eval()
    assert other.head.kernel.shape == (4 * 16, CLASSES)
    alone = other.predict(images, lambda name, x: x * (name != "second/block0"))["scores"]
    np.testing.assert_array_equal(alone, other.predict(images)["scores"])  # it lies behind the tap


def test_draws_of_both_nets_and_of_the_head_come_from_the_example_keys(x64):
    drop = dict(VIT, stochastic_depth=0.6)
    made = make(second=SECOND["second"], second_arguments=tuple(drop.items()))
    images, labels = jnp.asarray(IMAGES), jnp.asarray(LABELS)

    def loss(module, seed):
        static, params, stats = tree.split(module)
        keys = jax.random.split(jax.random.key(seed), BATCH)
        context = NONE._replace(keys=keys)
        return float(
            tree.merge(static, params, stats).update(
                {"image": images, "label": labels}, {}, context
            )[0]
        )

    made.train()
    assert loss(made, 0) == loss(made, 0) != loss(made, 1)
    dropped = make(dropout=0.5)
    dropped.train()
    assert loss(dropped, 0) == loss(dropped, 0) != loss(dropped, 1)


def test_cost_counts_both_nets(x64):
    assert make().cost == (1, 1, 1) and make(**SECOND).cost == (2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": -1}, "reduction=-1"),
        ({"dropout": 1.5}, r"dropout=1\.5"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0"),
        ({"tap": "dep"}, "tap = 'dep' is unknown; did you mean 'deep'"),
        ({"second": "resnet19"}, "backbone = 'resnet19' is unknown; did you mean 'resnet1"),
        ({"second_arguments": (("width", 4),)}, "second_arguments and second_tap need second"),
        ({"second_scale": (1.0,)}, r"second_scale=\(1\.0,\) must be three numbers"),
        (SECOND | {"image_size": 33}, "multiples of 16 pixels, not 33 x 33"),
        (SECOND | {"second_tap": "layer4"}, "second_tap = 'layer4' is unknown"),
        (SECOND | {"second_arguments": (("wdth", 4),)}, "'wdth' is unknown; did you mean 'width'"),
    ],
)
def test_wrong_arguments_are_named(x64, arguments, message):
    with pytest.raises((ValueError, UserError), match=message):
        make(**arguments)


# Two phases of a run


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file of random weights for the second backbone in timm's layout, trained with mean and std 0.5."""
    torch.manual_seed(0)
    net = ViT(**VIT)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({key: x.numpy() for key, x in net.state_dict().items()}, path)
    return path, net


def config(**keys):
    """A head on two frozen nets, then both nets trained from there; the first one in ImageNet's colours."""
    made = tiny.pipeline()
    made.image.size = made.image.resize = 32
    made.data.test_fraction = 0.85
    with made.unlocked():
        made.finetune.method, made.finetune.arguments = "bilinear", SECOND | {"reduction": 8}
        made.finetune.update(length="4 steps", batch=16)
        made.finetune.validation.every = "4 steps"
        made.finetune.optimizer.freeze = ("backbone/.*", "second/.*")
        made.all = made.finetune.copy_and_resolve_references()
        made.all.init.phase = "finetune"
        made.all.optimizer.freeze = ()
        made.update_from_flattened_dict(keys)
        made.phases = ("finetune", "all", "evaluate")
    return complete(made)


def test_two_phases_of_a_cnn_and_a_transformer_from_pretrained_weights(
    pretrained, tmp_path, caplog
):
    path, net = pretrained
    made = config(**{"model.second_pretrained": str(path)})
    results = run(made, tmp_path)[""]
    assert str(path) in caplog.text
    _, data, models = tiny.parts(made, tmp_path)
    specification, _, first = models.trained("finetune", "last")
    _, _, last = models.trained("all", "last")
    # The file's arrays, which the first phase leaves alone, BatchNorm's statistics included.
    state = net.state_dict()
    start = tree.weights(models.starting_model(models.specify(made.finetune)))
    for kind in ("params", "batch_stats"):
        for name, value in start[kind].items():
            frozen = name.startswith(("backbone/", "second/"))
            assert np.array_equal(value, first[kind][name]) == frozen, name
            if name.startswith("second/"):
                key = torch_name(name).removeprefix("second.")
                theirs = weights.torch_axes(name, np.asarray(value)).ravel()
                np.testing.assert_array_equal(theirs, state[key].numpy().ravel())
    for part in (
        "backbone/layer4/0/conv1/kernel",
        "second/blocks/0/attn/qkv/kernel",
        "head/kernel",
    ):
        assert np.abs(last["params"][part] - first["params"][part]).max() > 1e-6
    # The second one sees its images in the colours of its own weights.
    own = specification.method_arguments
    view, pixels = specification.view, np.linspace(0, 1, 5)[:, None]
    seen = (pixels - view.mean) / view.std * own["second_scale"] + own["second_shift"]
    np.testing.assert_allclose(seen, np.repeat((pixels - 0.5) / 0.5, 3, 1), rtol=0, atol=1e-12)
    assert tuple(view.mean) == (0.485, 0.456, 0.406)
    # Two forward passes an example; with nothing to train in either net no backward ones.
    assert results["finetune"]["passes"] == pytest.approx(4 * 16 * 2 / 3)
    assert results["all"]["passes"] == 4 * 16 * 2
    rows = {row["name"]: row for row in results["evaluate"]["rows"]}
    assert rows["all"]["test"]["top1"] > 0.1 and "kNN (k=5), starting features" in rows
    files = list(data.manifest.splits["test"].files)[:4]
    images = [data.manifest.read(file) for file in files]
    used = fgvc_jax.load(tmp_path / "all")
    assert used.predict(images).shape == (4, 10)
    assert used.embed(images).shape == (4, 32 + 16)


@pytest.mark.slow
def test_a_fresh_head_keeps_both_nets(tmp_path):
    made = config(**{"all.init.head": "fresh", "all.optimizer.learning_rate": 0.0})
    made.phases = ("finetune", "all")
    run(made, tmp_path)
    _, _, models = tiny.parts(made, tmp_path)
    first, last = (models.trained(phase, "last")[2]["params"] for phase in ("finetune", "all"))
    for path in first:
        kept = path.startswith(("backbone/", "second/"))
        assert np.array_equal(first[path], last[path]) == kept, path


def test_weights_for_a_second_backbone_that_is_not_there_are_refused(pretrained, tmp_path):
    keys = {"model.second_pretrained": str(pretrained[0])}
    made = config(**keys)
    for phase in ("finetune", "all"):
        made[phase].arguments.second = ""
    with pytest.raises(UserError, match="no phase's method has a second backbone"):
        checks.check(made)
    made = config(**{"model.second_pretrained": str(tmp_path / "nowhere.safetensors")})
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        run(made, tmp_path / "run")
    made = config(**keys | {"finetune.init.head": "means", "finetune.init.phase": "all"})
    made.phases = ("all", "finetune")
    made.all.init.phase = ""
    with pytest.raises(
        UserError, match=r"'means' makes a linear layer called head on the embedding"
    ):
        run(made, tmp_path / "run")
