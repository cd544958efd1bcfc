"""Axes as they point in the patient, for every order in which a file may store them."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from src.images.orientation import (
    acquisition_plane,
    nearest_patient_axes,
    patient_direction,
    to_patient_order,
)
from tests.volumes import STORAGE_ORDERS, stored_in_order

SHAPE = (3, 4, 5)  # z, y, x


def volume(make_image, direction, spacing_mm=(1.0, 1.1, 3.0)):
    values = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    return make_image(values, spacing_mm, direction=direction)


def tilts():
    """Rotations by up to 30 degrees, under which each axis stays nearest to its own."""
    angles = np.random.default_rng(0).uniform(-30, 30, (4, 3))
    angles[:, 1:] /= 3
    return [np.eye(3), *Rotation.from_euler("xyz", angles, degrees=True).as_matrix()]


@pytest.mark.parametrize("direction", tilts())
def test_all_48_orders_come_back_to_the_patients(make_image, direction):
    image = volume(make_image, direction)
    expected = to_patient_order(np.arange(60).reshape(SHAPE).T, image)
    seen = set()
    for axes, signs in STORAGE_ORDERS:
        stored = stored_in_order(image, axes, signs)
        np.testing.assert_allclose(patient_direction(stored), direction, atol=1e-12)
        back_axes, back_signs = nearest_patient_axes(stored)
        assert [axes[axis] for axis in back_axes] == [0, 1, 2]
        assert [signs[axis] for axis in back_axes] == back_signs
        values = sitk.GetArrayFromImage(stored).T
        np.testing.assert_array_equal(to_patient_order(values, stored), expected)
        seen.add(tuple(np.round(stored.GetDirection(), 6)))
    assert len(seen) == 48


def test_the_patients_order_is_left_as_it_is(make_image, oblique):
    """Bit for bit, since results on PROMISE12 must not move."""
    for direction in (np.eye(3), oblique):
        image = volume(make_image, direction)
        assert nearest_patient_axes(image) == ([0, 1, 2], [1, 1, 1])
        np.testing.assert_array_equal(patient_direction(image), direction)


@pytest.mark.parametrize("degrees", [(45, 0, 0), (0, 45, 0), (0, 0, 45), (45, 0, 45), (0, 0, 135)])
def test_half_way_between_two_axes_the_order_of_storage_still_plays_no_part(make_image, degrees):
    direction = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    image = volume(make_image, direction)
    expected = patient_direction(image)
    for axes, signs in STORAGE_ORDERS:
        found = patient_direction(stored_in_order(image, axes, signs))
        np.testing.assert_allclose(found, expected, atol=1e-12)


# ITK's letters name the side that an axis runs from, nibabel's and dcm2niix's the one it runs to:
# here the latter, with the direction matrix written out (columns: image axes in LPS).
NAMED = [
    ("LPS", np.eye(3), [0, 1, 2], [1, 1, 1]),
    ("RAS", np.diag([-1, -1, 1]), [0, 1, 2], [-1, -1, 1]),
    ("LAS", np.diag([1, -1, 1]), [0, 1, 2], [1, -1, 1]),
    ("sagittal, PSL", [[0, 0, 1], [1, 0, 0], [0, 1, 0]], [2, 0, 1], [1, 1, 1]),
    ("sagittal, PIR", [[0, 0, -1], [1, 0, 0], [0, -1, 0]], [2, 0, 1], [-1, 1, -1]),
    ("coronal, LIP", [[1, 0, 0], [0, 0, 1], [0, -1, 0]], [0, 2, 1], [1, 1, -1]),
]


@pytest.mark.parametrize("name, direction, axes, signs", NAMED)
def test_orders_by_name(make_image, name, direction, axes, signs):
    image = volume(make_image, np.array(direction, float))
    assert nearest_patient_axes(image) == (axes, signs)


@pytest.mark.parametrize(
    "spacing_mm, plane",
    [
        ((0.5, 0.5, 3.0), "axial"),
        ((0.5, 3.0, 0.5), "coronal"),
        ((3.0, 0.5, 0.5), "sagittal"),
        ((1.0, 1.0, 1.0), None),
        ((0.9, 1.0, 1.1), None),
        ((0.8, 0.8, 1.0), "axial"),
        ((1.0, 1.0, 1.19), None),
        ((1.0, 1.0, 1.21), "axial"),
    ],
)
def test_the_plane_is_that_of_the_coarsest_axis_however_stored(
    make_image, oblique, spacing_mm, plane
):
    image = volume(make_image, oblique, spacing_mm)
    for axes, signs in STORAGE_ORDERS[::7]:  # each axis comes first, second and third
        assert acquisition_plane(stored_in_order(image, axes, signs)) == plane
