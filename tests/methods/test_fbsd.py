"""FBSD against the same network in torch, and the facts of METHODS.md C and M."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from fgvc_jax import backbones, methods
from fgvc_jax.backbones import Info, Tap
from fgvc_jax.errors import UserError
from fgvc_jax.layers.dropout import fold
from fgvc_jax.methods import Cost
from fgvc_jax.methods.fbsd import Strips, diversify, top_mean
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train import tree
from fgvc_jax.weights.originals import fbsd as original

torch = pytest.importorskip("torch", reason="the reference is the same network in torch")
import torch_granular as theirs  # noqa: E402

SIZE, BATCH, CLASSES, HIDDEN, WIDTH = 64, 6, 5, 7, 9
STRIPS = (4, 2, 2)
# float64: roundings of 1e-16, which a backward pass through BatchNorm over a few values enlarges.
TOLERANCE = 1e-9
rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(BATCH, SIZE, SIZE, 3))
LABELS = rng.integers(0, CLASSES, BATCH)
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def make(backbone="resnet18", size=SIZE, types=DOUBLE, backbone_arguments=None, **arguments):
    if backbone_arguments is None:
        backbone_arguments = {"width": 4, "depths": (1, 1, 1, 1)}
    made = backbones.create(
        backbone, image_size=size, rngs=nnx.Rngs(0), **types, **backbone_arguments
    )
    narrow = {"hidden": HIDDEN, "width": WIDTH}
    return methods.create(
        *("fbsd", made, CLASSES),
        **{"image_size": size, "rngs": nnx.Rngs(1), **types, **narrow, **arguments},
    )


@pytest.fixture(scope="module")
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(
    scope="module",
    params=[
        # The authors' code, then all that it does not do.
        ({"strip_norm": "per_strip"}, {}),
        (
            {"strip_axis": "width", "fdm_sim": "dot", "fdm_scale": 0.5, "gamma": 0.7}
            | {"alpha": 0.8, "beta": 0.3},
            {"per_strip": False, "dim": 3, "sim": "dot", "factor": 0.35}
            | {"alpha": 0.8, "beta": 0.3},
        ),
    ],
    ids=["released", "others"],
)
def both(request, x64):
    """Ours and torch's with the same weights."""
    arguments, torchs = request.param
    ours = theirs.spread(make(strips=STRIPS, **arguments))
    model = theirs.FBSD(
        theirs.resnet(4), (8, 16, 32), HIDDEN, WIDTH, CLASSES, strips=STRIPS, **torchs
    ).double()
    weights = tree.weights(ours)
    theirs.load(model, original.key, weights["params"] | weights["batch_stats"])
    return ours, model


def test_scores_and_embedding_are_torchs(both):
    ours, model = both
    ours.eval(), model.eval()
    found = jax.jit(lambda x: ours.predict(x))(IMAGES)
    with torch.no_grad():
        logits = model(theirs.to_torch(IMAGES))
    assert found["scores"].shape == (BATCH, CLASSES)
    assert found["embedding"].shape == (BATCH, 3 * WIDTH)
    assert float(sum(logits).std()) > 0.1
    np.testing.assert_allclose(found["scores"], sum(logits) / 4, rtol=0, atol=1e-12)


