"""CMAL-Net against the same network and training step in torch, and the facts of METHODS.md F and M."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from fgvc_jax import backbones, methods
from fgvc_jax.methods import Cost
from fgvc_jax.methods.cmal import box_around, crop, max_cell
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train import optim, tree
from fgvc_jax.weights.originals import cmal as original

torch = pytest.importorskip("torch", reason="the reference is the same network in torch")
import torch_granular as theirs  # noqa: E402

F = torch.nn.functional
SIZE, BATCH, CLASSES, HIDDEN, WIDTH = 64, 6, 5, 7, 9
# float64: roundings of 1e-16, which a backward pass through BatchNorm over a few values enlarges.
TOLERANCE = 1e-9
SGD = {"momentum": 0.9, "weight_decay": 5e-4}
RATE = 0.01
rng = np.random.default_rng(0)
# A spot somewhere in some noise, for the experts to attend to.
AWAY = np.arange(SIZE) - rng.uniform(8, SIZE - 8, (2, BATCH, 1))
SPOTS = np.exp(-(AWAY[0][:, :, None] ** 2 + AWAY[1][:, None] ** 2) / 100)
IMAGES = 0.3 * rng.normal(size=(BATCH, SIZE, SIZE, 3)) + 3 * SPOTS[..., None]
LABELS = rng.integers(0, CLASSES, BATCH)
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def make(backbone=None, types=DOUBLE, size=SIZE, **arguments):
    backbone = backbone or theirs.Plain(4, image_size=size, **types)
    narrow = {"hidden": HIDDEN, "width": WIDTH}
    return methods.create(
        *("cmal", backbone, CLASSES),
        **{"image_size": size, "rngs": nnx.Rngs(1), **types, **narrow, **arguments},
    )


@pytest.fixture(scope="module")
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def both(x64):
    """Ours and torch's with the same weights."""
    ours = theirs.spread(make())
    children = theirs.resnet(4, block=theirs.PlainBlock)
    model = theirs.CMAL(children, (8, 16, 32), HIDDEN, WIDTH, CLASSES).double()
    weights = tree.weights(ours)
    theirs.load(model, original.key, weights["params"] | weights["batch_stats"])
    return ours, model


def torch_boxes(model, maps, logits):
    """Half-open boxes of the three experts' attention, and of their sum."""
    attention = [
        [theirs.normalised(x) for x in model.attention(i, maps[i], logits[i], SIZE)]
        for i in range(3)
    ]
    attention.append(
        [theirs.normalised(sum(of_image)) for of_image in zip(*attention, strict=True)]
    )
    return [[theirs.box(x) for x in of_expert] for of_expert in attention]


def half_open(boxes):
    """Ours [B, N + 1, 4] in torch's form."""
    return [
        [(t, c, b + 1, r + 1) for t, c, b, r in column]
        for column in np.asarray(boxes).swapaxes(0, 1).tolist()
    ]


def test_scores_and_boxes_are_torchs(both):
    ours, model = both
    ours.eval(), model.eval()
    found = jax.jit(lambda x: ours.predict(x))(IMAGES)
    images = theirs.to_torch(IMAGES)
    with torch.no_grad():
        logits, maps = model(images)
        boxes = torch_boxes(model, maps, logits)
        closer, _ = model(theirs.cut(images, boxes[3]))
    assert half_open(found["boxes"]) == [[tuple(map(int, b)) for b in x] for x in boxes]
    assert len({box for of_expert in boxes for box in of_expert}) > 4 * BATCH / 2  # they differ
    expected = (sum(logits) + sum(closer)) / 8
    np.testing.assert_allclose(found["scores"], expected, rtol=0, atol=1e-12)
    assert float((sum(logits) - sum(closer)).abs().max()) > 0.1
    assert found["embedding"].shape == (BATCH, 3 * WIDTH)


def keys_that_draw(choices):
    """A key for which the draw among three is each of the choices."""
    drawn = {
        int(jax.random.randint(jax.random.key(i), (), 0, 3)): jax.random.key(i) for i in range(40)
    }
    return [drawn[choice] for choice in choices]


