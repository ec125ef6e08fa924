"""The named resize protocols against their torchvision pipelines, on a real photo where there is one."""

import functools

import jax
import numpy as np
import pytest

from fgvc_jax import config as configs
from fgvc_jax.context.models import make_view
from fgvc_jax.errors import UserError
from fgvc_jax.images import protocols
from fgvc_jax.images.augment import eval_view, train_view
from fgvc_jax.images.boxes import random_crop_box

# Pillow rounds to whole grey levels after each of its two passes; bilinear weights never leave the range. A
# box off by one pixel would be off by tens.
BOUND = 1.01


class Wants:
    """What a backbone's weights want."""

    size, crop_fraction, interpolation = 224, 0.875, "bilinear"
    mean, std = (0.0,) * 3, (1.0,) * 3


def view_of(name):
    config = configs.base()
    config.image.protocol = name
    config.image.flip = 0.0
    view = make_view(protocols.apply(config).image, Wants)
    return view._replace(mean=Wants.mean, std=Wants.std)  # grey levels are compared


def resize_of(transforms, name):
    """The first transform of each pipeline as their authors wrote it, then the crop's pad and size."""
    pipelines = {
        "finenet224": (256, 0, 224),
        "finenet384": (512, 0, 384),
        "fgvc448": ((550, 550), 8, 448),
        "mmal448": ((448, 448), 0, 448),
        "pim384": ((510, 510), 0, 384),
        "pim448": ((600, 600), 0, 448),
        "bcnn448": (448, 0, 448),
        "shorter512_448": (512, 0, 448),
        "squash300x323_224": ((300, 323), 0, 224),
        "squash260_224": ((260, 260), 0, 224),
    }
    size, pad, crop = pipelines[name]
    return transforms.Resize(size), pad, crop


# 'timm' says nothing but the default.
@pytest.mark.parametrize("name", [name for name in protocols.PROTOCOLS if name != "timm"])
def test_protocol_is_its_torchvision_pipeline(transforms, photo, on_canvas, name):
    resize, pad, crop = resize_of(transforms, name)
    view = view_of(name)
    assert view.size == crop
    image = photo(333, 250)
    canvas, hw = on_canvas(image, 400)

    ref = np.asarray(transforms.CenterCrop(crop)(resize(image)), np.float32)
    got = 255 * np.asarray(jax.jit(eval_view, static_argnums=2)(canvas, hw, view))
    assert np.abs(got - ref).max() <= BOUND
    if view.crop == "random_resized":
        return  # of any size, where `resize` plays no part; compared with torchvision in test_augment.py

    train = jax.jit(train_view, static_argnums=3)
    box = jax.jit(functools.partial(random_crop_box, view=view))
    resized = resize(image)
    padded = transforms.Pad(pad)(resized)
    corners = []
    for number in range(4):
        key = jax.random.key(number)
        # The box is in pixels of the photo: back to those of the resized and padded image.
        top, left, height, width = np.asarray(box(jax.random.fold_in(key, 0), hw), np.float64)
        scale = np.array([resized.height, resized.width]) / hw
        corner = np.array([top, left]) * scale + pad
        np.testing.assert_allclose(np.array([height, width]) * scale, crop, rtol=1e-5)
        np.testing.assert_allclose(corner, np.round(corner), atol=1e-3)
        y, x = np.round(corner).astype(int)
        assert 0 <= y <= padded.height - crop and 0 <= x <= padded.width - crop
        ref = np.asarray(padded.crop((x, y, x + crop, y + crop)), np.float32)
        got = 255 * np.asarray(train(key, canvas, hw, view))
        assert np.abs(got - ref).max() <= BOUND
        corners.append((y, x))
    if name == "mmal448":
        assert set(corners) == {(0, 0)}
    else:
        assert len(set(corners)) > 1


def test_random_crops_are_uniform_over_every_place():
    view = view_of("fgvc448")._replace(size=3, squash=(5, 4), crop_pad=1)
    boxes = jax.vmap(lambda key: random_crop_box(key, np.array([10, 8]), view))
    found = np.asarray(boxes(jax.random.split(jax.random.key(0), 6000)))[:, :2] / 2
    places, counts = np.unique(found, axis=0, return_counts=True)
    expected = [(y, x) for y in range(-1, 4) for x in range(-1, 3)]
    assert [tuple(p) for p in places.tolist()] == expected
    # 300 each: the standard deviation is 17, and of 20 counts one at 5 of them is no chance.
    assert np.abs(counts - 300).max() < 85


def test_a_key_that_was_set_stays():
    config = configs.base()
    config.image.protocol = "fgvc448"
    config.image.size = 384
    applied = protocols.apply(config)
    assert (applied.image.size, applied.image.squash) == (384, (550, 550))
    assert config.image.squash == ()  # the caller's own config is left alone
    config.image.protocol = "fgvc"
    with pytest.raises(UserError, match="did you mean 'fgvc448'"):
        protocols.apply(config)


def test_normalisation_is_the_protocols_where_it_has_one():
    config = configs.base()
    for name, mean, std in (("fgvc448", 0.5, 0.5), ("pim384", 0.0, 1.0)):
        config.image.protocol = name
        view = make_view(protocols.apply(config).image, Wants)
        assert (view.mean, view.std) == ((mean,) * 3, (std,) * 3)
    config.image.protocol, config.image.mean = "fgvc448", (0.1, 0.2, 0.3)
    assert make_view(protocols.apply(config).image, Wants).mean == (0.1, 0.2, 0.3)
