"""The triplet losses against plain loops over METHODS.md B.2 in torch, and a run on classes never seen."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

import fgvc_jax
from fgvc_jax import methods
from fgvc_jax.backbones.features import Features
from fgvc_jax.errors import UserError
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods import Context, triplet
from fgvc_jax.metrics.knn import knn_accuracy
from fgvc_jax.metrics.retrieval import mean_cosines, nmi, retrieval
from fgvc_jax.metrics.transfer import centroid_accuracy, fit_probe
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train import tree

torch = pytest.importorskip("torch", reason="the reference is written in torch")
from torch import nn  # noqa: E402

torch.set_num_threads(1)

WIDTH, HIDDEN, BATCH, LENGTH = 6, 5, 12, 4
TYPES = {"dtype": jnp.float64, "param_dtype": jnp.float64}
# float64: squared distances by inner products round at 1e-16 of the squared lengths, which the root and
# BatchNorm over 12 rows amplify by a few thousand at most.
TOLERANCE = 1e-11
IMAGES = np.random.default_rng(0).normal(size=(BATCH, 2, 2, 3))
# Four images of two classes each, three of one, and class 7 once: an anchor without a positive.
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 7])
KINDS = [
    ("batch_all", False),
    ("batch_hard", False),
    ("batch_hard", True),
    ("semi_hard", False),
]


class Backbone(nnx.Module):
    """A linear layer and BatchNorm."""

    info = SimpleNamespace(width=WIDTH)

    def __init__(self, rngs):
        self.fc = nnx.Linear(12, WIDTH, rngs=rngs, **TYPES)
        self.bn = BatchNorm(WIDTH, **TYPES)

    def __call__(self, images, edit=None, keys=None):
        return Features({}, self.bn(self.fc(images.reshape(len(images), -1))), None)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def make(**arguments):
    own = {"image_size": 2, "rngs": nnx.Rngs(1), "embedding": LENGTH} | TYPES | arguments
    return methods.create("triplet", Backbone(nnx.Rngs(0)), 3, **own)


def loops(z, labels, mining, distance, margin, soft):
    """(loss, active share, mean distance of same, of other): one triplet at a time."""

    def d(i, j):
        squared = ((z[i] - z[j]) ** 2).sum()
        return squared if distance == "squared" else (squared + 1e-12).sqrt()

    n = range(len(z))
    same = {i: [j for j in n if j != i and labels[j] == labels[i]] for i in n}
    other = {i: [j for j in n if labels[j] != labels[i]] for i in n}
    losses, active = [], []
    for a in n:
        if not (same[a] and other[a]):
            continue
        if mining == "batch_hard":
            x = max(d(a, p) for p in same[a]) - min(d(a, k) for k in other[a])
            losses.append(nn.functional.softplus(x) if soft else (x + margin).clamp(min=0))
            active.append(bool(x > 0) if soft else bool(losses[-1] > 0))
            continue
        for p in same[a]:
            if mining == "batch_all":
                every = [(d(a, p) - d(a, k) + margin).clamp(min=0) for k in other[a]]
                active += [bool(x > 0) for x in every]
                losses += [x for x in every if x > 0]
            else:
                negatives = [d(a, k) for k in other[a]]
                farther = [x for x in negatives if x > d(a, p)]
                negative = min(farther) if farther else max(negatives)
                losses.append((d(a, p) - negative + margin).clamp(min=0))
                active.append(bool(losses[-1] > 0))
    means = [
        float(torch.stack([d(i, j) for i in n for j in group[i]]).mean().detach())
        for group in (same, other)
    ]
    loss = torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)
    return loss, np.mean(active), *means


@pytest.mark.parametrize("distance", triplet.DISTANCES)
@pytest.mark.parametrize(("mining", "soft"), KINDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_loss_and_gradient_are_those_of_the_loops(x64, normalize, mining, soft, distance):
    z = np.random.default_rng(3).normal(size=(BATCH, LENGTH)) * 0.6
    z += 0.8 * np.eye(8, LENGTH)[LABELS]
    z[LABELS == 2] = z[LABELS == 2] * 0.1 + [0, 0, 3, 0]  # far from all, so that it has no loss
    margin = 0.2

    def ours(x):
        if normalize:
            x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        same, other = triplet.relations(jnp.asarray(LABELS))
        distances = triplet.pairwise(x, distance)
        return triplet.MINING[mining](distances, same, other, None if soft else margin)

    (loss, active), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(z)
    x = torch.tensor(z, requires_grad=True)
    unit = nn.functional.normalize(x) if normalize else x
    expected, share, *_ = loops(unit, LABELS, mining, distance, margin, soft)
    expected.backward()
    assert 0 < share < 1 and float(active) == pytest.approx(share, abs=1e-12)
    np.testing.assert_allclose(loss, expected.item(), rtol=TOLERANCE)
    np.testing.assert_allclose(gradient, x.grad, rtol=0, atol=TOLERANCE)
    assert np.abs(x.grad.numpy()).max() > 1e-3


HEADS = [
    {},
    {"normalize": False, "distance": "squared", "mining": "semi_hard"},
    {"hidden": HIDDEN, "batch_norm": True, "leaky_relu": True, "mining": "batch_all"},
    {"batch_norm": True, "leaky_relu": True, "soft": True},
]


@pytest.mark.parametrize("arguments", HEADS, ids=str)
def test_an_update_is_that_of_the_same_net_in_torch(x64, arguments):
    """Loss, metrics, all gradients and running statistics; then the embedding in use."""
    ours = make(**arguments)
    hidden = arguments.get("hidden", 0)
    parts, names = [nn.Flatten(), nn.Linear(12, WIDTH), nn.BatchNorm1d(WIDTH)], {}
    names |= {"backbone/fc": parts[1], "backbone/bn": parts[2]}
    if hidden:
        parts.append(nn.Linear(WIDTH, hidden))
        names["fc"] = parts[-1]
    if arguments.get("batch_norm"):
        parts.append(nn.BatchNorm1d(hidden or WIDTH))
        names["bn"] = parts[-1]
    if arguments.get("leaky_relu"):
        parts.append(nn.LeakyReLU())
    parts.append(nn.Linear(hidden or WIDTH, LENGTH))
    names["head"] = parts[-1]
    net = nn.Sequential(*parts).double()

    draw = np.random.default_rng(5)
    static, params, stats = tree.split(ours)
    both = {
        path: jnp.asarray(draw.uniform(0.3, 1, x.shape)) for path, x in (params | stats).items()
    }
    for path in params:  # kernels of either sign
        if path.endswith("kernel"):
            both[path] = jnp.asarray(draw.normal(size=params[path].shape) * 0.5)
    params, stats = ({path: both[path] for path in flat} for flat in (params, stats))
    torchs = {}
    for name, layer in names.items():
        if isinstance(layer, nn.Linear):
            torchs |= {f"{name}/kernel": layer.weight, f"{name}/bias": layer.bias}
        else:
            torchs |= {f"{name}/scale": layer.weight, f"{name}/bias": layer.bias}
            torchs |= {f"{name}/mean": layer.running_mean, f"{name}/var": layer.running_var}
    assert torchs.keys() == both.keys()
    for path, tensor in torchs.items():
        value = np.asarray(both[path])
        tensor.data.copy_(torch.tensor(value.T if value.ndim == 2 else value))

    def embedding():
        x = net(torch.tensor(IMAGES))
        return nn.functional.normalize(x) if arguments.get("normalize", True) else x

    mining, distance, soft = (
        arguments.get(key, default)
        for key, default in (("mining", "batch_hard"), ("distance", "euclidean"), ("soft", False))
    )
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}
    context = Context(None, None, None, None, None)
    ours.train()
    static, _, _ = tree.split(ours)

    def loss(params):
        module = tree.merge(static, params, stats)
        value, carry, metrics = module.update(batch, {}, context)
        assert carry == {}
        return value, (tree.batch_stats(module), metrics)

    (value, (moved, metrics)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected, active, positive, negative = loops(embedding(), LABELS, mining, distance, 0.2, soft)
    expected.backward()
    assert expected.item() > 0.05
    np.testing.assert_allclose(value, expected.item(), rtol=TOLERANCE)
    found = {"active": active, "positive_distance": positive, "negative_distance": negative}
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(found, rel=TOLERANCE)
    largest = max(np.abs(torchs[path].grad.numpy()).max() for path in params)
    for path in params:
        gradient = torchs[path].grad.numpy()
        gradient = gradient.T if gradient.ndim == 2 else gradient
        np.testing.assert_allclose(
            gradients[path], gradient, rtol=0, atol=TOLERANCE * max(1, largest), err_msg=path
        )
    for path in stats:
        np.testing.assert_allclose(moved[path], torchs[path], rtol=TOLERANCE, err_msg=path)

    ours.eval(), net.eval()
    static, _, _ = tree.split(ours)
    used = tree.merge(static, params, moved).predict(jnp.asarray(IMAGES))
    assert list(used) == ["embedding"]
    np.testing.assert_allclose(used["embedding"], embedding().detach(), rtol=0, atol=TOLERANCE)


def test_near_embeddings_have_the_gradient_of_exact_arithmetic():
    """A thousandth apart, as they are when a net begins to collapse: float32 against float64."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1, 16)) + 1e-3 * rng.normal(size=(8, 16))
    labels = jnp.repeat(jnp.arange(4), 2)

    def gradient(z):
        def loss(z):
            return triplet.batch_hard(
                triplet.pairwise(z, "euclidean"), *triplet.relations(labels), 0.2
            )[0]

        return np.asarray(jax.grad(loss)(z))

    with jax.enable_x64(True):
        exact = gradient(jnp.asarray(z, jnp.float64))
    found = gradient(jnp.asarray(z, jnp.float32))
    # The differences, 1e-3 of values around 1, keep 4 digits in float32.
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-3 * np.abs(exact).max())


