"""Crop boxes and whole views against torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.errors import UserError
from fgvc_jax.images.augment import eval_view, normalise, train_view
from fgvc_jax.images.batch import plain_views, random_views
from fgvc_jax.images.boxes import center_crop_box, erase_box, random_resized_crop_box
from fgvc_jax.images.view import View
from fgvc_jax.ops.crop import crop_resize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# (image, resize, crop): down, up, odd spares, long side cut by int(), crop larger than the image in
# one direction, in both, by odd amounts, very elongated.
GEOMETRIES = [
    ((240, 320), 128, 112),
    ((333, 250), 73, 64),
    ((57, 61), 128, 111),
    ((101, 67), 90, 83),
    ((60, 60), 50, 64),
    ((40, 200), 33, 64),
    ((200, 31), 61, 97),
    ((3, 380), 5, 32),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("hw", "resize", "size"), GEOMETRIES)
def test_eval_view_is_torchvision_resize_and_center_crop(
    transforms, photo, on_canvas, hw, resize, size, interpolation
):
    image = photo(*hw)
    mode = transforms.InterpolationMode(interpolation)
    ref = transforms.CenterCrop(size)(transforms.Resize(resize, mode)(image))
    canvas, valid = on_canvas(image, 400)
    view = View(size, resize, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation=interpolation)
    got = 255 * np.asarray(jax.jit(eval_view, static_argnums=2)(canvas, valid, view))
    error = np.abs(got - np.asarray(ref, np.float32))
    # Pillow rounds after each pass: 1 grey level for bilinear, bicubic's lobes enlarge the first
    # rounding (measured 1.6 here). A box off by one pixel would be off by tens.
    assert error.max() <= (1.01 if interpolation == "bilinear" else 2.0)


def test_normalise_is_torchvisions(transforms, photo):
    image = photo(32, 32)
    ref = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(image)
    got = normalise(jnp.asarray(image, jnp.float32), View(32, 32, MEAN, STD))
    np.testing.assert_allclose(got, ref.permute(1, 2, 0), atol=1e-5)  # float32


def our_boxes(h, w, scale, ratio, n, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    one = lambda key, h, w: random_resized_crop_box(key, h, w, scale, ratio)  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one, (0, None, None)))(keys, h, w), np.float64)


@pytest.mark.parametrize("hw", [(240, 320), (8, 8), (50, 120)])
def test_random_resized_crop_boxes_are_distributed_as_torchvisions(transforms, hw):
    import torch
    from scipy.stats import ks_2samp

    h, w = hw
    n, scale, ratio = 3000, (0.08, 1.0), (3 / 4, 4 / 3)
    ours = our_boxes(h, w, scale, ratio, n)
    torch.manual_seed(0)
    blank = torch.zeros(1, h, w)
    get = transforms.RandomResizedCrop.get_params
    theirs = np.array([get(blank, list(scale), list(ratio)) for _ in range(n)], float)
    assert (ours == np.round(ours)).all()
    top, left, bh, bw = ours.T
    assert (top >= 0).all() and (left >= 0).all() and (bh >= 1).all() and (bw >= 1).all()
    assert (top + bh <= h).all() and (left + bw <= w).all()
    measures = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom gap": lambda b: h - b[:, 0] - b[:, 2],
        "right gap": lambda b: w - b[:, 1] - b[:, 3],
    }
    for name, measure in measures.items():
        # Fixed seeds, so this is no lottery; a p-value under 1e-3 means another distribution.
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3, name


@pytest.mark.parametrize("hw", [(20, 400), (400, 20), (37, 41)])
def test_crops_that_never_fit_fall_back_to_torchvisions_central_one(transforms, hw):
    import torch

    # More than the whole image is asked for, so no try fits.
    scale, ratio = (1.5, 2.0), (3 / 4, 4 / 3)
    ref = transforms.RandomResizedCrop.get_params(torch.zeros(1, *hw), list(scale), list(ratio))
    for box in our_boxes(*hw, scale, ratio, 3):
        np.testing.assert_array_equal(box, ref)


def test_one_pixel_wide_image_still_gives_a_crop():
    _, left, h, w = our_boxes(1, 300, (0.08, 1.0), (3 / 4, 4 / 3), 5).T
    assert (h == 1).all() and (w == 1).all() and (left + w <= 300).all()


def test_center_crop_box_is_in_source_pixels():
    box = center_crop_box(np.array([100, 200]), np.array([50, 100]), 40)
    np.testing.assert_allclose(box, [10, 60, 80, 80])


def test_train_view_is_its_box_and_flip_then_normalised(photo, on_canvas):
    image = photo(60, 80)
    canvas, hw = on_canvas(image, 80)
    view = View(24, 28, MEAN, STD)
    views = jax.jit(jax.vmap(lambda k: train_view(k, canvas, hw, view)))
    keys = jax.random.split(jax.random.key(3), 64)
    got = np.asarray(views(keys))
    flipped = 0
    boxes = jax.jit(random_resized_crop_box, static_argnums=(3, 4))
    resize = jax.jit(lambda box: normalise(crop_resize(canvas, box, 24, valid_hw=hw), view))
    for key, x in zip(keys[:16], got[:16], strict=True):
        box = boxes(jax.random.fold_in(key, 0), 60, 80, view.crop_scale, view.crop_ratio)
        plain = np.asarray(resize(box))
        errors = [np.abs(x - plain).max(), np.abs(x - plain[:, ::-1]).max()]
        assert min(errors) < 1e-4  # float32, one way or the other
        flipped += errors[1] < errors[0]
    assert 3 <= flipped <= 13  # 16 fair coins, at a fixed seed
    np.testing.assert_array_equal(got[5], np.asarray(views(keys))[5])  # a draw is its key's
    assert got.dtype == np.float32


def test_flip_probability_zero_and_one(photo, on_canvas):
    canvas, hw = on_canvas(photo(40, 40), 40)
    # Scale 1 and ratio 1 leave the whole image.
    whole = View(40, 40, MEAN, STD, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    keys = jax.random.split(jax.random.key(0), 8)
    views = jax.jit(jax.vmap(train_view, (0, None, None, None)), static_argnums=3)
    never = views(keys, canvas, hw, whole)
    always = views(keys, canvas, hw, whole._replace(flip=1.0))
    plain = normalise(jnp.asarray(canvas, jnp.float32), whole)
    np.testing.assert_allclose(never, jnp.broadcast_to(plain, never.shape), atol=1e-4)
    np.testing.assert_allclose(always, never[:, :, ::-1], atol=1e-4)


# Random erasing

ERASE_SCALES = [
    ((0.02, 1 / 3), (0.3, 1 / 0.3)),
    ((0.5, 1.2), (0.5, 2.0)),
]  # the second often fits nowhere


@pytest.mark.parametrize(("scale", "ratio"), ERASE_SCALES)
def test_erased_rectangles_are_distributed_as_torchvisions(transforms, scale, ratio):
    import torch
    from scipy.stats import ks_2samp

    side, n = 40, 3000
    keys = jax.random.split(jax.random.key(0), n)
    ours = np.asarray(jax.jit(jax.vmap(lambda key: erase_box(key, side, scale, ratio)))(keys))
    torch.manual_seed(0)
    blank = torch.zeros(1, side, side)
    get = transforms.RandomErasing.get_params
    found = [get(blank, scale, ratio, [0.0])[:4] for _ in range(n)]
    # Where none of ten tries fits torchvision names the whole image and puts back what was there.
    theirs = np.array([(0, 0, 0, 0) if box[2:] == (side, side) else box for box in found], float)
    assert (ours == np.round(ours)).all() and (ours >= 0).all() and (ours[:, 2:] < side).all()
    assert (ours[:, :2] + ours[:, 2:] <= side).all()
    for column, name in enumerate(("top", "left", "height", "width")):
        # Fixed seeds, so this is no lottery; a p-value under 1e-3 means another distribution.
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, name
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3


def test_erasing_puts_noise_or_zero_in_a_rectangle_and_moves_no_other_draw(photo, on_canvas):
    canvas, hw = on_canvas(photo(40, 40), 40)
    view = View(32, 32, MEAN, STD)
    views = jax.jit(jax.vmap(train_view, (0, None, None, None)), static_argnums=3)
    keys = jax.random.split(jax.random.key(0), 64)
    plain = np.asarray(views(keys, canvas, hw, view))
    noise, noise_twice = (
        np.asarray(views(keys, canvas, hw, view._replace(erase=0.5))) for _ in range(2)
    )
    zero = np.asarray(views(keys, canvas, hw, view._replace(erase=0.5, erase_mode="const")))
    np.testing.assert_array_equal(noise, noise_twice)
    erased = (noise != plain).all(-1)
    values = noise[erased]
    used = erased.any((1, 2))
    assert 18 <= used.sum() <= 46  # 64 fair coins, sd 4, at a fixed seed
    for k in np.flatnonzero(used):
        rows, columns = np.flatnonzero(erased[k].any(1)), np.flatnonzero(erased[k].any(0))
        inside = np.zeros((32, 32), bool)
        inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_array_equal(erased[k], inside)
        assert 0.5 * 0.02 <= inside.mean() <= 1.2 / 3  # sides are rounded to pixels
    # Thousands of standard normal numbers: mean 0 and deviation 1 within a few hundredths.
    assert len(values) > 1000 and abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05
    assert len(np.unique(values)) > 0.99 * values.size  # each pixel and channel its own
    np.testing.assert_array_equal(zero, np.where(erased[..., None], 0, plain))


def test_unknown_choices_of_a_view_are_named(photo, on_canvas):
    canvas, hw = on_canvas(photo(40, 40), 40)
    view = View(8, 8, MEAN, STD)
    for change, message in (
        ({"erase_mode": "rand"}, r"erase_mode = 'rand' is unknown.* Known: const, pixel"),
        ({"crop": "randomresized"}, r"did you mean 'random_resized'"),
        ({"augment": "auto-augment"}, r"did you mean 'auto_augment'"),
    ):
        with pytest.raises(UserError, match=message):
            train_view(jax.random.key(0), canvas, hw, view._replace(**change))


def test_views_in_float64_do_not_depend_on_the_batch():
    """What another number of devices makes of a batch: in float32 sums come out in another order."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 1, 40, 36, 3), np.uint8)
    sizes = np.full((12, 1, 2), (40, 36), np.int32)
    view = View(32, 32, (0.5,) * 3, (0.25,) * 3, "bilinear", (0.3, 1.0), (0.75, 4 / 3), 0.5)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 12)
        draw = jax.jit(lambda *batch: random_views(*batch, view, jnp.float64))
        plain = jax.jit(lambda *batch: plain_views(*batch, view, jnp.float64))
        for whole, part in ((draw, (keys, pixels, sizes)), (plain, (pixels, sizes))):
            expected = np.asarray(whole(*part))
            for parts in (3, 4, 12):
                cut = [whole(*(x[n::parts] for x in part)) for n in range(parts)]
                for n, found in enumerate(cut):
                    # Values of some units; their last bits are 1e-16 of them.
                    np.testing.assert_allclose(found, expected[n::parts], atol=1e-13, rtol=0)
