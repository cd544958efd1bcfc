"""Equalization; test_data_manager.py has its histogram, test_dataset.py the z-score."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from src.images.intensity import equalize
from tests.volumes import geometry_of


def test_an_equalized_image_has_lost_its_coils_field(make_image):
    rng = np.random.default_rng(0)
    anatomy = ndimage.gaussian_filter(rng.normal(size=(16, 64, 64)), 2)
    anatomy = np.exp(anatomy / anatomy.std() / 3)
    field = np.exp(-np.arange(64) / 28)[:, None]  # falls to a tenth over 64 mm
    plain, coil = (equalize(make_image(v.astype("f4"))) for v in (anatomy, anatomy * field))
    plain, coil = (sitk.GetArrayFromImage(image) for image in (plain, coil))
    assert np.corrcoef(plain.ravel(), coil.ravel())[0, 1] > 0.9
    assert np.corrcoef(anatomy.ravel(), (anatomy * field).ravel())[0, 1] < 0.6


@pytest.mark.parametrize("shape", [(8, 16, 20), (1, 16, 20), (2, 3, 20)])
def test_an_equalized_image_keeps_padding_and_geometry(make_image, oblique, shape):
    values = np.random.default_rng(0).uniform(7, 300, shape).astype(np.float32)
    values[..., 10:] = -1
    image = make_image(values, (0.5, 0.6, 3), direction=oblique)
    found = equalize(image)
    assert geometry_of(found) == geometry_of(image)
    array = sitk.GetArrayFromImage(found)
    assert not array[..., 10:].any() and array.max() == 1
    assert array[..., :10].mean() == pytest.approx(0.5, abs=0.01)  # shares of those alone
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)  # the user's stays


@pytest.mark.parametrize("padding", [((0, 0), (0, 0), (9, 20)), ((1, 0), (0, 0), (0, 0))])
def test_padding_hardly_changes_the_equalized_tissue(make_image, padding):
    values = 100 + np.random.default_rng(0).gamma(9, 30, (12, 40, 40)).astype(np.float32)
    spacing_mm = (1, 1, 3)
    plain = equalize(make_image(values, spacing_mm))
    padded = equalize(make_image(np.pad(values, padding), spacing_mm))
    tissue = sitk.GetArrayFromImage(padded)[np.pad(values, padding) > 0]
    difference = np.abs(tissue - sitk.GetArrayFromImage(plain).ravel())
    assert difference.mean() < 0.01


def test_equalizing_forgets_the_scanners_scale(make_image):
    values = np.random.default_rng(0).gamma(2, 100, (16, 32, 48)).astype(np.float32)
    first, second = (
        sitk.GetArrayFromImage(equalize(make_image(array))) for array in (values, 3 * values - 500)
    )
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_an_image_of_one_value_equalizes_to_zeros(make_image):
    image = make_image(np.full((4, 5, 6), 3, np.float32))
    assert not sitk.GetArrayFromImage(equalize(image)).any()