@pytest.mark.parametrize(("mining", "soft"), KINDS)
@pytest.mark.parametrize("distance", triplet.DISTANCES)
def test_a_collapsed_batch_has_the_margin_as_loss_and_a_finite_gradient(mining, soft, distance):
    """All on one point: the margin, or log 2. Float32, as in training."""
    z = jnp.full((6, 3), 0.5)
    labels = jnp.array([0, 0, 1, 1, 2, 2])

    def loss(z):
        distances = triplet.pairwise(z, distance)
        margin = None if soft else 0.2
        return triplet.MINING[mining](distances, *triplet.relations(labels), margin)[0]

    value, gradient = jax.value_and_grad(loss)(z)
    assert float(value) == pytest.approx(np.log(2) if soft else 0.2, rel=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("mining", "soft"), KINDS)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [5, 5, 5, 5]], ids=["no same", "no other"])
def test_a_batch_without_a_triplet_has_no_loss_and_no_gradient(mining, soft, labels):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)

    def loss(z):
        relations = triplet.relations(jnp.array(labels))
        distances = triplet.pairwise(z, "euclidean")
        return triplet.MINING[mining](distances, *relations, None if soft else 0.2)

    (value, active), gradient = jax.value_and_grad(loss, has_aux=True)(z)
    assert float(value) == 0 == float(active)
    np.testing.assert_array_equal(gradient, 0)


