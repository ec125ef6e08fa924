"""PIM against the same network in torch, written from METHODS.md E."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch_resnet as twin
from flax import nnx
from torch_resnet import torch

from fgvc_jax import backbones, checks, methods
from fgvc_jax.errors import UserError
from fgvc_jax.methods import Context, pim
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train import tree

F = torch.nn.functional
SIZE, BATCH, CLASSES, WIDTH = 64, 3, 5, 8  # maps of 16, 8, 4 and 2 cells a side
CELLS, CHANNELS, SELECTS = (256, 64, 16, 4), (4, 8, 16, 32), (40, 14, 7, 4)  # 65 tokens: 2 nodes
# float64. BatchNorm amplifies roundings of 1e-16; 1e-14 is measured. Of gradients 1.1e-11, where the true one
# is 0 and both sides are roundings: torch's 1.1e-14, ours 1.6e-15. Other machines may round otherwise.
TOLERANCE, OF_GRADIENTS = 1e-11, 5e-11
rng = np.random.default_rng(0)
IMAGES, LABELS = rng.normal(size=(BATCH, SIZE, SIZE, 3)), np.array([3, 0, 4])


def make(**own):
    given = {"width": WIDTH, "num_selects": SELECTS, "dropout": 0.0} | own
    return methods.create(
        "pim",
        twin.body(nnx.Rngs(0), image_size=SIZE),
        CLASSES,
        image_size=SIZE,
        rngs=nnx.Rngs(1),
        **twin.TYPES,
        **given,
    )


def shaped(name="resnet50", size=448, arguments=None, **own):
    """At full size without arrays."""

    def build():
        body = backbones.create(name, image_size=size, rngs=nnx.Rngs(0), **(arguments or {}))
        return methods.create("pim", body, 200, image_size=size, rngs=nnx.Rngs(1), **own)

    return nnx.eval_shape(build)


class Torch(torch.nn.Module):
    """Channels first, tokens gathered: METHODS.md E.2 as it stands."""

    def __init__(self, upsample):
        super().__init__()
        nn = torch.nn
        self.net, self.upsample = twin.ResNet(4, (1, 1, 1, 1)), upsample
        self.levels = nn.ModuleList()
        for i, (channels, cells) in enumerate(zip(CHANNELS, CELLS, strict=True)):
            level = nn.Module()
            level.project = nn.Module()
            level.project.fc1 = nn.Conv2d(channels, channels, 1)
            level.project.fc2 = nn.Conv2d(channels, WIDTH, 1)
            if i and upsample == "tokens":
                level.up = nn.Conv1d(cells, CELLS[i - 1], 1)
            level.classifier = nn.Module()
            level.classifier.fc1 = nn.Conv1d(WIDTH, WIDTH, 1)
            level.classifier.bn = nn.BatchNorm1d(WIDTH)
            level.classifier.fc2 = nn.Conv1d(WIDTH, CLASSES, 1)
            self.levels.append(level)
        total = sum(SELECTS)
        nodes = total // 32
        self.combiner = c = nn.Module()
        c.pool, c.merge = nn.Linear(total, nodes), nn.Linear(nodes, 1)
        c.adjacency, c.alpha = nn.Parameter(torch.zeros(nodes, nodes)), nn.Parameter(torch.zeros(1))
        c.query, c.key = (nn.Conv1d(WIDTH, WIDTH // 4, 1) for _ in range(2))
        c.conv, c.bn = nn.Conv1d(WIDTH, WIDTH, 1), nn.BatchNorm1d(WIDTH)
        c.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images):
        """(logits [B, C, T] and the places of the surest tokens by level, combined logits)."""
        maps = self.net(images)
        xs = []
        for number, level in enumerate(self.levels, 1):
            p = level.project
            xs.append(p.fc2(p.fc1(maps[f"layer{number}"]).relu()))
        for i in (3, 2, 1):
            if self.upsample == "tokens":
                up = self.levels[i].up(xs[i].flatten(2).transpose(1, 2)).transpose(1, 2)
                up = up.reshape(xs[i - 1].shape)
            else:
                up = F.interpolate(xs[i], scale_factor=2, mode="bilinear")
            xs[i - 1] = xs[i - 1] + up
        outs, chosen = [], []
        for level, x, count in zip(self.levels, xs, SELECTS, strict=True):
            c, x = level.classifier, x.flatten(2)
            logits = c.fc2(c.bn(c.fc1(x)).relu())
            sure = logits.softmax(1).amax(1)
            places = sure.sort(dim=1, descending=True)[1]
            outs.append((logits, places[:, :count], places[:, count:]))
            chosen.append(torch.stack([x[b][:, places[b, :count]] for b in range(len(x))]))
        c = self.combiner
        h = c.pool(torch.cat(chosen, 2))
        q, k = c.query(h).mean(1), c.key(h).mean(1)
        graph = c.adjacency + c.alpha * torch.tanh(q[:, :, None] - k[:, None, :])
        h = c.bn(torch.matmul(c.conv(h), graph))
        embedding = c.merge(h).flatten(1)
        return outs, c.head(embedding), embedding

    def loss(self, images, labels, lambda_s):
        outs, combined, _ = self(images)
        total = F.cross_entropy(combined, labels)
        for logits, best, rest in outs:
            total = total + 0.5 * F.cross_entropy(logits.mean(2), labels)

            def gather(places, logits=logits):
                rows = [x[:, place].T for x, place in zip(logits, places, strict=True)]
                return torch.stack(rows)  # [B, tokens, C]

            if rest.shape[1]:
                left = gather(rest).tanh()
                total = total + 5 * F.mse_loss(left, -torch.ones_like(left))
            kept = gather(best)
            repeated = labels.repeat_interleave(kept.shape[1])
            total = total + lambda_s * F.cross_entropy(kept.flatten(0, 1), repeated)
        return total


def key(path: str) -> str:
    if path.startswith("backbone/"):
        return twin.net_key(path)
    *parents, last = path.split("/")
    return ".".join([*parents, {**twin.LAST, "adjacency": "adjacency", "alpha": "alpha"}[last]])


CONTEXT = Context(
    key=jax.random.key(0),
    keys=jax.random.split(jax.random.key(1), BATCH),
    step=jnp.int32(0),
    epoch=jnp.float32(0),
    progress=jnp.float32(0),
)


@pytest.mark.parametrize(("upsample", "lambda_s"), [("bilinear", 0.0), ("tokens", 0.3)])
def test_an_update_and_a_prediction_are_torchs(upsample, lambda_s):
    images, labels = torch.tensor(IMAGES.transpose(0, 3, 1, 2)), torch.tensor(LABELS)
    with jax.enable_x64(True):
        module = make(upsample=upsample, lambda_s=lambda_s)
        twin.randomise(module)
        model = Torch(upsample).double()
        twin.give(module, model, key)
        assert abs(model.combiner.alpha.item()) > 0.01
        module.train()
        static, params, stats = tree.split(module)
        batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}

        def loss(params):
            merged = tree.merge(static, params, stats)
            value, carry, metrics = merged.update(batch, {}, CONTEXT)
            assert carry == {} and set(metrics) == {"accuracy", "combined_accuracy"}
            return value, tree.batch_stats(merged)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, statistics), gradients = step(params)
        module.eval()
        found = jax.jit(module.predict)(jnp.asarray(IMAGES))

    model.eval()
    with torch.no_grad():
        outs, combined, embedding = model(images)
    heads = [*(logits.mean(2) for logits, *_ in outs), combined]
    shares = sum(x.softmax(1) for x in heads)
    np.testing.assert_allclose(np.exp(found["scores"]), shares, rtol=TOLERANCE)
    np.testing.assert_allclose(found["embedding"], embedding, rtol=0, atol=TOLERANCE)

    model.train()
    expected = model.loss(images, labels, lambda_s)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=TOLERANCE)
    assert len(gradients) == len(dict(model.named_parameters()))
    twin.same_gradients(gradients, model, key, OF_GRADIENTS)
    twin.same_statistics(statistics, model, key, TOLERANCE)
    for part in ("alpha", "adjacency", "query/kernel"):  # the graph learns
        assert np.abs(gradients[f"combiner/{part}"]).max() > 1e-8


def test_the_loss_of_what_is_left_out_is_that_of_the_gathered_tokens():
    """METHODS.md E.8: mask == gather, here in float64."""
    logits = rng.normal(size=(4, 50, 20)) * 2
    with jax.enable_x64(True):
        _, selected = pim.surest(jnp.asarray(logits), 10)
        assert (selected.sum(1) == 10).all()
        left = logits[~np.asarray(selected)].reshape(4, 40, 20)
        expected = np.mean((np.tanh(left) + 1) ** 2)
        found = pim.left_out_loss(jnp.asarray(logits), selected)
        assert found == pytest.approx(expected, rel=1e-14)  # a sum of 3,200 terms
        assert pim.left_out_loss(jnp.asarray(logits), jnp.ones((4, 50), bool)) == 0


def test_the_surest_tokens_are_chosen_best_first_and_of_equals_the_first():
    logits = jnp.zeros((1, 5, 3)).at[0, :, 0].set(jnp.array([1.0, 5.0, -5.0, 1.0, 4.0]))
    places, selected = pim.surest(logits, 3)
    assert places.tolist() == [[1, 4, 0]]
    assert selected.tolist() == [[True, True, False, False, True]]


def test_several_heads_are_one_by_the_sum_of_their_softmaxes():
    heads = rng.normal(size=(5, 4, 6)) * 3
    scores = pim.together(list(jnp.asarray(heads[:4])), jnp.asarray(heads[4]))
    shares = np.exp(heads) / np.exp(heads).sum(-1, keepdims=True)
    # As a classifier's logits: their softmax is the mean of the heads'. float32.
    np.testing.assert_allclose(jax.nn.softmax(scores), shares.mean(0), rtol=2e-6)


def nodes(method):
    return method.combiner.adjacency.shape, method.combiner.pool.kernel.shape


def test_sizes_at_full_size():
    """METHODS.md E.2: J = 85 nodes of 2,720 tokens for Swin-L on CUB, 4 of 4 x 32; E.1: its maps."""
    swin = shaped(
        "swin_large_patch4_window12_384",
        384,
        width=1536,
        num_selects=(2048, 512, 128, 32),
        upsample="tokens",
    )
    assert nodes(swin) == ((85, 85), (2720, 85))
    assert swin.taps == ("merged1", "merged2", "merged3", "layer4")
    channels = [level.project.fc1.kernel.shape[0] for level in swin.levels]
    assert channels == [384, 768, 1536, 1536]
    ups = [level.up and level.up.kernel.shape for level in swin.levels]
    assert ups == [None, (576, 2304), (144, 576), None]  # the last two maps have 144 cells both
    assert swin.cost == methods.Cost(1, 1)
    assert nodes(shaped()) == ((4, 4), (128, 4))


TAPS = {
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
    "convnext_tiny": ("layer1", "layer2", "layer3", "layer4"),
    "efficientnet_b0": ("layer4", "layer5", "layer6", "layer7"),
    "vit_tiny_patch16_224": ("block8", "block9", "block10", "block11"),
    "swin_tiny_patch4_window7_224": ("merged1", "merged2", "merged3", "layer4"),
}


@pytest.mark.parametrize("name", TAPS)
def test_any_backbone_takes_it(name):
    """A whole update traced, with remat."""
    method = shaped(name, 224, arguments={"remat": "full"}, width=16)
    assert method.taps == TAPS[name]
    static, params, stats = tree.split(method)

    def update(params, images):
        module = tree.merge(static, params, stats)
        module.train()
        return module.update({"image": images, "label": jnp.zeros(BATCH, int)}, {}, CONTEXT)[0]

    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32)
    stats = {path: jnp.zeros(x.shape, x.dtype) for path, x in stats.items()}
    assert jax.eval_shape(update, params, images).shape == ()


def test_other_taps_and_one_number_for_all():
    method = shaped("resnet18", 224, taps=("layer2/0", "layer3", "layer4"), num_selects=(16,))
    assert method.selects == (16, 16, 16) and len(method.levels) == 3
    assert nodes(method) == ((1, 1), (48, 1))


def test_dropout_is_drawn_for_each_example():
    with jax.enable_x64(True):
        module = make(dropout=0.5)
        module.eval()
        module.combiner.head.kernel[...] = jnp.eye(WIDTH, CLASSES)
        module.combiner.head.bias[...] = jnp.zeros(CLASSES)
        images = jnp.asarray(np.repeat(IMAGES[:1], BATCH, 0))
        _, combined, features = jax.jit(module.heads)(images, CONTEXT.keys)
        kept = np.asarray(combined != 0)
        expected = np.where(kept, 2 * features[:, :CLASSES], 0)
        np.testing.assert_allclose(combined, expected, rtol=0, atol=1e-12)
        assert 0 < kept.mean() < 1 and len({tuple(row) for row in kept}) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"num_selects": (32, 32, 32, 200)},
            r"'layer4' must be 1 to 196.*200\) need image_size=480",
        ),
        ({"num_selects": (32, 32)}, r"one for each of the 4 taps"),
        ({"num_selects": (7,)}, r"28 tokens together.*select at least 32"),
        ({"num_selects": (0,)}, r"num_selects=0 at tap 'layer1' must be 1 to 12544"),
        ({"size": 96}, r"num_selects=32 at tap 'layer4' must be 1 to 9.*image_size=192"),
        ({"taps": ("layer4", "layer3")}, r"taps=.* must be in the net's order"),
        ({"taps": ("layer3", "layer3")}, r"taps=.* must be in the net's order"),
        ({"width": 3}, "width=3 must be at least 4"),
        ({"dropout": -0.1}, "dropout=-0.1 must lie in 0 to below 1"),
        ({"lambda_n": -1.0}, "lambda_n=-1.0 must be 0 or more"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(given, message):
    with pytest.raises(ValueError, match=message):
        shaped(**given)


def test_unknown_words_are_named():
    with pytest.raises(UserError, match="did you mean 'bilinear'"):
        shaped(upsample="bilinaer")
    with pytest.raises(UserError, match=r"a tap of resnet50 = 'layer5'.*'layer"):
        shaped(taps=("layer5",))


@pytest.mark.slow
def test_a_run_trains_and_is_scored(tmp_path):
    config = tiny.pipeline("vit_tiny_patch16_224", depth=2, width=16, heads=1)
    config.image.size = config.image.resize = 64
    with config.unlocked():
        config.finetune.method = "pim"
        config.finetune.arguments = {"width": 8, "num_selects": (16,)}
        config.finetune.length, config.finetune.batch = "6 steps", 8
        config.finetune.validation.every = "3 steps"
        config.phases = ("finetune", "evaluate")
    config = complete(config)
    checks.check(config)
    results = run(config, tmp_path)[""]
    assert results["finetune"]["steps"] == 6
    assert [row["name"] for row in results["evaluate"]["rows"]][-1] == "finetune"
    with config.unlocked():
        config.finetune.arguments = {"num_selects": (17,)}
    with pytest.raises(UserError, match=r"config\.finetune\.arguments.*must be 1 to 16"):
        run(complete(config), tmp_path / "refused")