def test_loss_gradients_and_statistics_are_torchs(both):
    ours, model = both
    ours.train(), model.train()
    static, params, stats = tree.split(ours)
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}
    keys = jax.random.split(jax.random.key(0), BATCH)
    update = theirs.an_update(static, 0)
    loss, gradients, moved, carry, metrics = update(params, stats, batch, {}, keys[0], keys)
    logits = model(theirs.to_torch(IMAGES))
    labels = torch.tensor(LABELS)
    losses = [torch.nn.functional.cross_entropy(x, labels) for x in logits]
    expected = 2 * (losses[0] + losses[1] + losses[2]) + losses[3]
    model.zero_grad()
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    assert carry == {}
    right = sum(logits).detach().numpy().argmax(1) == LABELS
    assert metrics["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    theirs.check_gradients(gradients, model, original.key, TOLERANCE)
    theirs.check_arrays(moved, model, original.key, 1e-12)
    still = [path for path in stats if np.abs(moved[path] - stats[path]).max() < 1e-6]
    assert not still


# FBSM and FDM


def strips(count=4, **arguments):
    usual = {"alpha": 0.5, "beta": 0.5, "axis": "height", "norm": "full_map"}
    made = Strips(3, count, **usual | arguments, rngs=nnx.Rngs(0))
    made.bn.bias[...] = jnp.full(1, 3.0)  # scores above 0, where ReLU lets weights differ
    made.eval()
    return made


def test_weights_sum_to_1_and_exactly_one_strip_is_halved():
    made, x = strips(), rng.normal(size=(50, 8, 6, 3)).astype(np.float32)
    weights = np.asarray(made.weights(x))
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert weights.std(1).min() > 1e-3  # no ties
    boosted, suppressed = (np.asarray(y).reshape(50, 4, -1) / x.reshape(50, 4, -1) for y in made(x))
    np.testing.assert_allclose(boosted, (1 + 0.5 * weights)[:, :, None] + 0 * boosted, rtol=1e-5)
    expected = np.ones((50, 4))
    expected[np.arange(50), weights.argmax(1)] = 0.5
    np.testing.assert_array_equal(suppressed, expected[:, :, None] + 0 * suppressed)


def test_strips_of_columns_are_strips_of_the_turned_map():
    x = rng.normal(size=(4, 6, 8, 3)).astype(np.float32)
    rows = strips()(x.swapaxes(1, 2))
    columns = strips(axis="width")(x)
    for turned, found in zip(rows, columns, strict=True):
        np.testing.assert_array_equal(turned.swapaxes(1, 2), found)


def test_where_weights_tie_all_strips_are_suppressed():
    _, suppressed = strips()(np.ones((1, 8, 6, 3), np.float32))
    np.testing.assert_array_equal(suppressed, 0.5)


def test_statistics_move_once_for_the_map_and_once_for_every_strip():
    x = rng.normal(size=(4, 8, 6, 3)).astype(np.float32)
    for norm in ("full_map", "per_strip"):
        made = strips(norm=norm)
        made.train()
        scores = np.asarray(made.conv(x)).reshape(4, 4, 12).swapaxes(0, 1).reshape(4, 48)
        made(x)
        mean = 0.0
        for values in scores if norm == "per_strip" else scores.reshape(1, -1):
            mean = 0.9 * mean + 0.1 * values.mean()
        np.testing.assert_allclose(made.bn.mean[...], [mean], rtol=1e-5)


def test_a_cell_of_zeros_has_no_gradient_and_makes_no_nan():
    cells = [np.ones((1, 4, 3), np.float32), np.zeros((1, 2, 3), np.float32)]
    found = jax.grad(lambda cells: sum(x.sum() for x in diversify(cells, 1.0, "cos")))(cells)
    assert all(np.isfinite(x).all() for x in found)


def test_what_is_added_is_about_the_mean_of_the_other_map():
    """METHODS.md C.3: the cosines lie in 0 to 1, so that the softmax is nearly uniform."""
    here, there = (rng.uniform(size=(2, n, 50)).astype(np.float32) for n in (16, 4))
    first, second = diversify([here, there], 0.001, "cos")
    for added, other in ((first - here, there), (second - there, here)):
        expected = 0.001 * other.mean(1, keepdims=True) + 0 * added
        np.testing.assert_allclose(added, expected, rtol=0.1, atol=1e-7)


def test_the_pooled_value_is_the_mean_of_the_five_largest_or_of_all():
    x = np.arange(12.0, dtype=np.float32).reshape(1, 6, 2)
    np.testing.assert_allclose(top_mean(x), [[6.0, 7.0]])
    np.testing.assert_allclose(top_mean(x[:, :3]), [[2.0, 3.0]])


# What it works on


def test_edit_sees_the_map_before_it_is_boosted_and_what_it_returns_goes_on(both):
    ours, _ = both
    ours.eval()

    @jax.jit
    def run(images, gain):
        seen = {}

        def edit(name, x):
            seen[name] = x
            return gain * x if name == "layer3" else x

        return ours.predict(images, edit)["scores"], seen, ours.predict(images)["scores"]

    scores, seen, plain = run(IMAGES[:2], 1.0)
    assert sorted(seen) == sorted(tap.name for tap in ours.backbone.info.taps)
    np.testing.assert_allclose(scores, plain, rtol=0, atol=1e-12)
    other, changed, _ = run(IMAGES[:2], 0.0)
    assert np.abs(other - scores).max() > 1e-3
    assert np.abs(changed["layer4"] - seen["layer4"]).max() > 1e-3
    # Untouched by what FBSM does there: as the plain backbone makes it.
    expected = ours.backbone(jnp.asarray(IMAGES[:2]), ["layer2"]).maps["layer2"]
    np.testing.assert_allclose(seen["layer2"], expected, rtol=0, atol=1e-12)


def abstract(*args, **kw):
    kw = {"types": {}} | kw
    return nnx.eval_shape(lambda: make(*args, **kw))


@pytest.mark.parametrize("size", [256, 320, 384, 448])
def test_published_sizes_divide(size):
    assert abstract(size=size).taps == ("layer2", "layer3", "layer4")


def test_a_size_that_does_not_divide_is_refused_with_the_nearest_that_do():
    text = r"224 pixels \(layer2 28, layer3 14, layer4 7\).*sizes that work: 192 and 256"
    with pytest.raises(ValueError, match=text):
        abstract(size=224)
    narrow = {"depth": 4, "width": 8, "heads": 2}
    with pytest.raises(ValueError, match=r"block1 14, .*sizes that work: 128 and 256"):
        abstract("vit_tiny_patch16_224", 224, backbone_arguments=narrow)
    with pytest.raises(ValueError, match=r"sizes that work: 64\b"):
        abstract(size=32)
    # Whose remainders are left out, so that it has 31 rows where ResNet has 32.
    narrow = {"width": 8, "depths": (1, 1, 1, 1)}
    with pytest.raises(ValueError, match=r"layer2 31, .*sizes that work: 192 and 256"):
        abstract("convnext_tiny", 255, backbone_arguments=narrow)
    made = abstract(size=96, strips=(3, 3, 3))  # the sizes named are free of the published numbers
    assert made.strips[0].count == 3
    with pytest.raises(ValueError, match="sizes that work: 96 and 192"):
        abstract(size=160, strips=(3, 3, 3))


@pytest.mark.parametrize(
    ("name", "size", "narrow"),
    [
        ("convnext_tiny", 64, {"width": 8, "depths": (1, 1, 1, 1)}),
        ("efficientnet_b0", 64, {"width": 0.25, "depth": 0.3}),
        (
            "swin_tiny_patch4_window7_224",
            64,
            {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4)},
        ),
        ("vit_tiny_patch16_224", 128, {"depth": 4, "width": 8, "heads": 2}),
    ],
)
def test_other_families_train_and_predict(name, size, narrow):
    made = abstract(name, size, backbone_arguments=narrow, dropout=0.2)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def run(training):
        made.train() if training else made.eval()
        static, params, stats = tree.split(made)

        def forward(params, stats, images):
            module, keys = tree.merge(static, params, stats), jax.random.split(jax.random.key(0), 2)
            if not training:
                return module.predict(images)
            batch = {"image": images, "label": jnp.zeros(2, jnp.int32)}
            context = methods.Context(keys[0], keys, *jnp.zeros(3))
            return module.update(batch, {}, context)[0]

        return jax.eval_shape(forward, params, stats, images)

    assert run(training=True).shape == ()
    found = {name: x.shape for name, x in run(training=False).items()}
    assert found == {"scores": (2, CLASSES), "embedding": (2, 3 * WIDTH)}


