"""Mixup and CutMix against timm, and their draws against SciPy's distributions."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fgvc_jax.errors import UserError
from fgvc_jax.images.mix import combine, cut_box, mix, outside, symmetric_beta
from fgvc_jax.ops.losses import cross_entropy

BATCH, HEIGHT, WIDTH, CLASSES = 6, 20, 31, 5
rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
LABELS = rng.integers(0, CLASSES, BATCH)
LOGITS = rng.normal(size=(BATCH, CLASSES))

STATIC = ("mixup", "cutmix", "probability", "switch", "per_example")
mixed = jax.jit(mix, static_argnames=STATIC)


@pytest.fixture(scope="session")
def timm_mixup(transforms):
    return pytest.importorskip("timm.data.mixup", reason="timm is the reference for mixup")


def timm_batch(timm_mixup, monkeypatch, share, cut, centre, smoothing):
    """timm's (images, soft targets) of this share, kind and centre of the rectangle."""
    import torch

    theirs = timm_mixup.Mixup(1.0, 1.0, label_smoothing=smoothing, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (share, cut))
    places = iter(centre)
    monkeypatch.setattr(timm_mixup.np.random, "randint", lambda *args, **more: next(places))
    images = torch.tensor(IMAGES).permute(0, 3, 1, 2).contiguous()
    images, targets = theirs(images, torch.tensor(LABELS))
    return images.permute(0, 2, 3, 1).numpy(), targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("share", "cut", "centre"),
    [
        (0.3, False, ()),
        (0.97, False, ()),
        (0.5, True, (10, 15)),  # rows, columns
        (0.2, True, (0, 30)),  # cut off at two borders
        (0.9, True, (19, 3)),
        (0.0, True, (9, 0)),
        (0.999, True, (7, 8)),  # too small for a pixel
    ],
)
def test_images_and_loss_are_timms(timm_mixup, monkeypatch, share, cut, centre, smoothing):
    import torch

    expected, soft = timm_batch(timm_mixup, monkeypatch, share, cut, centre, smoothing)
    hw = (HEIGHT, WIDTH)
    if cut:
        weight = outside(cut_box(jnp.float32(share), jnp.array(centre), hw), hw)
        share = weight.mean()
    else:
        weight = jnp.full(hw, share, jnp.float32)
    np.testing.assert_allclose(combine(IMAGES, weight[None]), expected, atol=1e-6)  # float32
    theirs = torch.sum(-soft * torch.log_softmax(torch.tensor(LOGITS), -1), -1).mean()
    shares = jnp.full(BATCH, share, jnp.float32)
    loss = cross_entropy(
        jnp.asarray(LOGITS, jnp.float32),
        jnp.asarray(LABELS),
        smoothing,
        partner=jnp.asarray(LABELS[::-1].copy()),
        share=shares,
    )
    np.testing.assert_allclose(loss, theirs, rtol=1e-6)  # float32


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 8.0])
def test_symmetric_beta_is_scipys_distribution(alpha):
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(symmetric_beta, (0, None)))(keys, alpha), np.float64)
    # Close to 1 float32 has no more than 1 - 6e-8; both tails are there through the lower half alone.
    lower = drawn[drawn < 0.5]
    assert abs(len(lower) / len(drawn) - 0.5) < 0.016  # sd 0.0035, 4.5 of them
    half = stats.beta(alpha, alpha)
    # Fixed seeds, so this is no lottery; a p-value under 1e-3 means another distribution.
    assert stats.kstest(lower, lambda x: 2 * half.cdf(x)).pvalue > 1e-3
    assert (
        stats.ks_2samp(lower, np.maximum(1 - drawn[drawn >= 0.5], 1e-7)).pvalue > 1e-3
        or alpha < 0.5
    )
    assert (drawn >= 0).all() and (drawn <= 1).all()


