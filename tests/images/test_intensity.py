"""Equalization; test_data_manager.py has its histogram, test_dataset.py the z-score."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from src.images import intensity
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


# The field on blocks of voxels ------------------------------------------------------------------

SHAPES_AND_SPACINGS = [
    ((20, 60, 70), (0.5, 1.3, 3)),
    ((5, 9, 40), (2, 4, 9)),
    ((1, 3, 2), (0.3, 0.5, 30)),
    ((33, 21, 18), (2.2, 0.7, 1.6)),
    ((4, 90, 11), (0.27, 0.3, 100)),
]


@pytest.mark.parametrize(("shape", "spacing_mm"), SHAPES_AND_SPACINGS)
def test_the_mean_of_blocks_is_the_gaussian_mean(shape, spacing_mm):
    """Mean and variance are the Gaussian's, of 20 mm; what differs is of the fourth order."""
    array = np.random.default_rng(0).random(shape, np.float32)
    array += np.linspace(0, 5, shape[2], dtype=np.float32)
    sigmas = [20 / size_mm for size_mm in spacing_mm[::-1]]
    exact = ndimage.gaussian_filter(array.astype(float), sigmas, mode="nearest", truncate=8)
    found = intensity._gaussian_mean(array, spacing_mm)
    block_mm = max(2.5, *(size_mm for size_mm in spacing_mm if size_mm < 20))
    np.testing.assert_allclose(found, exact, atol=np.ptp(array) * (block_mm / 20) ** 4 / 4)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40, 41])
@pytest.mark.parametrize("spacing_mm", [0.27, 0.5, 1.1, 2, 2.1, 5, 100])
def test_blocks_share_out_every_voxel_and_are_symmetric(count, spacing_mm):
    means, weights = intensity._gaussian_factors(count, spacing_mm)
    blocks = len(means) - 2
    assert count / blocks * spacing_mm <= max(2.5, spacing_mm)
    np.testing.assert_allclose(means[1:-1].sum(0), blocks / count, rtol=1e-5)
    np.testing.assert_allclose(means.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    for matrix in (means, weights):
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-5)


def recursively_equalized(image):
    """As it was, with ITK's recursive filter on the image's own grid and a search of each voxel."""

    def gaussian_mean(array):
        own = sitk.GetImageFromArray(array.astype(np.float32))
        own.SetSpacing(image.GetSpacing())
        padded = sitk.ZeroFluxNeumannPad(own, [4] * 3, [4] * 3)
        smooth = sitk.SmoothingRecursiveGaussian(padded, 20.0)
        return sitk.GetArrayFromImage(sitk.Crop(smooth, [4] * 3, [4] * 3))

    values = sitk.GetArrayFromImage(image).astype(float)
    tissue = values > values.min()
    logarithm = np.where(tissue, np.log((values - values.min()) / np.ptp(values) + 0.01), 0)
    contrast = (logarithm - gaussian_mean(logarithm) / gaussian_mean(tissue))[tissue]
    shares = np.linspace(0, 1, 1025)
    equalized = np.zeros(values.shape)
    equalized[tissue] = np.interp(contrast, np.quantile(contrast, shares), shares)
    return equalized


def test_networks_that_were_trained_with_the_recursive_filter_see_the_same(make_image):
    rng = np.random.default_rng(0)
    anatomy = ndimage.gaussian_filter(rng.normal(size=(12, 128, 120)), (1, 3, 3))
    values = np.exp(anatomy / anatomy.std() / 3 - np.arange(120) / 40)
    values[:, :9] = 0  # padding
    image = make_image(values.astype(np.float32), (0.5, 0.6, 3))
    old, new = recursively_equalized(image), sitk.GetArrayFromImage(equalize(image))
    assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.9999
    assert np.abs(old - new).mean() < 2e-3


def test_the_table_gives_the_share_of_the_quantiles():
    """An outlier makes the table's steps wide; half a step holds few voxels nonetheless."""
    contrast = np.random.default_rng(0).normal(0, 0.3, 50_000).astype(np.float32)
    contrast[7] = 9
    shares = np.linspace(0, 1, 1025)
    expected = np.interp(contrast, np.quantile(contrast, shares), shares)
    density = 1 / 0.3 / np.sqrt(2 * np.pi)
    half_step = np.ptp(contrast) / intensity.TABLE_STEPS / 2
    found = intensity._shares_below(contrast)
    np.testing.assert_allclose(found, expected, atol=2 * density * half_step + 1e-6)


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [1.0, 2.0], [1.0, 1.0, 1.0, 5.0]])
def test_shares_of_few_values(values):
    shares = np.linspace(0, 1, 1025)
    quantiles, first = np.unique(np.quantile(values, shares), return_index=True)
    expected = np.interp(values, quantiles, shares[first])
    found = intensity._shares_below(np.array(values, np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)