def test_a_map_that_does_not_divide_after_all_is_named():
    """In use on images of another size than it was made for."""
    made = strips()
    with pytest.raises(ValueError, match="a map of 7 cells does not divide into 4 strips"):
        made(np.ones((1, 7, 7, 3), np.float32))


def test_wrong_arguments_are_named():
    for arguments, message in (
        ({"strips": (8, 4)}, "strips=.* for each tap of layer2, layer3, layer4"),
        ({"strips": (8, 4, 0)}, "at least 1"),
        ({"beta": 1.5}, "beta=1.5 must lie in 0 to 1"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"gamma": float("nan")}, "gamma=nan"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"hidden": 0}, "hidden=0"),
        ({"taps": ("layer2", "layer9")}, "no tap 'layer9'; did you mean"),
        ({"taps": ("layer3", "layer2"), "strips": (1, 1)}, "shallow to deep"),
        ({"taps": ("layer3",), "strips": (1,)}, "at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            abstract(**arguments)
    for name in ("strip_axis", "strip_norm", "fdm_sim"):
        with pytest.raises(UserError, match=f"'fbsd': {name} = 'x'"):
            abstract(**{name: "x"})


def test_the_taps_may_be_chosen():
    made = abstract(taps=("layer1", "layer2/0", "layer4"), strips=(4, 2, 1), size=64, **DEEP)
    assert [b.conv1.kernel.shape[2] for b in made.heads.branches] == [4, 8, 32]


DEEP = {"backbone_arguments": {"width": 4, "depths": (1, 2, 1, 1)}}


class Stub(nnx.Module):
    """Two maps of an image's own pixels: all that an embedding needs below it."""

    info = Info("stub", (Tap("a", 3, 1), Tap("b", 3, 2)), 3, None, ("a", "b"))
    multiple = smallest = 1

    def map_sizes(self, image_size, taps):
        return {"a": (image_size, image_size), "b": (image_size // 2, image_size // 2)}

    def __call__(self, x, taps=None, edit=None, keys=None):
        edit("b", edit("a", x)[:, ::2, ::2])


def test_dropout_belongs_to_training_and_to_the_examples_key():
    def embedding(rate, keys):
        made = methods.create(
            *("fbsd", Stub(), 3),
            **{"image_size": 4, "strips": (2, 1), "hidden": 4, "width": 200, "dropout": rate},
            **{"gamma": 0.0, "rngs": nnx.Rngs(0)},
        )
        made.eval()
        return np.asarray(made.forward(jnp.asarray(IMAGES[:, :4, :4], jnp.float32), keys=keys)[1])

    keys = jax.random.split(jax.random.key(0), BATCH)
    plain, used = embedding(0.0, keys), embedding(0.5, None)
    np.testing.assert_array_equal(plain, used)
    first, again, other = (embedding(0.5, k) for k in (keys, keys, fold(keys, 7)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    # An example's draw does not depend on its neighbours. Values are doubled or zeroed.
    np.testing.assert_array_equal(embedding(0.5, keys[jnp.array([0] * BATCH)])[0], first[0])
    # The mean of the four largest of four, of which each stays with probability 1/2, keeps its expectation.
    branch = np.s_[:, 200:]
    assert np.mean(first[branch]) == pytest.approx(np.mean(plain[branch]), rel=0.2)
    assert np.abs(first[branch] - plain[branch]).max() > 0.1 * plain[branch].max()


def test_it_costs_one_pass():
    assert abstract().cost == Cost(1, 1)


def test_names_of_the_authors_checkpoint():
    with torch.device("meta"):
        model = theirs.FBSD(theirs.resnet50(), (512, 1024, 2048), 512, 1024, 200)
    ours = nnx.eval_shape(
        lambda: methods.create(
            *("fbsd", backbones.create("resnet50", image_size=448, rngs=nnx.Rngs(0)), 200),
            **{"image_size": 448, "rngs": nnx.Rngs(1)},
        )
    )
    theirs.check_names(ours, original.key, original.UNUSED, model)


@pytest.mark.slow
def test_a_run_trains_and_scores_it(tmp_path):
    config = tiny.pipeline()
    config.image.size = config.image.resize = 16
    with config.unlocked():
        config.finetune.method = "fbsd"
        config.finetune.arguments = {
            **{"strips": (2, 1, 1), "dropout": 0.1, "strip_norm": "per_strip"},
            **{"hidden": 16, "width": 32},
        }
        config.finetune.schedule.name, config.finetune.schedule.period = "oscillating", "8 steps"
        config.finetune.mix.mixup = 0.2
        config.phases = ("finetune", "evaluate")
    results = run(complete(config), tmp_path)[""]
    assert results["finetune"]["steps"] == 12
    (row,) = [row for row in results["evaluate"]["rows"] if row["name"] == "finetune"]
    assert np.isfinite(np.load(tmp_path / "evaluate/finetune/test/scores.npy")).all()
    assert row
