"""MMAL-Net against the same network in torch, scikit-image and plain loops, all from METHODS.md D."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch_resnet as twin
from flax import nnx
from torch_resnet import torch

from fgvc_jax import backbones, checks, methods
from fgvc_jax.config import fill_arguments
from fgvc_jax.errors import UserError
from fgvc_jax.methods import Context, mmal
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train import tree

measure = pytest.importorskip("skimage.measure", reason="the reference is scikit-image")
F = torch.nn.functional
SIZE, BATCH, CLASSES = 160, 3, 5  # a last map of 5 x 5 cells
WINDOWS = "2 of 2x2 1x3, 1 of 3x3 3x4"
# float64. The convolutions and BatchNorms of three branches amplify roundings of 1e-16; 1e-13 is measured.
TOLERANCE = 1e-10
rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(BATCH, SIZE, SIZE, 3))
LABELS = np.array([3, 0, 4])


def make(windows=WINDOWS, dropout=0.0):
    body = twin.body(nnx.Rngs(0), depths=(1, 1, 1, 2), image_size=SIZE)
    return methods.create(
        "mmal",
        body,
        CLASSES,
        image_size=SIZE,
        rngs=nnx.Rngs(1),
        **twin.TYPES,
        windows=windows,
        dropout=dropout,
    )


def shaped(name="resnet50", size=448, method="mmal", arguments=None, **own):
    """A method at full size without arrays; its functions without weights work."""

    def build():
        body = backbones.create(name, image_size=size, rngs=nnx.Rngs(0), **(arguments or {}))
        return methods.create(method, body, 200, image_size=size, rngs=nnx.Rngs(1), **own)

    return nnx.eval_shape(build)


# --- The reference


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = twin.ResNet(4, (1, 1, 1, 2))
        self.head = torch.nn.Linear(32, CLASSES)

    def branch(self, images):
        maps = self.net(images)
        return maps, self.head(maps["layer4"].mean((2, 3)))


def key(path: str) -> str:
    if path.startswith("backbone/"):
        return twin.net_key(path)
    return {"head/kernel": "head.weight", "head/bias": "head.bias"}[path]


def object_box(before, last, stride, size):
    """Maps [H, W, C] -> (first row, first column, last row, last column)."""
    strong, around = (x.sum(-1) > x.sum(-1).mean() for x in (last, before))
    labels = measure.label(strong)
    areas = [region.area for region in measure.regionprops(labels)]
    if areas:
        strong = labels == 1 + areas.index(max(areas))
    rows, columns = np.nonzero(strong & around)
    if not len(rows):
        rows, columns = np.array([0, last.shape[0] - 1]), np.array([0, last.shape[1] - 1])
    corners = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    return [min(max(0, stride * n - 1), size - 1) for n in corners]


def part_boxes(last, scales, stride, size):
    """A map [H, W, C] -> the boxes of its parts, by scale."""
    total, chosen = last.sum(-1), []
    for count, shapes in scales:
        boxes, scores = [], []
        for h, w in shapes:
            for i in range(total.shape[0] - h + 1):
                for j in range(total.shape[1] - w + 1):
                    corners = (i, j, i + h, j + w)
                    boxes.append([min(max(0, stride * n - 1), size - 1) for n in corners])
                    scores.append(total[i : i + h, j : j + w].mean())
        left = list(np.argsort(scores)[::-1])
        for number in range(count):
            best = left.pop(0) if left else best  # noqa: F821
            chosen.append(boxes[best])
            left = [i for i in left if overlap(boxes[i], boxes[best]) <= 0.25]
            assert number < count
    return chosen


def overlap(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (sum((x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)) - both)


def crop(image, box, out):
    r0, c0, r1, c1 = box
    cut = image[None, :, r0 : r1 + 1, c0 : c1 + 1]
    return F.interpolate(cut, (out, out), mode="bilinear", align_corners=True)[0]


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def reference(model, scales):
    """(losses of the three branches, boxes of objects, boxes of parts) on IMAGES and LABELS."""
    images, labels = torch.tensor(IMAGES.transpose(0, 3, 1, 2)), torch.tensor(LABELS)
    maps, logits = model.branch(images)
    pairs = zip(*(channels_last(maps[name]) for name in ("layer4/0", "layer4")), strict=True)
    boxes = [object_box(before, last, 32, SIZE) for before, last in pairs]
    objects = torch.stack([crop(x, box, SIZE) for x, box in zip(images, boxes, strict=True)])
    maps, object_logits = model.branch(objects.detach())
    parts = [part_boxes(x, scales, 32, SIZE) for x in channels_last(maps["layer4"])]
    crops = [crop(x, b, SIZE // 2) for x, own in zip(objects, parts, strict=True) for b in own]
    _, part_logits = model.branch(torch.stack(crops).detach())
    repeated = labels.repeat_interleave(len(parts[0]))
    losses = [
        F.cross_entropy(*pair)
        for pair in ((logits, labels), (object_logits, labels), (part_logits, repeated))
    ]
    return losses, boxes, parts


def context(epoch=0.0):
    return Context(
        key=jax.random.key(0),
        keys=jax.random.split(jax.random.key(1), BATCH),
        step=jnp.int32(0),
        epoch=jnp.float32(epoch),
        progress=jnp.float32(0),
    )


@pytest.fixture(scope="module")
def updates():
    """{epoch: (loss, statistics, metrics, gradients)} of ours, one compilation; and the module."""
    with jax.enable_x64(True):
        module = make()
        twin.randomise(module)
        module.train()
        static, params, stats = tree.split(module)
        batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}

        def loss(params, epoch):
            merged = tree.merge(static, params, stats)
            value, carry, metrics = merged.update(batch, {}, context()._replace(epoch=epoch))
            assert carry == {}
            return value, (tree.batch_stats(merged), metrics)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        found = {epoch: step(params, jnp.float32(epoch)) for epoch in (0.0, 0.99, 1.0)}
        assert step._cache_size() == 1
        return {
            epoch: (value, *aux, gradients) for epoch, ((value, aux), gradients) in found.items()
        }, module


def torch_of(module):
    model = Torch().double()
    twin.give(module, model, key)
    return model.train()


@pytest.mark.parametrize("epoch", [0.0, 0.99, 1.0])
def test_an_update_is_torchs(updates, epoch):
    """Loss, gradients, statistics; before the first epoch is over the whole image's loss alone counts."""
    value, statistics, metrics, gradients = updates[0][epoch]
    model = torch_of(updates[1])
    losses, *_ = reference(model, mmal.parse(WINDOWS))
    expected = losses[0] if epoch < 1 else sum(losses)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=TOLERANCE)
    twin.same_gradients(gradients, model, key, TOLERANCE)
    # The three branches have moved them whichever losses count.
    twin.same_statistics(statistics, model, key, TOLERANCE)
    assert set(metrics) == {"accuracy", "image_accuracy", "parts_accuracy"}


