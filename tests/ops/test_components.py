"""The largest component and its box against scikit-image, and on masks that are known by hand."""

import jax
import numpy as np
import pytest

from fgvc_jax.ops.components import bounding_box, largest_component

measure = pytest.importorskip("skimage.measure", reason="the reference is scikit-image")

largest = jax.jit(jax.vmap(largest_component))
box_of = jax.jit(jax.vmap(bounding_box))


def serpentine(side: int) -> np.ndarray:
    """One path through the whole mask: as many rounds as a mask of this size can take."""
    mask = np.zeros((side, side), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def theirs(mask):
    """(largest component, its box) by scikit-image, the first of several."""
    labels = measure.label(mask, connectivity=2)
    regions = measure.regionprops(labels)
    if not regions:
        return np.zeros_like(mask), (0, 0, *mask.shape)
    areas = [region.area for region in regions]
    best = regions[areas.index(max(areas))]
    return labels == best.label, best.bbox


def test_equals_scikit_image_on_random_masks_and_a_serpentine():
    rng = np.random.default_rng(0)
    shares = rng.uniform(
        0.05, 0.75, (1200, 1, 1)
    )  # few cells and many: 0.3 to 0.4 has the longest paths
    masks = [*(rng.uniform(size=(1200, 14, 14)) < shares), serpentine(14), serpentine(14).T]
    masks = np.stack([*masks, np.zeros((14, 14), bool), np.ones((14, 14), bool)])
    found = np.asarray(largest(masks))
    boxes = np.asarray(box_of(found))
    ties = 0
    for mask, component, box in zip(masks, found, boxes, strict=True):
        expected, corners = theirs(mask)
        np.testing.assert_array_equal(component, expected)
        assert tuple(box) == corners
        areas = [region.area for region in measure.regionprops(measure.label(mask, connectivity=2))]
        ties += areas.count(max(areas, default=0)) > 1
    assert ties > 20  # that "the first of several" was asked
    assert found[1200].sum() == serpentine(14).sum() > 100


def test_corners_connect_and_equal_parts_go_to_the_first():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], bool)
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = expected[1, 1] = True  # of three parts with 2, 1 and 2 cells
    np.testing.assert_array_equal(largest_component(mask), expected)


def test_a_map_that_is_no_square():
    mask = np.zeros((3, 7), bool)
    mask[1, 2:6] = mask[0, 0] = True
    np.testing.assert_array_equal(bounding_box(largest_component(mask)), [1, 2, 2, 6])
    np.testing.assert_array_equal(bounding_box(np.zeros((3, 7), bool)), [0, 0, 3, 7])