def test_three_steps_of_five_updates_are_torchs(both):
    """Losses, gradients, statistics and weights after every update; all inputs of the two middle updates."""
    ours, model = both
    ours.train(), model.train()
    static, params, stats = tree.split(ours)
    optimizer = optim.optimizer("sgd", list(params), **SGD)
    state = optimizer.init(params)
    torchs = torch.optim.SGD(model.parameters(), RATE, **SGD)
    for p in (
        model.parameters()
    ):  # zeros, not None: what is not trained in an update decays all the same
        p.grad = torch.zeros_like(p)
    updates = [theirs.an_update(static, number) for number in range(5)]
    images, labels = theirs.to_torch(IMAGES), torch.tensor(LABELS)
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}
    keys = jax.random.split(jax.random.key(0), BATCH)
    kinds = set()
    for second, third in ((0, 1), (1, 2), (2, 0)):
        carry, others = {}, keys_that_draw((0, second, third, 0, 0))
        for number, update in enumerate(updates):
            # METHODS.md F.3. Experts 3, 2, 1 are logits 2, 1, 0; raw is the image.
            if number == 0:
                logits, maps = model(images)
                first_logits = logits
                expected = F.cross_entropy(logits[2], labels)
            elif number == 1:  # with the weights that the first update has left
                boxes = torch_boxes(model, maps, first_logits)
                a1, a2, a3, region = (theirs.cut(images, b) for b in boxes)
                expected = F.cross_entropy(model([a3, a1, images][second])[0][1], labels)
            elif number == 2:
                expected = F.cross_entropy(model([a3, a2, images][third])[0][0], labels)
            elif number == 3:
                *logits, concat = [F.cross_entropy(x, labels) for x in model(region)[0]]
                expected = sum(logits) + 2 * concat
            else:
                expected = 2 * F.cross_entropy(model(images)[0][3], labels)
            torchs.zero_grad(set_to_none=False)
            expected.backward()

            loss, gradients, stats, carry, _ = update(
                params, stats, batch, carry, others[number], keys
            )
            np.testing.assert_allclose(loss, expected.item(), rtol=TOLERANCE)
            theirs.check_gradients(gradients, model, original.key, TOLERANCE)
            if number == 1:
                kinds |= set(boxes[3])
                assert half_open(carry["boxes"]) == [[tuple(map(int, b)) for b in x] for x in boxes]
            moves, state = optimizer.update(gradients, state, params)
            params = {path: p - RATE * moves[path] for path, p in params.items()}
            torchs.step()
            theirs.check_arrays(params, model, original.key, TOLERANCE)
            theirs.check_arrays(stats, model, original.key, TOLERANCE)
            # Each update starts from the same weights: left alone, BatchNorm enlarges roundings every time.
            theirs.load(model, original.key, params | stats)
        assert carry == {}
    assert len(kinds) > BATCH  # boxes are many


def test_the_attention_is_read_with_the_weights_that_the_first_update_has_left(both):
    """The carry holds maps and predictions, so that other weights give other boxes."""
    ours, _ = both
    ours.train()
    static, params, stats = tree.split(ours)
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}
    keys = jax.random.split(jax.random.key(0), BATCH)
    corner = np.zeros((BATCH, 8, 8, WIDTH))
    corner[:, :2, :2, 0] = 1
    carry = {"maps": [jnp.asarray(corner)] * 3, "predicted": [jnp.zeros(BATCH, int)] * 3}
    update = theirs.an_update(static, 1)

    def boxes(sign):
        """With a first channel that speaks for or against class 0 in the first expert."""
        of = "heads/classifiers/0/"
        one = {f"{of}fc1/kernel": jnp.zeros((WIDTH, HIDDEN)).at[0, 0].set(1.0)}
        one[f"{of}fc2/kernel"] = jnp.zeros((HIDDEN, CLASSES)).at[0, 0].set(sign)
        return update(params | one, stats, batch, carry, keys[0], keys)[3]["boxes"]

    pro, contra = boxes(1.0), boxes(-1.0)
    # 2 of 8 cells reach half of the maximum 1.5 cells from the corner: 1.5 / 7 of 63 pixels, 13, and 6 more.
    np.testing.assert_array_equal(pro[:, 0], [[0, 0, 18, 18]] * BATCH)
    np.testing.assert_array_equal(contra[:, 0], [[0, 0, 63, 63]] * BATCH)
    np.testing.assert_array_equal(pro[:, 1:3], contra[:, 1:3])  # the others' weights stayed