def test_a_prediction_is_torchs_object_branch(updates):
    module = updates[1]
    model = torch_of(module).eval()
    with jax.enable_x64(True):
        module.eval()
        seen = []

        def predict(images):
            seen.clear()
            return module.predict(images, edit=lambda name, x: (seen.append(name), x)[1])

        found = jax.jit(predict)(jnp.asarray(IMAGES))
        module.train()
    assert seen == [tap.name for tap in module.backbone.info.taps]  # in one pass of the two
    with torch.no_grad():
        _, boxes, _ = reference(model, mmal.parse(WINDOWS))
        images = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
        objects = torch.stack([crop(x, box, SIZE) for x, box in zip(images, boxes, strict=True)])
        maps, logits = model.branch(objects)
    assert found["box"].tolist() == boxes and boxes != [[0, 0, SIZE - 1, SIZE - 1]] * BATCH
    np.testing.assert_allclose(found["scores"], logits, rtol=0, atol=TOLERANCE)
    pooled = maps["layer4"].mean((2, 3))
    np.testing.assert_allclose(found["embedding"], pooled, rtol=0, atol=TOLERANCE)


# --- The parts of it at the authors' size


@functools.cache
def full(windows: str, size: int = 448):
    return shaped(windows=windows, size=size)


def smooth(count, seed, channels=2):
    """Maps [count, 14, 14, channels] with blobs, as nets give them."""
    coarse = np.random.default_rng(seed).normal(size=(count, 5, 5, channels))
    grown = jax.image.resize(coarse, (count, 14, 14, channels), "cubic")
    return np.array(grown, np.float32)


