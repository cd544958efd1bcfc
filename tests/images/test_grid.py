"""One rule for two images on the same voxels."""

import numpy as np
import pytest

from src.images.grid import check_same_grid, grid_difference
from src.utils.errors import DataError

ARRAY = np.zeros((3, 4, 5), np.uint8)
SPACING_MM = (0.5, 1, 2)


@pytest.mark.parametrize(
    ("array", "geometry", "words"),
    [
        (ARRAY[1:], {}, ["size (5, 4, 2)", "expected (5, 4, 3)"]),
        (ARRAY, {"origin": (0, 2.5, 0)}, ["2.50 mm", "origin (0.0, 2.5, 0.0)"]),
        # The last of five voxels lies 4 * 0.1 mm away.
        (ARRAY, {"spacing_mm": (0.6, 1, 2)}, ["0.40 mm", "spacing (0.6, 1.0, 2.0)"]),
        (ARRAY, {"direction": np.diag([1, 1, -1])}, ["8.00 mm", "direction", "-1.0"]),
    ],
)
def test_a_difference_names_what_differs(make_image, array, geometry, words):
    image = make_image(ARRAY, SPACING_MM, (0, 0, 0))
    other = make_image(array, **{"spacing_mm": SPACING_MM, "origin": (0, 0, 0), **geometry})
    difference = grid_difference(image, other)
    assert all(word in difference for word in words)
    names = {"size", "spacing", "origin", "direction"}
    assert len([name for name in names if name in difference]) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_twentieth_of_the_smallest_side_of_a_voxel_is_no_difference(make_image, axis):
    image = make_image(ARRAY, SPACING_MM, (0, 0, 0))
    near, far = np.zeros((2, 3))
    near[axis], far[axis] = 0.0249, 0.0251
    check_same_grid(image, "a.mhd", make_image(ARRAY, SPACING_MM, near), "b.mhd")
    with pytest.raises(DataError, match="b.mhd: not on the grid of its image a.mhd.*origin"):
        check_same_grid(image, "a.mhd", make_image(ARRAY, SPACING_MM, far), "b.mhd")


def test_a_turn_counts_by_how_far_it_moves_the_corners(make_image):
    """Direction cosines of four digits are well within the rule here, in a wide image not."""
    angle = 2e-4
    turned = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    for columns, same in ((5, True), (500, False)):
        array = np.zeros((3, 4, columns), np.uint8)
        image = make_image(array, (1, 1, 1), (0, 0, 0))
        other = make_image(array, (1, 1, 1), (0, 0, 0), turned)
        assert (grid_difference(image, other) == "") == same


def test_the_rounding_of_a_nifti_header_is_no_difference(make_image, oblique):
    array = np.zeros((30, 4, 512), np.uint8)
    image = make_image(array, (0.35, 0.35, 3.3), (-123.456789, 98.7654321, 45.678), oblique)
    rounded = [np.float32(value) for value in (0.35, 0.35, 3.3)]
    other = make_image(
        array,
        [float(value) for value in rounded],
        [float(np.float32(value)) for value in image.GetOrigin()],
        np.float32(oblique).astype(float),
    )
    assert grid_difference(image, other) == ""