# Boxes and crops


def test_boxes_are_the_references_for_any_mask_and_the_image_where_nothing_is_seen():
    masks = [np.zeros((40, 40), bool) for _ in range(60)]
    for mask in masks[1:]:  # one or two blobs, also at the borders; the first stays empty
        for _ in range(rng.integers(1, 3)):
            (top, left), (height, width) = rng.integers(0, 40, 2), rng.integers(1, 25, 2)
            mask[top : top + height, left : left + width] = True
    for padding in (0.0, 0.1, 0.13):
        found = np.asarray(box_around(jnp.asarray(np.stack(masks)), padding))
        for mask, (top, left, bottom, right) in zip(masks, found.tolist(), strict=True):
            t, c, b, r = theirs.box(mask.astype(float), padding)
            # Where no pixel would be left (the last of one row is not taken in), ours keeps the first.
            assert (top, left, bottom, right) == (t, c, max(b - 1, t), max(r - 1, c))
    assert found[0].tolist() == [0, 0, 39, 39]


def test_equal_maps_give_equal_boxes_and_a_constant_map_the_whole_image():
    made = theirs.spread(make(types={}, threshold=0.9, padding=0.0))
    for kernel in ("fc1", "fc2"):
        for classifier in made.heads.classifiers:
            getattr(classifier, kernel).kernel[...] = getattr(
                made.heads.classifiers[0], kernel
            ).kernel[...]
    map_ = jnp.asarray(rng.normal(size=(BATCH, 8, 8, WIDTH)), jnp.float32)
    classes = jnp.asarray(LABELS)
    boxes = np.asarray(made.boxes([map_] * 3, [classes] * 3, SIZE))
    assert len(np.unique(boxes[:, 0], axis=0)) > 1
    for other in range(1, 4):  # each expert, and all together
        np.testing.assert_array_equal(boxes[:, other], boxes[:, 0])
    constant = made.boxes([jnp.ones_like(map_)] * 3, [classes] * 3, SIZE)
    np.testing.assert_array_equal(constant, np.broadcast_to([0, 0, 63, 63], (BATCH, 4, 4)))


def test_a_crop_of_the_whole_image_is_the_image():
    images = jnp.asarray(IMAGES, jnp.float32)
    whole = jnp.tile(jnp.array([0, 0, SIZE - 1, SIZE - 1]), (BATCH, 1))
    # A coordinate of up to 63 rounds at 4e-6, where the image rises by about 3.
    np.testing.assert_allclose(crop(images, whole), images, rtol=0, atol=5e-5)
    assert crop(images.astype(jnp.bfloat16), whole).dtype == jnp.bfloat16


def test_the_gradient_of_the_largest_cell_goes_to_one_cell():
    """Also where many are equal, as after ReLU, and compiled, where `max` may not find its value again."""
    x = jnp.asarray(rng.integers(0, 3, (4, 3, 3, 5)), jnp.float32)
    found = np.asarray(jax.jit(jax.grad(lambda x: max_cell(1.1 * x + 0.3).sum()))(x))
    flat = found.reshape(4, 9, 5)
    np.testing.assert_allclose(flat.sum(1), 1.1, rtol=1e-6)
    assert ((flat > 0).sum(1) == 1).all()
    np.testing.assert_array_equal(flat.argmax(1), np.asarray(x).reshape(4, 9, 5).argmax(1))


# What it works on


def test_edit_goes_to_the_pass_of_the_image_alone(both):
    ours, _ = both
    ours.eval()

    @jax.jit
    def run(images, gain):
        seen = []

        def edit(name, x):
            seen.append(name)
            return gain * x if name == "layer4" else x

        return ours.predict(images, edit)["scores"], ours.predict(images)["scores"], len(seen)

    scores, plain, count = run(IMAGES[:2], 1.0)
    assert count == 4  # each tap once
    np.testing.assert_allclose(scores, plain, rtol=0, atol=1e-12)
    assert np.abs(run(IMAGES[:2], 0.0)[0] - plain).max() > 1e-3


def abstract(*args, **kw):
    kw = {"types": {}} | kw
    return nnx.eval_shape(lambda: make(*args, **kw))