def test_draws_of_each_example_have_the_asked_probabilities():
    n = 4000
    images = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None, None, None], (n, 4, 4, 1))
    chances = {"probability": 0.6, "switch": 0.3, "per_example": True}
    got, targets = mixed(jax.random.key(0), images, jnp.arange(n), mixup=1, cutmix=1, **chances)
    got, share = np.asarray(got)[..., 0], np.asarray(targets["share"])
    np.testing.assert_array_equal(targets["partner"], np.arange(n)[::-1])
    # The mean of an image holds its own number by its share; 4e3 times float32's 6e-8, a few times.
    mean = share * np.arange(n) + (1 - share) * np.arange(n)[::-1]
    np.testing.assert_allclose(got.mean((1, 2)), mean, atol=5e-3)
    flat = (got == got[:, :1, :1]).all((1, 2))
    mixup = flat & (share < 1)
    # 0.6 x 0.7 of them; sd 0.008. A rectangle of no pixel or of all is flat too, with share 1 or 0.
    assert abs((mixup & (share > 0)).mean() - 0.42) < 0.035
    assert stats.kstest(share[mixup & (share > 0)], "uniform").pvalue > 1e-3  # Beta(1, 1)
    untouched = share == 1
    np.testing.assert_array_equal(got[untouched], np.asarray(images)[untouched, ..., 0])


def test_a_batch_shares_one_draw_and_a_key_gives_one_result():
    kinds = set()
    for seed in range(6):
        images, targets = mixed(jax.random.key(seed), IMAGES, LABELS, mixup=0.8, cutmix=1.0)
        again, _ = mixed(jax.random.key(seed), IMAGES, LABELS, mixup=0.8, cutmix=1.0)
        np.testing.assert_array_equal(images, again)
        share = np.asarray(targets["share"])
        assert (share == share[0]).all()
        own = (np.asarray(images) == IMAGES).all(-1)
        assert (own == own[:1]).all() or own[0].all()
        kinds.add("cut" if own.any() else "mixed")
    assert kinds == {"cut", "mixed"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_strength_or_probability_zero_is_the_identity(dtype):
    images = jnp.asarray(IMAGES, dtype)
    for settings in ({}, {"mixup": 0.8, "probability": 0.0}, {"mixup": 0.8, "probability": 1e-9}):
        got, targets = mixed(jax.random.key(0), images, LABELS, **settings)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, images)
        np.testing.assert_array_equal(targets["share"], 1)
        np.testing.assert_array_equal(targets["label"], LABELS)


def test_bfloat16_images_are_computed_in_float32():
    narrow = jnp.asarray(IMAGES, jnp.bfloat16)
    settings = {"mixup": 0.8, "per_example": True}
    got, _ = mixed(jax.random.key(0), narrow, LABELS, **settings)
    wide, _ = mixed(jax.random.key(0), narrow.astype(jnp.float32), LABELS, **settings)
    np.testing.assert_array_equal(got, wide.astype(jnp.bfloat16))


def test_bad_settings_are_named():
    for settings, message in (
        ({"mixup": -0.1}, "mixup = -0.1"),
        ({"cutmix": -1}, "cutmix = -1"),
        ({"mixup": 1, "probability": 2}, "probability = 2"),
        ({"mixup": 1, "switch": -1}, "switch = -1"),
    ):
        with pytest.raises(UserError, match=message):
            mix(jax.random.key(0), IMAGES, LABELS, **settings)


def test_a_sharded_batch_gives_the_same_and_is_never_gathered():
    """On four devices, in a second process: images go to their partners' device and nowhere else."""
    code = """
        import jax, jax.numpy as jnp, numpy as np
        from fgvc_jax.images.mix import mix
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        images = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype(np.float32)
        labels, key = np.arange(8), jax.random.key(0)
        step = lambda k, x, y: mix(k, x, y, mixup=0.8, cutmix=1.0, per_example=True)
        sharded = jax.jit(step, in_shardings=(None, over, over), out_shardings=over)
        compiled = sharded.lower(key, images, labels).compile()
        assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()
        got = compiled(key, jax.device_put(images, over), jax.device_put(labels, over))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(step)(key, images, labels))):
            np.testing.assert_allclose(a, b, atol=1e-6)  # float32
    """
    environment = dict(os.environ)
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True)
