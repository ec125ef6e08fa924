"""crop_resize against Pillow, through a canvas that is larger than the image."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgvc_jax.ops import crop

crop_resize = jax.jit(crop.crop_resize, static_argnames=("out", "clamp", "interpolation"))
OUT, CANVAS = 48, 320
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pillow rounds to whole grey levels after each of its two passes: 1/2 + 1/2 for bilinear. The
# negative lobes of bicubic enlarge the first rounding, most where a border cuts the kernel
# (measured: 3.5 over some hundred boxes, mean 0.3).
BOUNDS = {"bilinear": 1.01, "bicubic": 4.0}


def photos():
    here = Path(__file__).resolve().parents[2] / "../shared/data/produce31"
    files = sorted(Path(os.environ.get("FGVC_PRODUCE31", here)).glob("train/*/*.jpg"))[::250]
    return [Image.open(f).convert("RGB") for f in files]


def synthetic():
    """A smooth image with noise and hard edges, wider than high."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:170, :310] / 40
    smooth = 128 + 90 * np.stack([np.sin(x * y), np.cos(x - y), np.sin(x + 2 * y)], -1)
    pixels = smooth + rng.normal(0, 12, smooth.shape)
    pixels[40:60, 100:220] = (255, 0, 255)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def on_canvas(image, fill=0):
    pixels = np.asarray(image)
    h, w = pixels.shape[:2]
    canvas = np.full((CANVAS, CANVAS, 3), fill, np.uint8)
    canvas[:h, :w] = pixels
    return canvas, np.array([h, w], np.int32)


def boxes(h, w, rng):
    """Whole image, the four corners, a row, a pixel, and some anywhere."""
    yield from [(0, 0, h, w), (0, 0, 30, 20), (0, w - 20, 70, 20), (h - 61, 0, 61, 99)]
    yield from [(h - 13, w - 17, 13, 17), (h - 1, 0, 1, w), (5, w - 1, 1, 1)]
    for _ in range(8):
        bh, bw = rng.integers(1, h + 1), rng.integers(1, w + 1)
        yield rng.integers(0, h - bh + 1), rng.integers(0, w - bw + 1), bh, bw


@pytest.mark.parametrize("clamp", ["box", "image"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equals_pillow_for_any_box_with_one_compilation(interpolation, clamp):
    @jax.jit
    def ours(canvas, box, hw, flip):
        return crop.crop_resize(
            canvas, box, OUT, valid_hw=hw, clamp=clamp, interpolation=interpolation, flip=flip
        )

    rng = np.random.default_rng(1)
    for image in [synthetic(), *photos()]:
        # What lies beyond the image must not leak in: here it is glaring white.
        canvas, (h, w) = on_canvas(image, fill=255)
        for k, (y, x, bh, bw) in enumerate(boxes(h, w, rng)):
            flip = k % 2 == 1
            if clamp == "box":
                ref = image.crop((x, y, x + bw, y + bh)).resize((OUT, OUT), FILTERS[interpolation])
            else:
                ref = image.resize((OUT, OUT), FILTERS[interpolation], box=(x, y, x + bw, y + bh))
            if flip:
                ref = ref.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            box = np.array([y, x, bh, bw], np.float32)
            got = np.asarray(ours(canvas, box, np.array([h, w]), flip))
            error = np.abs(got - np.asarray(ref, np.float32))
            assert error.max() <= BOUNDS[interpolation], (interpolation, clamp, (y, x, bh, bw))
            assert error.mean() < 0.4  # a rounding's mean is 1/4, two give about 0.3
            assert got.min() >= 0 and got.max() <= 255.001
    assert ours._cache_size() == 1


def test_box_and_image_clamping_differ_where_the_kernel_reaches_over():
    canvas, hw = on_canvas(synthetic())
    box = np.array([50, 110, 64, 90], np.float32)
    inner = crop_resize(canvas, box, 16, valid_hw=hw, clamp="box")
    outer = crop_resize(canvas, box, 16, valid_hw=hw, clamp="image")
    assert np.abs(inner - outer)[0].max() > 1 or np.abs(inner - outer)[:, 0].max() > 1
    np.testing.assert_allclose(inner[4:12, 4:12], outer[4:12, 4:12], atol=1e-3)


def test_fractional_box_equals_pillow_with_the_whole_image_readable():
    image = synthetic()
    canvas, hw = on_canvas(image)
    y, x, bh, bw = 20.25, 31.5, 100.125, 77.75
    ref = image.resize((OUT, OUT), Image.Resampling.BILINEAR, box=(x, y, x + bw, y + bh))
    got = crop_resize(canvas, np.array([y, x, bh, bw]), OUT, valid_hw=hw, clamp="image")
    assert np.abs(got - np.asarray(ref, np.float32)).max() <= BOUNDS["bilinear"]


def test_degenerate_and_outside_boxes_give_pixels_or_black_never_nan():
    canvas, hw = on_canvas(synthetic())
    point = crop_resize(canvas, np.array([7.0, 9.0, 0.0, 0.0]), 4, valid_hw=hw, clamp="box")
    np.testing.assert_allclose(point, np.broadcast_to(canvas[7, 9], (4, 4, 3)), atol=1e-3)
    for clamp in ("box", "image"):
        beyond = crop_resize(canvas, np.array([500.0, 500.0, 9, 9]), 4, valid_hw=hw, clamp=clamp)
        np.testing.assert_array_equal(beyond, 0)


def test_gradient_is_the_transpose_of_the_linear_map():
    rng = np.random.default_rng(2)
    hw, box = np.array([30, 25]), np.array([3.0, 4.0, 20.0, 11.0])

    def f(canvas):
        return crop_resize(canvas, box, 8, valid_hw=hw)

    x = rng.uniform(0, 255, (32, 32, 3)).astype(np.float32)
    g = rng.normal(size=(8, 8, 3)).astype(np.float32)
    _, back = jax.vjp(f, jnp.asarray(x))
    # <g, f(x)> = <f'(g), x>; 1e-5 relative is float32 summation.
    np.testing.assert_allclose((g * f(x)).sum(), (back(g)[0] * x).sum(), rtol=1e-5)


def test_bfloat16_canvas_is_computed_in_float32_and_batches():
    canvas, hw = on_canvas(synthetic())
    box = np.array([[0, 0, 100, 100], [30, 40, 50, 60]], np.float32)
    batched = jax.vmap(lambda b: crop_resize(canvas, b, 16, valid_hw=hw))(box)
    assert batched.dtype == jnp.float32
    one = crop_resize(jnp.asarray(canvas, jnp.bfloat16), box[1], 16, valid_hw=hw)
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, batched[1], atol=1e-3)  # bfloat16 holds 0..255 exactly
