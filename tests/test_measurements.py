"""Measures of masks against closed forms: boxes and ellipsoids in grids of any orientation."""

import numpy as np
import pytest
import SimpleITK as sitk

from src.measurements import DIAMETERS, MEASURES, diameters_mm, measure_gland
from tests.volumes import STORAGE_ORDERS, image_of, stored_in_order

SPACING_MM = (0.5, 0.8, 3.0)


def turned(degrees_x=0.0, degrees_y=0.0, degrees_z=0.0):
    """Direction cosines: columns are where the image axes go."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((degrees_x, degrees_y, degrees_z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        around = np.eye(3)
        first, second = [(1, 2), (2, 0), (0, 1)][axis]
        around[[first, second], [first, second]] = c
        around[first, second], around[second, first] = -s, s
        matrix = around @ matrix
    return matrix


OBLIQUE = turned(25, -10, 35)


def box(direction=None):
    """A mask of 12 x 10 x 6 voxels: 6 x 8 x 18 mm."""
    voxels = np.zeros((9, 14, 20), bool)
    voxels[2:8, 3:13, 5:17] = True
    return image_of(voxels, SPACING_MM, direction=direction)


def test_a_box_along_the_patient():
    measures = measure_gland(box())
    assert tuple(measures) == MEASURES
    assert [measures[key] for key in DIAMETERS] == pytest.approx([6, 8, 18])
    assert measures["prostate_ml"] == pytest.approx(0.864)
    assert measures["ellipsoid_ml"] == pytest.approx(np.pi / 6 * 0.864)
    assert measures["mean_probability"] is None


@pytest.mark.parametrize("direction", [OBLIQUE, turned(0, 0, 45), turned(90, 0, 0)])
def test_a_turned_box(direction):
    """The corners of a cuboid of sides a, b, c lie (|a_x| + |b_x| + |c_x|) / 2 from its centre."""
    expected = np.abs(direction) @ [6, 8, 18]
    np.testing.assert_allclose(diameters_mm(box(direction)), expected, rtol=1e-12)


def test_one_voxel():
    voxels = np.zeros((3, 3, 3), bool)
    voxels[0, 2, 1] = True
    mask = image_of(voxels, SPACING_MM, direction=OBLIQUE)
    np.testing.assert_allclose(diameters_mm(mask), np.abs(OBLIQUE) @ SPACING_MM, rtol=1e-12)


@pytest.mark.parametrize("direction", [None, OBLIQUE])
def test_the_order_in_storage_changes_nothing(direction):
    mask = box(direction)
    expected = measure_gland(mask)
    for axes, signs in STORAGE_ORDERS:
        assert measure_gland(stored_in_order(mask, axes, signs)) == pytest.approx(expected)


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE, turned(8, 4, -3)])
def test_an_ellipsoid_in_a_turned_grid(direction):
    """Half axes of 22, 16 and 19 mm along the patient; the grid is turned, the ellipsoid is not."""
    half_mm, spacing_mm = np.array([22, 16, 19]), np.array([0.5, 0.5, 1.0])
    size = np.array([140, 140, 70])
    origin = -direction @ (spacing_mm * (size - 1) / 2)
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    place = origin + (index * spacing_mm) @ direction.T
    inside = ((place / half_mm) ** 2).sum(-1) <= 1
    mask = image_of(inside.T, tuple(spacing_mm), tuple(origin), direction)
    measures = measure_gland(mask)
    volume_ml = 4 / 3 * np.pi * 22 * 16 * 19 / 1000
    assert measures["prostate_ml"] == pytest.approx(volume_ml, rel=5e-3)
    # Voxels whose centres are inside: their corners reach at most one voxel's extent beyond it.
    voxel_mm = np.abs(direction) @ spacing_mm
    excess_mm = np.array([measures[key] for key in DIAMETERS]) - 2 * half_mm
    assert (excess_mm > -0.5 * voxel_mm).all() and (excess_mm <= voxel_mm).all()
    product = np.prod([measures[key] for key in DIAMETERS])
    assert measures["ellipsoid_ml"] == pytest.approx(np.pi / 6 * product / 1000)


def test_an_empty_mask():
    empty = image_of(np.zeros((4, 5, 6), bool), SPACING_MM, direction=OBLIQUE)
    probability = image_of(np.full((4, 5, 6), 0.25, np.float32))
    measures = measure_gland(empty, probability)
    assert measures == {**dict.fromkeys(MEASURES, 0.0), "mean_probability": None}


def test_the_mean_probability_is_that_of_the_mask_only():
    mask = box()
    values = np.full(mask.GetSize()[::-1], 0.125, np.float32)
    inside = sitk.GetArrayFromImage(mask) == 1
    values[inside] = 0.75
    values[2, 3, 5] = 1.0  # one of the 720 voxels inside
    found = measure_gland(mask, image_of(values))["mean_probability"]
    assert found == pytest.approx((719 * 0.75 + 1) / 720)


@pytest.mark.parametrize(
    ("mask", "probability", "words"),
    [
        (image_of(np.full((3, 4, 5), 2, np.uint8)), None, r"values \[2\]"),
        (image_of(np.ones((3, 4, 5), bool)), image_of(np.ones((3, 4, 6), np.float32)), "size"),
    ],
)
def test_what_is_no_mask_or_does_not_fit(mask, probability, words):
    with pytest.raises(ValueError, match=words):
        measure_gland(mask, probability)
