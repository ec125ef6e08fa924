"""Backbones: taps, edits, batch normalisation, fast paths. Parity with torch is in tests/parity."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fgvc_jax import backbones
from fgvc_jax.errors import UserError
from fgvc_jax.layers.initializers import normal, torch_bias, torch_std
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.ops.conv import conv
from fgvc_jax.ops.pool import max_pool

SIZE = 48
SWIN = "swin_tiny_patch4_window7_224"


def make(family: str, **kw) -> nnx.Module:
    if family == "resnet":
        kw = {"width": 8, "depths": (2, 1, 1, 1)} | kw
        return backbones.create("resnet18", rngs=nnx.Rngs(0), **kw)
    kw = {"depth": 4, "width": 32, "heads": 2, "image_size": SIZE} | kw
    return backbones.create("vit_tiny_patch16_224", rngs=nnx.Rngs(0), **kw)


@pytest.fixture(scope="module", params=["resnet", "vit"])
def backbone(request):
    module = make(request.param)
    module.eval()
    return module


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)), jnp.float32)


def forward(module, images, taps=None, edit=None):
    """One compiled pass; several times faster here than op by op."""
    return jax.jit(lambda images: module(images, taps, edit))(images)


def test_info_says_what_comes_out(backbone, images):
    info = backbone.info
    assert len(info.default_taps) == 4
    names = [tap.name for tap in info.taps]
    everything = jax.eval_shape(lambda x: backbone(x, names), images)
    for tap in info.taps:
        side = -(-SIZE // tap.stride)
        assert everything.maps[tap.name].shape == (2, side, side, tap.channels)
    assert everything.pooled.shape == (2, info.width)
    assert info.cam_tap in names
    assert sorted(info.pyramid_taps, key=names.index) == list(info.pyramid_taps)
    sizes = backbone.map_sizes(SIZE, names)
    assert sizes == {name: everything.maps[name].shape[1:3] for name in names}
    hash(info)  # static in a jitted function


def test_default_taps(backbone, images):
    maps = forward(backbone, images).maps
    assert list(maps) == sorted(backbone.info.default_taps)  # jit sorts a dictionary's keys


def test_edit_changes_what_follows_and_nothing_before(backbone, images):
    names = [tap.name for tap in backbone.info.taps]
    plain = forward(backbone, images, names)
    middle = names[len(names) // 2]
    seen = []

    def edit(name, x):
        seen.append(name)
        return x.at[:, 0].multiply(3.0) if name == middle else x

    edited = forward(backbone, images, names, edit)
    assert seen == names  # every tap, once, in order
    for name in names:
        same = np.array_equal(plain.maps[name], edited.maps[name])
        assert same == (names.index(name) < names.index(middle)), name
    expected = np.array(plain.maps[middle])
    expected[:, 0] *= 3
    np.testing.assert_array_equal(edited.maps[middle], expected)
    assert not np.allclose(plain.pooled, edited.pooled, rtol=1e-3)


def gradient_at(backbone, images, tap):
    """Gradient of one number of `pooled` by a perturbation added at the tap."""

    def value(delta):
        out = backbone(images, (), lambda name, x: x + delta if name == tap else x)
        return out.pooled[:, 0].sum()

    there = jax.eval_shape(lambda x: backbone(x, (tap,)), images).maps[tap]
    return jax.jit(jax.grad(value))(jnp.zeros(there.shape, there.dtype))


def test_every_cell_has_a_gradient_at_cam_tap(backbone, images):
    grads = gradient_at(backbone, images, backbone.info.cam_tap)
    assert (jnp.abs(grads).max(-1) > 0).all()


def test_last_block_of_a_vit_has_no_gradient_on_patches(images):
    # Why cam_tap is the last block's input: only the class token is pooled.
    module = make("vit")
    assert module.info.cam_tap == "block2"
    assert (gradient_at(module, images, "block3") == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5"}, "did you mean 'resnet50'"),
        ({"name": "resnet50", "widht": 8}, "argument of resnet50 = 'widht'.*did you mean 'width'"),
        ({"name": "resnet50", "heads": 8}, "Known: depths, width"),
        ({"name": "resnet50", "block": 8}, "Known: depths, width"),
        ({"name": "resnet50", "depths": (1, 1)}, r"depths=\(1, 1\) must be four"),
        ({"name": "resnet50", "depths": 3}, "must be four"),
        ({"name": "resnet50", "depths": (0, 1, 1, 1)}, "each at least 1"),
        ({"name": "resnet50", "width": 0}, "width=0 must be a number of channels, at least 1"),
        ({"name": "resnet50", "width": -64}, "at least 1"),
        ({"name": "resnet50", "width": 16.5}, "width=16.5 must be a whole number"),
        ({"name": "resnet50", "width": "wide"}, "width='wide' must be a whole number"),
        ({"name": "resnet50", "width": True}, "must be a whole number"),
        ({"name": "resnext50_32x4d", "width": 0}, "at least 1"),
        ({"name": "resnet50", "image_size": 1}, "at least 16 x 16 pixels, not 1 x 1"),
        ({"name": "resnet50", "image_size": (64, 32)}, "must be one number"),
        ({"name": "efficientnet_b0", "image_size": 15}, "at least 16 x 16"),
        ({"name": "efficientnet_b0", "width": float("nan")}, "width=nan must be a number"),
        ({"name": "efficientnet_b0", "depth": -1.0}, "above 0"),
        ({"name": "efficientnet_b0", "depth": 1e9}, "at most 100"),
        ({"name": "efficientnet_b0", "eps": 0}, "eps=0 must be above 0"),
        ({"name": "efficientnet_b0", "momentum": 1.0}, "at least 0 and below 1"),
        ({"name": "convnext_tiny", "width": 0}, "at least 1"),
        ({"name": "vit_base_patch16_224", "image_size": 225}, "multiples of 16"),
        ({"name": "vit_base_patch16_224", "image_size": 0}, "at least 16 x 16"),
        ({"name": "vit_base_patch16_224", "width": 100, "heads": 3}, "multiple of heads"),
        ({"name": "vit_base_patch16_224", "width": 0}, "at least 12"),
        ({"name": "vit_base_patch16_224", "heads": 0}, "attention heads, at least 1"),
        ({"name": "vit_base_patch16_224", "depth": 0}, "blocks, at least 1"),
        ({"name": SWIN, "heads": (3, 6, 12, 0)}, "divide 96, 192, 384 and 768"),
        ({"name": SWIN, "heads": (5, 6, 12, 24)}, "divide 96"),
        ({"name": SWIN, "window": 0}, "window=0 must be at least 1"),
        ({"name": SWIN, "width": 0}, "at least 1"),
        ({"name": SWIN, "image_size": 28}, "at least 32 x 32"),
        ({"name": SWIN, "image_size": (64, 66)}, "multiples of 4 pixels, not 64 x 66"),
        ({"name": SWIN, "convention": "tim"}, "convention = 'tim' is unknown; did you mean 'timm'"),
        ({"name": SWIN, "convention": 1}, "must be a word"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        backbones.create(**arguments, rngs=nnx.Rngs(0))


# The shallowest of each family, and a second ViT: tracing a deep one takes half a minute.
SHALLOW = [
    *("resnet18", "efficientnet_b0", "convnext_tiny", "swin_tiny_patch4_window7_224"),
    *("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"),
]


def test_arguments_of_every_name():
    for name in backbones.names():
        variant, given = backbones.variant(name), backbones.arguments(name)
        assert given == variant.arguments and given is not variant.arguments


def test_smallest_images():
    # The smallest image gives a last map of one cell; one pixel (or patch) less is refused.
    assert set(SHALLOW) <= set(backbones.names())
    for name in SHALLOW:
        variant, given = backbones.variant(name), backbones.arguments(name)
        assert given == variant.arguments and given is not variant.arguments

        def make(size, name=name, given=given):
            return nnx.eval_shape(
                lambda: backbones.create(name, image_size=size, **given, rngs=nnx.Rngs(0))
            )

        module = make(variant.smallest)
        x = jax.ShapeDtypeStruct((1, variant.smallest, variant.smallest, 3), jnp.float32)
        module.eval()
        graphdef, state = nnx.split(module)
        tap = module.info.taps[-1].name

        def run(state, x, graphdef=graphdef, tap=tap):
            return nnx.merge(graphdef, state)(x, (tap,)).maps[tap]

        assert jax.eval_shape(run, nnx.to_pure_dict(state), x).shape[1:3] == (1, 1)
        with pytest.raises(UserError, match="at least"):
            make(variant.smallest - variant.multiple)
    assert backbones.arguments("resnet18") == {"width": 64, "depths": (2, 2, 2, 2)}
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        backbones.arguments("resnet_18")


def test_lists_are_taken_for_tuples():
    module = nnx.eval_shape(
        lambda: backbones.create("resnet18", depths=[1, 1, 1, 1], rngs=nnx.Rngs(0))
    )
    assert len(module.info.taps) == 4


def test_wrong_calls(backbone, images):
    with pytest.raises(UserError, match=f"no tap 'nose'.*Known: .*{backbone.info.cam_tap}"):
        backbone(images, ("nose",))
    if backbone.info.name.startswith("vit"):
        with pytest.raises(UserError, match="multiples of 16"):
            backbone(images[:, :40])


# With a classifier of 1000 classes: as torchvision publishes them; of nets that it lacks, of timm's modules.
COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "tf_efficientnet_b0": 5_288_548,
    "tf_efficientnet_b1": 7_794_184,
    "tf_efficientnet_b2": 9_109_994,
    "tf_efficientnet_b3": 12_233_232,
    "tf_efficientnet_b4": 19_341_616,
    "tf_efficientnet_b5": 30_389_784,
    "tf_efficientnet_b6": 43_040_704,
    "tf_efficientnet_b7": 66_347_960,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_small_patch14_dinov2": 22_441_192,
    "vit_base_patch14_dinov2": 87_348_712,
    "vit_small_patch14_reg4_dinov2": 22_442_344,
    "vit_base_patch14_reg4_dinov2": 87_351_016,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
    "swin_base_patch4_window12_384": 87_903_584,
    "swin_large_patch4_window7_224": 196_532_476,
    "swin_large_patch4_window12_384": 196_735_516,
}


def test_every_backbone_has_a_count():
    assert sorted(COUNTS) == sorted(backbones.names())


# Those of TensorFlow's padding are the nets above with another argument of their convolutions.
AGAIN = [name for name in COUNTS if name.startswith("tf_") and name != "tf_efficientnet_b0"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in AGAIN else ()) for n in COUNTS]
)
def test_parameter_counts(name):
    module = nnx.eval_shape(lambda: backbones.create(name, rngs=nnx.Rngs(0)))
    parameters = jax.tree.leaves(nnx.state(module, nnx.Param))
    head = 1000 * (module.info.width + 1)
    assert sum(p.size for p in parameters) + head == COUNTS[name]


def test_bfloat16_computation_keeps_float32_parameters(backbone, images):
    module = make(type(backbone).__name__.lower(), dtype=jnp.bfloat16)
    module.train()
    graphdef, state = nnx.split(module)

    def step(state, images):
        merged = nnx.merge(graphdef, state)
        return merged(images), nnx.to_pure_dict(nnx.state(merged))

    out, state = jax.eval_shape(step, nnx.to_pure_dict(state), images)
    assert {x.dtype for x in out.maps.values()} == {jnp.dtype(jnp.bfloat16)}
    assert out.pooled.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_biases_as_torch_draws_them():
    torch = pytest.importorskip("torch", reason="the reference")
    torch.manual_seed(0)
    fan_in, count = 9 * 16, 20_000
    ours = np.asarray(torch_bias(fan_in)(jax.random.key(0), (count,)))
    layer = torch.nn.Conv2d(16, count, 3)
    for theirs in (
        layer.bias.detach().numpy(),
        torch.nn.Linear(fan_in, count).bias.detach().numpy(),
    ):
        # A quantile of 20,000 uniform draws has a standard error of up to 0.35 % of the range, so that of a
        # difference is up to 0.5 %: 1 % holds for these seeds.
        quantiles = np.linspace(0, 1, 11)
        np.testing.assert_allclose(
            np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.02 / fan_in**0.5
        )
    # A kernel's standard deviation; torch draws it uniformly.
    assert layer.weight.std().item() == pytest.approx(torch_std(fan_in), rel=0.01)


def test_initial_weights():
    draw = normal(0.5)
    key = jax.random.key(3)
    eager = draw(key, (300, 300))  # more than one block
    # Numbers around 1 in float32, which two compilations may round differently.
    compiled = jax.jit(lambda k: draw(k, (300, 300)))(key)
    np.testing.assert_allclose(eager, compiled, rtol=0, atol=1e-6)
    assert len(np.unique(eager)) > 0.98 * eager.size  # blocks do not repeat
    assert abs(eager.mean()) < 0.01 and abs(eager.std() - 0.5) < 0.01  # 90,000 draws: 6 sigma
    module = make("resnet")
    # 3x3 from 64 channels to 64: sqrt(2 / (9 * 64))
    kernel = module.layer4[0].conv2.kernel[...]
    assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.03
    np.testing.assert_array_equal(kernel, make("resnet").layer4[0].conv2.kernel[...])
    other = backbones.create("resnet18", width=8, depths=(2, 1, 1, 1), rngs=nnx.Rngs(1))
    assert not np.array_equal(kernel, other.layer4[0].conv2.kernel[...])


# --- batch normalisation


def numpy_batch_norm(x, groups, eps=1e-5):
    """Output, mean over groups of the means and of the unbiased variances, by loops in float64."""
    out, means, variances = np.empty(x.shape), [], []
    for rows in np.split(np.arange(len(x)), groups):
        for c in range(x.shape[-1]):
            values = x[rows, ..., c].astype(np.float64)
            out[rows, ..., c] = (values - values.mean()) / np.sqrt(values.var() + eps)
            means.append(values.mean())
            variances.append(values.var(ddof=1))
    shape = (groups, x.shape[-1])
    return out, np.reshape(means, shape).mean(0), np.reshape(variances, shape).mean(0)


@pytest.mark.parametrize("groups", [1, 3])
def test_batch_norm_groups_under_jit_from_plain_trees(groups):
    x = np.random.default_rng(0).normal(2, 3, size=(6, 2, 4, 5)).astype(np.float32)
    layer = BatchNorm(5, momentum=0.8, groups=groups)
    graphdef, params, stats = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def step(params, stats, x):
        merged = nnx.merge(graphdef, params, stats)
        return merged(x), nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

    out, stats = step(nnx.to_pure_dict(params), nnx.to_pure_dict(stats), x)
    expected, mean, var = numpy_batch_norm(x, groups)
    np.testing.assert_allclose(out, expected, atol=1e-5)  # float32
    np.testing.assert_allclose(stats["mean"], 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.8 + 0.2 * var, rtol=1e-5)


def test_batch_norm_variance_far_from_zero():
    # E[x^2] - E[x]^2 in float32 is off by over 100 % here.
    x = (1000 + np.random.default_rng(0).normal(size=(64, 3))).astype(np.float32)
    expected, _, _ = numpy_batch_norm(x, 1)
    np.testing.assert_allclose(BatchNorm(3)(x), expected, atol=2e-3)


def test_batch_norm_statistics_of_large_maps():
    # As many values as eight images of 112 x 112 cells. Float32 sums one after the other, or as a product
    # with ones, are off by 1e-5; in a tree, or along several lanes, by some roundings of 6e-8.
    x = (0.5 + np.random.default_rng(0).random((8, 112, 112, 8))).astype(np.float32)
    layer = BatchNorm(8, momentum=0.0)
    jax.block_until_ready(layer(x))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(layer.mean[...], wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], wide.var((0, 1, 2), ddof=1), rtol=1e-6)


def test_batch_norm_modes():
    x = np.random.default_rng(0).normal(2, 3, size=(8, 4)).astype(np.float32)
    layer = BatchNorm(4)
    layer(x)
    mean, var = np.array(layer.mean[...]), np.array(layer.var[...])
    assert abs(mean).min() > 0
    expected = (x - mean) / np.sqrt(var + 1e-5)
    layer.eval()
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    layer.train()
    layer.set_attributes(BatchNorm, fixed=True)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.mean[...], mean)
    layer.set_attributes(BatchNorm, fixed=False)
    layer(x)
    assert not np.array_equal(layer.mean[...], mean)
    view = nnx.view(layer, use_running_average=True)
    assert view.use_running_average and not layer.use_running_average


def test_batch_norm_takes_bfloat16_and_computes_wider():
    x = np.random.default_rng(0).normal(20, 1, size=(256, 2)).astype(jnp.bfloat16)
    layer = BatchNorm(2, dtype=jnp.bfloat16, momentum=0.0)
    assert layer(x).dtype == jnp.bfloat16
    assert layer.mean[...].dtype == jnp.float32
    np.testing.assert_allclose(layer.mean[...], x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], x.astype(np.float64).var(0, ddof=1), rtol=1e-5)


def test_batch_norm_refuses():
    with pytest.raises(UserError, match="more than one value"):
        BatchNorm(4)(jnp.ones((1, 1, 1, 4)))
    with pytest.raises(UserError, match="groups=3 cannot divide a batch of 4"):
        BatchNorm(4, groups=3)(jnp.ones((4, 4)))


def test_many_batch_norms_trace_in_linear_time():
    # Counted in Python calls, which no load on the machine changes. Writing the statistics by index makes the
    # second ten layers half as expensive again as the first ten on jax 0.10, and so on for the next.
    def calls(count):
        graphdef, state = nnx.split(nnx.List([BatchNorm(4) for _ in range(count)]))

        def run(state, x):
            merged = nnx.merge(graphdef, state)
            for layer in merged:
                x = layer(x)
            return x.sum(), nnx.to_pure_dict(nnx.state(merged))

        total = 0

        def count_event(frame, event, arg):
            nonlocal total
            total += 1

        before = sys.getprofile()
        sys.setprofile(count_event)
        try:
            jax.make_jaxpr(jax.grad(run, has_aux=True, argnums=1))(
                nnx.to_pure_dict(state), jnp.ones((8, 4))
            )
        finally:
            sys.setprofile(before)
        return total

    calls(1)  # what only the first call does
    ten, twenty = calls(10), calls(20)
    assert twenty - ten < 1.2 * ten


# --- the forms for a CPU

CONV = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution_is_the_same_by_both_paths(stride):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.normal(size=(2, 7, 8, 5))), rng.normal(size=(1, 1, 5, 6))
        weights = rng.normal(size=(2, -(-7 // stride), 8 // stride, 6))

        def value(function):
            def f(x, kernel):
                y = function(x, kernel, (stride, stride), ((0, 0), (0, 0)), **CONV)
                return (weights * y**2).sum(), y

            return jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(x, jnp.asarray(kernel))

        ours, theirs = value(conv), value(lax.conv_general_dilated)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, theirs
        )


def lowered(function, platform, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    grad = jax.grad(lambda *args: function(*args).sum(), argnums=tuple(range(len(args))))
    return jax.jit(grad).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def test_fast_paths_are_for_cpus_only():
    def pointwise(x, kernel):
        return conv(x, kernel, (1, 1), "VALID", **CONV)

    shapes = (2, 8, 8, 4), (1, 1, 4, 4)
    assert "stablehlo.convolution" not in lowered(pointwise, "cpu", *shapes)
    assert "dot_general" not in lowered(pointwise, "tpu", *shapes)
    assert "stablehlo.convolution" in lowered(pointwise, "cuda", *shapes)

    def pool(x):
        return max_pool(x, 3, 2, 1) ** 2

    assert "select_and_scatter" not in lowered(pool, "cpu", shapes[0])
    assert "select_and_scatter" in lowered(pool, "tpu", shapes[0])


def test_other_convolutions_pass_through():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 4)), jnp.float32)
    for shape, padding, extra in [
        ((3, 3, 4, 4), ((1, 1), (1, 1)), {}),
        ((1, 1, 4, 4), ((1, 1), (1, 1)), {}),
        ((1, 1, 2, 4), "VALID", {"feature_group_count": 2}),
        ((1, 1, 4, 4), ((0, 0), (0, 0)), {"lhs_dilation": (2, 2)}),
    ]:
        kernel = jnp.asarray(rng.normal(size=shape), jnp.float32)
        arguments = (x, kernel, (1, 1), padding)
        ours = conv(*arguments, **CONV, **extra)
        np.testing.assert_array_equal(ours, lax.conv_general_dilated(*arguments, **CONV, **extra))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_max_pool_is_the_same_by_both_paths(dtype, window):
    # Small integers: full of ties, which must go to the first cell, and sums of gradients are exact.
    size, stride, pad = window
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == np.float64):
        x = jnp.asarray(rng.integers(-2, 3, size=(2, 9, 8, 3)).astype(dtype))

        def plain(x):
            pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
            shape, strides = (1, size, size, 1), (1, stride, stride, 1)
            return lax.reduce_window(x, -jnp.inf, lax.max, shape, strides, pads)

        y = plain(x)
        weights = jnp.asarray(rng.integers(1, 9, size=y.shape).astype(dtype))

        def value_and_gradient(pool):
            value, vjp = jax.vjp(pool, x)
            return value, *vjp(weights)

        ours = jax.jit(lambda: value_and_gradient(lambda x: max_pool(x, size, stride, pad)))()
        theirs = jax.jit(lambda: value_and_gradient(plain))()
        assert ours[1].dtype == dtype
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_max_pool_lets_nan_through():
    # The engine stops on NaN; it must not be hidden, wherever in the window it stands.
    x = jnp.zeros((1, 6, 6, 1)).at[0, 3, 3, 0].set(jnp.nan)
    covered = np.array([False, True, True])  # windows start at -1, 1, 3
    np.testing.assert_array_equal(
        jnp.isnan(max_pool(x, 3, 2, 1))[0, :, :, 0], covered & covered[:, None]
    )
