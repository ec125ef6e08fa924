"""Where a phase starts: class means as a head, and BatchNorm statistics after a blend."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import tiny
import torch
from flax import nnx
from sklearn.neighbors import NearestCentroid

from fgvc_jax.data.load import load
from fgvc_jax.errors import UserError
from fgvc_jax.images.batch import plain_views
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.phases import section
from fgvc_jax.run import run
from fgvc_jax.train import initial, tree
from fgvc_jax.train.checkpoint import Checkpoints


def features(spread=1.0, classes=6, width=12, seed=0):
    """Embeddings far from the origin, 2 to 9 images a class."""
    rng = np.random.default_rng(seed)
    means = 5 + rng.normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), rng.integers(2, 10, classes)).astype(np.int32)
    return (means[labels] + spread * rng.normal(size=(len(labels), width))).astype("f"), labels


def leave_one_out(scale, z, labels, smoothing):
    """The smoothed cross-entropy by loops, each image against class means without it (float64)."""
    z, total = z.astype(np.float64), 0.0
    classes = np.unique(labels)
    for i in range(len(z)):
        others = np.arange(len(z)) != i
        distance = np.array(
            [np.square(z[i] - z[(labels == k) & others].mean(0)).sum() for k in classes]
        )
        log_p = -scale * distance / 2
        log_p -= log_p.max() + np.log(np.exp(log_p - log_p.max()).sum())
        target = np.full(len(classes), smoothing / len(classes))
        target[classes == labels[i]] += 1 - smoothing
        total -= target @ log_p
    return total / len(z)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])  # the first: every image nearest to its mean
def test_head_of_class_means_is_the_nearest_centroid_at_the_best_scale(spread):
    z, labels = features(spread)
    kernel, bias = initial.class_mean_head(z, labels, 6, smoothing=0.1)
    assert kernel.dtype == bias.dtype == np.float32 and kernel.shape == (12, 6)
    logits = z.astype(np.float64) @ kernel + bias
    nearest = NearestCentroid().fit(z.astype(np.float64), labels)
    assert (logits.argmax(1) == nearest.predict(z.astype(np.float64))).all()
    best = scipy.optimize.minimize_scalar(
        lambda log: leave_one_out(np.exp(log), z, labels, 0.1), bounds=(-8, 8), method="bounded"
    )
    # Differences between classes are those of -scale |z - mean|^2 / 2. The head is float32, and both searches
    # stop early: 1e-3 of the logits' spread.
    distance = np.square(z[:, None] - nearest.centroids_).sum(-1)
    expected = -np.exp(best.x) * distance / 2

    def centred(x):
        return x - x.mean(1, keepdims=True)

    assert np.abs(centred(logits) - centred(expected)).max() < 1e-3 * expected.std()


def test_head_of_class_means_where_a_class_has_one_image_or_none():
    z, labels = features(0.3)
    single = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:1]])
    kernel, bias = initial.class_mean_head(z[single], labels[single], 8)
    assert np.isfinite(kernel).all() and np.isfinite(bias).all()
    assert ((z @ kernel + bias).argmax(1) == labels)[single].all()  # 6 and 7 are never predicted
    one_each = np.unique(labels, return_index=True)[1]
    kernel, bias = initial.class_mean_head(z[one_each], labels[one_each], 6)
    assert ((z[one_each] @ kernel + bias).argmax(1) == np.arange(6)).all()


def test_head_of_class_means_ignores_where_the_embeddings_lie():
    z, labels = features()
    kernel, bias = initial.class_mean_head(z, labels, 6)
    moved, moved_bias = initial.class_mean_head(z + 100, labels, 6)
    # float32 embeddings around 105 are good to 1e-5
    np.testing.assert_allclose(moved, kernel, atol=1e-4)
    np.testing.assert_allclose((z + 100) @ moved + moved_bias, z @ kernel + bias, atol=0.02)


def test_head_of_class_means_names_an_embedding_that_is_not_finite():
    z, labels = features()
    z[4, 2] = np.nan
    with pytest.raises(UserError, match="training image 4 is not finite"):
        initial.class_mean_head(z, labels, 6)


class Net(nnx.Module):
    """Two layers of BatchNorm; `backbone` is what the statistics are estimated through."""

    def __init__(self, rngs):
        self.backbone = nnx.Sequential(
            nnx.Linear(5, 7, rngs=rngs),
            BatchNorm(7),
            jax.nn.relu,
            nnx.Linear(7, 3, rngs=rngs),
            BatchNorm(3),
        )


def test_estimated_statistics_are_those_of_torchs_update_bn():
    net = Net(nnx.Rngs(0))
    net.eval()
    net.set_attributes(BatchNorm, fixed=True)  # as in a phase with a frozen backbone
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 2, (size, 5)).astype("f") for size in (8, 8, 6)]

    first, norm, _, last, norm_2 = net.backbone.layers
    torch_net = torch.nn.Sequential(
        torch.nn.Linear(5, 7),
        torch.nn.BatchNorm1d(7),
        torch.nn.ReLU(),
        torch.nn.Linear(7, 3),
        torch.nn.BatchNorm1d(3),
    )
    for ours, theirs in ((first, torch_net[0]), (last, torch_net[3])):
        theirs.weight.data = torch.tensor(np.array(ours.kernel[...].T))
        theirs.bias.data = torch.tensor(np.array(ours.bias[...]))
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in batches], torch_net)

    forward = jax.jit(initial.batch_statistics(net))
    _, params, stats = tree.split(net)
    found = initial.estimate_batch_norm(forward(params, stats, jnp.asarray(x)) for x in batches)
    assert found.keys() == stats.keys()
    for layer, reference in (("1", torch_net[1]), ("4", torch_net[4])):
        path = f"backbone/layers/{layer}"
        # float32 sums of up to eight numbers around 3
        np.testing.assert_allclose(
            found[f"{path}/mean"], reference.running_mean, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            found[f"{path}/var"], reference.running_var, rtol=1e-5, atol=1e-6
        )
    assert norm.fixed and norm.momentum == norm_2.momentum == 0.9  # the module is as it was
    assert norm.use_running_average


def test_no_batch_is_an_error():
    with pytest.raises(UserError, match="at least one batch"):
        initial.estimate_batch_norm([])


def weights(workdir, phase):
    checkpoints = Checkpoints(workdir / phase / "checkpoints")
    found = checkpoints.restore_weights(checkpoints.latest(), None)
    checkpoints.close()
    return found["params"], found["batch_stats"]


def test_a_phase_starts_from_class_means_and_estimated_statistics(tmp_path, caplog):
    config = tiny.pipeline()
    # Views without chance, and all images in one batch: what is estimated is known.
    config.image.crop_scale = config.image.crop_ratio = (1.0, 1.0)
    config.image.flip = 0.0
    labels = load(config.data).splits["train"].labels
    images = len(labels)
    config.retrain.init.update(head="means", batch_norm="estimate")
    config.retrain.update(length="1 steps", batch=images)
    config.retrain.optimizer.learning_rate = 0.0
    with config.unlocked():
        config.again = section("embed", model="retrain")
    config.phases = ("finetune", "embed", "mine", "pairs", "retrain", "again")
    run(config, tmp_path)
    assert f"estimated anew from {images} training images" in caplog.text

    embedding, scores = (
        np.load(tmp_path / "again" / f"train_{name}.npy") for name in ("embedding", "scores")
    )
    nearest = NearestCentroid().fit(embedding.astype(np.float64), labels)
    assert (scores.argmax(1) == nearest.predict(embedding.astype(np.float64))).all()

    (params, stats), (_, first), (_, second) = (
        weights(tmp_path, phase) for phase in ("retrain", "finetune", "pairs")
    )
    _, data, models = tiny.parts(config, tmp_path)
    canvases = data.canvases("train")
    pixels, sizes = canvases.take(np.arange(images))
    views = plain_views(pixels[:, None], sizes[:, None], models.view, jnp.float32)
    stem = torch.nn.functional.conv2d(
        torch.tensor(np.asarray(views, np.float64).transpose(0, 3, 1, 2)),
        torch.tensor(np.asarray(params["backbone/conv1/kernel"], np.float64).transpose(3, 2, 0, 1)),
        stride=2,
        padding=3,
    )
    # float32 sums over 23,000 numbers around 1
    np.testing.assert_allclose(
        stats["backbone/bn1/mean"], stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(stats["backbone/bn1/var"], stem.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    for path, value in stats.items():
        assert not np.allclose(value, (first[path] + second[path]) / 2, rtol=1e-3), path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "retrain.head",
            "mean",
            "config.retrain.init.head = 'mean' is unknown; did you mean 'means'",
        ),
        ("retrain.batch_norm", "fresh", "config.retrain.init.batch_norm = 'fresh' is unknown"),
        (
            "finetune.head",
            "means",
            "config.finetune.init.head = 'means' needs config.finetune.init.phase",
        ),
        (
            "finetune.batch_norm",
            "estimate",
            "batch_norm = 'estimate' needs config.finetune.init.phase",
        ),
        ("pairs.head", "means", "'pairs' has none. Use 'keep' or 'fresh'."),
    ],
)
def test_what_cannot_be_started_from_is_refused(key, value, message, tmp_path):
    config = tiny.pipeline()
    phase, _, name = key.partition(".")
    config[phase].init[name] = value
    with pytest.raises(UserError, match=re.escape(message)):
        run(config, tmp_path)
