"""crop_align_corners against torch's interpolate of the sliced crop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.ops.align_corners import crop_align_corners

torch = pytest.importorskip("torch", reason="the reference is torch's interpolate")

HEIGHT, WIDTH = 23, 31
IMAGE = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3))


def theirs(image, box, out):
    r0, c0, r1, c1 = box
    crop = torch.tensor(image[r0 : r1 + 1, c0 : c1 + 1]).permute(2, 0, 1)[None]
    crop = torch.nn.functional.interpolate(crop, (out, out), mode="bilinear", align_corners=True)
    return crop[0].permute(1, 2, 0).numpy()


def boxes():
    """The whole image, a pixel, a row, a column, and some anywhere."""
    yield from [(0, 0, HEIGHT - 1, WIDTH - 1), (7, 9, 7, 9), (5, 2, 5, 30), (0, 30, 22, 30)]
    rng = np.random.default_rng(1)
    for _ in range(20):
        r0, c0 = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        yield r0, c0, rng.integers(r0, HEIGHT), rng.integers(c0, WIDTH)


@pytest.mark.parametrize("out", [1, 2, 16, 40])
def test_equals_torch_for_any_box_with_one_compilation(out):
    with jax.enable_x64(True):
        ours = jax.jit(lambda image, box: crop_align_corners(image, box, out))
        for box in boxes():
            found = ours(IMAGE, np.array(box))
            assert found.dtype == jnp.float64
            # float64: coordinates round at 1e-15 of 31 pixels, values are around 1.
            np.testing.assert_allclose(found, theirs(IMAGE, box, out), rtol=0, atol=1e-12)
        assert ours._cache_size() == 1


def test_float32_and_bfloat16_are_computed_in_float32():
    box = (3, 4, 20, 29)
    expected = theirs(IMAGE, box, 40)
    found = crop_align_corners(IMAGE.astype(np.float32), np.array(box), 40)
    assert found.dtype == jnp.float32
    # A coordinate of up to 31 rounds at 2e-6, where the image rises by up to 5 a pixel.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)
    rough = crop_align_corners(jnp.asarray(IMAGE, jnp.bfloat16), np.array(box), 40)
    exact = theirs(np.asarray(jnp.asarray(IMAGE, jnp.bfloat16), np.float64), box, 40)
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, rtol=0, atol=3e-5)


def test_a_batch_is_vmapped_over_images_and_boxes():
    some = np.array(list(boxes()))[:3]
    images = np.stack([IMAGE, 2 * IMAGE, IMAGE[::-1]]).astype(np.float32)
    found = jax.vmap(lambda image, box: crop_align_corners(image, box, 8))(images, some)
    for image, box, crop in zip(images, some, found, strict=True):
        np.testing.assert_allclose(crop, theirs(image, box, 8), rtol=0, atol=3e-5)


def test_the_gradient_is_torchs():
    box, out = (3, 4, 20, 29), 9
    weight = np.random.default_rng(2).normal(size=(out, out, 3))
    image = torch.tensor(IMAGE, requires_grad=True)
    crop = image[3:21, 4:30].permute(2, 0, 1)[None]
    crop = torch.nn.functional.interpolate(crop, (out, out), mode="bilinear", align_corners=True)
    (crop[0].permute(1, 2, 0) * torch.tensor(weight)).sum().backward()
    with jax.enable_x64(True):
        found = jax.grad(
            lambda image: (crop_align_corners(image, np.array(box), out) * weight).sum()
        )(jnp.asarray(IMAGE))
    np.testing.assert_allclose(found, image.grad, rtol=0, atol=1e-12)


def test_a_box_outside_the_image_is_black_not_nan():
    found = crop_align_corners(IMAGE.astype(np.float32), np.array([90, 90, 99, 99]), 4)
    np.testing.assert_array_equal(found, 0)
