"""The share of heat inside a box: files of boxes, boxes in the net's view, and the share by a plain loop."""

import numpy as np
import pytest

from fgvc_jax.data.cache import fit, place
from fgvc_jax.errors import UserError
from fgvc_jax.explain import inside
from fgvc_jax.images.augment import eval_view
from fgvc_jax.images.view import View


def test_cubs_list_and_a_table_give_the_same_boxes(tmp_path):
    (tmp_path / "images.txt").write_text("1 001.Albatross/a.jpg\n2 002.Auk/b.jpg\n")
    (tmp_path / "bounding_boxes.txt").write_text("1 60.0 27.0 325.0 304.0\n2 1 2 3 4\n")
    found = inside.read_boxes(tmp_path / "bounding_boxes.txt")
    table = tmp_path / "boxes.csv"
    table.write_text(
        "file,x,y,width,height\n001.Albatross/a.jpg,60,27,325,304\n002.Auk/b.jpg,1,2,3,4\n"
    )
    assert found == inside.read_boxes(table)
    assert inside.box_for(found, "/data/images/001.Albatross/a.jpg") == (60, 27, 325, 304)
    assert inside.box_for(found, "/data/images/003.Albatross/a.jpg") is None
    found["images/001.Albatross/a.jpg"] = (0, 0, 1, 1)  # the longest tail is meant
    assert inside.box_for(found, "/data/images/001.Albatross/a.jpg") == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x,y,w,h\n", "the header must be file,x,y,width,height"),
        ("file,x,y,width,height\na.jpg,1,2,3\n", "line 2: 4 entries"),
        ("file,x,y,width,height\na.jpg,1,2,3,x\n", "line 2: '1 2 3 x' is not 4 numbers"),
        ("file,x,y,width,height\na.jpg,1,2,3,0\n", "line 2: .*no box of a width"),
        ("file,x,y,width,height\n", "has no boxes"),
        ("1 2 3 4 5\n", "no images.txt beside it"),
    ],
)
def test_a_bad_file_of_boxes_is_named(tmp_path, text, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        inside.read_boxes(tmp_path / "boxes.csv")


@pytest.mark.parametrize("squash", [(), (40, 40)])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (120, 50), (30, 31)])
def test_a_box_lies_where_its_pixels_are_seen(height, width, squash):
    """A white rectangle in a black image, through the net's own preprocessing."""
    view = View(32, 40, (0.0,) * 3, (1.0,) * 3, squash=squash)
    x, y, w, h = width // 5, height // 4, width // 2, height // 3
    image = np.zeros((height, width, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    canvas, fitted = np.zeros((80, 80, 3), np.uint8), fit(image, 80)
    place(fitted, canvas)
    size = np.array(fitted.shape[:2], np.int32)
    seen = np.asarray(eval_view(canvas, size, view))[..., 0] > 0.5
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    box = inside.in_view((x, y, w, h), height, width, 80, view)
    found = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    np.testing.assert_allclose(box, found, atol=1)  # an edge lies within a pixel


def test_the_share_by_a_plain_loop():
    heat = np.random.default_rng(0).random((6, 6)).astype(np.float32)
    box = (1.25, 0.0, 4.0, 3.5)
    fine = np.kron(heat, np.ones((4, 4)))[5:16, 0:14]  # quarters of pixels
    share, chance = inside.share(heat, box)
    assert share == pytest.approx(fine.sum() / 16 / heat.sum(), rel=1e-6)  # heat is float32
    assert chance == pytest.approx(2.75 * 3.5 / 36, rel=1e-12)
    assert inside.share(heat, (0, 0, 6, 6)) == pytest.approx((1, 1))
    assert np.isnan(inside.share(np.zeros((6, 6)), box)[0])