@pytest.mark.parametrize(("windows", "parts"), [("cub", 7), ("cars", 6)])
def test_the_authors_windows(windows, parts):
    """METHODS.md D.3: 917 and 591 windows, the last pixel is 447."""
    method = full(windows)
    counts = [
        len(mmal.window_ops.boxes(scale.shapes, (14, 14), 32, 448)) for scale in method.scales
    ]
    expected = {"cub": ([361, 241, 315], [2, 3, 2]), "cars": ([241, 235, 115], [3, 2, 1])}[windows]
    assert (counts, [scale.count for scale in method.scales]) == expected
    assert sum(counts) == {"cub": 917, "cars": 591}[windows]
    boxes = mmal.window_ops.boxes(method.scales[0].shapes, (14, 14), 32, 448)
    assert (boxes.min(), boxes.max()) == (0, 447) and method.parts == parts
    assert method.cost == methods.Cost(2 + parts / 4, 2 + parts / 4, 2)
    if windows == "cub":
        assert method.cost.forward == 3.75


def test_objects_are_found_as_by_loops():
    method, before, last = full("cub"), smooth(300, 0), smooth(300, 1)
    last[150:] += before[150:]  # maps that agree mostly, and maps that do not
    before[:3], last[1] = -1.0, 0.0  # nothing is above its mean
    found = jax.jit(method.find_object)(dict(zip(method.taps, (before, last), strict=True)))
    expected = [object_box(*pair, 32, 448) for pair in zip(before, last, strict=True)]
    assert found.tolist() == expected and found.dtype == jnp.int32
    assert found[:3].tolist() == [[0, 0, 447, 447]] * 3
    assert len({tuple(box) for box in expected}) > 100


def test_the_second_map_counts_only_within_the_first_ones_largest_part():
    """... and all of it there, connected or not; METHODS.md D.2 with its pixels."""
    method, last, before = full("cub"), np.zeros((1, 14, 14, 1)), np.zeros((1, 14, 14, 1))
    last[0, 2:5, 0:9], last[0, 10:12, 12:14] = 1.0, 1.0  # 27 cells, and 4
    before[0, 2, 1], before[0, 4, 7], before[0, 11, 13], before[0, 0, 0] = 1.0, 1.0, 1.0, 1.0
    found = method.find_object(dict(zip(method.taps, (before, last), strict=True)))
    assert found.tolist() == [[63, 31, 159, 255]]


@pytest.mark.parametrize("windows", ["cub", "cars"])
def test_parts_are_found_as_by_loops(windows):
    method, last = full(windows), smooth(12, 2, channels=1).astype(np.float64)
    with jax.enable_x64(True):  # sums in another order: equal but for ties in float32
        found = jax.jit(method.find_parts)({method.taps[-1]: last})
    assert found.shape == (12, method.parts, 4)
    assert found.tolist() == [part_boxes(x, method.scales, 32, 448) for x in last]


def test_dropout_is_drawn_for_each_example_and_branch():
    """On an identity in place of the classifier: half of the features are zero, the others doubled."""
    with jax.enable_x64(True):
        body = twin.body(nnx.Rngs(0), depths=(1, 1, 1, 2), image_size=SIZE)
        method = methods.create(
            "mmal", body, 32, image_size=SIZE, rngs=nnx.Rngs(1), windows=WINDOWS, **twin.TYPES
        )
        method.eval()  # so that pooled features are the images' alone
        method.head.kernel[...], method.head.bias[...] = jnp.eye(32), jnp.zeros(32)
        images = jnp.asarray(np.repeat(IMAGES[:1], 3, 0))
        classify = jax.jit(method.classify)
        features, logits = classify(images, context().keys)
        pooled, kept = features.pooled, np.asarray(logits != 0)
        np.testing.assert_allclose(logits, np.where(kept, 2 * pooled, 0), atol=1e-12)
        assert 0.3 < kept.mean() < 0.7 and (kept[0] != kept[1]).any()
        _, again = classify(images, context().keys)
        np.testing.assert_array_equal(logits, again)
        np.testing.assert_allclose(classify(images, None)[1], pooled, atol=1e-12)


