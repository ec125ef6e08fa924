"""GELU and its gradient against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.ops.gelu import gelu

torch = pytest.importorskip("torch", reason="the reference is torch's GELU")

# Far out, where a value or its gradient vanishes, around 0, and between.
X = np.concatenate([np.linspace(-12, 12, 97), [-40.0, 0.0, 1e-8, 300.0]])


def torch_gelu(x):
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.gelu(x)
    y.sum().backward()
    return y.detach().numpy(), x.grad.numpy()


# Rounding, with room for that of erf, whose error is some units in the last place.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)])
def test_value_and_gradient(dtype, tolerance):
    expected, expected_gradient = torch_gelu(X)
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(X, dtype)
        y, back = jax.vjp(gelu, x)
        (gradient,) = back(jnp.ones_like(x))
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def test_bfloat16_is_the_exact_value_rounded():
    x = jnp.asarray(X, jnp.bfloat16)
    expected, expected_gradient = torch_gelu(np.asarray(x, np.float64))
    y, back = jax.vjp(gelu, x)
    (gradient,) = back(jnp.ones_like(x))
    assert y.dtype == gradient.dtype == jnp.bfloat16
    half_unit = 2.0**-8
    for ours, exact in ((y, expected), (gradient, expected_gradient)):
        # Below 1e-6 float32's 1 + erf(x) has no digits left.
        np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=half_unit, atol=1e-6)
