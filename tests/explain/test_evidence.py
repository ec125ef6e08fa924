"""What methods say they have picked out of an image is what they use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax import contract
from fgvc_jax.errors import UserError
from fgvc_jax.explain import draw
from fgvc_jax.methods import baseline
from fgvc_jax.methods.mmal import crop

SIZE = 64
BODY = {"width": 8, "depths": (1, 1, 1, 2)}
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(rng.normal(size=(3, SIZE, SIZE, 3)), jnp.float32)


def make(method, **arguments):
    return contract.make(method, arguments, "resnet18", BODY, SIZE)


def test_mmal_parts_lie_where_the_object_shows_them(images):
    module = make("mmal", windows="2 of 1x1, 1 of 1x2 2x1")
    found = jax.jit(module.evidence)(images)
    box = np.asarray(found["object"][:, 0])
    maps = jax.jit(lambda x: module.backbone(x, taps=module.taps).maps)
    np.testing.assert_array_equal(box, module.find_object(maps(images)))
    parts = np.asarray(found["parts"])
    assert parts.shape == (3, 3, 4) and parts.dtype == np.int32
    inside = module.find_parts(maps(crop(images, box, SIZE)))
    # An image of its own coordinates says where the object's pixels come from.
    where = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1)
    objects = np.asarray(crop(jnp.broadcast_to(where, (3, SIZE, SIZE, 2)), box, SIZE))
    for n in range(3):
        for part, of_image in zip(np.asarray(inside)[n], parts[n], strict=True):
            expected = [objects[n, part[0], part[1]], objects[n, part[2], part[3]]]
            np.testing.assert_allclose(of_image.reshape(2, 2), expected, atol=0.51)
    assert (box[:, 2:] - box[:, :2] < SIZE - 1).any()  # some object is less than the image


def test_cmal_boxes_are_those_of_its_prediction(images):
    module = make("cmal", hidden=8, width=16)
    found = jax.jit(module.evidence)(images)
    boxes = jax.jit(module.predict)(images)["boxes"]
    np.testing.assert_array_equal(
        np.concatenate([found["experts"], found["together"]], 1), np.asarray(boxes)
    )
    assert found["experts"].shape == (3, 3, 4)


def test_pim_tokens_are_those_it_is_surest_of(images):
    selects = (32, 16, 4, 1)
    module = make("pim", width=16, num_selects=selects)
    found = jax.jit(module.evidence)(images)
    levels, _, _ = jax.jit(module.heads)(images)
    assert [name.removeprefix("tokens of ") for name in found] == list(module.taps)
    for x, (logits, _), count in zip(found.values(), levels, selects, strict=True):
        sure = np.asarray(jax.nn.softmax(logits)).max(-1)
        for mask, row in zip(np.asarray(x).reshape(3, -1), sure, strict=True):
            assert mask.sum() == count and set(np.unique(mask)) <= {0, 1}
            assert row[mask == 1].min() >= row[mask == 0].max(initial=0)
    assert [x.shape[1:] for x in found.values()] == [(16, 16), (8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize("axis", ["height", "width"])
def test_fbsd_hides_the_strip_it_shows_as_strongest(images, axis):
    module = make("fbsd", hidden=8, width=16, strip_axis=axis, beta=0.5)

    @jax.jit
    def run(images):
        maps = {}

        def keep(name, x):
            maps[name] = x
            return x

        module.forward(images, keep)
        return module.evidence(images), maps

    found, maps = run(images)
    for name, strips in zip(module.taps, module.strips, strict=True):
        shares = np.asarray(found[f"strips of {name}"])
        count = strips.count
        assert shares.shape == ((3, count, 1) if axis == "height" else (3, 1, count))
        np.testing.assert_allclose(
            shares.max((1, 2)), 1, rtol=1e-6
        )  # a quotient of equal sums, rounded
        assert shares.min() > 0
        _, hidden = strips(maps[name])
        kept = np.where(shares > 1 - 1e-6, 0.5, 1)  # several, where they tie
        kept = jax.image.resize(kept, maps[name].shape[:3], "nearest")[..., None]
        np.testing.assert_allclose(hidden, maps[name] * kept, rtol=1e-6)
    assert np.ptp(np.asarray(found[f"strips of {module.taps[0]}"])) > 0.01


@pytest.fixture(scope="module")
def plain():
    return make("baseline")


def test_methods_that_pick_out_nothing(plain, images):
    assert plain.evidence(images) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        jnp.zeros((contract.BATCH, 2, 4)) + 2,  # above 1
        jnp.zeros((contract.BATCH, 2, 3), jnp.int32),  # no boxes
        jnp.zeros((5, 2, 4), jnp.int32),  # not of every image
        jnp.zeros((contract.BATCH, 8, 8, 1)),
    ],
)
def test_evidence_that_cannot_be_drawn_is_refused(plain, wrong, monkeypatch):
    monkeypatch.setattr(baseline.Method, "evidence", lambda self, images: {"odd": wrong})
    made = contract.made_batch(baseline.Method, SIZE)
    with pytest.raises(UserError, match=r"evidence 'odd' is .*; it must be boxes"):
        contract._evidence(plain, made, "method 'baseline'")


def test_pictures_of_boxes_and_of_maps():
    image = np.full((64, 64, 3), 100, np.uint8)
    boxes = {"one": np.array([[16, 0, 31, 15]], np.int32), "two": np.array([[40, 40, 80, 80]])}
    (picture, _, note), (dark, title, _) = draw.evidence(
        image, {**boxes, "strip": np.array([[0.0], [1.0]], np.float32)}
    )
    assert picture.shape == (256, 256, 3) and note == "one: white, two: orange"
    white = np.argwhere((picture == 255).all(-1))
    assert white.min(0).tolist() == [65, 1] and white.max(0).tolist() == [126, 62]
    assert (picture[253:255, 200] != 100).all(-1).any()  # what reaches beyond ends at the border
    assert title == "strip" and dark[:32].max() == 20 and dark[32:].min() == 100
