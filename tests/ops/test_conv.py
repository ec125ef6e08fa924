"""Grouped, depthwise and 1x1 convolution: the forms for a CPU against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fgvc_jax.ops.conv import conv

DIMENSIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

# channels in, channels out, groups
DEPTHWISE = (6, 6, 6)
GROUPED = {
    "a channel twice": (6, 12, 6),
    "of two, in one convolution": (8, 12, 4),
    "of three, fewer together": (36, 24, 12),
    "of 32, each alone": (64, 64, 2),
    "of 40": (80, 20, 2),
}


def symmetric(kernel: int):
    return ((kernel // 2, kernel // 2),) * 2


def both(shape, kernel, groups, stride, padding, dtype):
    """(ours, XLA's): outputs and the gradients of x and of the kernel, by compiled functions."""
    inputs, outputs, groups = groups
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*shape, inputs)), dtype)
    kernel = jnp.asarray(rng.normal(size=(kernel, kernel, inputs // groups, outputs)), dtype)
    arguments = {"feature_group_count": groups, **DIMENSIONS}

    def run(function):
        def forward(x, kernel):
            return function(x, kernel, (stride, stride), padding, **arguments)

        weights = rng_weights(jax.eval_shape(forward, x, kernel).shape, dtype)

        @jax.jit
        def all_three(x, kernel):
            y, vjp = jax.vjp(forward, x, kernel)
            return y, *vjp(weights)

        return all_three(x, kernel)

    return run(conv), run(lax.conv_general_dilated)


def rng_weights(shape, dtype):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


def check(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


# Sums of at most 400 products in another order: 1e-6 of the largest value in float32, 1e-13 in float64.
TOLERANCES = {"float32": 1e-6, "float64": 1e-13}
CASES = [
    # kernel, stride, padding, groups. 'SAME' pads odd and even sides differently at stride 2.
    (3, 1, symmetric(3), DEPTHWISE),
    (3, 2, "SAME", DEPTHWISE),
    (5, 2, symmetric(5), DEPTHWISE),
    (5, 1, "VALID", DEPTHWISE),
    (7, 1, symmetric(7), DEPTHWISE),
    (3, 1, symmetric(3), GROUPED["of two, in one convolution"]),
    *((3, 2, "SAME", groups) for groups in GROUPED.values()),
    # The kernel's gradient is computed turned where there are fewer outputs than inputs.
    (1, 1, "VALID", (12, 5, 1)),
    (1, 2, "VALID", (5, 12, 1)),
]


@pytest.mark.parametrize("case", CASES)
def test_the_same_in_float64(case):
    kernel, stride, padding, groups = case
    with jax.enable_x64(True):
        check(*both((2, 9, 8), kernel, groups, stride, padding, "float64"), TOLERANCES["float64"])


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[5], *CASES[-2:]])
def test_the_same_in_float32(case):
    kernel, stride, padding, groups = case
    check(*both((2, 9, 8), kernel, groups, stride, padding, "float32"), TOLERANCES["float32"])


@pytest.mark.parametrize("groups", [DEPTHWISE, GROUPED["of two, in one convolution"]])
def test_maps_smaller_than_the_kernel(groups):
    for shape in ((1, 1, 1), (1, 2, 3)):
        check(*both(shape, 5, groups, 2, symmetric(5), "float32"), TOLERANCES["float32"])


def test_depthwise_convolution_sums_wider_than_bfloat16():
    rng = np.random.default_rng(0)
    x = jnp.asarray(1 + rng.normal(size=(1, 16, 16, 4)), jnp.bfloat16)
    kernel = jnp.asarray(1 + rng.normal(size=(7, 7, 1, 4)), jnp.bfloat16)
    ours = conv(x, kernel, (1, 1), "VALID", feature_group_count=4, **DIMENSIONS)
    assert ours.dtype == jnp.bfloat16
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, (7, 7), (1, 2))
    exact = np.einsum("bhwcij,ijc->bhwc", windows, kernel[:, :, 0])
    # The one rounding of the result: 8 bits, so half of 2^-7 of each value, and float32's sums.
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=2**-8 + 1e-4)


def test_dilated_groups_pass_through():
    x, kernel = jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 1, 4))
    extra = {"rhs_dilation": (2, 2), "feature_group_count": 4, **DIMENSIONS}
    ours = conv(x, kernel, (1, 1), "SAME", **extra)
    np.testing.assert_array_equal(
        ours, lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **extra)
    )


def test_other_platforms_get_their_own_grouped_convolution():
    def lowered(platform, shape, groups):
        def run(x, kernel):
            return conv(x, kernel, (1, 1), "SAME", feature_group_count=groups, **DIMENSIONS)

        arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 64), shape)]
        return jax.jit(run).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    for platform in ("tpu", "cuda"):
        assert "feature_group_count = 64" in lowered(platform, (3, 3, 1, 64), 64)
        assert "feature_group_count = 4" in lowered(platform, (3, 3, 16, 64), 4)
    assert "stablehlo.convolution" not in lowered("cpu", (3, 3, 1, 64), 64)
    # Two groups of 16 channels make one dense convolution of 32.
    grouped = lowered("cpu", (3, 3, 16, 64), 4)
    assert grouped.count("stablehlo.convolution") == 2
    assert "feature_group_count = 4" not in grouped


@pytest.mark.parametrize("side", [1, 2, (1, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", symmetric(3)], ids=str)
def test_a_kernel_of_more_cells_than_the_map(side, stride, padding):
    """float32 sums of 9 x 20 products."""
    shape = (4, *(side if isinstance(side, tuple) else (side, side)))
    ours, theirs = both(shape, 3, (20, 12, 1), stride, padding, jnp.float32)
    check(ours, theirs, 1e-5)