def test_semi_hard_takes_the_nearest_that_is_farther_else_the_farthest():
    """On a line: anchor 0, positive at 2; negatives at 1, 3 and 5, then at 1 and 0.5 alone."""
    for negatives, expected in (([1, 3, 5], 2 - 3 + 1.5), ([1, 0.5], 2 - 1 + 1.5)):
        z = jnp.array([0.0, 2.0, *negatives])[:, None]
        distances = jnp.abs(z - z.T)
        same, other = triplet.relations(jnp.array([0, 0, *[1] * len(negatives)]))
        only = jnp.zeros_like(same).at[0, 1].set(True)  # the pair (anchor, positive) alone
        assert float(triplet.semi_hard(distances, only, other, 1.5)[0]) == expected
        assert same[0, 1]


def test_dropout_draws_for_each_example_in_training_alone():
    made = methods.create(
        "triplet",
        Narrow(),
        3,
        image_size=2,
        rngs=nnx.Rngs(1),
        dropout=0.5,
    )
    pooled = jnp.ones((4, WIDTH))
    keys = jax.random.split(jax.random.key(0), 4)
    drawn = made.embed(pooled, keys)
    assert np.abs(drawn - drawn[:1]).max() > 0.1  # another draw for each row
    np.testing.assert_array_equal(made.embed(pooled, keys), drawn)
    np.testing.assert_array_equal(made.embed(pooled), jnp.repeat(made.embed(pooled)[:1], 4, 0))


