"""Augmentations on whole images against torchvision on Pillow images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgvc_jax.images import operations
from fgvc_jax.images.augment import train_view
from fgvc_jax.images.colour import colour_jitter, gaussian_blur
from fgvc_jax.images.operations import Op, apply
from fgvc_jax.images.policies import AUTO, TRIVIAL, auto_augment, trivial_augment
from fgvc_jax.images.view import View

# The names of torchvision, in the order of Op.
NAMES = [
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness"),
    *("Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
    "Invert",
]


ours = jax.jit(apply)


def compare(image, op, magnitude, autoaugment):
    from torchvision.transforms import InterpolationMode

    ref = autoaugment._apply_op(
        image, NAMES[op], float(magnitude), InterpolationMode.NEAREST, fill=None
    )
    got = np.asarray(ours(np.asarray(image, np.float32), op, np.float32(magnitude)))
    assert got.dtype == np.float32 and (got == np.round(got)).all()
    return np.abs(got - np.asarray(ref, np.float32))


@pytest.mark.parametrize("op", list(Op), ids=NAMES)
def test_every_operation_at_every_strength_is_torchvisions(autoaugment, image, op):
    magnitudes = TRIVIAL[op] if op < len(TRIVIAL) else np.zeros(1)
    signs = (1, -1) if op <= Op.SHARPNESS else (1,)
    for magnitude in np.unique(np.outer(signs, magnitudes)):
        error = compare(image, op, magnitude, autoaugment)
        if op in (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y):
            # Nearest neighbour: the same pixel or, where float32 puts a border of a source pixel
            # on the other side than float64, its neighbour (measured: 3 of 10,000 pixels).
            assert (error.max(-1) > 0).mean() < 1e-3, magnitude
        elif op in (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS):
            assert error.max() <= 1, magnitude  # cut to whole levels after a float32 product
            assert (error > 0).mean() < 0.01, magnitude
        elif op == Op.AUTO_CONTRAST:
            # Pillow's float64 may fall just short of a result that is a whole number, and cuts it off.
            pixels = np.asarray(image, int)
            low, high = pixels.min((0, 1)), pixels.max((0, 1))
            whole = (pixels - low) * 255 % (high - low) == 0
            assert error[~whole].max() == 0 and error.max() <= 1
        else:
            assert error.max() == 0, magnitude


def test_operations_on_images_without_contrast_or_few_levels(autoaugment):
    flat = Image.new("RGB", (20, 11), (7, 0, 255))
    pixels = np.asarray(flat).copy()
    pixels[0, 0] = (8, 255, 0)
    noise = np.random.default_rng(0).integers(100, 102, (30, 20, 3), np.uint8)
    for picture in (flat, Image.fromarray(pixels), Image.fromarray(noise)):
        for op in (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.CONTRAST, Op.SHARPNESS):
            assert compare(picture, op, 0.5, autoaugment).max() <= 1


def test_one_compilation_serves_all_operations(image):
    compiled = jax.jit(lambda *a: apply(*a))  # a cache of its own
    for op in Op:
        compiled(np.asarray(image, np.float32), int(op), np.float32(0.5))
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("op", list(Op), ids=NAMES)
def test_on_a_canvas_only_the_valid_part_counts(image, op):
    pixels = np.asarray(image)
    h, w = pixels.shape[:2]
    canvas = np.full((90, 80, 3), 255, np.uint8)  # what lies beyond must not matter
    canvas[:h, :w] = pixels
    magnitude = np.float32(TRIVIAL[op, 13] if op < len(TRIVIAL) else 0)
    alone = ours(pixels.astype(np.float32), int(op), magnitude)
    inside = ours(canvas, int(op), magnitude, np.array([h, w]))[:h, :w]
    np.testing.assert_array_equal(alone, inside)


def test_both_ways_of_counting_agree_with_numpy(image):
    x = np.asarray(image)
    expected = np.stack([np.bincount(x[..., c].ravel(), minlength=256) for c in range(3)], -1)
    np.testing.assert_array_equal(operations._count_by_adding(jnp.asarray(x)), expected)
    np.testing.assert_array_equal(operations._count_by_comparing(jnp.asarray(x)), expected)


def test_strengths_are_torchvisions(autoaugment):
    space = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    for op in range(14):
        magnitudes, signed = space[NAMES[op]]
        # float32; torch's linspace is an ulp off in places
        np.testing.assert_allclose(
            TRIVIAL[op], np.broadcast_to(magnitudes.numpy(), 31), rtol=1e-6, atol=2e-5
        )
        assert signed == (Op.IDENTITY < op <= Op.SHARPNESS)


def test_policy_is_torchvisions_imagenet_policy(autoaugment):
    module = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.IMAGENET)
    space = module._augmentation_space(10, (224, 224))
    for row, pair in zip(AUTO, module.policies, strict=True):
        for (op, share, magnitude), (name, p, level) in zip(row, pair, strict=True):
            assert NAMES[int(op)] == name and np.float32(p) == share
            expected = float(space[name][0][level]) if level is not None else 0.0
            np.testing.assert_allclose(magnitude, expected, rtol=1e-6, atol=2e-5)


def test_trivial_augment_draws_every_operation_strength_and_sign_alike(image, monkeypatch):
    drawn = jax.jit(jax.vmap(lambda key: _record(monkeypatch, trivial_augment, key)))
    ops, magnitudes = map(np.asarray, drawn(jax.random.split(jax.random.key(0), 4000)))
    # Binomial(4000, 1/14): 286, sd 16; 4.5 sd at a fixed seed.
    counts = np.bincount(ops, minlength=14)
    assert counts.shape == (14,) and np.abs(counts - 286).max() < 73
    rotations = magnitudes[ops == Op.ROTATE]
    assert len(np.unique(np.abs(rotations))) == 31 and 100 < (rotations < 0).sum() < 186
    assert (magnitudes[ops >= Op.POSTERIZE] >= 0).all()


def _record(monkeypatch, policy, key, **more):
    """(op, magnitude) that a policy would apply."""
    import fgvc_jax.images.policies as module

    calls = []
    monkeypatch.setattr(
        module, "apply", lambda image, op, magnitude, hw: calls.append((op, magnitude)) or image
    )
    policy(key, None, **more)
    return calls[0] if len(calls) == 1 else calls


def test_probability_of_augmenting(monkeypatch):
    keys = jax.random.split(jax.random.key(1), 2000)
    half = jax.jit(
        jax.vmap(lambda key: _record(monkeypatch, trivial_augment, key, probability=0.5)[0])
    )
    # Identity by itself has 1/14: 1/2 + 1/28 = 0.536, sd 0.011.
    assert abs((np.asarray(half(keys)) == Op.IDENTITY).mean() - 0.536) < 0.05
    never = jax.jit(
        jax.vmap(lambda key: _record(monkeypatch, auto_augment, key, probability=0.0)[0][0])
    )
    assert (np.asarray(never(keys)) == Op.IDENTITY).all()


def test_auto_augment_draws_operations_as_often_as_torchvisions_rule(monkeypatch):
    keys = jax.random.split(jax.random.key(2), 6000)
    (first, m1), (second, m2) = jax.jit(
        jax.vmap(lambda key: tuple(_record(monkeypatch, auto_augment, key)))
    )(keys)
    for slot, (ops, magnitudes) in enumerate([(first, m1), (second, m2)]):
        ops, magnitudes = np.asarray(ops), np.asarray(magnitudes)
        expected = np.zeros(15)
        for row in AUTO[:, slot]:
            expected[int(row[0])] += row[1] / 25
            expected[0] += (1 - row[1]) / 25
        # sd at most 0.0065; 4.5 of them
        assert np.abs(np.bincount(ops, minlength=15) / 6000 - expected).max() < 0.03
        assert (magnitudes[ops > Op.SHARPNESS] >= 0).all()
        assert (magnitudes[ops == Op.ROTATE] < 0).any()


# In the view


view_of = jax.jit(train_view, static_argnums=3)
WHOLE = View(48, 48, (0.0,) * 3, (1 / 255,) * 3, crop_scale=(1, 1), crop_ratio=(61 / 74, 61 / 74))


@pytest.mark.parametrize("name", ["trivial_augment_wide", "auto_augment"])
def test_augment_after_the_crop_is_the_policy_on_the_crop(image, on_canvas, name):
    canvas, hw = on_canvas(image, 80)
    policy = jax.jit({"trivial_augment_wide": trivial_augment, "auto_augment": auto_augment}[name])
    for k in range(3):
        key = jax.random.key(k)
        plain = view_of(key, canvas, hw, WHOLE)
        got = view_of(key, canvas, hw, WHOLE._replace(augment=name))
        expected = policy(jax.random.fold_in(key, 2), plain)
        np.testing.assert_allclose(got, expected, atol=1.01)  # a half rounded to either side


def test_probability_zero_leaves_the_crop_and_the_flip(image, on_canvas):
    """The draws of the policy are of another purpose: crop and flip are the same with and without."""
    canvas, hw = on_canvas(image, 80)
    never = WHOLE._replace(augment="trivial_augment_wide", augment_probability=0.0)
    for k in range(3):
        plain = view_of(jax.random.key(k), canvas, hw, WHOLE)
        off = view_of(jax.random.key(k), canvas, hw, never)
        np.testing.assert_allclose(off, plain, atol=0.501)  # rounded to whole levels


def test_augment_first_is_the_policy_on_the_image(image, on_canvas):
    canvas, hw = on_canvas(image, 80)
    x = np.asarray(image, np.float32)
    view = WHOLE._replace(augment="trivial_augment_wide", augment_first=True)
    policy = jax.jit(trivial_augment)
    for k in range(4):
        key = jax.random.key(k)
        augmented = np.zeros((80, 80, 3), np.uint8)  # which whole levels fit
        augmented[: x.shape[0], : x.shape[1]] = policy(jax.random.fold_in(key, 2), x)
        expected = view_of(key, augmented, hw, WHOLE)
        np.testing.assert_allclose(view_of(key, canvas, hw, view), expected, atol=1e-3)


def test_jitter_blur_and_sharpness_follow_in_this_order(image, on_canvas):
    canvas, hw = on_canvas(image, 80)
    key = jax.random.key(0)
    jitter = (0.2, 0.0, 0.0, 0.0)
    plain = np.round(np.asarray(view_of(key, canvas, hw, WHOLE)))

    @jax.jit
    def expected(x):
        x = colour_jitter(jax.random.fold_in(key, 3), x, jitter)
        return apply(gaussian_blur(x, 2.0), Op.SHARPNESS, 0.5)

    always = WHOLE._replace(jitter=jitter, blur=1.0, blur_sigma=(2.0, 2.0), sharpen=1.0)
    got = view_of(key, canvas, hw, always)
    assert np.abs(expected(plain) - plain).max() > 20
    # A half rounded to either side, by all three
    np.testing.assert_allclose(got, expected(plain), atol=2.01)
    hardly_ever = WHOLE._replace(blur=1e-9, sharpen=1e-9)
    np.testing.assert_allclose(view_of(key, canvas, hw, hardly_ever), plain, atol=0.501)


def test_views_stay_float32_where_jax_is_set_to_64_bits(image, on_canvas):
    canvas, hw = on_canvas(image, 80)
    everything = WHOLE._replace(
        interpolation="bicubic",
        augment="auto_augment",
        jitter=(0.1,) * 4,
        blur=0.5,
        sharpen=0.5,
        erase=0.5,
    )
    with jax.enable_x64(True):
        view = jax.eval_shape(lambda k: train_view(k, canvas, hw, everything), jax.random.key(0))
    assert view.dtype == jnp.float32 and view.shape == (48, 48, 3)


def test_temporary_memory_of_a_batch_is_a_few_images(image):
    side, batch = 96, 8
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    for policy in (trivial_augment, auto_augment):
        compiled = jax.jit(jax.vmap(policy)).lower(keys, images).compile()
        used = compiled.memory_analysis().temp_size_in_bytes
        # Fourteen branches under vmap would need fourteen float images at least; measured 3.6.
        assert used < 5 * batch * side * side * 3 * 4