def test_windows_of_ones_own():
    assert mmal.parse("2 of 2x2 1x3,1 of 3x3") == ((2, ((2, 2), (1, 3))), (1, ((3, 3),)))
    for wrong in ("cubs", "2 of", "2x2", "0 of 2x2", "1 of 2x0", "1 of 2x2;", ""):
        with pytest.raises(ValueError, match=r"windows=.*is no scale. Give 'cub' or 'cars'"):
            mmal.parse(wrong)
    known = methods.arguments("mmal")
    assert known == {"windows": "cub", "dropout": 0.5, "label_smoothing": 0.0}
    assert fill_arguments({"windows": WINDOWS}, known, "x").windows == WINDOWS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 224}, r"up to 10 cells .* 7 x 7 .*image_size=320 or larger"),
        ({"size": 300, "windows": "cars"}, r"up to 12 cells .* 10 x 10 .*image_size=384"),
        ({"name": "resnet18", "arguments": {"depths": (1, 1, 1, 1)}}, "one map of stride 32"),
        ({"size": 30, "windows": "1 of 1x1"}, r"parts of .* 15 pixels.*16 or more.*image_size=32"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in 0 to below 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(given, message):
    with pytest.raises(ValueError, match=message):
        shaped(**given)


SMALL = {
    "vit_tiny_patch16_224": ({"depth": 3, "width": 16, "heads": 1}, 96, ("block0", "block1"), 48),
    "swin_tiny_patch4_window7_224": (
        {"width": 8, "depths": (1, 1, 1, 2), "heads": (1, 1, 1, 1)},
        *(96, ("layer4/0", "layer4"), 48),
    ),
    "convnext_tiny": ({"width": 8, "depths": (1, 1, 1, 2)}, 96, ("layer4/0", "layer4"), 48),
    "efficientnet_b0": ({"width": 0.1, "depth": 0.1}, 96, ("layer7", "head"), 48),
    "resnet18": ({"width": 4}, 75, ("layer4/0", "layer4"), 37),
    "vit_small_patch14_dinov2": ({"depth": 2, "width": 6, "heads": 1}, 70, ("embed", "block0"), 42),
}


@pytest.mark.parametrize("name", SMALL)
def test_any_backbone_takes_it(name):
    """A whole update traced; parts of half the size, in whole patches where the net has patches."""
    arguments, size, taps, part = SMALL[name]
    method = shaped(name, size, arguments=arguments, windows="2 of 1x1 1x2, 1 of 2x2")
    assert (method.taps, method.part_size) == (taps, part)
    assert method.cost.forward == 2 + 3 * (part / size) ** 2
    static, params, stats = tree.split(method)

    def update(params, images):
        module = tree.merge(static, params, stats)
        module.train()
        return module.update({"image": images, "label": jnp.zeros(BATCH, int)}, {}, context())[0]

    images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
    stats = {path: jnp.zeros(x.shape, x.dtype) for path, x in stats.items()}
    assert jax.eval_shape(update, params, images).shape == ()


@pytest.mark.slow
def test_a_run_trains_and_is_scored(tmp_path):
    config = tiny.pipeline("vit_tiny_patch16_224", depth=2, width=16, heads=1)
    config.image.size = config.image.resize = 64
    with config.unlocked():
        config.finetune.method = "mmal"
        config.finetune.arguments = {"windows": "1 of 1x1 1x2", "dropout": 0.1}
        config.finetune.length, config.finetune.batch = "6 steps", 8
        config.finetune.validation.every = "3 steps"
        config.phases = ("finetune", "evaluate")
    config = complete(config)
    checks.check(config)
    results = run(config, tmp_path)[""]
    assert results["finetune"]["steps"] == 6
    assert [row["name"] for row in results["evaluate"]["rows"]][-1] == "finetune"
    lines = (tmp_path / "finetune" / "metrics.jsonl").read_text().splitlines()
    assert all("parts_accuracy" in x for x in map(json.loads, lines) if x["kind"] == "train")
    with config.unlocked():
        config.finetune.arguments = {"windows": "cars"}
    with pytest.raises(UserError, match=r"config\.finetune\.arguments.*image_size=192"):
        run(complete(config), tmp_path / "refused")