class Narrow(nnx.Module):
    info = SimpleNamespace(width=WIDTH)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding": 0}, "embedding=0"),
        ({"hidden": -1}, "hidden=-1"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in 0 to below 1"),
        ({"margin": 0.0}, r"margin=0\.0 must be above 0"),
        ({"margin": float("nan")}, "margin=nan"),
        ({"soft": True, "mining": "semi_hard"}, "soft=True is for mining='batch_hard'"),
        ({"mining": "hard"}, "mining = 'hard' is unknown; did you mean 'semi_hard'"),
        ({"distance": "cosine"}, "distance = 'cosine' is unknown"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises((ValueError, UserError), match=message):
        methods.create("triplet", Narrow(), 3, image_size=2, rngs=nnx.Rngs(0), **arguments)


# A run


def photos(root, split, classes, images=12):
    """Class folders of noise around a colour and a stripe of their own."""
    for label in classes:
        rng = np.random.default_rng(label)
        colour, place = rng.uniform(60, 190, 3), label % 6
        for number in range(images):
            pixels = np.clip(colour + rng.normal(0, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
            pixels[4 * place : 4 * place + 3] = 255 - pixels[4 * place : 4 * place + 3]
            path = root / split / f"kind_{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def config(root, **keys):
    made = tiny.pipeline()
    with made.unlocked():
        made.data.source, made.data.root = "folder", str(root)
        made.data.splits = "retrieval"
        made.data.val_fraction, made.data.test_fraction = 0.4, 0.0
        made.finetune.method = "triplet"
        made.finetune.arguments = {"embedding": 8}
        made.finetune.length = "12 steps"
        made.finetune.batch = 12
        made.finetune.validation.every = "6 steps"
        made.finetune.sampler.name = "classes_by_images"
        made.finetune.sampler.images_per_class = 4
        made.finetune.optimizer.learning_rate = 0.02
        made.finetune.update_from_flattened_dict(keys)
        made.phases = ("finetune", "evaluate")
    return complete(made)


@pytest.mark.parametrize("layout", ["", "train"])
def test_it_trains_on_a_folder_and_is_judged_on_classes_that_it_has_not_seen(
    layout, tmp_path, caplog
):
    """Class folders alone, or a training folder alone: its first half of classes trains, the rest tests."""
    photos(tmp_path / "photos", layout, range(10))
    results = run(config(tmp_path / "photos"), tmp_path / "run")[""]
    splits = json.loads((tmp_path / "run" / "manifest.json").read_text())["splits"]
    classes = {name: set(files.values()) for name, files in splits.items()}
    assert classes["test"] == set(range(5, 10))
    assert len(classes["val"]) == 2 and classes["train"] | classes["val"] == set(range(5))
    (row,) = results["evaluate"]["retrieval"]
    labels = np.array(list(splits["test"].values()))
    embedding = np.load(tmp_path / "run/evaluate/finetune/test/embedding.npy")
    assert embedding.shape == (60, 8)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)  # float32
    expected = retrieval(embedding, labels) | mean_cosines(embedding, labels)
    assert row["test"].items() >= expected.items()
    assert "knn1" not in row["test"]  # nothing can be read off with a gallery of other classes
    assert row["test"]["recall@1"] > 0.5  # by chance a fifth
    lines = (tmp_path / "run/finetune/metrics.jsonl").read_text().splitlines()
    train = [x for x in map(json.loads, lines) if x["kind"] == "train"]
    assert all({"active", "positive_distance", "negative_distance"} <= x.keys() for x in train)
    val = [x for x in map(json.loads, lines) if x["kind"] == "val"]
    assert len(val) == 2 and all({"cosine_same", "cosine_other"} <= x.keys() for x in val)
    assert any("finetune, test" in line for line in caplog.messages)
    # In use it embeds, and says that it knows no classes.
    model = fgvc_jax.load(tmp_path / "run")
    files = [tmp_path / "photos" / name for name in list(splits["test"])[:4]]
    np.testing.assert_allclose(model.embed(files), embedding[:4], rtol=0, atol=1e-5)  # float32
    with pytest.raises(UserError, match="embeds images and gives no classes"):
        model.predict(files)


def test_classification_is_read_off_with_the_training_images_as_gallery(tmp_path):
    """The rows of the last epoch are those of the embeddings that were written after it."""
    photos(tmp_path / "photos", "", range(4))
    keys = {"validation.embeddings": ("0 epochs", "100 %"), "arguments.normalize": False}
    made = config(tmp_path / "photos", **keys)
    made.data.splits, made.data.val_fraction, made.data.test_fraction = "official", 0.25, 0.25
    made.evaluate.neighbours = 3
    results = run(made, tmp_path / "run")[""]
    (row,) = results["evaluate"]["retrieval"]
    e = np.load(tmp_path / "run/finetune/embeddings/step_000012.npz")
    gallery = (e["train_embedding"], e["train_label"])
    assert np.ptp(np.linalg.norm(e["test_embedding"], axis=1)) > 0.01  # not of length 1
    for split in ("val", "test"):
        data = (e[f"{split}_embedding"], e[f"{split}_label"])
        expected = retrieval(*data) | mean_cosines(*data) | {"nmi": nmi(*data)}
        expected |= knn_accuracy(*data, *gallery, ks=(1, 3))
        expected |= {"centroid": centroid_accuracy(*data, *gallery)}
        probed = (fit_probe(*gallery)(data[0]) == data[1]).mean()
        expected |= {"probe": probed}
        # The embeddings were made in batches of another size.
        assert row[f"last_{split}"] == pytest.approx(expected, abs=1e-4)
        assert row[f"last_{split}"]["probe"] > 0.5  # by chance a quarter


def test_one_class_of_validation_cannot_choose(tmp_path):
    photos(tmp_path / "photos", "", range(6), images=3)
    made = config(tmp_path / "photos")
    made.data.val_fraction = 0.1
    made.finetune.batch = 8
    with pytest.raises(UserError, match=r"split 'val' has images of one class alone.*val_fraction"):
        run(made, tmp_path / "run")


@pytest.mark.parametrize("keys", [{"accumulate": 3}, {"sam.groups": 3}])
def test_parts_of_a_batch_are_refused(keys, tmp_path):
    with pytest.raises(UserError, match=r"compares the examples.* 3 parts of 4 examples.*remat"):
        run(config(tmp_path, **keys), tmp_path / "run")
