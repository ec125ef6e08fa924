"""Losses and their gradients against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.ops import losses

torch = pytest.importorskip("torch", reason="the reference is torch's loss")
F = torch.nn.functional

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(7, 5)) * 4
LABELS = rng.integers(0, 5, 7)
PAIRS = np.array([30.0, -30.0, 200.0, -200.0, 0.0, 1.5, -0.2])  # far out, where exp would overflow
SAME = np.array([1, 0, 0, 1, 1, 0, 1])


def reference(function, x):
    x = torch.tensor(x, requires_grad=True)
    value = function(x)
    value.backward()
    return value.item(), x.grad.numpy()


def check(function, theirs, x, tolerance):
    value, gradient = jax.value_and_grad(function)(x)
    expected, expected_gradient = reference(theirs, np.asarray(x, np.float64))
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=tolerance, atol=tolerance)
    return value


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_torchs(smoothing):
    labels = torch.tensor(LABELS)

    def theirs(x):
        return F.cross_entropy(x, labels, label_smoothing=smoothing)

    def ours(x):
        return losses.cross_entropy(x, jnp.asarray(LABELS), smoothing)

    with jax.enable_x64(True):
        value = check(ours, theirs, jnp.asarray(LOGITS), 1e-12)  # a few roundings of float64
        assert value.dtype == jnp.float64
    value = check(ours, theirs, jnp.asarray(LOGITS, jnp.float32), 1e-5)  # of float32
    assert value.dtype == jnp.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_labels_is_torchs_of_soft_targets(smoothing):
    partner, share = LABELS[::-1].copy(), rng.uniform(size=7)
    eye = np.eye(5)
    soft = torch.tensor(share[:, None] * eye[LABELS] + (1 - share[:, None]) * eye[partner])

    def theirs(x):
        return F.cross_entropy(x, soft, label_smoothing=smoothing)

    def ours(x):
        mixed = {"partner": jnp.asarray(partner), "share": jnp.asarray(share, x.dtype)}
        return losses.cross_entropy(x, jnp.asarray(LABELS), smoothing, **mixed)

    with jax.enable_x64(True):
        assert check(ours, theirs, jnp.asarray(LOGITS), 1e-12).dtype == jnp.float64
    check(ours, theirs, jnp.asarray(LOGITS, jnp.float32), 1e-5)
    with pytest.raises(ValueError, match="together"):
        losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), share=jnp.asarray(share))


def test_binary_cross_entropy_is_torchs():
    def theirs(x):
        return F.binary_cross_entropy_with_logits(x, torch.tensor(SAME, dtype=x.dtype))

    def ours(x):
        return losses.binary_cross_entropy(x, jnp.asarray(SAME, jnp.int32))

    with jax.enable_x64(True):
        value = check(ours, theirs, jnp.asarray(PAIRS), 1e-12)
        assert value.dtype == jnp.float64
    assert check(ours, theirs, jnp.asarray(PAIRS, jnp.float32), 1e-5).dtype == jnp.float32


def test_bfloat16_logits_are_only_read_in_bfloat16():
    """The loss is that of the rounded logits in float32; in bfloat16 it would be off by 1e-3 or more."""
    narrow = jnp.asarray(LOGITS, jnp.bfloat16)
    value = losses.cross_entropy(narrow, jnp.asarray(LABELS), 0.1)
    wide = losses.cross_entropy(narrow.astype(jnp.float32), jnp.asarray(LABELS), 0.1)
    assert value.dtype == jnp.float32 and value == wide
    narrow = jnp.asarray(PAIRS, jnp.bfloat16)
    value = losses.binary_cross_entropy(narrow, jnp.asarray(SAME))
    assert value.dtype == jnp.float32
    assert value == losses.binary_cross_entropy(narrow.astype(jnp.float32), jnp.asarray(SAME))