@pytest.mark.parametrize(
    ("name", "size", "narrow", "experts"),
    [
        ("convnext_tiny", 64, {"width": 8, "depths": (1, 1, 1, 1)}, 3),
        ("efficientnet_b0", 50, {"width": 0.25, "depth": 0.3}, 3),
        (
            "swin_tiny_patch4_window7_224",
            64,
            {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4)},
            3,
        ),
        ("vit_tiny_patch16_224", 64, {"depth": 2, "width": 8, "heads": 2}, 2),
    ],
)
def test_other_families_train_and_predict_in_bfloat16(name, size, narrow, experts):
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}

    def build():
        kw = {"image_size": size, "rngs": nnx.Rngs(0), **types, **narrow}
        return make(backbones.create(name, **kw), types, size)

    made = nnx.eval_shape(build)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.bfloat16)
    assert len(made.updates) == experts + 2

    def run(training):
        made.train() if training else made.eval()
        static, params, stats = tree.split(made)

        def forward(params, stats, images):
            module, keys = tree.merge(static, params, stats), jax.random.split(jax.random.key(0), 2)
            if not training:
                return module.predict(images)
            batch = {"image": images, "label": jnp.zeros(2, jnp.int32)}
            losses, carry = [], {}
            for update in module.updates:
                loss, carry, _ = update(batch, carry, methods.Context(keys[0], keys, *jnp.zeros(3)))
                losses.append(loss)
            return losses

        return jax.eval_shape(forward, params, stats, images)

    assert {(x.shape, x.dtype.name) for x in run(training=True)} == {((), "float32")}
    found = run(training=False)
    assert {name: (x.shape, x.dtype.name) for name, x in found.items()} == {
        "scores": ((2, CLASSES), "float32"),
        "embedding": ((2, experts * WIDTH), "float32"),
        "boxes": ((2, experts + 1, 4), "int32"),
    }


def test_any_number_of_experts_from_two():
    for taps in (("layer3", "layer4"), ("layer1", "layer2", "layer3", "layer4")):
        made = abstract(taps=taps)
        assert made.cost == Cost(len(taps) + 2, len(taps) + 2, 2)
        assert made.heads.concat.fc1.kernel.shape[0] == len(taps) * WIDTH
    assert abstract().taps == ("layer2", "layer3", "layer4")


def test_wrong_arguments_are_named():
    for arguments, message in (
        ({"threshold": 0.0}, "threshold=0.0 must lie above 0"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"padding": -0.1}, "padding=-0.1 must lie in 0 to below 1"),
        ({"width": 0}, "width=0"),
        ({"taps": ("layer2", "layer9")}, "no tap 'layer9'; did you mean"),
        ({"taps": ("layer3", "layer2")}, "shallow to deep"),
        ({"taps": ("layer3",)}, "at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            abstract(**arguments)


def test_names_of_the_authors_checkpoint():
    with torch.device("meta"):
        model = theirs.CMAL(theirs.resnet50(), (512, 1024, 2048), 512, 1024, 100)
    ours = nnx.eval_shape(
        lambda: methods.create(
            *("cmal", backbones.create("resnet50", image_size=448, rngs=nnx.Rngs(0)), 100),
            **{"image_size": 448, "rngs": nnx.Rngs(1)},
        )
    )
    theirs.check_names(ours, original.key, original.UNUSED, model)


@pytest.mark.slow
def test_a_run_trains_and_scores_it(tmp_path):
    """Two experts, four updates a step, with the batch in two parts: the carry has to fit them."""
    config = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    config.image.size = config.image.resize = 32
    with config.unlocked():
        config.finetune.method = "cmal"
        config.finetune.arguments = {"taps": ("embed", "block0"), "hidden": 16, "width": 32}
        config.finetune.length, config.finetune.accumulate = "4 steps", 2
        config.phases = ("finetune", "evaluate")
    results = run(complete(config), tmp_path)[""]
    assert results["finetune"]["passes"] == 4 * 16 * 4
    lines = [json.loads(x) for x in (tmp_path / "finetune/metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["kind"] == "train"]
    assert {f"loss_{i}" for i in range(1, 5)} <= set(line)
    assert np.isfinite(np.load(tmp_path / "evaluate/finetune/test/scores.npy")).all()
